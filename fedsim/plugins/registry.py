"""Finds the class of an algorithm by its name, and the line of a plug-in that raised an error.

A plug-in is an algorithm that fedsim does not ship. A name is

- a name that ``@register`` gave,
- an entry point of the group ``fedsim.algorithms``, or
- a path such as ``pkg.module:Class`` or ``file.py:Class``.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
"""The group of entry points by which installed packages name their algorithms."""
EXTERNAL = "given-rows"
"""The name for external samples (``{rows: FILE}`` in a grid); :func:`known` does not list it."""
NOTEBOOK = "__main__:"
"""The prefix of the names of classes of a notebook or script.

No other process can import such a class.
"""
_registered: dict[str, type[Algorithm]] = {}
_Class = TypeVar("_Class", bound="type[Algorithm]")


def register(name: str) -> Callable[[_Class], _Class]:
    """Return a class decorator that makes an algorithm known under ``name``.

    Raises:
        ValueError: another class already has the name.
    """

    def add(cls: _Class) -> _Class:
        other = _registered.get(name)
        # A notebook's class may be registered again after it was edited or moved to a file.
        if other is not None and other.__module__ != "__main__":
            path = f"{other.__module__}:{other.__qualname__}"
            if path != f"{cls.__module__}:{cls.__qualname__}":
                raise ValueError(f"algorithm '{name}' is already registered by {path}")
        cls.name = name
        _registered[name] = cls
        return cls

    return add


def known() -> list[str]:
    """Return the names of all registered classes and installed entry points, sorted."""
    return sorted({*_registered, *_installed()})


def _installed() -> dict[str, str]:
    """Return the class path of every installed entry point, by its name."""
    paths: dict[str, str] = {}
    for entry in entry_points(group=GROUP):
        paths.setdefault(entry.name, entry.value)
    return paths


def lookup(name: str, where: str = "algorithm") -> type[Algorithm]:
    """Return the class behind a name.

    Args:
        name: a registered name, an entry point, ``pkg.module:Class``, or ``path/to/file.py:Class``,
            which is looked for from the working folder.
        where: the place to name in an error.

    Raises:
        UserError: the name is unknown.
        PluginError: the class cannot be imported, or is not a complete algorithm.
    """
    cls: Any = _registered.get(name)
    if cls is None:
        cls = _import_class(_path_of(name, where), where)
    _check_complete(cls, name, where)
    # A registered base class has a name of its own.
    if "name" not in vars(cls):
        cls.name = name
    return cast("type[Algorithm]", cls)


def _path_of(name: str, where: str) -> str:
    """Return the path ``module:Class`` or ``file.py:Class`` behind a name."""
    if name == EXTERNAL:
        return "fedsim.methods.given:GivenRows"
    # A path has a colon and installed names have none. So a path needs no list of entry points,
    # which takes as long as a short training.
    if ":" in name:
        return name
    path = _installed().get(name, name)
    if ":" in path:
        return path
    if name.endswith(".py") or "/" in name:
        hint = f"name its class: {name}:CLASS"
    else:
        hint = nearest(name, known())
    raise UserError(where, f"unknown algorithm '{name}'", hint)


def find_in_working_folder() -> None:
    """Put the working folder on the import path, so that a grid may name its modules."""
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())


def check_installed(name: str, where: str) -> None:
    """Refuse a name in somebody else's files that is neither registered nor an entry point.

    The look-up of such a name would run the code at its path.

    Args:
        name: the name of an algorithm.
        where: the place to name in an error.

    Raises:
        UserError: the name is the path of a class.
    """
    if ":" in name and name not in known():
        problem = f"its algorithm is the plug-in '{name}', whose code would run"
        raise UserError(where, problem, "give `trust_plugin=True` if you trust that code")


def name_of(cls: type) -> str:
    """Return the name of a class in a grid: that of its entry point, or the path of its module.

    The module of a notebook's class is ``__main__``, which no other process can import.

    Raises:
        UserError: the class is defined inside a function or another class.
    """
    if "." in cls.__qualname__:
        raise UserError(
            f"class {cls.__name__}",
            "is defined inside a function or another class",
            "move it to the top level of a .py file or of a notebook cell",
        )
    path = f"{cls.__module__}:{cls.__qualname__}"
    for entry in entry_points(group=GROUP):
        if entry.value == path:
            return entry.name
    return path


def registered_name(cls: type) -> str | None:
    """Return the name, other than a path, by which a grid found a class; None if it has none.

    It is the name that ``@register`` gave, or the name of an entry point.
    """
    name: str | None = vars(cls).get("name")
    if name is None or ":" in name:
        return None
    return name


def check_importable(name: str, what: str) -> None:
    """Refuse a class of a notebook where other processes need it.

    Args:
        name: the name of the class.
        what: says in an error what needs it.

    Raises:
        UserError: the class is one of a notebook.
    """
    if name.startswith(NOTEBOOK):
        path = name.removeprefix(NOTEBOOK)
        hint = (
            "write `%%writefile my_method.py` as the first line of its cell, run the cell, and "
            f'give "my_method.py:{path}" in place of the class'
        )
        raise UserError(path, f"exists only in this notebook or script, and {what}", hint)


@contextmanager
def own_errors(name: str) -> Iterator[None]:
    """Turn an exception of a plug-in in the block into an error of one message.

    Exceptions of shipped algorithms, and errors for the user, pass unchanged.

    Args:
        name: the algorithm that the block runs.

    Raises:
        PluginError: the algorithm is a plug-in, and the block raised.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        cls = lookup(name)
        if is_shipped(cls):
            raise
        raise PluginError(
            name,
            f"{blamed(error, cls)}: {cls.__name__} raised {said(error)}",
            "correct the code at this line",
        ) from error


def _import_class(path: str, where: str) -> Any:
    """Import ``module:attribute`` or ``file.py:attribute``, and return the attribute.

    Raises:
        PluginError: the module or file cannot be imported, or has no such attribute.
    """
    module_name, _, attribute = path.rpartition(":")
    try:
        if module_name.endswith(".py"):
            module = _module_of_file(module_name, where)
        else:
            module = importlib.import_module(module_name)
        return getattr(module, attribute)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        # A plug-in may raise anything when it is imported.
        reason = said(error)
        hint = "give a module or a file with its class, such as pkg.module:Class or file.py:Class"
        origin = _origin(error)
        if origin:
            reason = f"{origin}: {reason}"
            hint = "correct it there"
        raise PluginError(
            where,
            f"'{path}' cannot be imported ({reason})",
            hint,
        ) from error


def _module_of_file(path: str, where: str) -> ModuleType:
    """Import a Python file by its stem, so that every process finds the same classes.

    A worker may run in another working folder. Ray puts the driver's working folder on the
    worker's import path.

    Raises:
        PluginError: there is no such file, or another module has its name.
    """
    file = _file_at(path)
    if file is None:
        hint = (
            "in a grid file, write the path as seen from the folder of that file; in a command, as "
            "seen from the working folder"
        )
        raise PluginError(where, f"there is no file '{path}'", hint)
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    importlib.invalidate_caches()
    module = importlib.import_module(file.stem)
    if Path(module.__file__ or "").resolve() != file:
        other = shown(module.__file__ or "a built-in module")
        raise PluginError(
            where,
            f"'{path}' cannot be imported: its name belongs to {other} already",
            "rename the file",
        )
    return module


def _file_at(path: str) -> Path | None:
    """Return the file at a path from the working folder or from the import path, or None."""
    for folder in (str(Path.cwd()), *sys.path):
        file = Path(folder, path).resolve()
        if file.is_file():
            return file
    return None


def source_of_today(name: str) -> str | None:
    """Return the hash of the code that a name from an earlier grid means today, or None.

    It is None if there is no such code. Only installed code and code of this notebook runs; the
    file of any other plug-in is read, but not imported.
    """
    path, _, class_name = name.rpartition(":")
    is_in_notebook = name.startswith(NOTEBOOK) and hasattr(sys.modules["__main__"], class_name)
    if name == EXTERNAL or name in known() or is_in_notebook:
        return source_hash(lookup(name))
    if not path or name.startswith(NOTEBOOK):
        return None
    stem = path.replace(".", "/")
    candidates = [f"{stem}.py", f"{stem}/__init__.py"]
    if path.endswith(".py"):
        candidates = [path]
    for candidate in candidates:
        file = _file_at(candidate)
        if file is not None:
            # What cannot be read or parsed is no code of today.
            with suppress(OSError, SyntaxError, ValueError):
                return source_hash_of_file(file)
            return None
    return None


def _check_complete(cls: Any, name: str, where: str) -> None:
    """Check that what was looked up is a complete algorithm, as far as can be seen without running.

    Raises:
        PluginError: it is no algorithm, or lacks a method or parameters.
    """
    from fedsim.methods.algorithm import Algorithm, Params

    if not (isinstance(cls, type) and issubclass(cls, Algorithm)):
        raise PluginError(
            where,
            f"'{name}' is not an Algorithm",
            "name a class that derives from fedsim.methods.algorithm.Algorithm",
        )
    missing = sorted(cls.__abstractmethods__)
    if cls.generates() and cls.generator is Algorithm.generator:
        missing.append("generator")
    if missing:
        raise PluginError(
            where,
            f"{line_of(cls)}: {cls.__name__} has no method {', '.join(missing)}",
            "define it, as the class does that `fedsim new my-method` writes",
        )
    params = getattr(cls, "Params", None)
    if not (isinstance(params, type) and issubclass(params, Params)):
        raise PluginError(
            where,
            f"{line_of(cls)}: {cls.__name__}.Params is not derived from the class of parameters",
            "derive it from fedsim.methods.algorithm.Params",
        )


def blamed(error: BaseException, cls: type) -> str:
    """Return ``file:line`` where an algorithm's code raised an exception, or else of its class."""
    return _origin(error) or line_of(cls)


def said(error: BaseException) -> str:
    """Return the type and the message of an exception on one line."""
    if isinstance(error, SyntaxError):
        text = error.msg
    else:
        text = str(error)
    return " ".join(f"{type(error).__name__}: {text}".split()).rstrip(": ")


def _origin(error: BaseException) -> str:
    """Return ``file:line`` of the innermost frame that is no code of Python, fedsim or a package.

    It is empty if there is no such frame.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{shown(error.filename)}:{error.lineno}"
    skipped = (FEDSIM, Path(sysconfig.get_path("stdlib")))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if not file.is_file() or INSTALLED & set(file.parts):
            continue
        if not any(file.is_relative_to(folder) for folder in skipped):
            return f"{shown(file)}:{frame.lineno}"
    return ""
