"""YAML text to plain data, with the line of every key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from fedsim.errors import UserError
from fedsim.grid.places import Loc
from fedsim.words import is_encodable

_MOST_NODES = 100_000  # a grid file has dozens; aliases of aliases can stand for billions
_MOST_BYTES = 2**20  # a grid file has hundreds; a device has no end


class _Loader(yaml.SafeLoader):
    """SafeLoader with the numbers of YAML 1.2: ``1e-4`` is one, ``010`` is ten, and ``1:30`` is text."""

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        """A scalar's text, which must be Unicode."""
        text = super().construct_scalar(node)
        if not is_encodable(str(text)):
            raise yaml.constructor.ConstructorError(problem=f"{text!a} is half a character", problem_mark=node.start_mark)
        return text


_NUMBERS = {
    "int": r"^[-+]?(\d+|0o[0-7]+|0x[\da-fA-F]+)$",
    "float": r"^([-+]?((\d+\.\d*|\.\d+)([eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(inf|Inf|INF))|\.(nan|NaN|NAN))$",
}
_Loader.yaml_constructors = yaml.SafeLoader.yaml_constructors | {
    "tag:yaml.org,2002:int": lambda loader, node: int(node.value, 16 if "x" in node.value else 8 if "o" in node.value else 10)
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in forms if tag.rpartition(":")[2] not in _NUMBERS]
    for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _form in _NUMBERS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_form), list("-+.0123456789"))


def read_text(path: Path, kind: str = "YAML file") -> str:
    """The text of a file that a user names; ``kind`` is what is expected.

    Raises:
        UserError: it is a folder, is not there, is too large or is no text.
    """
    if path.is_dir():
        raise UserError(str(path), "is a folder", f"give a {kind}")
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise UserError(str(path), f"is larger than {_MOST_BYTES} bytes", f"give a {kind}")
        return content.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(str(path), "there is no such file", f"give the path of a {kind}") from error
    except (OSError, ValueError) as error:
        what = "is not a text file" if isinstance(error, UnicodeDecodeError) else f"cannot be read ({error})"
        raise UserError(str(path), what, f"give a {kind}, UTF-8") from error


def parse(text: str, where: str) -> tuple[Any, dict[Loc, int]]:
    """YAML text to plain data and the line of every key path."""
    lines: dict[Loc, int] = {}
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, lines
        _survey(node, (), lines, where, [0])
        return loader.construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        at = _at(where, error.problem_mark.line) if error.problem_mark else where
        raise UserError(at, f"is not valid YAML ({error.problem})", "correct the line") from error
    except RecursionError as error:
        raise UserError(where, "is nested too deeply", "give a grid file such as `fedsim new` writes") from error
    # PyYAML lets the errors of int(), datetime() and the like through
    except (yaml.YAMLError, ValueError, KeyError, AttributeError, TypeError) as error:
        problem = " ".join(str(error).split())
        raise UserError(where, f"is not valid YAML ({problem})", "give a grid file such as `fedsim new` writes") from error


def _at(where: str, line: int) -> str:
    """A line, counted from 0, of a file; an override is one line anyway."""
    return where if where.startswith("--") else f"{where}:{line + 1}"


def _survey(node: yaml.Node, loc: Loc, lines: dict[Loc, int], where: str, seen: list[int]) -> None:
    """Note the line of every key path below ``node``; a key given twice is an error."""
    seen[0] += 1
    if seen[0] > _MOST_NODES:
        raise UserError(where, f"stands for more than {_MOST_NODES} values", "write a smaller grid, without nested aliases")
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            lines[(*loc, i)] = item.start_mark.line + 1
            _survey(item, (*loc, i), lines, where, seen)
    elif isinstance(node, yaml.MappingNode):
        own: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            if name in own:
                raise UserError(_at(where, key.start_mark.line), f"the key '{name}' is given twice", "remove one")
            own.add(name)
            lines[(*loc, name)] = key.start_mark.line + 1
            _survey(value, (*loc, name), lines, where, seen)


def override(data: dict[str, Any], text: str, option: str = "set") -> Loc:
    """Put one ``key=YAML`` into ``data``; return its key path."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.strip().split(".")):
        example = "alpha=[0.3]" if option == "set" else "latent=16"
        raise UserError(f"{option} {text}", "is not of the form key=value", f"write for example {example}")
    return put(data, key.strip(), parse(value, f"{option} {key.strip()}")[0], option)


def put(data: dict[str, Any], key: str, value: Any, option: str = "set") -> Loc:
    """Put a value at a key such as ``evaluation.per_class`` of ``data``; return its key path."""
    parts, at = key.split("."), data
    for n, part in enumerate(parts[:-1], 1):
        inner = at.setdefault(part, {})
        if not isinstance(inner, dict):
            outer = ".".join(parts[:n])
            raise UserError(f"{option} {key}", f"'{outer}' is not a mapping in the grid file", f"set {outer} as a whole")
        at = inner
    at[parts[-1]] = value
    return tuple(parts)
