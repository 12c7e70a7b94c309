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
from fedsim.grid.models import Curve, Grid, Tuning
from fedsim.grid.places import Loc
from fedsim.methods.algorithm import Algorithm
from fedsim.plugins.code_hash import own_files, place_of, source_hash
from fedsim.plugins.registry import lookup
from fedsim.privacy.selection import SEEN
from fedsim.words import spelled

CURVE_LABELS: dict[Curve, str] = {"default": "", "tuned": " tuned", "free": " tuned (free, on test rows)"}
"""What stands behind the label of each curve of a tuned algorithm."""


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
        tuning: how some of its parameters are chosen, of which ``params`` has the first of the space.
    """

    entry: int
    label: str
    name: str
    identity: str
    source: str
    params: dict[str, Any]
    private: bool
    tuning: Tuning | None = None


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
        _check_axes(grid, classes)
    variants: list[Variant] = []
    for i, cls in classes.items():
        for variant in _points(grid, i, cls):
            _check_apart(grid, variant, variants)
            variants.append(variant)
    return replace(known, variants=tuple(variants))


def plug_in_files(names: Iterable[str]) -> set[Path]:
    """The files of all plug-ins among algorithms that are not installed; they are imported for it."""
    return {file for name in dict.fromkeys(names) for file in own_files(lookup(name))}


def _check_axes(grid: Grid, classes: Mapping[int, type[Algorithm]]) -> None:
    known = {name for cls in classes.values() for name in cls.Params.model_fields}
    for where, axes in ((("scan",), grid.scan), (("tune", "params"), grid.tune.params)):
        for parameter in axes:
            if parameter not in known:
                what = f"no algorithm of the grid has the parameter '{parameter}'"
                raise UserError(grid.place(*where, parameter), what, nearest(parameter, known))


@dataclass(frozen=True)
class _Axis:
    """Values of a parameter, and the keys of the grid under which they stand."""

    values: tuple[Any, ...]
    where: Loc


def _axes(grid: Grid, i: int, cls: type[Algorithm]) -> tuple[dict[str, _Axis], dict[str, _Axis]]:
    """The parameters of an entry that are scanned and those that are tuned, each given once."""
    entry, known = grid.algorithms[i], cls.Params.model_fields
    entry_place = ("algorithms", i)
    given: dict[str, Loc] = dict.fromkeys(entry.params, (*entry_place, "params"))
    kinds = []
    for shared_place, shared, own_place, own in (
        (("scan",), grid.scan, (*entry_place, "scan"), entry.scan),
        (("tune", "params"), grid.tune.params, (*entry_place, "tune"), entry.tune),
    ):
        axes: dict[str, _Axis] = {}
        for where, values_of in ((own_place, own), (shared_place, shared)):
            for name, values in values_of.items():
                if name not in known and where == own_place:
                    raise UserError(grid.place(*where, name), f"{entry.name} has no parameter '{name}'", nearest(name, known))
                if name in given:
                    other = given[name]
                    what = f"{other[-1]} gives it too" if where == own_place else f"algorithms[{i}].{other[-1]} gives '{name}' too"
                    raise UserError(grid.place(*where, name), what, "remove one of them")
                if name in known:
                    axes[name], given[name] = _Axis(values, (*where, name)), where
        kinds.append(axes)
    return kinds[0], kinds[1]


def _points(grid: Grid, i: int, cls: type[Algorithm]) -> Iterator[Variant]:
    """An entry at every point of the scan that concerns it, once for each of its curves where it is tuned."""
    entry = grid.algorithms[i]
    scanned, tuned = _axes(grid, i, cls)
    if tuned and grid.unit == "client":
        what = "a client would be held out as a whole, which no method trains without"
        raise UserError(grid.place("unit"), what, "tune for unit: example or a group by its column, or leave out tune")
    if tuned and grid.trust == "silo":
        raise UserError(grid.place("trust"), SEEN, "tune under trust: aggregate, or leave out tune")
    for point in _choices(scanned):
        label = " ".join([entry.display, *(f"{name}={spelled(scanned[name].values[j])}" for name, j in point.items())])
        for curve in grid.tune.curves if tuned else ("default",):
            every = _choices(tuned) if curve != "default" else [{}]
            complete = [_complete(grid, i, cls.Params, scanned | tuned, point | choice) for choice in every]
            space = {
                name: tuple(
                    next(params[name] for params, choice in zip(complete, every, strict=True) if choice[name] == j)
                    for j in range(len(axis.values))
                )
                for name, axis in (tuned if curve != "default" else {}).items()
            }
            yield Variant(
                entry=i,
                label=label + CURVE_LABELS[curve],
                name=entry.name,
                identity=place_of(cls),
                source=source_hash(cls),
                params=complete[0],
                private=cls.private,
                tuning=None if curve == "default" else grid.tune.of(space, free=curve == "free"),
            )


def _choices(axes: Mapping[str, _Axis]) -> list[dict[str, int]]:
    """All points of some axes, as positions by parameter."""
    return [dict(zip(axes, point, strict=True)) for point in product(*(range(len(axis.values)) for axis in axes.values()))]


def _complete(grid: Grid, i: int, params: type[BaseModel], axes: Mapping[str, _Axis], chosen: Mapping[str, int]) -> dict[str, Any]:
    entry = grid.algorithms[i]

    def place(loc: Loc) -> str:
        if loc and loc[0] in chosen:
            name = str(loc[0])
            return grid.place(*axes[name].where, chosen[name], *loc[1:])
        return grid.place("algorithms", i, "params", *loc)

    given = entry.params | {name: axes[name].values[j] for name, j in chosen.items()}
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
        if (new.identity, new.params, new.tuning) == (other.identity, other.params, other.tuning):
            what = f"'{new.label}' is the same as '{other.label}' of algorithms[{other.entry}]"
            raise UserError(grid.place("algorithms", new.entry), what, "remove one")
        if new.label == other.label:
            what = f"'{new.label}' is also what algorithms[{other.entry}] is called"
            raise UserError(grid.place("algorithms", new.entry), what, "give one of them a label: of its own")
