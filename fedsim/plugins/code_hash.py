"""A hash of code, the part of a cell's id that changes when the mathematics may have changed.

The hash covers what code does, not how it is written: comments, layout and docstrings may change
without a new id (:mod:`fedsim.plugins.syntax`). It covers the rooms of fedsim that compute
(:data:`MATHEMATICS`) and the algorithm's own files. Those are the modules of its class, of its
bases and of its parameters, and what these import from their package, from beside them and from
what fedsim ships.
"""

from __future__ import annotations

import hashlib
import inspect
import linecache
import secrets
import sys
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

from fedsim.files import shown
from fedsim.plugins.syntax import canonical_form, imported_names

FEDSIM = Path(__file__).parents[1]
SHIPPED = tuple(FEDSIM.parent / name for name in ("fedsim", "algorithms", "baselines"))
INSTALLED = {"site-packages", "dist-packages"}
_ROOMS = ("methods", "privacy", "models", "training", "partition")
MATHEMATICS = (*_ROOMS, "batch.py", "device.py", "seeds.py", "data/embeddings.py")
"""The rooms and files of fedsim that compute what a training is."""


@cache
def source_hash(cls: type) -> str:
    """Return 16 hex digits that identify the code of a class and all that trains it.

    They are the first of a SHA-256. The code of a class from a notebook is that of its cell. A
    class whose source cannot be found gets a random hash, so that no recorded result is taken for
    one of its own. The answer is computed once a process.
    """
    forms = _forms_of(_files(cls))
    for base in _bases(cls):
        if not _file_of(base.__module__):
            forms[base.__qualname__] = _typed_form(base)
    return _digest({"": harness_hash()} | forms)


def source_hash_of_file(file: Path) -> str:
    """Return the :func:`source_hash` of the classes that a file defines, without running the file.

    It differs from theirs only where a base class is of another installed package.

    Raises:
        OSError: a file cannot be read.
        SyntaxError: a file is not Python.
    """
    return _digest({"": harness_hash()} | _forms_of(_with_imports({file.resolve()})))


@cache
def harness_hash(*rooms: str) -> str:
    """Return the hash of the rooms of fedsim that compute, and of ``rooms`` beside them.

    Args:
        rooms: further folders or files of fedsim, such as ``evaluation``.
    """
    files: list[Path] = []
    for room in (*MATHEMATICS, *rooms):
        path = FEDSIM / room
        if path.is_dir():
            files += path.rglob("*.py")
        else:
            files += [path]
    return _digest({file.relative_to(FEDSIM).as_posix(): _form_of(file) for file in files})


def place_of(cls: type) -> str:
    """Which class it is: by its module where that is shipped or installed, else by its file, as the
    working folder has it.
    """
    file = _file_of(cls.__module__)
    if file is None:
        return f"interpreter:{cls.__qualname__}"
    if is_shipped(cls) or INSTALLED & set(file.parts):
        return f"{cls.__module__}:{cls.__qualname__}"
    return f"{shown(file)}:{cls.__qualname__}"


def places_of(cls: type) -> list[str]:
    """Return all that :func:`place_of` may have called a class, in whichever working folder."""
    file = _file_of(cls.__module__)
    if file is None or is_shipped(cls) or INSTALLED & set(file.parts):
        return [place_of(cls)]
    paths = [file, *(file.relative_to(folder) for folder in file.parents)]
    return [f"{path}:{cls.__qualname__}" for path in paths]


def is_shipped(cls: type) -> bool:
    """Whether a class is part of fedsim, its algorithms or its baselines."""
    file = _file_of(cls.__module__)
    return file is not None and _below_shipped(file)


def own_files(cls: type) -> set[Path]:
    """The files of a plug-in that is not installed: its module's and those of what it imports
    beside it.
    """
    return {
        file for file in _files(cls) if not _below_shipped(file) and not INSTALLED & set(file.parts)
    }


def _files(cls: type) -> set[Path]:
    """Return all files of a class's own code."""
    modules = {base.__module__ for base in (*_bases(cls), *_bases(getattr(cls, "Params", cls)))}
    files = {file for file in map(_file_of, modules) if file is not None}
    return _with_imports({file for file in files if not file.is_relative_to(FEDSIM)})


def _with_imports(files: set[Path]) -> set[Path]:
    """Return the files and all that they import, directly or through others."""
    found: set[Path] = set()
    waiting = set(files)
    while waiting:
        file = waiting.pop()
        found.add(file)
        waiting |= _imported(file) - found
    return found


def _forms_of(files: set[Path]) -> dict[str, str]:
    """Return hashes of files by their paths, each from the folder from which it is imported."""
    return {str(file.relative_to(_home(file))): _form_of(file) for file in files}


def _bases(cls: type) -> list[type]:
    """A class and its bases as far as they are an algorithm's or its parameters'."""
    return [
        base
        for base in cls.__mro__
        if any(of.__module__ == "fedsim.methods.algorithm" for of in base.__mro__)
    ]


def _imported(file: Path) -> set[Path]:
    """Return the files that a file may import from near it.

    These are the files of its package, of its folder and of what fedsim ships whose names are in
    its import statements.
    """
    names = {"__init__", *imported_names(file.read_bytes())}
    home = _home(file)
    folders = [home / file.relative_to(home).parts[0]]
    near = [found for folder in SHIPPED[1:] for found in folder.glob("*.py")]
    if not _below_shipped(file) and home.name not in INSTALLED:
        folders += [home / name for name in names]
        near += home.glob("*.py")
    for folder in folders:
        near += folder.rglob("*.py")
    return {
        found.resolve()
        for found in near
        if found.stem in names and not found.is_relative_to(FEDSIM)
    }


def _home(file: Path) -> Path:
    """The folder from which a file is imported."""
    return next(folder for folder in file.parents if not (folder / "__init__.py").exists())


def _form_of(file: Path) -> str:
    """Return a hash of the canonical form of a file."""
    return _hash_of_form(file.read_bytes())


@cache  # most files belong to the code of several hashes
def _hash_of_form(source: bytes) -> str:
    return hashlib.sha256(canonical_form(source).encode()).hexdigest()


def _typed_form(cls: type) -> str:
    """Return the canonical form of a class that has no file; random if its source is not known."""
    text = textwrap.dedent(_typed(cls))
    if not text:
        return secrets.token_hex(8)
    try:
        return canonical_form(text)
    except SyntaxError:  # a cell with commands of the notebook in it
        return text


def _typed(cls: type) -> str:
    """Return the source of a class that has no file: its definition, or its functions' cells."""
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError):  # before Python 3.13 there is none of a notebook's classes
        return "".join("".join(linecache.getlines(cell)) for cell in sorted(_cells(cls)))


def _cells(cls: type) -> set[str]:
    """Return the names of the notebook cells in which functions of a class were typed."""
    cells = set()
    for value in vars(cls).values():
        function: Any = getattr(value, "__func__", getattr(value, "fget", value))
        if hasattr(function, "__code__"):
            cells.add(function.__code__.co_filename)
    return cells


def _file_of(module: str) -> Path | None:
    file = getattr(sys.modules.get(module), "__file__", None)
    if file and Path(file).is_file():
        return Path(file).resolve()
    return None


def _below_shipped(file: Path) -> bool:
    return any(file.is_relative_to(folder) for folder in SHIPPED)


def _digest(texts: dict[str, str]) -> str:
    return hashlib.sha256(repr(sorted(texts.items())).encode()).hexdigest()[:16]
