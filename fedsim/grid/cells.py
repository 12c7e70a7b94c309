"""A grid's points: its algorithms looked up, each with all its parameters, on every partition, budget and seed: its cells and their ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedsim.data.embeddings import Embeddings, PublicRows
from fedsim.data.spec import DatasetSpec
from fedsim.errors import PluginError, UserError, nearest
from fedsim.grid.models import Cell, Curve, Evaluation, Grid, Loc, Tuning
from fedsim.grid.read import complaint
from fedsim.grid.sets import check_partitions, evaluations
from fedsim.methods.algorithm import Algorithm
from fedsim.methods.messages import Task
from fedsim.plugins.code_hash import evaluation_hash, own_files, place_of, source_hash
from fedsim.plugins.registry import lookup
from fedsim.privacy.selection import SEEN
from fedsim.words import json_number, spelled

_Point = tuple[float, int, int, Evaluation]
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
    """A grid whose algorithms are known: the variants of those that are not ``refused``, which say why by position in ``algorithms``."""

    grid: Grid
    variants: tuple[Variant, ...]
    refused: Mapping[int, PluginError]


def resolve(grid: Grid, *, keep_going: bool = False) -> Resolved:
    """Find the grid's algorithms, which imports plug-ins, and check the parameters of each by its own model.

    The first plug-in that is refused is raised, or left out, like any other, where the rest is to go on, ``keep_going``.
    """
    classes: dict[int, type[Algorithm]] = {}
    refused: dict[int, PluginError] = {}
    for i, entry in enumerate(grid.algorithms):
        try:
            classes[i] = lookup(entry.name, grid.place("algorithms", i, "name"))
        except PluginError as error:
            refused[i] = error
    if refused and (not keep_going or not classes):
        raise next(iter(refused.values()))
    known = {name for cls in classes.values() for name in cls.Params.model_fields}
    for where, axes in ((("scan",), grid.scan), (("tune", "params"), grid.tune.params)):
        for parameter in axes if not refused else ():
            if parameter not in known:
                what = f"no algorithm of the grid has the parameter '{parameter}'"
                raise UserError(grid.place(*where, parameter), what, nearest(parameter, known))
    variants: list[Variant] = []
    for i, cls in classes.items():
        for variant in _points(grid, i, cls):
            _check_apart(grid, variant, variants)
            variants.append(variant)
    return Resolved(grid, tuple(variants), refused)


def plug_in_files(names: Iterable[str]) -> set[Path]:
    """The files of all plug-ins among algorithms that are not installed; they are imported for it."""
    return {file for name in dict.fromkeys(names) for file in own_files(lookup(name))}


Axes = dict[str, tuple[tuple[Any, ...], Loc]]
"""Parameters, each with its values and the keys of the grid under which they stand."""


def _axes(grid: Grid, i: int, cls: type[Algorithm], kind: str, shared: Mapping[str, Any], given: dict[str, Loc]) -> Axes:
    """The parameters of an entry that are scanned or tuned; ``given`` are those that have a value already, and gains these."""
    axes: Axes = {}
    own, root = ("algorithms", i, kind), ("scan",) if kind == "scan" else ("tune", "params")
    for where, values_of in ((own, getattr(grid.algorithms[i], kind)), (root, shared)):
        for name, values in values_of.items():
            if name not in cls.Params.model_fields:
                if where == own:
                    what = f"{grid.algorithms[i].name} has no parameter '{name}'"
                    raise UserError(grid.place(*where, name), what, nearest(name, cls.Params.model_fields))
                continue
            if name in given:
                raise UserError(grid.place(*where, name), f"{grid.place(*given[name])} gives '{name}' too", "remove one of them")
            axes[name], given[name] = (values, (*where, name)), where
    return axes


def _points(grid: Grid, i: int, cls: type[Algorithm]) -> Iterator[Variant]:
    """An entry at every point of the scan that concerns it, once for each of its curves where it is tuned."""
    entry = grid.algorithms[i]
    given: dict[str, Loc] = dict.fromkeys(entry.params, ("algorithms", i, "params"))
    scanned = _axes(grid, i, cls, "scan", grid.scan, given)
    tuned = _axes(grid, i, cls, "tune", grid.tune.params, given)
    if tuned and grid.unit == "client":
        what = "a client would be held out as a whole, which no method trains without"
        raise UserError(grid.place("unit"), what, "tune for unit: example or a group by its column, or leave out tune")
    if tuned and grid.trust == "silo":
        raise UserError(grid.place("trust"), SEEN, "tune under trust: aggregate, or leave out tune")
    for point in _choices(scanned):
        label = " ".join([entry.display, *(f"{name}={spelled(scanned[name][0][j])}" for name, j in point.items())])
        for curve in grid.tune.curves if tuned else ("default",):
            every = [{}] if curve == "default" else _choices(tuned)
            complete = [_complete(grid, i, cls, scanned | tuned, point | choice) for choice in every]
            space = {name: _values(name, every, complete) for name in every[0]}
            tuning = None if curve == "default" else grid.tune.of(space, free=curve == "free")
            names = {"label": label + CURVE_LABELS[curve], "name": entry.name, "identity": place_of(cls), "source": source_hash(cls)}
            yield Variant(entry=i, **names, params=complete[0], private=cls.private, tuning=tuning)


def _values(name: str, every: Sequence[Mapping[str, int]], complete: Sequence[Mapping[str, Any]]) -> tuple[Any, ...]:
    """The values of a tuned parameter as its model has them, in the order of its axis."""
    by_place = {choice[name]: params[name] for choice, params in zip(every, complete, strict=True)}
    return tuple(by_place[place] for place in sorted(by_place))


def _choices(axes: Axes) -> list[dict[str, int]]:
    """All points of some axes, as positions by parameter."""
    return [dict(zip(axes, point, strict=True)) for point in product(*(range(len(values)) for values, _ in axes.values()))]


def _complete(grid: Grid, i: int, cls: type[Algorithm], axes: Axes, chosen: Mapping[str, int]) -> dict[str, Any]:
    """All parameters at a point."""
    entry = grid.algorithms[i]

    def place(loc: Loc) -> str:
        if loc and loc[0] in chosen:
            name = str(loc[0])
            return grid.place(*axes[name][1], chosen[name], *loc[1:])
        return grid.place("algorithms", i, "params", *loc)

    try:
        return cls.Params.model_validate(entry.params | {name: axes[name][0][j] for name, j in chosen.items()}).model_dump(mode="json")
    except ValidationError as error:
        raised, name = complaint(error, cls.Params, place), error.errors()[0]["loc"][:1]
        if isinstance(entry.params.get(str(*name)), list):
            hint = f"to run each of several values, move them: scan: {{{name[0]}: {spelled(entry.params[str(*name)])}}}"
            raise UserError(raised.where, raised.what, hint) from error
        raise raised from error


def _check_apart(grid: Grid, new: Variant, others: Sequence[Variant]) -> None:
    for other in others:
        if (new.identity, new.params, new.tuning) == (other.identity, other.params, other.tuning):
            what = f"'{new.label}' is the same as '{other.label}' of algorithms[{other.entry}]"
            raise UserError(grid.place("algorithms", new.entry), what, "remove one")
        if new.label == other.label:
            what = f"'{new.label}' is also what algorithms[{other.entry}] is called"
            raise UserError(grid.place("algorithms", new.entry), what, "give one of them a label: of its own")


def expand(resolved: Resolved, data: Mapping[str, Embeddings]) -> tuple[Cell, ...]:
    """All cells, ordered by data set, alpha, clients, seed, then algorithm (with its scan) and epsilon.

    So cells that share a partition come together. An algorithm for which epsilon has no meaning makes one cell per
    partition, any other makes one per epsilon. ``data`` are what :func:`fedsim.grid.sets.without_unseen` gave.
    """
    grid = resolved.grid
    check_partitions(grid, data)
    first: dict[str, int] = {}
    for i, spec in enumerate(grid.sets):
        same = first.setdefault(data[spec.key].fingerprint, i)
        if same != i:
            raise UserError(grid.place_of(spec), f"has the same content as dataset[{grid.position(grid.sets[same])}]", "remove one")
    return tuple(
        _cell(grid, variant, spec, data[spec.key], point, epsilon)
        for spec in grid.sets
        for point in product(grid.alpha, grid.clients, grid.seeds, evaluations(grid, spec, data[spec.key].columns))
        for variant in resolved.variants
        for epsilon in (grid.epsilon if variant.private else (None,))
    )


def _cell(grid: Grid, variant: Variant, spec: DatasetSpec, data: Embeddings, point: _Point, epsilon: float | None) -> Cell:
    alpha, clients, seed, evaluation = point
    content, public = data.fingerprint, public_for(grid, variant, data, clients)
    scheme = grid.division.model_dump(mode="json") | ({"alpha": alpha} if grid.partition.uses_alpha else {})
    # without an epsilon there is no budget to protect a unit with
    noise = grid.privacy.noise if variant.private else "seeded"
    budget = [json_number(epsilon), grid.delta, grid.model_dump(include={"unit"})["unit"], grid.trust, noise] if variant.private else None
    training = identity(
        {
            "algorithm": variant.identity,
            "params": variant.params,
            "dataset": content,
            "partition": scheme,
            "clients": clients,
            "budget": budget,
            "seed": seed,
            "unseen": evaluation.unseen,
            "probe_c": evaluation.real_c,  # a task holds it, so that an algorithm may use the evaluation's probe
            "source": variant.source,
            # scores of held-out rows decide what is kept, and so does the code that computes them
            **({"tuning": variant.tuning.model_dump(mode="json"), "code": evaluation_hash()} if variant.tuning else {}),
            **({} if public is None else {"public": public.fingerprint}),
        }
    )
    return Cell(
        cell_id=judged_id(training, evaluation),
        training_id=training,
        source=variant.source,
        label=variant.label,
        algorithm=variant.name,
        params=variant.params,
        dataset=spec,
        dataset_hash=content,
        public=None if public is None else public.name,
        public_hash=None if public is None else public.fingerprint,
        public_licence=None if public is None else public.licence,
        partition=grid.division,
        alpha=alpha,
        clients=clients,
        epsilon=epsilon,
        delta=grid.delta,
        unit=grid.unit_kind,
        unit_column=grid.unit_column,
        trust=grid.trust,
        noise=noise,
        seed=seed,
        evaluation=evaluation,
        tuning=variant.tuning,
    )


def task_of(cell: Cell, data: Embeddings) -> Task:
    """The public facts that a cell's algorithm gets."""
    return Task(data.dim, data.classes, cell.clients, cell.unit, cell.trust, cell.evaluation.real_c, data.public)


def public_for(grid: Grid, variant: Variant, data: Embeddings, clients: int) -> PublicRows | None:
    """The public rows beside the data, where the algorithm uses them with these parameters."""
    if data.public is None:
        return None
    cls = lookup(variant.name)
    task = Task(data.dim, data.classes, clients, grid.unit_kind, grid.trust, grid.evaluation.real_c, data.public)
    points = [{}] if variant.tuning is None else variant.tuning.points
    settings = (cls.Params.model_validate({**variant.params, **point}) for point in points)
    return data.public if any(cls(setting, task).uses_public() for setting in settings) else None


def judged_id(training_id: str, evaluation: Evaluation) -> str:
    """The id of a cell: of a training, judged by an evaluation and the code that is here."""
    asked = evaluation.model_dump(mode="json", exclude_none=True)
    return identity({"training": training_id, "evaluation": asked, "code": evaluation_hash()})


def identity(facts: Mapping[str, Any]) -> str:
    """16 hex digits that are equal for equal facts, which are plain JSON values."""
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
