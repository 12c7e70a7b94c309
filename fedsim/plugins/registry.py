"""Algorithms by name: ``@register``, entry points of group ``fedsim.algorithms``,
``pkg.module:Class`` and ``file.py:Class`` paths.

Also where in a plug-in's source something is or happened, as ``file:line``.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from fedsim.errors import PluginError, UserError, nearest
from fedsim.files import line_of, shown
from fedsim.plugins.code_hash import (
    FEDSIM,
    INSTALLED,
    is_shipped,
    source_hash,
    source_hash_of_file,
)

if TYPE_CHECKING:
    from fedsim.methods.algorithm import Algorithm

GROUP = "fedsim.algorithms"
EXTERNAL = "given-rows"
"""What a grid's ``{rows: FILE}`` is by: no method that anyone would list or check."""
NOTEBOOK = "__main__:"
"""How the names of classes begin that no other process can import."""
_registered: dict[str, type[Algorithm]] = {}
_Class = TypeVar("_Class", bound="type[Algorithm]")


def register(name: str) -> Callable[[_Class], _Class]:
    """Class decorator: make an algorithm known under ``name``.

    Raises:
        ValueError: another class already has the name.
    """

    def add(cls: _Class) -> _Class:
        held = _registered.get(name)
        path = (cls.__module__, cls.__qualname__)
        if (
            held is not None
            and (held.__module__, held.__qualname__) != path
            and held.__module__ != "__main__"
        ):  # it may move into a file
            raise ValueError(
                f"algorithm '{name}' is already registered by {held.__module__}:{held.__qualname__}"
            )
        cls.name = name
        _registered[name] = cls
        return cls

    return add


def known() -> list[str]:
    """All names: registered classes and installed entry points, sorted."""
    return sorted({*_registered, *(entry.name for entry in entry_points(group=GROUP))})


def lookup(name: str, where: str = "algorithm") -> type[Algorithm]:
    """The class behind a registered name, an entry point, a ``pkg.module:Class`` path or a
    ``path/to/file.py:Class`` path.

    Files are looked for from the working folder; ``where`` is the place to name in an error.
    """
    cls: Any = _registered.get(name)
    if cls is None:
        # installed names have no colon, and reading what is installed takes as long as a short
        # training
        if name == EXTERNAL:
            path = "fedsim.methods.given:GivenRows"
        else:
            path = name
        if ":" not in path:
            path = next(
                (entry.value for entry in entry_points(group=GROUP) if entry.name == name), name
            )
        if ":" not in path:
            of_file = name.endswith(".py") or "/" in name
            raise UserError(
                where,
                f"unknown algorithm '{name}'",
                f"name its class: {name}:CLASS" if of_file else nearest(name, known()),
            )
        cls = _imported(path, where)
    _check_complete(cls, name, where)
    if "name" not in vars(cls):  # a registered base class has one of its own
        cls.name = name
    return cast("type[Algorithm]", cls)


def find_in_working_folder() -> None:
    """Let a grid name pkg.module:Class of the folder one works in."""
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())


def check_installed(name: str, where: str) -> None:
    """Refuse a name whose look-up would run code that nobody installed; for names that come from
    somebody else's files.
    """
    if ":" in name and name not in known():
        what = f"its algorithm is the plug-in '{name}', whose code would run"
        raise UserError(where, what, "give `trust_plugin=True` if you trust that code")


def name_of(cls: type) -> str:
    """How a grid names a class: by its entry point or its module; a notebook's is of ``__main__``,
    which no other process has.
    """
    if "." in cls.__qualname__:
        raise UserError(
            cls.__qualname__,
            "is defined inside a function or class",
            "define it at the top level of a cell or module",
        )
    path = f"{cls.__module__}:{cls.__qualname__}"
    return next((entry.name for entry in entry_points(group=GROUP) if entry.value == path), path)


def check_importable(name: str, what: str) -> None:
    """Refuse a class of a notebook where other processes need it; ``what`` says what does."""
    if name.startswith(NOTEBOOK):
        path = name.removeprefix(NOTEBOOK)
        hint = (
            "write it to a file, as by %%writefile my_method.py at the top of its cell, and "
            f"name it my_method.py:{path}"
        )
        raise UserError(path, f"is defined in this process alone, and {what}", hint)


@contextmanager
def own_errors(name: str) -> Iterator[None]:
    """Translate what the block raises into one message in place of a traceback, if ``name`` is none
    of fedsim's own algorithms.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        cls = lookup(name)
        if is_shipped(cls):
            raise
        expected = f"expected {cls.__name__} to be made, planned and trained"
        raise PluginError(name, f"{blamed(error, cls)}: {said(error)}", expected) from error


def _imported(path: str, where: str) -> Any:
    """What ``module:attribute`` or ``file.py:attribute`` leads to."""
    module, _, attribute = path.rpartition(":")
    try:
        return getattr(
            _module_of_file(module, where)
            if module.endswith(".py")
            else importlib.import_module(module),
            attribute,
        )
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a plug-in may raise anything as it is imported
        at = _origin(error)
        if at:
            hint = "correct it there"
        else:
            hint = "give an importable pkg.module:Class or file.py:Class"
        raise PluginError(
            where, f"'{path}' cannot be imported ({at and f'{at}: '}{said(error)})", hint
        ) from error


def _module_of_file(path: str, where: str) -> ModuleType:
    """The module that a Python file is, imported by its stem, so that every process finds the same
    classes.

    A worker's working folder may be another one than the driver's, which Ray puts on the worker's
    import path.
    """
    file = _file_at(path)
    if file is None:
        hint = "a grid file gives its path from its own folder, a command from the working folder"
        raise PluginError(where, f"there is no file '{path}'", hint)
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    importlib.invalidate_caches()
    module = importlib.import_module(file.stem)
    if Path(module.__file__ or "").resolve() != file:
        held = module.__file__ or "a built-in module"
        raise PluginError(
            where,
            f"'{path}' cannot be imported: its name belongs to {shown(held)} already",
            "rename the file",
        )
    return module


def _file_at(path: str) -> Path | None:
    """The file at a relative path, looked for from the working folder and where modules are."""
    folders = [Path.cwd(), *map(Path, sys.path)]
    return next((at for folder in folders if (at := (folder / path).resolve()).is_file()), None)


def source_of_today(name: str) -> str | None:
    """The hash of the code that a name from an earlier grid means today; None where there is none.

    It runs no code that nobody installed: of a plug-in it only reads the files.
    """
    path, _, cls = name.rpartition(":")
    defined = name.startswith(NOTEBOOK) and hasattr(sys.modules["__main__"], cls)
    if name == EXTERNAL or name in known() or defined:
        return source_hash(lookup(name))
    if not path or name.startswith(NOTEBOOK):
        return None
    stem = path.replace(".", "/")
    if path.endswith(".py"):
        places = [path]
    else:
        places = [f"{stem}.py", f"{stem}/__init__.py"]
    file = next(filter(None, map(_file_at, places)), None)
    if file is None:
        return None
    try:
        return source_hash_of_file(file)
    except (OSError, SyntaxError, ValueError):  # What cannot be read or parsed is no code of today.
        return None


def _check_complete(cls: Any, name: str, where: str) -> None:
    """Check what can be seen without running it of what the look-up of ``name`` led to."""
    from fedsim.methods.algorithm import Algorithm, Params

    if not (isinstance(cls, type) and issubclass(cls, Algorithm)):
        raise PluginError(
            where,
            f"'{name}' is not an Algorithm",
            "derive the class from fedsim.methods.algorithm.Algorithm",
        )
    missing = sorted(cls.__abstractmethods__)
    if cls.generates() and cls.generator is Algorithm.generator:
        missing.append("generator")  # or a classifier
    if missing:
        raise PluginError(
            where,
            f"{line_of(cls)}: {cls.__name__} lacks {', '.join(missing)}",
            "define it as its base class says",
        )
    params = getattr(cls, "Params", None)
    if not (isinstance(params, type) and issubclass(params, Params)):
        hint = "give it Params, a class derived from fedsim.methods.algorithm.Params"
        raise PluginError(where, f"{line_of(cls)}: {cls.__name__} has Params = {params!r}", hint)


def blamed(error: BaseException, cls: type) -> str:
    """``file:line`` of an exception in the code of an algorithm, or of its class where it was
    raised elsewhere.
    """
    return _origin(error) or line_of(cls)


def said(error: BaseException) -> str:
    """An exception on one line."""
    if isinstance(error, SyntaxError):
        text = error.msg
    else:
        text = str(error)
    return " ".join(f"{type(error).__name__}: {text}".split()).rstrip(": ")


def _origin(error: BaseException) -> str:
    """``file:line`` of an exception: its innermost frame outside of Python, fedsim and what is
    installed; empty where there is none.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{shown(error.filename)}:{error.lineno}"
    foreign = (FEDSIM, Path(sysconfig.get_path("stdlib")))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if (
            file.is_file()
            and not INSTALLED & set(file.parts)
            and not any(file.is_relative_to(folder) for folder in foreign)
        ):
            return f"{shown(file)}:{frame.lineno}"
    return ""
