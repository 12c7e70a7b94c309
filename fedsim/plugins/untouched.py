"""Finds code of fedsim, its algorithms or its baselines that somebody replaced in this process.

Every loaded module is compared with its source. A function must have the code that Python compiles
from the source, and so must the functions of a class. A name that is imported must be the same
object that the other module holds. A name that the source does not mention may only be one that
Python or a library gives to every module or class. So whatever a notebook assigned to a module or a
class in place of a function is found.

Not found are changes of what the source computes when it is imported: constants of modules and
classes, the contents of dictionaries and of other objects (also if these are functions), defaults
of arguments, and variables that a function closes over. To compare these, the module would have to
run a second time. The contents of installed packages are not compared either.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import EnumType
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from fedsim.plugins.code_hash import SHIPPED, below_shipped, is_shipped

_PACKAGES = tuple(folder.name for folder in SHIPPED)
_IMPORT = re.compile(
    r"^(?:from\s+([\w.]+)\s+)?import\s+(\([^)]*\)|[^\n(]+)",
    re.MULTILINE,
)
_NAME_AND_ALIAS = re.compile(r"([\w.]+)(?:\s+as\s+(\w+))?")
_COMMENT = re.compile(r"#[^\n]*")
_GENERATOR = re.compile(
    r"(collections|contextlib|dataclasses|enum|matplotlib|pydantic|reprlib|torch|typing)\b"
)
"""The packages whose functions decorate shipped functions or become methods of shipped classes."""
_SLOTS = {"LazyClassAttribute", "_tuplegetter", "getset_descriptor", "member_descriptor"}
"""The types of attributes by which Python or a library reads a field of an instance."""


@dataclass(frozen=True)
class _Source:
    """What the source of a module defines.

    Attributes:
        spec: the spec of the import that ran the source; a reload gives another one.
        names: the names that the code of the module mentions outside functions and classes.
        codes: the code objects of functions and class bodies by qualified name. A name that is
            defined several times has several.
        imported: for each name that is imported, the module that it comes from and its name there;
            for a module, an empty text and the name of the module.
    """

    spec: ModuleSpec
    names: tuple[str, ...]
    codes: dict[str, list[CodeType]]
    imported: dict[str, tuple[str, str]]


_Owner = tuple[ModuleType | type, dict[str, Any]]
"""A module or a class, with its values by name."""


@dataclass(frozen=True)
class _Snapshot:
    """The content of a module when it was last compared with its source and found equal.

    Attributes:
        owners: the module and its classes, each with its values by name.
        functions: all functions within these values, each with its code.
    """

    owners: list[_Owner]
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
        if not name.startswith(_PACKAGES):
            continue
        # Somebody else may have a module with a name such as fedsim_method or baselines.mine.
        if not name.startswith("fedsim.") and not _is_below_shipped(_file_of(module)):
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


def _source_of(module: ModuleType) -> _Source:
    """Return what the source of a module defines; it is read once per import.

    Raises:
        ImportError: the module was not imported from a shipped file.
    """
    spec = module.__spec__
    if spec is None or not _is_below_shipped(_file_of(module)):
        raise ImportError(module)
    name = module.__name__
    source = _sources.get(name)
    if source is None or source.spec is not spec:
        loader: Any = spec.loader
        code = loader.get_code(name)
        codes: dict[str, list[CodeType]] = {}
        _collect(code, codes)
        text = Path(_file_of(module)).read_text("utf-8")
        source = _Source(spec, code.co_names, codes, _imports_of(text))
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
    """Return :attr:`_Source.imported` of a source text, for imports at its top level."""
    imported: dict[str, tuple[str, str]] = {}
    for origin, names in _IMPORT.findall(text):
        names_alone = _COMMENT.sub("", names)
        for name, alias in _NAME_AND_ALIAS.findall(names_alone):
            imported[alias or name] = (origin, name)
    return imported


def _replaced_in(module: ModuleType) -> Iterator[str]:
    """Yield the names in a module whose values are not what its source defines."""
    try:
        source = _source_of(module)
    except (AttributeError, ImportError, OSError, SyntaxError):
        # Without a source nothing is known of what the module should hold.
        yield "__file__"
        return
    for name, value in list(vars(module).items()):
        if name in source.imported:
            origin, original = source.imported[name]
            expected = getattr(
                sys.modules.get(origin),
                original,
                sys.modules.get(original),
            )
            is_as_shipped = value is expected or not (_is_code(value) or _is_code(expected))
        elif name in source.codes:
            is_as_shipped = _is_defined(value, name, module)
        elif name in source.names or name.startswith("__"):
            is_as_shipped = _is_assigned(value)
        else:
            # The import of a module gives its package an attribute.
            is_as_shipped = value is sys.modules.get(f"{module.__name__}.{name}")
        if not is_as_shipped:
            yield name


def _is_assigned(value: Any) -> bool:
    """Return whether a value may be what the source assigns, which is not evaluated again."""
    if isinstance(value, type):
        return value is object or is_shipped(value)
    return all(map(_is_known, _functions_of(value)))


def _is_code(value: Any) -> bool:
    """Return whether a value is a module, or can run when it or an attribute is used."""
    return callable(value) or isinstance(value, ModuleType) or hasattr(type(value), "__get__")


def _is_defined(value: Any, qualname: str, module: ModuleType) -> bool:
    """Return whether a value is what the module's source defines under a qualified name."""
    if isinstance(value, type):
        if (value.__module__, value.__qualname__) != (module.__name__, qualname):
            return False
        return all(
            _is_attribute(attribute, name, value, module)
            for name, attribute in list(vars(value).items())
        )
    codes = _source_of(module).codes[qualname]
    # No shipped module wraps what it defines in a partial, so a partial replaced the definition.
    if isinstance(value, functools.partial):
        return False
    return any(function.__code__ in codes for function in _functions_of(value))


def _is_attribute(
    value: Any,
    name: str,
    cls: type,
    module: ModuleType,
) -> bool:
    """Return whether a value is what the source defines as an attribute of a class.

    Attributes that Python or a library generates for the class count, too.
    """
    codes = _source_of(module).codes
    qualname = f"{cls.__qualname__}.{name}"
    if qualname in codes:
        return _is_defined(value, qualname, module)
    if any(name in body.co_names for body in codes[cls.__qualname__]) and _is_assigned(value):
        return True
    functions = _functions_of(value)
    if not functions and _is_code(value):
        return type(value).__name__ in _SLOTS or isinstance(cls, EnumType)
    # A method that Python compiled from a text runs in the namespace of one of these modules.
    namespaces = (cls.__module__, f"namedtuple_{cls.__name__}")
    return all(
        _is_of_generator(function)
        or (_module_name(function) in namespaces and function.__code__.co_filename == "<string>")
        for function in functions
    )


def _module_name(function: FunctionType) -> str:
    """Return the name of the module in whose namespace a function runs."""
    return str(function.__globals__.get("__name__", ""))


def _is_known(function: FunctionType) -> bool:
    """Return whether a function is as shipped, or of a package of :data:`_GENERATOR`."""
    if _is_of_generator(function):
        return True
    module = sys.modules.get(_module_name(function))
    if module is None or not _is_below_shipped(_file_of(module)):
        return False
    code = function.__code__
    codes = _source_of(module).codes.get(code.co_qualname, ())
    return function.__globals__ is vars(module) and code in codes


def _is_of_generator(function: FunctionType) -> bool:
    return _GENERATOR.match(_module_name(function)) is not None


def _functions_of(value: Any) -> list[FunctionType]:
    """Return the functions within a value.

    They are the value itself, the functions of a property, and those that a static method, a class
    method, a cache, a partial or a decorator wraps. A function whose own code is not known is
    returned alone, because it may say that it wraps any other function.
    """
    if isinstance(value, property):
        accessors = (value.fget, value.fset, value.fdel)
        return [function for accessor in accessors for function in _functions_of(accessor)]
    if isinstance(value, staticmethod | classmethod | functools._lru_cache_wrapper):
        return _functions_of(value.__wrapped__)
    if isinstance(value, functools.cached_property | functools.partial):
        return _functions_of(value.func)
    if not isinstance(value, FunctionType):
        return []
    wrapped = getattr(value, "__wrapped__", None)
    if wrapped is None or not _is_known(value):
        return [value]
    return [value, *_functions_of(wrapped)]


def _snapshot_of(module: ModuleType) -> _Snapshot:
    """Return what a module holds now."""
    values = dict(vars(module))
    owners: list[_Owner] = [(module, values)]
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
