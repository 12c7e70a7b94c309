"""Whether somebody replaced code of fedsim, its algorithms or its baselines in this process.

The functions and classes that a loaded module holds are compared with what its source defines: with
the code that Python compiled from it, and where a name is imported from another shipped module,
with what that module holds. So a function is found that a notebook assigned to a module or a class.
Constants are not compared, nor what an installed package holds.
"""

from __future__ import annotations

import functools
import re
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from fedsim.plugins.code_hash import INSTALLED, SHIPPED, is_shipped

_PACKAGES = tuple(folder.name for folder in SHIPPED)
_IMPORT = re.compile(r"^from\s+([\w.]+)\s+import\s+(\([^)]*\)|[^\n(]+)", re.MULTILINE)
_IMPORTED = re.compile(r"(\w+)(?:\s+as\s+(\w+))?")
_COMMENT = re.compile(r"#[^\n]*")


@dataclass(frozen=True)
class _Source:
    """What the source of a module defines.

    Attributes:
        spec: of the import that ran the source; a reload gives another.
        codes: the compiled functions and class bodies, by qualified name.
        imported: where the names come from that are imported from shipped modules: module and name.
    """

    spec: ModuleSpec
    codes: dict[str, list[CodeType]]
    imported: dict[str, tuple[str, str]]


@dataclass(frozen=True)
class _Snapshot:
    """What a module held when it was found to be as its source defines it."""

    module: dict[str, Any]
    classes: list[tuple[type, dict[str, Any]]]
    functions: list[tuple[FunctionType, CodeType]]

    def is_held_by(self, module: ModuleType) -> bool:
        """Whether the module and its classes still hold the same, with the same code."""
        try:
            return (
                vars(module) == self.module
                and all(vars(cls) == held for cls, held in self.classes)
                and all(function.__code__ is code for function, code in self.functions)
            )
        except Exception:  # values such as arrays cannot tell whether they are equal
            return False


_sources: dict[str, _Source] = {}
_snapshots: dict[str, _Snapshot] = {}


def is_untouched(cls: type) -> bool:
    """Whether a shipped class, and all shipped code that is loaded, is what its source defines."""
    return replaced() is None and all(
        getattr(sys.modules[base.__module__], base.__qualname__, None) is base
        for base in cls.__mro__
        if is_shipped(base)
    )


def replaced() -> str | None:
    """Return the name of a function or class of shipped code that somebody replaced, or None.

    Modules are compared anew at every call; one that holds the same as at the last call is not
    looked into again.
    """
    for name, module in list(sys.modules.items()):
        if not name.startswith(_PACKAGES) or not _is_below_shipped(_file_of(module)):
            continue
        snapshot = _snapshots.get(name)
        if snapshot is not None and snapshot.is_held_by(module):
            continue
        found = next(_replaced_in(module), None)
        if found is not None:
            return f"{name}.{found}"
        _snapshots[name] = _snapshot_of(module)
    return None


def _file_of(module: ModuleType) -> str:
    return getattr(module, "__file__", None) or ""


@cache
def _is_below_shipped(file: str) -> bool:
    return any(Path(file).resolve().is_relative_to(folder) for folder in SHIPPED)


@cache
def _is_installed(file: str) -> bool:
    """Whether a file of code is Python's own or an installed package's."""
    path = Path(file)
    is_of_python = path.is_relative_to(sysconfig.get_path("stdlib")) or file.startswith("<frozen ")
    return is_of_python or bool(INSTALLED & set(path.parts))


def _source_of(module: ModuleType) -> _Source:
    spec = module.__spec__
    assert spec is not None
    source = _sources.get(module.__name__)
    if source is None or source.spec is not spec:
        loader: Any = spec.loader
        codes: dict[str, list[CodeType]] = {}
        _collect(loader.get_code(module.__name__), codes)
        source = _Source(spec, codes, _imports_of(Path(_file_of(module)).read_text("utf-8")))
        _sources[module.__name__] = source
    return source


def _collect(code: CodeType, codes: dict[str, list[CodeType]]) -> None:
    """Add all code within a code object, by qualified name."""
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            codes.setdefault(inner.co_qualname, []).append(inner)
            _collect(inner, codes)


def _imports_of(text: str) -> dict[str, tuple[str, str]]:
    """The names that a text imports from shipped modules at its top level, and from where."""
    imported: dict[str, tuple[str, str]] = {}
    for origin, names in _IMPORT.findall(text):
        if origin.partition(".")[0] in _PACKAGES:
            for name, alias in _IMPORTED.findall(_COMMENT.sub("", names)):
                imported[alias or name] = (origin, name)
    return imported


def _replaced_in(module: ModuleType) -> Iterator[str]:
    """Yield the names of what a module holds in place of what its source defines."""
    try:
        source = _source_of(module)
    except (AssertionError, AttributeError, ImportError, OSError, SyntaxError):
        yield "__file__"  # nothing is known of what it should hold
        return
    for name, value in list(vars(module).items()):
        if name in source.imported:
            origin, original = source.imported[name]
            expected = getattr(sys.modules.get(origin), original, None)
            if value is not expected and (callable(value) or callable(expected)):
                yield name
        elif name in source.codes:
            if not _is_defined(value, name, module):
                yield name
        elif not all(map(_is_known, _functions_of(value))):
            yield name


def _is_defined(value: Any, qualname: str, module: ModuleType) -> bool:
    """Whether a value is what the module's source defines by a name that it defines."""
    if isinstance(value, type):
        return (value.__module__, value.__qualname__) == (module.__name__, qualname) and all(
            _is_attribute(attribute, f"{qualname}.{name}", value, module)
            for name, attribute in list(vars(value).items())
        )
    codes = _source_of(module).codes[qualname]
    if isinstance(value, functools.partial):  # no source makes one of what it defines
        return False
    return any(function.__code__ in codes for function in _functions_of(value))


def _is_attribute(value: Any, qualname: str, cls: type, module: ModuleType) -> bool:
    """Whether a value is what the source defines as an attribute of a class, or generated for it.

    Dataclasses and named tuples make methods of their own; pydantic and Python add theirs.
    """
    if qualname in _source_of(module).codes:
        return _is_defined(value, qualname, module)
    generated = ("<string>", module.__name__), ("<string>", f"namedtuple_{cls.__name__}")
    return all(
        (function.__code__.co_filename, function.__globals__.get("__name__")) in generated
        or _is_known(function)
        for function in _functions_of(value)
    )


def _is_known(function: FunctionType) -> bool:
    """Whether a function is Python's own, an installed package's, or as a shipped source has it."""
    if _is_installed(function.__code__.co_filename):
        return True
    module = sys.modules.get(function.__globals__.get("__name__", ""))
    if module is None or not _is_below_shipped(_file_of(module)):
        return False
    codes = _source_of(module).codes.get(function.__code__.co_qualname, ())
    return function.__globals__ is vars(module) and function.__code__ in codes


def _functions_of(value: Any) -> list[FunctionType]:
    """The functions within a value: its own, and those that decorators of known code wrap."""
    if isinstance(value, property):
        parts = (value.fget, value.fset, value.fdel)
        return [function for part in parts for function in _functions_of(part)]
    if isinstance(value, staticmethod | classmethod):
        return _functions_of(value.__func__)
    if isinstance(value, functools.cached_property | functools.partial):
        return _functions_of(value.func)
    if isinstance(value, functools._lru_cache_wrapper):
        return _functions_of(value.__wrapped__)
    if not isinstance(value, FunctionType):
        return []
    wrapped = getattr(value, "__wrapped__", None)
    if wrapped and _is_known(value):
        return [value, *_functions_of(wrapped)]
    return [value]


def _snapshot_of(module: ModuleType) -> _Snapshot:
    held = dict(vars(module))
    classes = [(cls, dict(vars(cls))) for cls in _classes_of(held, module)]
    values = [value for part in (held, *(own for _, own in classes)) for value in part.values()]
    functions = [function for value in values for function in _functions_of(value)]
    return _Snapshot(held, classes, [(function, function.__code__) for function in functions])


def _classes_of(held: dict[str, Any], module: ModuleType) -> Iterator[type]:
    """The classes of a module among some values, and the classes within them."""
    for value in held.values():
        if isinstance(value, type) and value.__module__ == module.__name__:
            yield value
            yield from _classes_of(
                {name: inner for name, inner in vars(value).items() if name != "__class__"}, module
            )
