"""Classes of a notebook or a script as files, which every process can import: a worker has no ``__main__`` of the driver.

A file holds the definition of one class, as its cell has it, with those definitions, imports and plain values of the notebook that it
uses. Its name has a hash of that code, so that a file never becomes another class, and ids do not depend on where it lies.
"""

from __future__ import annotations
import __future__

import ast
import inspect
import linecache
import shutil
import symtable
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from fedsim.errors import UserError
from fedsim.files import replaced
from fedsim.plugins.code_hash import NOTEBOOK, syntax_hash
from fedsim.plugins.registry import GROUP, lookup, notebook_folder

_AGAIN = "run its cell again, or put the class into a file"


def name_of(cls: type) -> str:
    """How a grid names a class: by its entry point, its module, or the file that is written of a notebook's class.

    Raises:
        UserError: a notebook's class cannot be written down.
    """
    path = f"{cls.__module__}:{cls.__qualname__}"
    if cls.__module__ != "__main__":
        return next((entry.name for entry in entry_points(group=GROUP) if entry.value == path), path)
    text = _text(cls)
    stem = f"{NOTEBOOK}{cls.__name__}_{syntax_hash(text.encode())}"
    file, held = notebook_folder() / f"{stem}.py", getattr(sys.modules.get(stem), "__file__", None)
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        with replaced(file) as part:
            part.write_text(text, encoding="utf-8")
    if held is not None and Path(held).resolve() != file.resolve():  # another cache folder was in use
        del sys.modules[stem]
    name = f"{file.name}:{cls.__name__}"
    if _facts(lookup(name, cls.__name__)) != _facts(cls):
        raise UserError(cls.__name__, "is not what its source says", _AGAIN)
    return name


def keep_sources(names: Iterable[str], folder: Path) -> None:
    """Copy the files of those algorithms that are a notebook's into a folder: for a later session, or another machine."""
    for file in {notebook_folder() / name.rpartition(":")[0] for name in names if name.startswith(NOTEBOOK)}:
        folder.mkdir(exist_ok=True)
        shutil.copy(file, folder / file.name)


def take_sources(folder: Path) -> None:
    """Have the files that :func:`keep_sources` left in a folder looked up as those of this machine are."""
    for file in folder.glob(f"{NOTEBOOK}*.py"):
        if not (own := notebook_folder() / file.name).exists() and syntax_hash(file.read_bytes()) == file.stem.rpartition("_")[2]:
            with replaced(own) as part:
                shutil.copy(file, part)


def _text(cls: type) -> str:
    """The file: what the class uses, then the class."""
    if "." in cls.__qualname__:
        raise UserError(cls.__qualname__, "is defined inside a function or class", "define it at the top level of a cell")
    functions = list(_functions(cls))
    known = functions[0].__globals__ if functions else vars(sys.modules["__main__"])
    blocks: dict[str, str] = {}
    _gather(cls.__name__, {**known, cls.__name__: cls}, blocks, cls.__name__)
    future = any(function.__code__.co_flags & __future__.annotations.compiler_flag for function in functions)
    head = [f'"""{cls.__name__} as a notebook defined it, with what it uses of the notebook; written by fedsim."""']
    return "\n\n".join([*head, *(["from __future__ import annotations"] if future else []), *blocks.values()]) + "\n"


def _gather(name: str, known: Mapping[str, Any], blocks: dict[str, str], of: str) -> None:
    """Add what defines a name of the notebook to the blocks of a file, behind what that uses itself."""
    if name in blocks or name not in known or name.startswith("__"):
        return
    thing = known[name]
    if isinstance(thing, ModuleType):
        blocks[name] = f"import {thing.__name__} as {name}"
    elif (origin := _origin(thing, name)) is not None:
        blocks[name] = "from {} import {} as {}".format(*origin, name)
    elif isinstance(thing, type | FunctionType) and thing.__module__ == "__main__" and thing.__name__ == name:
        blocks[name] = ""  # it may use its own name
        source = _source(thing, known)
        for used in sorted(_globals(source)):
            _gather(used, known, blocks, of)
        del blocks[name]
        blocks[name] = source
    elif _is_plain(thing):
        blocks[name] = f"{name} = {thing!r}"
    else:
        what = f"uses '{name}' of the notebook, which is {type(thing).__name__} and cannot be written down"
        raise UserError(of, what, "import or make it within the class; imports, functions, classes and plain values come along")


def _origin(thing: Any, name: str) -> tuple[str, str] | None:
    """The module that something can be imported from, and its name there."""
    module = getattr(thing, "__module__", None)
    if not isinstance(module, str) or module == "__main__":
        return None
    names = (getattr(thing, "__name__", None), name)
    return next(((module, own) for own in names if own and getattr(sys.modules.get(module), own, None) is thing), None)


def _is_plain(value: Any) -> bool:
    """Whether a value is its own text, as numbers, strings and tuples of them are."""
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError, TypeError):
        return False


def _source(thing: type | FunctionType, known: Mapping[str, Any]) -> str:
    """The definition of a class or function with its decorators, as its cell has it."""
    for text in _cells(thing, known):
        try:
            statements = ast.parse(text).body
        except SyntaxError:
            continue
        kind = ast.ClassDef if isinstance(thing, type) else ast.FunctionDef
        for node in reversed([node for node in statements if isinstance(node, kind) and node.name == thing.__name__]):
            decorators = [f"@{ast.get_source_segment(text, decorator)}" for decorator in node.decorator_list]
            return "\n".join([*decorators, ast.get_source_segment(text, node) or ""])
    raise UserError(thing.__name__, "its source cannot be read", _AGAIN)


def _cells(thing: type | FunctionType, known: Mapping[str, Any]) -> Iterator[str]:
    """The cells that may define something: that of its code; without any those that ran last (``In``), and the script."""
    functions = [inspect.unwrap(thing)] if isinstance(thing, FunctionType) else list(_functions(thing))
    for function in functions[:1]:
        yield "".join(linecache.getlines(function.__code__.co_filename))
    if not functions:
        yield from map(str, reversed(known.get("In") or ()))
        yield "".join(linecache.getlines(str(known.get("__file__", ""))))


def _functions(cls: type) -> Iterator[FunctionType]:
    """The functions that a class body defines."""
    for value in vars(cls).values():
        function = inspect.unwrap(getattr(value, "__func__", getattr(value, "fget", value)))
        if isinstance(function, FunctionType) and function.__module__ == cls.__module__:
            yield function


def _globals(source: str) -> set[str]:
    """The names that a definition takes from its module."""
    tables, names = [symtable.symtable(source, "cell", "exec")], set()
    for table in tables:  # which grows
        tables += table.get_children()
        names |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}
    return names


def _facts(cls: Any) -> Any:
    """What two classes of one source have in common: what their functions name and hold, and their parameters."""
    code = {function.__name__: _shape(function.__code__) for function in _functions(cls)}
    return code, cls.Params.model_json_schema() if hasattr(getattr(cls, "Params", None), "model_json_schema") else None


def _shape(code: CodeType) -> tuple[Any, ...]:
    """Of code what does not depend on the module: an instruction may, on whether a name is imported there."""
    held = tuple(_shape(value) if isinstance(value, CodeType) else repr(value) for value in code.co_consts)
    return code.co_names, code.co_varnames, held
