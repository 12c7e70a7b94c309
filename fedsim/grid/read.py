"""Reading a grid: YAML text becomes a checked model, and a mistake becomes one message.

Every message names the file, the line and the key.
"""

from __future__ import annotations

import copy
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fedsim.errors import UserError, nearest
from fedsim.files import unread
from fedsim.grid.models import Grid, Loc, Origin, listed

MOST_VALUES = 100_000
"""The most values that the aliases of a YAML text may add to those that are written out."""
RENAMED_KEYS = {"readouts": "evaluators"}
"""Keys of older grids, with the name that each has now."""
_Option = TypeVar("_Option", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """A SafeLoader that reads ``1e-4`` as a number, as YAML 1.2 does, and refuses repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping.

        Raises:
            yaml.MarkedYAMLError: A key is given twice.
        """
        seen = set()
        for key, _ in node.value:
            name = key.value
            if name in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key '{name}' is given twice",
                    problem_mark=key.start_mark,
                    note="remove one of the two",
                )
            # The merge key "<<" may be given several times.
            if name != "<<":
                seen.add(name)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def parse(text: str, where: str) -> tuple[Any, dict[Loc, int]]:
    """Return the plain data of a YAML text, and the line of every key path.

    Args:
        text: The YAML text.
        where: The file or option that the text comes from, for messages.

    Raises:
        UserError: The text is not valid YAML, or its aliases stand for too many values.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, {}
        _check_aliases(node, where)
        return loader.construct_document(node), dict(_lines(node, ()))
    # PyYAML does not catch the errors of int(), datetime() and the like.
    except (
        yaml.YAMLError,
        ValueError,
        KeyError,
        AttributeError,
        TypeError,
        RecursionError,
    ) as error:
        mark = getattr(error, "problem_mark", None)
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UserError(
            _at_line(where, mark),
            f"is not valid YAML ({problem})",
            getattr(error, "note", None) or "write it as `fedsim new` does",
        ) from error


def _at_line(where: str, mark: yaml.Mark | None) -> str:
    """Return the place of a text; if it is a YAML file, with the line of the mark."""
    if mark and where.endswith((".yaml", ".yml")):
        return f"{where}:{mark.line + 1}"
    return where


def _check_aliases(root: yaml.Node, where: str) -> None:
    """Refuse aliases that stand for so many values that only reading them would take minutes.

    A few lines of anchors, each with several aliases of the one before, name billions of values
    ("billion laughs"). Here every node is visited once. The number of values that it stands for is
    the sum over its children.

    Raises:
        UserError: Aliases stand for more than :data:`MOST_VALUES` values, or contain themselves.
    """
    # The number of values of each node by its id; None while its children are counted.
    values: dict[int, int | None] = {}

    def count(node: yaml.Node) -> int:
        """Return the number of values that a node stands for."""
        key = id(node)
        if key in values:
            known = values[key]
            if known is None:
                raise UserError(
                    _at_line(where, node.start_mark),
                    "its anchor contains itself",
                    "write out the values that are meant",
                )
            return known
        values[key] = None
        total = 1 + sum(map(count, _children(node)))
        # Without aliases a node stands for at most as many values as nodes were visited.
        if total > len(values) + MOST_VALUES:
            raise UserError(
                _at_line(where, node.start_mark),
                f"the YAML aliases (*name) of this line stand for more than {MOST_VALUES:,} values",
                "write the values without aliases, or list fewer values",
            )
        values[key] = total
        return total

    count(root)


def _children(node: yaml.Node) -> list[yaml.Node]:
    """Return the nodes directly below a node: the items of a list, or keys and values."""
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    return []


def _lines(node: yaml.Node, loc: Loc) -> Iterator[tuple[Loc, int]]:
    """Yield the path and the line of every key and list item below a node.

    Args:
        node: The node.
        loc: The path of the node.
    """
    children: list[tuple[Any, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        children = [(key.value, key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        children = [(position, item, item) for position, item in enumerate(node.value)]
    for part, marked, value in children:
        path = (*loc, part)
        yield path, marked.start_mark.line + 1
        yield from _lines(value, path)


def read_yaml(path: Path) -> tuple[Any, dict[Loc, int]]:
    """Return the data of a YAML file, and the line of every key path.

    Raises:
        UserError: The file cannot be read, or is not valid YAML.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(
            str(path),
            f"cannot be read ({unread(error)})",
            "give the path of a YAML file, UTF-8",
        ) from error
    return parse(text, str(path))


def complaint(
    error: ValidationError,
    model: type[BaseModel],
    place: Callable[[Loc], str],
) -> UserError:
    """Return the message for the first error of a validation.

    Unknown keys and our own rules come first, since they usually cause the other errors.

    Args:
        error: The failed validation.
        model: The model that refused the values.
        place: Names the place of a key path in a message.
    """
    errors = error.errors(include_url=False)
    first = min(errors, key=_is_consequence)
    kind = first["type"]
    loc = first["loc"]
    where = place(loc)
    if kind == "extra_forbidden":
        key = str(loc[-1])
        known = _keys_at(model, loc[:-1])
        hint = nearest(key, known)
        if key in known:
            hint = f"this entry is {loc[-2]}, which has no such key, so remove the key here"
        if key in RENAMED_KEYS:
            hint = f"it is now called '{RENAMED_KEYS[key]}'"
        return UserError(where, f"unknown key {key!a}", hint)
    if kind == "value_error":
        message = str(first["ctx"]["error"])
        what, _, hint = message.partition("; ")
        return UserError(where, what, hint)
    if kind == "missing":
        hint = "add this key"
        if model is Grid:
            hint = "add this key; docs/reference/grid.md describes it"
        return UserError(where, "is missing", hint)
    message = " ".join(first["msg"].split()).replace("Input should", "must")
    value = first["input"]
    if not isinstance(value, Mapping | list | tuple):
        message = f"{message}, got {value!r}"
    return UserError(where, message)


def _keys_at(annotation: Any, path: Loc) -> set[str]:
    """Return the keys that the mapping at a path may have.

    Args:
        annotation: The type of the whole, such as a model or a list of models.
        path: The path as pydantic gives it. It also has positions in lists and names of models,
            which are no keys.
    """
    fields = getattr(annotation, "model_fields", None)
    if fields is None:  # a list or a choice of models
        return {key for part in get_args(annotation) for key in _keys_at(part, path)}
    for depth, part in enumerate(path, 1):
        if part in fields:
            return _keys_at(fields[part].annotation, path[depth:])
    return set(fields)


def _is_consequence(error: ErrorDetails) -> bool:
    """Return whether an error may be caused by another: unknown keys and our own rules are not."""
    return error["type"] not in ("extra_forbidden", "value_error")


def load_grid(
    grid: Path | str | Mapping[str, Any],
    overrides: Sequence[str] | Mapping[str, Any] = (),
    algorithms: Iterable[Any] = (),
) -> Grid:
    """Read and check a grid; :func:`fedsim.grid.cells.resolve` then finds its algorithms.

    Args:
        grid: The YAML file, or a mapping with the same keys. Relative paths of data, encoders and
            plug-ins, also those of overrides, start at the file's folder, or at the working folder
            for a mapping.
        overrides: Texts ``key=YAML``, or values by key, that replace values of the grid. The dots
            of a key such as ``evaluation.per_class`` lead into mappings.
        algorithms: Further entries of ``algorithms``, as a file has them, or classes.

    Raises:
        UserError: The file cannot be read, or the grid is not valid.
    """
    if isinstance(grid, Mapping):
        data = _plain(grid)
        origin = Origin()
        folder = Path.cwd()
    else:
        path = Path(grid)
        values, lines = read_yaml(path)
        if not isinstance(values, dict):
            raise UserError(
                str(path),
                "is not a mapping",
                "write `key: value` lines, at least `algorithms: [NAME]`",
            )
        # Aliases share one mapping, so a copy is made before an override changes anything.
        data = {"name": slug(path.stem), **_plain(values)}
        origin = Origin(str(path), lines=lines)
        folder = path.absolute().parent
    replaced_keys = _override(data, overrides)
    more = list(algorithms)
    if more:
        data["algorithms"] = [*listed(data.get("algorithms")), *_plain(more)]
    origin = replace(origin, data=data, overrides=replaced_keys)
    try:
        checked = Grid.model_validate(data, context=origin)
    except ValidationError as error:
        raise complaint(error, Grid, origin.location) from error
    return _within(checked, folder)


def _override(
    data: dict[str, Any],
    overrides: Sequence[str] | Mapping[str, Any],
) -> tuple[Loc, ...]:
    """Replace values of a grid's data; return the paths of the keys."""
    if isinstance(overrides, Mapping):
        pairs: Iterable[tuple[str, Any]] = overrides.items()
    else:
        pairs = [assignment(text) for text in overrides]
    return tuple(put(data, key, _plain(value)) for key, value in pairs)


def _within(grid: Grid, folder: Path) -> Grid:
    """Return the grid with the relative paths of its files taken from ``folder``."""
    public = grid.public
    if public is not None:
        public = public.within(folder)
    return grid.model_copy(
        update={
            "dataset": tuple(spec.within(folder) for spec in grid.dataset),
            "encoder": tuple(spec.within(folder) for spec in grid.encoder),
            "algorithms": tuple(entry.within(folder) for entry in grid.algorithms),
            "public": public,
        }
    )


def _plain(value: Any) -> Any:
    """Return a copy of a Python value with the types that a YAML file gives.

    NumPy's arrays, tuples and ranges become lists. NumPy's numbers become plain numbers.
    """
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [_plain(item) for item in value]
    return copy.deepcopy(value)


def slug(text: str) -> str:
    """Return a text as the name of a grid, of at most 100 characters.

    Letters lose their accents, and everything else that a name may not have becomes a dash.
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    words = re.sub(r"[^A-Za-z0-9._-]+", " ", plain).split()
    name = "-".join(words).lstrip("._-")
    return name[:100] or "grid"


def assignment(text: str, option: str = "set") -> tuple[str, Any]:
    """Return the key and the value of a ``key=YAML`` text.

    Args:
        text: The text.
        option: The option that has the text, for messages.

    Raises:
        UserError: The text has no such form, or its value is not valid YAML.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        raise UserError(
            f"{option} {text}",
            "is not of the form key=value",
            "write for example alpha=[0.3] or latent=16",
        )
    return key, parse(value, f"{option} {key}")[0]


def put(data: dict[str, Any], key: str, value: Any) -> Loc:
    """Put a value at a key such as ``evaluation.per_class`` of ``data``; return the key's path.

    Raises:
        UserError: An outer key has a value that is not a mapping.
    """
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
    """Return a grid of one algorithm.

    Args:
        algorithm: The name of the algorithm.
        params: Its parameters as ``key=YAML`` texts.
        values: Further keys of the grid.

    Raises:
        UserError: The grid is not valid.
    """
    given_params: dict[str, Any] = {}
    for text in params:
        key, value = assignment(text, "params")
        put(given_params, key, value)
    entry = {"name": algorithm, "params": given_params}
    return load_grid({"name": "run", "algorithms": [entry], **values})


def parse_option(model: type[_Option], option: str, text: str | Mapping[str, Any]) -> _Option:
    """Return the model that a grid would make of the value of a function's parameter.

    Args:
        model: The model of the parameter.
        option: The name of the parameter, for messages.
        text: The value: a YAML text (a scalar or a mapping), or a Python mapping.

    Raises:
        UserError: The value is not valid.
    """
    value: Any
    if isinstance(text, Mapping):
        value = dict(text)
    else:
        value = parse(text, option)[0]
        if not isinstance(value, dict):
            value = str(value)

    def location(loc: Loc) -> str:
        """Return the text that names a key of the parameter."""
        if not loc:
            return option
        return f"{option}: {'.'.join(map(str, loc))}"

    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise complaint(error, model, location) from error
