"""A grid's algorithms looked up, each with all its parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from fedsim.errors import PluginError, UserError, nearest
from fedsim.grid.complaints import translated
from fedsim.grid.models import Grid
from fedsim.grid.places import Loc
from fedsim.methods.algorithm import Algorithm
from fedsim.plugins.code_hash import own_files, place_of, source_hash
from fedsim.plugins.registry import lookup
from fedsim.words import spelled


@dataclass(frozen=True)
class Variant:
    """An algorithm with all parameters: one entry of ``algorithms`` at one point of ``scan``.

    Attributes:
        entry: the position in ``algorithms``.
        label: what tables and curves call it.
        name: the algorithm's name as the grid gives it.
        identity: which class it is, see :func:`fedsim.plugins.code_hash.place_of`.
        source: hash of its code and the harness's.
        params: all its parameters, defaults included.
        private: whether an epsilon has a meaning for it.
    """

    entry: int
    label: str
    name: str
    identity: str
    source: str
    params: dict[str, Any]
    private: bool


@dataclass(frozen=True)
class Resolved:
    """A grid whose algorithms are known.

    Attributes:
        grid: the grid.
        variants: every algorithm that is not refused, at every point of the scan that concerns it.
        refused: why entries of ``algorithms``, by their positions, are left out.
    """

    grid: Grid
    variants: tuple[Variant, ...]
    refused: Mapping[int, PluginError]

    def without(self, refused: Mapping[int, PluginError]) -> Resolved:
        """The grid with further entries left out.

        Raises:
            PluginError: no entry would be left; the first one's error.
        """
        left_out = {**self.refused, **refused}
        if len(left_out) == len(self.grid.algorithms):
            raise left_out[0]
        return replace(self, variants=tuple(variant for variant in self.variants if variant.entry not in left_out), refused=left_out)


def resolve(grid: Grid, *, keep_going: bool = False) -> Resolved:
    """Find the grid's algorithms, which imports plug-ins, and check the parameters of each by its own model.

    Args:
        grid: the grid.
        keep_going: leave out the entries whose plug-in is refused.

    Raises:
        UserError: an algorithm is unknown or refused, its parameters do not do, or two are the same.
    """
    classes: dict[int, type[Algorithm]] = {}
    refused: dict[int, PluginError] = {}
    for i, entry in enumerate(grid.algorithms):
        try:
            classes[i] = lookup(entry.name, grid.place("algorithms", i, "name"))
        except PluginError as error:
            if not keep_going:
                raise
            refused[i] = error
    known = Resolved(grid, (), {}).without(refused)
    if not refused:
        _check_scan(grid, classes)
    variants: list[Variant] = []
    for i, cls in classes.items():
        for variant in _points(grid, i, cls):
            _check_apart(grid, variant, variants)
            variants.append(variant)
    return replace(known, variants=tuple(variants))


def plug_in_files(names: Iterable[str]) -> set[Path]:
    """The files of all plug-ins among algorithms that are not installed; they are imported for it."""
    return {file for name in dict.fromkeys(names) for file in own_files(lookup(name))}


def _check_scan(grid: Grid, classes: Mapping[int, type[Algorithm]]) -> None:
    known = {name for cls in classes.values() for name in cls.Params.model_fields}
    for parameter in grid.scan:
        if parameter not in known:
            what = f"no algorithm of the grid has the parameter '{parameter}'"
            raise UserError(grid.place("scan", parameter), what, nearest(parameter, known))


def _points(grid: Grid, i: int, cls: type[Algorithm]) -> Iterator[Variant]:
    """An entry at every point of the scan that concerns it."""
    entry = grid.algorithms[i]
    if unknown := next((name for name in entry.scan if name not in cls.Params.model_fields), None):
        what = f"{entry.name} has no parameter '{unknown}'"
        raise UserError(grid.place("algorithms", i, "scan", unknown), what, nearest(unknown, cls.Params.model_fields))
    shared = {name: values for name, values in grid.scan.items() if name in cls.Params.model_fields}
    for where, others in (("params", entry.params), ("scan", entry.scan)):
        if both := next((name for name in shared if name in others), None):
            raise UserError(grid.place("scan", both), f"algorithms[{i}].{where} gives '{both}' too", "remove one of them")
    if both := next((name for name in entry.scan if name in entry.params), None):
        raise UserError(grid.place("algorithms", i, "scan", both), "params gives it too", "remove one of them")
    axes = shared | entry.scan
    for point in product(*(range(len(values)) for values in axes.values())):
        chosen = dict(zip(axes, point, strict=True))
        yield Variant(
            entry=i,
            label=" ".join([entry.display, *(f"{name}={spelled(axes[name][j])}" for name, j in chosen.items())]),
            name=entry.name,
            identity=place_of(cls),
            source=source_hash(cls),
            params=_complete(grid, i, cls.Params, chosen),
            private=cls.private,
        )


def _complete(grid: Grid, i: int, params: type[BaseModel], chosen: Mapping[str, int]) -> dict[str, Any]:
    entry = grid.algorithms[i]

    def place(loc: Loc) -> str:
        if loc and loc[0] in chosen:
            name = str(loc[0])
            own = ("algorithms", i) if name in entry.scan else ()
            return grid.place(*own, "scan", name, chosen[name], *loc[1:])
        return grid.place("algorithms", i, "params", *loc)

    given = entry.params | {name: (entry.scan | grid.scan)[name][j] for name, j in chosen.items()}
    try:
        return params.model_validate(given).model_dump(mode="json")
    except ValidationError as error:
        complaint = translated(error, params, place)
        several = next(
            (name for name in params.model_fields if place((name,)) == complaint.where and isinstance(entry.params.get(name), list)), None
        )
        if several is None:
            raise complaint from error
        hint = f"{complaint.hint}; or, to run each of several values, move them: scan: {{{several}: {spelled(entry.params[several])}}}"
        raise UserError(complaint.where, complaint.what, hint) from error


def _check_apart(grid: Grid, new: Variant, others: Sequence[Variant]) -> None:
    for other in others:
        if (new.identity, new.params) == (other.identity, other.params):
            what = f"'{new.label}' is the same as '{other.label}' of algorithms[{other.entry}]"
            raise UserError(grid.place("algorithms", new.entry), what, "remove one")
        if new.label == other.label:
            what = f"'{new.label}' is also what algorithms[{other.entry}] is called"
            raise UserError(grid.place("algorithms", new.entry), what, "give one of them a label: of its own")
