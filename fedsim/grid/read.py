"""Reading grids: YAML text to checked models, and every mistake as one message with its file and
line.
"""

from __future__ import annotations

import copy
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml
from pydantic import BaseModel, ValidationError

from fedsim.errors import UserError, nearest
from fedsim.files import unread
from fedsim.grid.models import Grid, Loc, Origin, listed

MOST_VALUES = 100_000
"""Values that the aliases of a YAML text may stand for, beside those that are written out."""
_Option = TypeVar("_Option", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """SafeLoader that takes ``1e-4`` for a number, as YAML 1.2 does, and a key that is given twice
    for a mistake.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping."""
        keys = [key.value for key, _ in node.value if key.value != "<<"]
        if twice := next((key for key, _ in node.value if keys.count(key.value) > 1), None):
            raise yaml.MarkedYAMLError(
                problem=f"the key '{twice.value}' is given twice", problem_mark=twice.start_mark
            )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def parse(text: str, where: str) -> tuple[Any, dict[Loc, int]]:
    """YAML text to plain data, and the line of every key path."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        _check_aliases(node, where)
        return (None if node is None else loader.construct_document(node)), dict(_lines(node, ()))
    # PyYAML lets the errors of int(), datetime() and the like through
    except (
        yaml.YAMLError,
        ValueError,
        KeyError,
        AttributeError,
        TypeError,
        RecursionError,
    ) as error:
        mark = getattr(error, "problem_mark", None)
        what = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UserError(
            _at_line(where, mark), f"is not valid YAML ({what})", "write it as `fedsim new` does"
        ) from error


def _at_line(where: str, mark: yaml.Mark | None) -> str:
    """The place of a text, with the line of a mark where the text is a file's."""
    if mark and where.endswith((".yaml", ".yml")):
        return f"{where}:{mark.line + 1}"
    return where


def _check_aliases(root: yaml.Node | None, where: str) -> None:
    """Refuse aliases that stand for so many values that only reading them would take minutes.

    A few lines of anchors, each of several aliases of the one before, name billions of values
    ("billion laughs"). Here every node is visited once: what it stands for is the sum of what its
    children stand for.
    """
    # How many values a node stands for, by its id; None while its children are counted.
    values: dict[int, int | None] = {}

    def count(node: yaml.Node) -> int:
        key = id(node)
        if key not in values:
            values[key] = None
            total = 1 + sum(map(count, _children(node)))
            # Without aliases a node stands for no more values than were visited.
            if total > len(values) + MOST_VALUES:
                raise UserError(
                    _at_line(where, node.start_mark),
                    f"its aliases stand for more than {MOST_VALUES} values",
                    "write out the values that are meant, or repeat fewer",
                )
            values[key] = total
        known = values[key]
        if known is None:
            raise UserError(
                _at_line(where, node.start_mark),
                "its anchor contains itself",
                "write out the values that are meant",
            )
        return known

    if root is not None:
        count(root)


def _children(node: yaml.Node) -> list[yaml.Node]:
    """The nodes directly below a node: the items of a list, or keys and values."""
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    return []


def _lines(node: yaml.Node | None, loc: Loc) -> Iterator[tuple[Loc, int]]:
    pairs: list[Any] = []
    if isinstance(node, yaml.MappingNode):
        pairs = [(key.value, key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        pairs = [(place, value, value) for place, value in enumerate(node.value)]
    for part, named, value in pairs:
        yield (*loc, part), named.start_mark.line + 1
        yield from _lines(value, (*loc, part))


def read_yaml(path: Path) -> tuple[Any, dict[Loc, int]]:
    """The data of a YAML file that a user names, and the line of every key path."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(
            str(path), f"cannot be read ({unread(error)})", "give the path of a YAML file, UTF-8"
        ) from error
    return parse(text, str(path))


def complaint(
    error: ValidationError, model: type[BaseModel], place: Callable[[Loc], str]
) -> UserError:
    """The first error of a validation; an unknown key or a rule of our own goes first, for it
    explains what else pydantic has to say.
    """
    errors = error.errors(include_url=False)
    first = next(
        (one for one in errors if one["type"] in ("extra_forbidden", "value_error")), errors[0]
    )
    where = place(first["loc"])
    given = first["input"]
    if first["type"] == "extra_forbidden":
        *above, key = first["loc"]
        return UserError(
            where, f"unknown key '{key}'", "" if above else nearest(str(key), model.model_fields)
        )
    if first["type"] == "value_error":
        what, _, hint = str(first["ctx"]["error"]).partition("; ")
        return UserError(where, what, hint)
    if first["type"] == "missing" or isinstance(given, Mapping | list | tuple):
        shown = ""
    else:
        shown = f"{given!r}: "
    return UserError(where, " ".join(f"{shown}{first['msg']}".split()))


def load_grid(
    grid: Path | str | Mapping[str, Any],
    overrides: Sequence[str] | Mapping[str, Any] = (),
    algorithms: Iterable[Any] = (),
) -> Grid:
    """Read and check a grid; its algorithms are names still, see :func:`fedsim.grid.cells.resolve`.

    Args:
        grid: the YAML file, from whose folder relative paths of data, encoders and plug-ins are
            taken (those of overrides too); or a mapping as such a file has it, whose paths are
            relative to the working folder.
        overrides: ``key=YAML`` texts, or values by key, that replace values of the grid;
            ``evaluation.per_class`` goes into a mapping.
        algorithms: more of them, as a file has them, or classes.
    """
    if isinstance(grid, Mapping):
        data = _plain(grid)
        source = Origin()
        folder = Path.cwd()
    else:
        path = Path(grid)
        given, lines = read_yaml(path)
        if not isinstance(given, dict):
            raise UserError(
                str(path),
                "is not a mapping",
                "write `key: value` lines, at least `algorithms: [NAME]`",
            )
        data = {"name": slug(path.stem), **given}
        source = Origin(str(path), lines=lines)
        folder = path.absolute().parent
    if isinstance(overrides, Mapping):
        pairs: Iterable[tuple[str, Any]] = overrides.items()
    else:
        pairs = [assignment(text) for text in overrides]
    changed = tuple(put(data, key, _plain(value)) for key, value in pairs)
    if more := list(algorithms):
        data["algorithms"] = [*listed(data.get("algorithms")), *_plain(more)]
    source = replace(source, data=data, overrides=changed)
    try:
        checked = Grid.model_validate(data, context=source)
    except ValidationError as error:
        raise complaint(error, Grid, source.location) from error
    axes = {name: getattr(checked, name) for name in ("dataset", "encoder", "algorithms")}
    placed: dict[str, Any] = {
        name: tuple(entry.within(folder) for entry in axis) for name, axis in axes.items()
    }
    return checked.model_copy(
        update=placed | {"public": checked.public and checked.public.within(folder)}
    )


def _plain(value: Any) -> Any:
    """A copy of what Python gives for a grid as a file would have it: NumPy's arrays and numbers,
    and ranges, become lists and numbers of Python.
    """
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | range):
        return [_plain(each) for each in value]
    return copy.deepcopy(value)


def slug(text: str) -> str:
    """A text as a grid's name: letters lose their accents, and what else a name may not have is a
    dash.
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return (
        re.sub(r"[^A-Za-z0-9._-]+", " ", plain).strip().replace(" ", "-").lstrip("._-")[:100]
        or "grid"
    )


def assignment(text: str, option: str = "set") -> tuple[str, Any]:
    """Key and value of a ``key=YAML`` text."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.strip().split(".")):
        raise UserError(
            f"{option} {text}",
            "is not of the form key=value",
            "write for example alpha=[0.3] or latent=16",
        )
    return key.strip(), parse(value, f"{option} {key.strip()}")[0]


def put(data: dict[str, Any], key: str, value: Any) -> Loc:
    """Put a value at a key such as ``evaluation.per_class`` of ``data``; return its key path."""
    *outer, last = key.split(".")
    for part in outer:
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise UserError(
                f"set {key}",
                f"'{part}' is not a mapping in the grid file",
                f"set {part} as a whole",
            )
    data[last] = value
    return (*outer, last)


def one_cell(algorithm: str, params: Sequence[str], **values: Any) -> Grid:
    """A grid of one algorithm with ``key=YAML`` parameters and further keys, as a file has them."""
    given: dict[str, Any] = {}
    for text in params:
        put(given, *assignment(text, "params"))
    return load_grid(
        {"name": "run", "algorithms": [{"name": algorithm, "params": given}], **values}
    )


def parse_option(model: type[_Option], option: str, text: str | Mapping[str, Any]) -> _Option:
    """A function's parameter ``option``, a YAML scalar or mapping, as a grid would have it."""
    if isinstance(text, Mapping):
        value = dict(text)
    else:
        value = parse(text, option)[0]
    try:
        return model.model_validate(value if isinstance(value, dict) else str(value))
    except ValidationError as error:
        raise complaint(
            error, model, lambda loc: f"{option}: {'.'.join(map(str, loc))}" if loc else option
        ) from error
