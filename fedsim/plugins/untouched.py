"""Finds code of fedsim, its algorithms or its baselines that somebody replaced in this process.

Every loaded module is compared with its source. A function must have the code that Python compiles
from the source, and so must the functions of a class. A name that is imported from another shipped
module must be the same object that this module holds. So a function is found that a notebook
assigned to a module or a class. Constants, the defaults of arguments and the contents of installed
packages are not compared.
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

from fedsim.plugins.code_hash import INSTALLED, SHIPPED, below_shipped, is_shipped

_PACKAGES = tuple(folder.name for folder in SHIPPED)
_FROM_IMPORT = re.compile(r"^from\s+([\w.]+)\s+import\s+(\([^)]*\)|[^\n(]+)", re.MULTILINE)
_NAME_AND_ALIAS = re.compile(r"(\w+)(?:\s+as\s+(\w+))?")
_COMMENT = re.compile(r"#[^\n]*")


@dataclass(frozen=True)
class _Source:
    """What the source of a module defines.

    Attributes:
        spec: the spec of the import that ran the source; a reload gives another one.
        codes: the code objects of functions and class bodies by qualified name. A name that is
            defined several times has several.
        imported: for each name that is imported from a shipped module, that module and the name
            there.
    """

    spec: ModuleSpec
    codes: dict[str, list[CodeType]]
    imported: dict[str, tuple[str, str]]


@dataclass(frozen=True)
class _Snapshot:
    """The content of a module when it was last compared with its source and found equal.

    Attributes:
        owners: the module and its classes, each with its values by name.
        functions: all functions within these values, each with its code.
    """

    owners: list[tuple[ModuleType | type, dict[str, Any]]]
    functions: list[tuple[FunctionType, CodeType]]

    def is_held_by(self, module: ModuleType) -> bool:
        """Return whether module and classes hold these values and the functions have this code."""
        if self.owners[0][0] is not module:
            return False
        try:
            holds_values = all(vars(owner) == values for owner, values in self.owners)
        except Exception:
            # Some values, such as arrays, raise an error when dictionaries compare them.
            return False
        return holds_values and all(function.__code__ is code for function, code in self.functions)


_sources: dict[str, _Source] = {}
_snapshots: dict[str, _Snapshot] = {}


def is_untouched(cls: type) -> bool:
    """Return whether a shipped class and all loaded shipped code are as their source says."""
    if replaced() is not None:
        return False
    # Every shipped base must be the class that its module holds under its name.
    shipped = filter(is_shipped, cls.__mro__)
    return all(
        getattr(sys.modules[base.__module__], base.__qualname__, None) is base for base in shipped
    )


def replaced() -> str | None:
    """Return the name of a function or class of shipped code that somebody replaced, or None.

    Every call looks at all loaded modules. A module that holds the same values as in its snapshot
    is not compared with its source again.
    """
    for name, module in list(sys.modules.items()):
        if not name.startswith(_PACKAGES) or not _is_below_shipped(_file_of(module)):
            continue
        if name in _snapshots and _snapshots[name].is_held_by(module):
            continue
        replaced_name = next(_replaced_in(module), None)
        if replaced_name is not None:
            return f"{name}.{replaced_name}"
        _snapshots[name] = _snapshot_of(module)
    return None


def _file_of(module: ModuleType) -> str:
    return getattr(module, "__file__", None) or ""


@cache
def _is_below_shipped(file: str) -> bool:
    return below_shipped(Path(file).resolve())


@cache
def _is_installed(file: str) -> bool:
    """Return whether a file of code is Python's own or an installed package's."""
    if file.startswith("<frozen "):
        return True
    path = Path(file)
    standard_library = sysconfig.get_path("stdlib")
    return path.is_relative_to(standard_library) or not INSTALLED.isdisjoint(path.parts)


def _source_of(module: ModuleType) -> _Source:
    """Return what the source of a module defines; it is read once per import."""
    spec = module.__spec__
    assert spec is not None
    name = module.__name__
    source = _sources.get(name)
    if source is None or source.spec is not spec:
        loader: Any = spec.loader
        codes: dict[str, list[CodeType]] = {}
        _collect(loader.get_code(name), codes)
        text = Path(_file_of(module)).read_text("utf-8")
        source = _Source(spec, codes, _imports_of(text))
        _sources[name] = source
    return source


def _collect(
    code: CodeType,
    codes: dict[str, list[CodeType]],
) -> None:
    """Add the code objects within a code object to ``codes``, by qualified name, at every depth."""
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            codes.setdefault(inner.co_qualname, []).append(inner)
            _collect(inner, codes)


def _imports_of(text: str) -> dict[str, tuple[str, str]]:
    """Return the names that a source text imports from shipped modules at its top level.

    Each name is returned with the module that it comes from and with its name there.
    """
    imported: dict[str, tuple[str, str]] = {}
    for origin, names in _FROM_IMPORT.findall(text):
        package, _, _ = origin.partition(".")
        if package not in _PACKAGES:
            continue
        names_alone = _COMMENT.sub("", names)
        for name, alias in _NAME_AND_ALIAS.findall(names_alone):
            imported[alias or name] = (origin, name)
    return imported


def _replaced_in(module: ModuleType) -> Iterator[str]:
    """Yield the names in a module whose values are not what its source defines."""
    try:
        source = _source_of(module)
    except (AssertionError, AttributeError, ImportError, OSError, SyntaxError):
        # Without a source nothing is known of what the module should hold.
        yield "__file__"
        return
    for name, value in list(vars(module).items()):
        if name in source.imported:
            origin, original = source.imported[name]
            expected = getattr(
                sys.modules.get(origin),
                original,
                None,
            )
            is_code = callable(value) or callable(expected)
            if is_code and value is not expected:
                yield name
        elif name in source.codes:
            if not _is_defined(value, name, module):
                yield name
        elif not all(map(_is_known, _functions_of(value))):
            yield name


def _is_defined(value: Any, qualname: str, module: ModuleType) -> bool:
    """Return whether a value is what the module's source defines under a qualified name."""
    if isinstance(value, type):
        if (value.__module__, value.__qualname__) != (module.__name__, qualname):
            return False
        return all(
            _is_attribute(attribute, f"{qualname}.{name}", value, module)
            for name, attribute in list(vars(value).items())
        )
    codes = _source_of(module).codes[qualname]
    # No shipped module wraps what it defines in a partial, so a partial replaced the definition.
    if isinstance(value, functools.partial):
        return False
    return any(function.__code__ in codes for function in _functions_of(value))


def _is_attribute(
    value: Any,
    qualname: str,
    cls: type,
    module: ModuleType,
) -> bool:
    """Return whether a value is what the source defines as an attribute of a class.

    Methods that dataclasses, named tuples, pydantic or Python generate for the class count, too.
    """
    if qualname in _source_of(module).codes:
        return _is_defined(value, qualname, module)
    # A generated method has no file, and runs in the namespace of one of these modules.
    namespaces = (module.__name__, f"namedtuple_{cls.__name__}")
    return all(
        _is_known(function)
        or (function.__code__.co_filename == "<string>" and _module_name(function) in namespaces)
        for function in _functions_of(value)
    )


def _module_name(function: FunctionType) -> str:
    """Return the name of the module in whose namespace a function runs."""
    return str(function.__globals__.get("__name__", ""))


def _is_known(function: FunctionType) -> bool:
    """Return whether a function is Python's, an installed package's, or as shipped."""
    code = function.__code__
    if _is_installed(code.co_filename):
        return True
    module = sys.modules.get(_module_name(function))
    if module is None or not _is_below_shipped(_file_of(module)):
        return False
    codes = _source_of(module).codes.get(code.co_qualname, ())
    return function.__globals__ is vars(module) and code in codes


def _functions_of(value: Any) -> list[FunctionType]:
    """Return the functions within a value.

    They are the value itself, the functions of a property, and those that a static method, a class
    method, a cache, a partial or a decorator wraps. A function whose own code is not known is
    returned alone, because it may say that it wraps any other function.
    """
    if isinstance(value, property):
        accessors = (value.fget, value.fset, value.fdel)
        return [function for accessor in accessors for function in _functions_of(accessor)]
    if isinstance(value, staticmethod | classmethod):
        return _functions_of(value.__func__)
    if isinstance(value, functools.cached_property | functools.partial):
        return _functions_of(value.func)
    if isinstance(value, functools._lru_cache_wrapper):
        return _functions_of(value.__wrapped__)
    if not isinstance(value, FunctionType):
        return []
    wrapped = getattr(value, "__wrapped__", None)
    if wrapped is None or not _is_known(value):
        return [value]
    return [value, *_functions_of(wrapped)]


def _snapshot_of(module: ModuleType) -> _Snapshot:
    """Return what a module holds now."""
    values = dict(vars(module))
    owners: list[tuple[ModuleType | type, dict[str, Any]]] = [(module, values)]
    owners += [(cls, dict(vars(cls))) for cls in _classes_of(values, module)]
    functions = []
    for _, held_values in owners:
        for value in held_values.values():
            functions += [(function, function.__code__) for function in _functions_of(value)]
    return _Snapshot(owners, functions)


def _classes_of(
    values: dict[str, Any],
    module: ModuleType,
) -> Iterator[type]:
    """Yield the classes of a module among some values, and the classes within them."""
    for value in values.values():
        if isinstance(value, type) and value.__module__ == module.__name__:
            yield value
            inner = dict(vars(value))
            inner.pop("__class__", None)
            yield from _classes_of(inner, module)
