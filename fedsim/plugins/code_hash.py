"""What an algorithm's code is, as a hash: the part of a cell's id that changes when the mathematics does.

Hashed are the syntax trees, without comments, docstrings and layout, of the algorithm's module and those of its base classes, of what
these import, one from another, and of the room that trains (:data:`TRAINING`). Left out are the standard library, installed packages (but
for the algorithm's own) and :data:`HARMLESS`. Files are read and parsed, never imported. What is imported by a computed name is not seen.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import secrets
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from fedsim.plugins.places import FEDSIM, INSTALLED, shown

SHIPPED = tuple(FEDSIM.parent / name for name in ("fedsim", "algorithms", "baselines"))
TRAINING, EVALUATION = "fedsim.training", "fedsim.evaluation"
"""The rooms that compute what a training and a judgement are; each is hashed whole, with what it imports from the rooms below."""
LAZY, FACE = "fedsim.methods", "fedsim.methods.face"
"""A package, and where its names lead; an import of another module of the package does not reach there."""
HARMLESS = {
    "fedsim.plugins": "finds classes, whose code is hashed",
    "fedsim.grid": "what it makes of a grid stands in the cell",
    "fedsim.data": "what it yields is data, whose content an id holds",
    "fedsim.errors": "messages",
    "fedsim.words": "messages",
    "fedsim.json_lines": "how lines are written",
    "fedsim.files": "how files are opened and written",
}
"""Rooms that the two reach and that change no number, and why; every other module that they reach is hashed."""
COMPUTES = {"fedsim.data.normalise"}
"""Their modules that a scheme of partition computes with."""
NOTEBOOK = "notebook_"
"""How modules begin that are written of a notebook's classes; the rest of their names is a hash of their code."""
_STANDARD = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))
_known: WeakKeyDictionary[type, str] = WeakKeyDictionary()


def source_hash(cls: type) -> str:
    """First 16 hex digits of the SHA-256 of a class's code; computed once a process.

    A class without a source file (made in an interpreter) has a random one of its own, so that no other session or later
    definition is taken for it.
    """
    if cls not in _known:
        roots = _modules_of(cls)
        _known[cls] = secrets.token_hex(8) if roots is None else _hash_of(digests((*modules_of(TRAINING), *roots), roots))
    return _known[cls]


def evaluation_hash() -> str:
    """The same of the code that judges what was trained, and computes references."""
    return module_hash(*modules_of(EVALUATION))


def check_hash() -> str:
    """The same of the code that checks plug-ins."""
    return module_hash("fedsim.evidence.check.check")


def modules_of(room: str) -> list[str]:
    """The names of a room's modules, sorted."""
    folder = FEDSIM.parent / room.replace(".", "/")
    return sorted(f"{room}.{path.stem}" for path in folder.glob("*.py") if path.stem != "__init__")


def syntax_hash(content: bytes) -> str:
    """First 8 hex digits of the SHA-256 of a file's syntax tree, without comments, docstrings and layout."""
    return _parsed(content).digest[:8]


@lru_cache
def module_hash(*modules: str) -> str:
    """The same of modules of fedsim and of what they import."""
    return _hash_of(digests(modules))


def place_of(cls: type) -> str:
    """Which class it is: by its module where that is shipped, installed or a notebook's, else by its file, as the working folder has it."""
    file = _file_of(cls.__module__)
    if file is None:
        return f"interpreter:{cls.__qualname__}"
    named = is_shipped(cls) or INSTALLED & set(file.parts) or cls.__module__.startswith(NOTEBOOK)
    return f"{cls.__module__ if named else shown(file)}:{cls.__qualname__}"


def is_shipped(cls: type) -> bool:
    """Whether a class is part of fedsim, its algorithms or its baselines."""
    file = _file_of(cls.__module__)
    return file is not None and _below(file, SHIPPED)


def own_files(cls: type) -> set[Path]:
    """The files of a plug-in that is not installed: its module's and those of what it imports beside it."""
    roots = _modules_of(cls) or []
    return {file for file in reached(roots, roots).values() if _is_own(file) and not _below(file, SHIPPED)}


def digests(roots: Iterable[str], own: Iterable[str] = ()) -> dict[str, str]:
    """The digest of every module that is hashed, by name.

    Args:
        roots: modules to start from.
        own: modules whose packages count although they are installed.
    """
    return {name: _parsed(file.read_bytes()).digest for name, file in reached(roots, own).items() if not is_harmless(name)}


def is_harmless(module: str) -> bool:
    """Whether a module changes no number: an empty package, or one of :data:`HARMLESS`."""
    within = any(module == room or module.startswith(f"{room}.") for room in HARMLESS)
    return module in ("fedsim", LAZY) or (within and module not in COMPUTES)


def reached(roots: Iterable[str], own: Iterable[str] = ()) -> dict[str, Path]:
    """The files of ``roots`` and of all that they import, transitively, by module name; arguments as in :func:`digests`."""
    packages = {name.partition(".")[0] for name in own}
    files: dict[str, Path] = {}
    specs: dict[str, ModuleSpec | None] = {}
    waiting, visited = list(roots), set[str]()
    while waiting:
        name = waiting.pop()
        if not name or name in visited:
            continue
        visited.add(name)
        spec = _spec(name, specs)
        file = _file_of(name) if spec is None else Path(spec.origin).resolve() if spec.has_location and spec.origin else None
        if file is None or not (_below(file, SHIPPED) or name.partition(".")[0] in packages or _is_own(file)):
            continue
        files[name] = file
        package = name if spec is not None and spec.submodule_search_locations is not None else name.rpartition(".")[0]
        waiting += _parents(name)
        imports = () if is_harmless(name) else _parsed(file.read_bytes()).imports
        waiting += (module for imported in imports for module in imported.modules(package))
    return dict(sorted(files.items()))


@dataclass(frozen=True)
class _Import:
    """An import statement: of ``names`` from ``module``, ``level`` dots up; a name may be a module of its own."""

    level: int
    module: str
    names: tuple[str, ...]

    def modules(self, package: str) -> Iterator[str]:
        """What it may load, in a module of ``package``."""
        above = package.split(".")[: len(package.split(".")) - self.level + 1] if self.level else []
        base = ".".join([*above, *([self.module] if self.module else [])])
        named = [base, *(f"{base}.{name}" for name in self.names)]
        yield from (*named, *_parents(base))
        if LAZY in named:
            yield FACE


@dataclass(frozen=True)
class _Parsed:
    """A file's digest and its import statements."""

    digest: str
    imports: tuple[_Import, ...]


@lru_cache(maxsize=4096)
def _parsed(content: bytes) -> _Parsed:
    try:
        tree = ast.parse(content)
        text = repr(_shape(tree)).encode()
    except (SyntaxError, ValueError, RecursionError):  # no Python, or nested too deeply: the bytes speak for themselves
        return _Parsed(hashlib.sha256(content).hexdigest(), ())
    return _Parsed(hashlib.sha256(text).hexdigest(), tuple(_imports(tree)))


def _shape(node: Any) -> Any:
    """A syntax tree as tuples, without positions, texts that are statements, and empty fields, which differ between Python versions."""
    if isinstance(node, ast.AST):
        fields = ((name, getattr(node, name, None)) for name in node._fields if name != "kind")
        return (type(node).__name__, *((name, _shape(value)) for name, value in fields if value is not None and value != []))
    if isinstance(node, list):
        return tuple(_shape(child) for child in node if not _is_text(child))
    return node


def _is_text(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _imports(tree: ast.AST) -> Iterator[_Import]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (_Import(0, alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield _Import(node.level, node.module or "", tuple(alias.name for alias in node.names))


def _spec(name: str, known: dict[str, ModuleSpec | None]) -> ModuleSpec | None:
    """Where a module would be loaded from; its parents are looked at and not imported."""
    if name not in known:
        parent = name.rpartition(".")[0]
        above = _spec(parent, known) if parent else None
        try:
            if parent:
                folders = above.submodule_search_locations if above else None
                known[name] = PathFinder.find_spec(name, folders) if folders else None
            else:
                known[name] = importlib.util.find_spec(name)
        except (ImportError, ValueError, KeyError):  # put together by hand, or below a namespace package that is not imported
            known[name] = None
    return known[name]


def _modules_of(cls: type) -> list[str] | None:
    """The modules of a class, of its parameters and of their bases as far as they are an algorithm's; None if one has no file."""
    bases = [base for kind in (cls, getattr(cls, "Params", cls)) for base in kind.__mro__]
    names = list(dict.fromkeys(base.__module__ for base in bases if any(b.__module__ == "fedsim.methods.algorithm" for b in base.__mro__)))
    return names if all(map(_file_of, names)) else None


def _file_of(module: str) -> Path | None:
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file).resolve() if file and Path(file).is_file() else None


def _is_own(file: Path) -> bool:
    """Whether a file is neither the standard library's nor installed."""
    return not INSTALLED & set(file.parts) and not _below(file, _STANDARD)


def _below(file: Path, folders: Iterable[Path]) -> bool:
    return any(file.is_relative_to(folder) for folder in folders)


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def _hash_of(files: dict[str, str]) -> str:
    return hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:16]
