"""Reading grids: from a file, a mapping, or the parameters of one algorithm."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from fedsim.errors import UserError
from fedsim.grid.complaints import spelled, translated
from fedsim.grid.models import Grid, listed
from fedsim.grid.places import Options, Origin
from fedsim.grid.yaml import override, parse, put, read_text
from fedsim.words import is_encodable

_Option = TypeVar("_Option", bound=BaseModel)


def load_grid(
    grid: Path | str | Mapping[str, Any], overrides: Sequence[str] | Mapping[str, Any] = (), algorithms: Iterable[Any] = ()
) -> Grid:
    """Read and check a grid; its algorithms are names still, see :func:`fedsim.grid.resolve.resolve`.

    Args:
        grid: the YAML file, from whose folder relative paths of data, encoders and plug-ins are taken (those of overrides too); or a
            mapping as such a file has it, whose paths are relative to the working folder.
        overrides: ``key=YAML`` texts, or values by key, that replace values of the grid; ``evaluation.per_class`` goes into a mapping.
        algorithms: more of them, as a file has them, or classes.

    Raises:
        UserError: the first mistake, with its place.
    """
    if isinstance(grid, Mapping):
        data, named, folder = copy.deepcopy(dict(grid)), Origin(), Path.cwd()
    else:
        data, named, folder = _read(Path(grid))
    if isinstance(overrides, Mapping):
        changed = [put(data, key, value) for key, value in overrides.items()]
    else:
        changed = [override(data, text) for text in overrides]
    if more := list(algorithms):
        data["algorithms"] = [*listed(data.get("algorithms", [])), *more]
    return _validated(data, replace(named, data=data, overrides=tuple(changed)), folder)


def _read(path: Path) -> tuple[dict[str, Any], Origin, Path]:
    """What a grid file holds, where it stands there, and the folder that relative paths are taken from."""
    if not is_encodable(str(path.absolute())):
        raise UserError(ascii(str(path.absolute())), "is no path in UTF-8, which Ray and JSON need", "rename it")
    data, lines = parse(read_text(path, "grid file (YAML)"), str(path))
    if data is None:
        raise UserError(str(path), "the file is empty", "give at least `algorithms: [NAME]`")
    if not isinstance(data, dict):
        raise UserError(str(path), f"the top level is {spelled(data)}, not a mapping", "write `key: value` lines")
    return {"name": path.stem, **data}, Origin(str(path), None, lines), path.absolute().parent


def _validated(data: Mapping[str, Any], source: Origin, folder: Path) -> Grid:
    """The grid whose places ``source`` names, with its relative paths taken from ``folder``."""
    try:
        grid = Grid.model_validate(data, context=source)
    except ValidationError as error:
        raise translated(error, Grid, source.place) from error
    axes = {name: getattr(grid, name) for name in ("dataset", "encoder", "algorithms")}
    placed: dict[str, Any] = {name: tuple(entry.within(folder) for entry in axis) for name, axis in axes.items()}
    return grid.model_copy(update=placed | {"public": grid.public and grid.public.within(folder)})


def one_cell(algorithm: str, params: Sequence[str], **values: Any) -> Grid:
    """A grid of one algorithm, whose messages name parameters.

    Args:
        algorithm: its name.
        params: ``key=YAML`` texts, its parameters.
        values: further keys of the grid, as a file has them.

    Raises:
        UserError: a value does not do.
    """
    given: dict[str, Any] = {}
    for text in params:
        override(given, text, "params")
    return _validated({"name": "run", "algorithms": [{"name": algorithm, "params": given}], **values}, Options(), Path.cwd())


def parse_option(model: type[_Option], option: str, text: str | Mapping[str, Any], given: Mapping[str, Any]) -> _Option:
    """A function's parameter as a grid would have it.

    Args:
        model: what it becomes.
        option: its name, for messages.
        text: a YAML scalar or mapping; in Python also a mapping.
        given: keys that other parameters give; None is not given.

    Raises:
        UserError: it does not do.
    """
    value = dict(text) if isinstance(text, Mapping) else parse(text, option)[0]
    try:
        base = value if isinstance(value, dict) else model.model_validate(str(value)).model_dump(exclude_unset=True)
        return model.model_validate({**base, **{key: option for key, option in given.items() if option is not None}})
    except ValidationError as error:
        raise translated(error, model, lambda loc: f"{option}: {'.'.join(map(str, loc))}" if loc else option) from error
