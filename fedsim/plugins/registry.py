"""Algorithms by name: ``@register``, entry points of group ``fedsim.algorithms``, ``pkg.module:Class`` and ``file.py:Class`` paths."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import distribution, entry_points, packages_distributions
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args
from urllib.parse import unquote, urlsplit

from fedsim.errors import PluginError, UserError, nearest
from fedsim.files import cache_folder
from fedsim.plugins.code_hash import NOTEBOOK
from fedsim.plugins.places import line_of, origin, said, shown

if TYPE_CHECKING:
    from fedsim.methods.algorithm import Algorithm

GROUP = "fedsim.algorithms"
_registered: dict[str, type[Algorithm]] = {}
_Class = TypeVar("_Class", bound="type[Algorithm]")


def register(name: str) -> Callable[[_Class], _Class]:
    """Class decorator: make an algorithm known under ``name``.

    Raises:
        ValueError: another class already has the name.
    """

    def add(cls: _Class) -> _Class:
        held = _registered.get(name)
        # a notebook's classes, and the files that are written of them, follow each other
        passing = any(own.__module__ == "__main__" or own.__module__.startswith(NOTEBOOK) for own in (held, cls) if own)
        if held is not None and not passing and (held.__module__, held.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"algorithm '{name}' is already registered by {held.__module__}:{held.__qualname__}")
        cls.name = name
        _registered[name] = cls
        return cls

    return add


def known() -> list[str]:
    """All names: registered classes and installed entry points, sorted."""
    return sorted({*_registered, *(entry.name for entry in entry_points(group=GROUP))})


def lookup(name: str, where: str = "algorithm") -> type[Algorithm]:
    """The class behind a registered name, an entry point, a ``pkg.module:Class`` path or a ``path/to/file.py:Class`` path.

    Args:
        name: as a grid file gives it; files are looked for from the working folder.
        where: the place to name in an error.

    Raises:
        UserError: nothing has the name; the known ones are listed.
        PluginError: the plug-in cannot be imported, or its class is not a complete algorithm; with file and line.
    """
    cls: Any = _registered.get(name)
    if cls is None:
        # installed names have no colon, and reading what is installed takes as long as a short training
        path = name if ":" in name else next((entry.value for entry in entry_points(group=GROUP) if entry.name == name), name)
        if ":" not in path:
            of_file = name.endswith(".py") or "/" in name
            raise UserError(where, f"unknown algorithm '{name}'", f"name its class: {name}:CLASS" if of_file else nearest(name, known()))
        cls = _imported(path, where)
    check_complete(cls, name, where)
    if "name" not in vars(cls):  # a registered base class has one of its own
        cls.name = name
    return cast("type[Algorithm]", cls)


def find_in_working_folder() -> None:
    """Let a grid name pkg.module:Class of the folder one works in."""
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())


def check_installed(name: str, where: str) -> None:
    """Refuse a name whose look-up would run code that nobody installed; for names that come from somebody else's files.

    Args:
        name: of an algorithm.
        where: the place to name in an error.

    Raises:
        UserError: it is neither registered nor of an installed package.
    """
    module, colon, _ = name.rpartition(":")
    if name in known() or not colon or (not module.endswith(".py") and _is_installed(module.partition(".")[0])):
        return
    raise UserError(
        where, f"its algorithm is the plug-in '{name}', whose code would run", "give `trust_plugin=True` if you trust that code"
    )


def _is_installed(package: str) -> bool:
    """Whether what an import would find is of an installed distribution; imports nothing."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return False
    if spec is None or not (at := spec.origin or next(iter(spec.submodule_search_locations or ()), None)):
        return False
    held = packages_distributions().get(package, [])
    homes = [Path(str(distribution(name).locate_file(""))).resolve() for name in held]
    for name in held:
        direct = json.loads(distribution(name).read_text("direct_url.json") or "{}")
        if direct.get("dir_info", {}).get("editable"):
            homes.append(Path(unquote(urlsplit(direct["url"]).path)).resolve())
    return any(Path(at).resolve().is_relative_to(home) for home in homes)


def _imported(path: str, where: str) -> Any:
    """What ``module:attribute`` or ``file.py:attribute`` leads to."""
    module, _, attribute = path.rpartition(":")
    try:
        return getattr(_module_of_file(module, where) if module.endswith(".py") else importlib.import_module(module), attribute)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a plug-in may raise anything as it is imported
        at = origin(error)
        hint = "correct it there" if at else "give an importable pkg.module:Class or file.py:Class"
        raise PluginError(where, f"'{path}' cannot be imported ({at + ': ' if at else ''}{said(error)})", hint) from error


def _module_of_file(path: str, where: str) -> ModuleType:
    """The module that a Python file is, imported by its stem, so that every process finds the same classes.

    A worker's working folder may be another one than the driver's, which Ray puts on the worker's import path.
    """
    folders = [Path.cwd(), *map(Path, sys.path), *([notebook_folder()] if path.startswith(NOTEBOOK) else [])]
    file = next((at for folder in folders if (at := (folder / path).resolve()).is_file()), None)
    if file is None:
        raise PluginError(
            where, f"there is no file '{path}'", "a grid file gives its path from its own folder, a command from the working folder"
        )
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    importlib.invalidate_caches()
    module = importlib.import_module(file.stem)
    if Path(module.__file__ or "").resolve() != file:
        held = module.__file__ or "a built-in module"
        raise PluginError(where, f"'{path}' cannot be imported: its name belongs to {shown(held)} already", "rename the file")
    return module


def notebook_folder() -> Path:
    """Where the files of classes are that a notebook defined: the same for every process of this machine."""
    return cache_folder() / "methods"


def check_complete(cls: Any, name: str, where: str) -> None:
    """Check what can be seen of a class without running it.

    Args:
        cls: what the look-up led to.
        name: as a grid file gives it.
        where: the place to name in an error.

    Raises:
        PluginError: it is not an algorithm, lacks a method, its parameters are not a model of parameters, or it names no privacy setting.
    """
    from fedsim.methods.algorithm import Algorithm, Params
    from fedsim.privacy.plan import Trust, Unit

    if not (isinstance(cls, type) and issubclass(cls, Algorithm)):
        raise PluginError(where, f"'{name}' is not an Algorithm", "derive the class from fedsim.methods.algorithm.Algorithm")
    params = getattr(cls, "Params", None)
    settings = [(key, getattr(cls, key), get_args(words)) for key, words in (("units", Unit), ("trusts", Trust))]
    unknown = next(((key, own, words) for key, own, words in settings if not _are_of(own, words)), None)
    if missing := sorted(cls.__abstractmethods__):
        what, hint = f"lacks {' and '.join(missing)}", f"define {'; '.join(outline(cls, method) for method in missing)}"
    elif cls.generates() and cls.generator is Algorithm.generator:
        what, hint = "has neither generator nor classifier", f"define one: {outline(Algorithm, 'generator')}"
    elif not (isinstance(params, type) and issubclass(params, Params)):
        what, hint = f"has Params = {params!r}", "give it Params, a class derived from fedsim.methods.algorithm.Params"
    elif unknown:
        key, own, words = unknown
        what, hint = f"has {key} = {own!r}", f"give a tuple of {', '.join(words)}, such as {words[:1]}"
    else:
        return
    raise PluginError(where, f"{line_of(cls)}: {cls.__name__} {what}", hint)


def _are_of(values: Any, words: tuple[str, ...]) -> bool:
    """Whether ``values`` is a tuple of one or several of ``words``."""
    return isinstance(values, tuple) and bool(values) and all(value in words for value in values)


def outline(cls: Any, method: str) -> str:
    """``name(arguments): what it is for``, of a method of a class."""
    function = getattr(cls, method)
    says = (inspect.getdoc(function) or "").partition("\n")[0].rstrip(".")
    return f"{method}({', '.join(inspect.signature(function).parameters)}): {says}"
