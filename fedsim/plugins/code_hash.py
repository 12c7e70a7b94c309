"""Computes hashes of code, which are part of a cell's id: other mathematics gives another id.

A hash covers what code does, not how it is written: comments, layout and docstrings may change
without a new id (:mod:`fedsim.plugins.syntax`). It covers two kinds of files. The first are those
of fedsim that compute (:data:`MATHEMATICS`). The second are the algorithm's own: the modules of its
class, of its bases and of its parameters, and the modules that these import from their package,
from their folder and from the algorithms and baselines that fedsim ships.
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
"""The folder of fedsim's own code."""
SHIPPED = tuple(FEDSIM.parent / name for name in ("fedsim", "algorithms", "baselines"))
"""The folders of the code that fedsim ships."""
INSTALLED = {"site-packages", "dist-packages"}
"""Names of the folders into which packages are installed."""
_FOLDERS = ("methods", "privacy", "models", "training", "partition")
MATHEMATICS = (*_FOLDERS, "batch.py", "device.py", "seeds.py", "data/embeddings.py")
"""The folders and files of fedsim whose code decides the result of a training."""


@cache
def source_hash(cls: type) -> str:
    """Return 16 hex digits that identify the code of a class and all that trains it.

    They are the first digits of a SHA-256. All classes of one file have the same hash. Of a class
    from a notebook, its definition counts; before Python 3.13, the cells in which its functions
    were typed. A class whose source cannot be found gets a random hash, so that no recorded result
    is taken for a result of this class. The hash of a class is computed once per process.
    """
    forms = _forms_of(_files(cls))
    for base in _bases(cls):
        if not _file_of(base.__module__):
            forms.append((base.__qualname__, _typed_form(base)))
    return _digest_with_harness(forms)


def source_hash_of_file(file: Path) -> str:
    """Return the :func:`source_hash` of the classes that a file defines, without running the file.

    It differs from the hash of an imported class only if the class has a base or parameters in a
    file that the import statements do not lead to, such as one of another installed package.

    Raises:
        OSError: a file cannot be read.
        SyntaxError: a file is not Python.
    """
    files = _with_imports({file.resolve()})
    return _digest_with_harness(_forms_of(files))


@cache
def harness_hash(*rooms: str) -> str:
    """Return the hash of the code of :data:`MATHEMATICS` and of further folders of fedsim.

    Args:
        rooms: the further folders or files of fedsim, such as ``evaluation``.
    """
    forms = []
    for folder_or_file in (*MATHEMATICS, *rooms):
        path = FEDSIM / folder_or_file
        files = path.rglob("*.py") if path.is_dir() else [path]
        for file in files:
            forms.append((file.relative_to(FEDSIM).as_posix(), _form_hash(file)))
    return _digest(forms)


def place_of(cls: type) -> str:
    """Return a text that names a class.

    The text is ``PLACE:CLASS``. The place is the module if the module is shipped or installed.
    Otherwise it is the file, relative to the working folder if it lies below it. A class without a
    file has the place ``interpreter``.
    """
    file = _file_of(cls.__module__)
    if file is None:
        place = "interpreter"
    elif _has_lasting_name(file):
        place = cls.__module__
    else:
        place = shown(file)
    return f"{place}:{cls.__qualname__}"


def places_of(cls: type) -> list[str]:
    """Return all texts with which :func:`place_of` may name a class, in any working folder."""
    file = _file_of(cls.__module__)
    if file is None or _has_lasting_name(file):
        return [place_of(cls)]
    paths = [
        file,
        *(file.relative_to(folder) for folder in file.parents),
    ]
    return [f"{path}:{cls.__qualname__}" for path in paths]


def is_shipped(cls: type) -> bool:
    """Return whether a class is part of fedsim, its algorithms or its baselines."""
    file = _file_of(cls.__module__)
    return file is not None and below_shipped(file)


def own_files(cls: type) -> set[Path]:
    """Return the files of a class and of what it imports that are neither shipped nor installed."""
    return {file for file in _files(cls) if not _has_lasting_name(file)}


def _files(cls: type) -> set[Path]:
    """Return the files of a class, its bases, its parameters and their imports, except fedsim's."""
    params = getattr(cls, "Params", cls)
    modules = {base.__module__ for base in (*_bases(cls), *_bases(params))}
    files = {file for file in map(_file_of, modules) if file and not file.is_relative_to(FEDSIM)}
    return _with_imports(files)


def _with_imports(files: set[Path]) -> set[Path]:
    """Return the files and all that they import, directly or through others."""
    finished: set[Path] = set()
    waiting = set(files)
    while waiting:
        file = waiting.pop()
        finished.add(file)
        waiting |= _imported(file) - finished
    return finished


def _forms_of(files: set[Path]) -> list[tuple[str, str]]:
    """Return the path of each file below the folder from which it is imported, and its hash.

    Files of different folders may have the same path.
    """
    return [(str(file.relative_to(_home(file))), _form_hash(file)) for file in files]


def _bases(cls: type) -> list[type]:
    """Return those of a class and its bases that derive from ``Algorithm`` or ``Params``."""
    root_module = "fedsim.methods.algorithm"  # the module of Algorithm and Params
    return [
        base for base in cls.__mro__ if root_module in {root.__module__ for root in base.__mro__}
    ]


def _imported(file: Path) -> set[Path]:
    """Return the files that a file may import from its package, its folder or what fedsim ships.

    A file counts if its name is a word of an import statement. So it may not really be imported.
    A file that is not Python, such as a template, does not count.
    """
    # Python runs the __init__.py of every package on the way.
    names = {"__init__", *imported_names(file.read_bytes())}
    home = _home(file)
    package = file.relative_to(home).parts[0]
    folders = [home / package]
    nearby: list[Path] = []
    for folder in SHIPPED[1:]:
        nearby += folder.glob("*.py")
    if not below_shipped(file) and home.name not in INSTALLED:
        folders += [home / name for name in names]
        nearby += home.glob("*.py")
    for folder in folders:
        nearby += folder.rglob("*.py")
    imported = [path for path in nearby if path.stem in names and _is_python(path)]
    return {path.resolve() for path in imported if not path.is_relative_to(FEDSIM)}


def _home(file: Path) -> Path:
    """Return the folder from which a file is imported: the first above it that is no package."""
    return next(folder for folder in file.parents if not (folder / "__init__.py").exists())


def _is_python(file: Path) -> bool:
    try:
        _form_hash(file)
    except (SyntaxError, ValueError):  # a ValueError for a file with null bytes
        return False
    return True


def _form_hash(file: Path) -> str:
    """Return a hash of the canonical form of a file."""
    return _hash_of_form(file.read_bytes())


@cache  # most files belong to the code of several hashes
def _hash_of_form(source: bytes) -> str:
    return hashlib.sha256(canonical_form(source).encode()).hexdigest()


def _typed_form(cls: type) -> str:
    """Return the canonical form of a class that has no file; a random text without a source."""
    text = textwrap.dedent(_typed(cls))
    if not text:
        return secrets.token_hex(8)
    try:
        return canonical_form(text)
    except SyntaxError:
        # The cell also has commands of the notebook, which are not Python.
        return text


def _typed(cls: type) -> str:
    """Return the source of a class that has no file; an empty text if it cannot be found.

    It is the definition of the class, or the notebook cells in which its functions were typed.
    """
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError):
        # Before Python 3.13 the source of a notebook's class is not found.
        lines = [line for cell in sorted(_cells(cls)) for line in linecache.getlines(cell)]
        return "".join(lines)


def _cells(cls: type) -> set[str]:
    """Return the names of the notebook cells in which functions of a class were typed."""
    cells = set()
    for value in vars(cls).values():
        function: Any = getattr(
            value,
            "__func__",
            getattr(value, "fget", value),
        )
        if hasattr(function, "__code__"):
            cells.add(function.__code__.co_filename)
    return cells


def _file_of(module: str) -> Path | None:
    """Return the file of a loaded module; None if it has none."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file and Path(file).is_file():
        return Path(file).resolve()
    return None


def below_shipped(file: Path) -> bool:
    """Return whether a file is part of fedsim, its algorithms or its baselines."""
    return any(map(file.is_relative_to, SHIPPED))


def _has_lasting_name(file: Path) -> bool:
    """Return whether a file's module is shipped or installed, so its name is the same anywhere."""
    return below_shipped(file) or not INSTALLED.isdisjoint(file.parts)


def _digest_with_harness(forms: list[tuple[str, str]]) -> str:
    """Return the digest of an algorithm's own code together with fedsim's."""
    return _digest([("", harness_hash()), *forms])


def _digest(texts: list[tuple[str, str]]) -> str:
    """Return the first 16 hex digits of a SHA-256 of names and texts, whatever their order."""
    return hashlib.sha256(repr(sorted(texts)).encode()).hexdigest()[:16]
