"""What code is, as a hash: the part of a cell's id that changes when the mathematics may have
changed.

Hashed is text, comments and all: of the rooms that compute (:data:`MATHEMATICS`), and of an
algorithm's own files, which are its module, those of its bases and parameters, and what these
import of their package, from beside it and of what fedsim ships.
"""

from __future__ import annotations

import hashlib
import inspect
import linecache
import re
import secrets
import sys
from functools import cache
from pathlib import Path
from typing import Any

FEDSIM = Path(__file__).parents[1]
SHIPPED = tuple(FEDSIM.parent / name for name in ("fedsim", "algorithms", "baselines"))
INSTALLED = {"site-packages", "dist-packages"}
_ROOMS = ("methods", "privacy", "models", "training", "partition")
MATHEMATICS = (*_ROOMS, "batch.py", "device.py", "seeds.py", "data/embeddings.py")
"""The rooms and files of fedsim that compute what a training is."""
_IMPORTS = re.compile(r"^[ \t]*(?:from|import)\s+([^(\n]*(?:\([^)]*\))?)", re.MULTILINE)


@cache
def source_hash(cls: type) -> str:
    """First 16 hex digits of the SHA-256 of a class's code and of what it is trained by; computed
    once a process.

    A class of a notebook has that of its cell; one whose source is not to be found has a random
    one, so that nothing is taken for it.
    """
    files = {
        str(file.relative_to(_home(file))): file.read_text("utf-8", "replace")
        for file in _files(cls)
    }
    typed = {
        base.__qualname__: _typed(base) or secrets.token_hex(8)
        for base in _bases(cls)
        if not _file_of(base.__module__)
    }
    return _digest({"": harness_hash()} | files | typed)


@cache
def harness_hash(*rooms: str) -> str:
    """The same of the rooms of fedsim that compute, and of others beside them, such as
    ``evaluation``, which judges.
    """
    places = [FEDSIM / room for room in (*MATHEMATICS, *rooms)]
    files = [
        file for place in places for file in (place.rglob("*.py") if place.is_dir() else [place])
    ]
    return _digest({file.relative_to(FEDSIM).as_posix(): file.read_text("utf-8") for file in files})


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


def shown(file: str | Path) -> str:
    """A path, from the working folder where it lies below it."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


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
    """All files of a class's own code."""
    modules = {base.__module__ for base in (*_bases(cls), *_bases(getattr(cls, "Params", cls)))}
    found, waiting = (
        set[Path](),
        {file for file in map(_file_of, modules) if file and not file.is_relative_to(FEDSIM)},
    )
    while waiting:
        file = waiting.pop()
        found.add(file)
        waiting |= _imported(file) - found
    return found


def _bases(cls: type) -> list[type]:
    """A class and its bases as far as they are an algorithm's or its parameters'."""
    return [
        base
        for base in cls.__mro__
        if any(of.__module__ == "fedsim.methods.algorithm" for of in base.__mro__)
    ]


def _imported(file: Path) -> set[Path]:
    """The files of its package, beside it and of what fedsim ships whose names are in the import
    statements of a file.
    """
    names = {
        "__init__",
        *re.findall(r"\w+", " ".join(_IMPORTS.findall(file.read_text("utf-8", "replace")))),
    }
    home = _home(file)
    folders, near = (
        [home / file.relative_to(home).parts[0]],
        [each for folder in SHIPPED[1:] for each in folder.glob("*.py")],
    )
    if not _below_shipped(file) and home.name not in INSTALLED:
        folders, near = [*folders, *(home / name for name in names)], [*near, *home.glob("*.py")]
    near += [each for folder in folders for each in folder.rglob("*.py")]
    return {
        each.resolve() for each in near if each.stem in names and not each.is_relative_to(FEDSIM)
    }


def _home(file: Path) -> Path:
    """The folder from which a file is imported."""
    return next(folder for folder in file.parents if not (folder / "__init__.py").exists())


def _typed(cls: type) -> str:
    """The source of a class that has no file: its definition, or the cells of its functions."""
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError):  # before Python 3.13 there is none of a notebook's classes
        functions: list[Any] = [
            getattr(value, "__func__", getattr(value, "fget", value))
            for value in vars(cls).values()
        ]
        cells = {
            function.__code__.co_filename for function in functions if hasattr(function, "__code__")
        }
        return "".join("".join(linecache.getlines(cell)) for cell in sorted(cells))


def _file_of(module: str) -> Path | None:
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file).resolve() if file and Path(file).is_file() else None


def _below_shipped(file: Path) -> bool:
    return any(file.is_relative_to(folder) for folder in SHIPPED)


def _digest(texts: dict[str, str]) -> str:
    return hashlib.sha256(repr(sorted(texts.items())).encode()).hexdigest()[:16]
