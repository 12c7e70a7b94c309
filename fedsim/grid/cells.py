"""A grid's points: its algorithms looked up, its data loaded, and a cell with its id of every
algorithm, partition, budget and seed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from fedsim.data.embeddings import Embeddings, PublicRows
from fedsim.data.sources.load import load, load_public
from fedsim.data.spec import DatasetSpec
from fedsim.errors import PluginError, UserError, at, nearest
from fedsim.grid.models import Cell, Curve, Evaluation, Grid, Loc, Tuning, data_key, shown
from fedsim.grid.read import complaint
from fedsim.methods.algorithm import Algorithm
from fedsim.methods.given import GivenRows
from fedsim.methods.messages import Task
from fedsim.partition import Partition, as_seen, check_partition, make_partition
from fedsim.partition.partition import TOGETHER_KEY, check_split
from fedsim.partition.schemes import column_values
from fedsim.plugins.code_hash import harness_hash, place_of, source_hash
from fedsim.plugins.registry import lookup
from fedsim.privacy.selection import SEEN
from fedsim.words import json_number, number, spelled

CURVE_LABELS: dict[Curve, str] = {
    "default": "",
    "tuned": " tuned",
    "free": " tuned (free, on test rows)",
}
"""What stands behind the label of each curve of a tuned algorithm."""


@dataclass(frozen=True)
class Variant:
    """One entry of ``algorithms``, by its position, at one point of its scan.

    Its label is what tables and curves call it, ``params`` are complete, and ``tuning`` says how
    some of them are chosen, of which ``params`` has the first of the space.
    """

    entry: int
    label: str
    cls: type[Algorithm]
    params: dict[str, Any]
    tuning: Tuning | None = None


@dataclass(frozen=True)
class Resolved:
    """A grid whose algorithms are known and labelled: the variants of those that are not
    ``refused``, which say why by position in ``algorithms``.
    """

    grid: Grid
    variants: tuple[Variant, ...]
    refused: Mapping[int, PluginError]


def resolve(grid: Grid, *, keep_going: bool = False) -> Resolved:
    """Find the grid's algorithms, which imports plug-ins, and check the parameters of each by its
    own model.

    The first plug-in that is refused is raised, or left out, like any other, where the rest is to
    go on, ``keep_going``.
    """
    classes: dict[int, type[Algorithm]] = {}
    refused: dict[int, PluginError] = {}
    for i, entry in enumerate(grid.algorithms):
        try:
            classes[i] = lookup(entry.name, grid.location("algorithms", i, "name"))
        except PluginError as error:
            refused[i] = error
    if refused and (not keep_going or not classes):
        raise next(iter(refused.values()))
    known = {name for cls in classes.values() for name in cls.Params.model_fields}
    shared: list[Loc] = [
        *(("scan", name) for name in grid.scan),
        *(("tune", "params", name) for name in grid.tune.params),
    ]
    if not refused and (unknown := next((loc for loc in shared if loc[-1] not in known), None)):
        what = f"no algorithm of the grid has the parameter '{unknown[-1]}'"
        raise UserError(grid.location(*unknown), what, nearest(str(unknown[-1]), known))
    grid = labelled(grid, classes)
    variants: list[Variant] = []
    for i, cls in classes.items():
        variants += _points(grid, i, cls)
    return Resolved(grid, tuple(variants), refused)


def labelled(grid: Grid, classes: Mapping[int, type[Algorithm]]) -> Grid:
    """The grid in which entries that are a path and have no label are called by the name that their
    class is registered by; by the path where another entry is called so, or where there is none.

    Args:
        grid: as it was read.
        classes: those of its algorithms that could be imported, by position.
    """
    labels = [entry.display for entry in grid.algorithms]
    for i, cls in classes.items():
        registered = vars(cls).get("name", ":")  # a class that is not has its path there
        if grid.algorithms[i].is_called_by_path and ":" not in registered:
            labels[i] = registered
    taken = Counter(labels)
    entries = list(grid.algorithms)
    for i, (entry, label) in enumerate(zip(grid.algorithms, labels, strict=True)):
        if label != entry.display and taken[label] == 1:
            entries[i] = entry.model_copy(update={"label": label})
    return grid.model_copy(update={"algorithms": tuple(entries)})


Axis = list[tuple[Any, Loc]]
"""The values of a parameter that is scanned or tuned, each with the keys of the grid under which it
stands.
"""


def _axes(
    grid: Grid,
    i: int,
    cls: type[Algorithm],
    kind: str,
    shared: Mapping[str, Any],
    given: dict[str, Loc],
) -> dict[str, Axis]:
    """The parameters of an entry that are scanned or tuned; ``given`` are those that have a value
    already, and gains these.
    """
    axes: dict[str, Axis] = {}
    own = ("algorithms", i, kind)
    root = ("scan",) if kind == "scan" else ("tune", "params")
    for where, values_of in ((own, getattr(grid.algorithms[i], kind)), (root, shared)):
        for name, values in values_of.items():
            if name in cls.Params.model_fields:
                if name in given:
                    raise UserError(
                        grid.location(*where, name),
                        f"{grid.location(*given[name])} gives '{name}' too",
                        "remove one of them",
                    )
                axes[name] = [(value, (*where, name, j)) for j, value in enumerate(values)]
                given[name] = where
            elif where == own:
                what = f"{grid.algorithms[i].name} has no parameter '{name}'"
                raise UserError(
                    grid.location(*where, name), what, nearest(name, cls.Params.model_fields)
                )
    return axes


def _points(grid: Grid, i: int, cls: type[Algorithm]) -> Iterator[Variant]:
    """An entry at every point of the scan that concerns it, once for each of its curves where it is
    tuned.
    """
    entry = grid.algorithms[i]
    given: dict[str, Loc] = dict.fromkeys(entry.params, ("algorithms", i, "params"))
    scanned = _axes(grid, i, cls, "scan", grid.scan, given)
    tuned = _axes(grid, i, cls, "tune", grid.tune.params, given)
    if tuned and grid.unit == "client":
        what = "a client would be held out as a whole, which no method trains without"
        raise UserError(
            grid.location("unit"),
            what,
            "tune for unit: example or a group by its column, or leave out tune",
        )
    if tuned and grid.trust == "silo":
        raise UserError(
            grid.location("trust"), SEEN, "tune under trust: aggregate, or leave out tune"
        )
    if tuned and cls is GivenRows:
        what = "external samples are not trained, so nothing of them can be tuned"
        raise UserError(grid.location("algorithms", i), what, "remove the parameter from tune")
    for point in _choices(scanned):
        label = " ".join(
            [entry.display, *(f"{name}={spelled(value)}" for name, (value, _) in point.items())]
        )
        for curve in grid.tune.curves if tuned else ("default",):
            complete = [
                _complete(grid, i, cls, point | choice)
                for choice in (_choices(tuned) if curve != "default" else [{}])
            ]
            space = {
                name: tuple(_once(params[name] for params in complete)) for name in tuned
            }  # as the model has the values
            if curve == "default":
                tuning = None
            else:
                tuning = grid.tune.of(space, free=curve == "free")
            yield Variant(i, label + CURVE_LABELS[curve], cls, complete[0], tuning)


def _choices(axes: Mapping[str, Axis]) -> list[dict[str, tuple[Any, Loc]]]:
    """All points of some axes."""
    return [dict(zip(axes, point, strict=True)) for point in product(*axes.values())]


def _once(values: Iterable[Any]) -> list[Any]:
    """Each value once, in order; a list is one, too."""
    every = list(values)
    return [value for i, value in enumerate(every) if value not in every[:i]]


def _complete(
    grid: Grid, i: int, cls: type[Algorithm], point: Mapping[str, tuple[Any, Loc]]
) -> dict[str, Any]:
    """All parameters at a point."""
    entry = grid.algorithms[i]

    def location(loc: Loc) -> str:
        _, where = point.get(
            str(loc[0]) if loc else "", (None, ("algorithms", i, "params", *loc[:1]))
        )
        return grid.location(*where, *loc[1:])

    try:
        params = cls.Params.model_validate(
            entry.params | {name: value for name, (value, _) in point.items()}
        ).model_dump(mode="json")
    except ValidationError as error:
        raise complaint(error, cls.Params, location) from error
    if cls is GivenRows:
        _check_statement(grid, i, params)
    return params


def _check_statement(grid: Grid, i: int, params: Mapping[str, Any]) -> None:
    """Refuse external samples whose author states ε for another δ, unit or trust than the grid's.

    A result inherits these three from the grid. A finite ε therefore needs them in the entry: only
    the author knows what ε holds for.
    """
    budget = grid.model_dump(include={"delta", "unit", "trust"})
    epsilon = float(params["epsilon"])
    missing = [name for name in budget if params[name] is None]
    faults = [
        f"{name} is {spelled(params[name])} and the grid's is {spelled(of_grid)}"
        for name, of_grid in budget.items()
        if params[name] not in (None, of_grid)
    ]
    if missing and math.isfinite(epsilon):
        faults.append(f"ε = {number(epsilon)} is stated without its {', '.join(missing)}")
    if faults:
        of_grid = ", ".join(f"{name}: {spelled(value)}" for name, value in budget.items())
        raise UserError(
            grid.location("algorithms", i),
            "; ".join(faults),
            f"give {of_grid} if the author's ε holds for these, else leave out epsilon, or change "
            "the grid",
        )


def loaded(grid: Grid) -> dict[str, Embeddings]:
    """The grid's data sets by key, each with the public rows beside it."""
    data: dict[str, Embeddings] = {}
    held: dict[str, PublicRows] = {}
    for spec in grid.sets:
        with at(partial(grid.place_of, spec)):
            data[spec.key] = load(spec)
        if public := grid.public_beside(spec):
            with at(partial(grid.place_of, spec, public=True)):
                if public.key not in held:
                    held[public.key] = load_public(public)
                data[spec.key] = held[public.key].beside(data[spec.key])
    return data


def evaluations(
    grid: Grid, spec: DatasetSpec, columns: Mapping[str, NDArray[Any]]
) -> tuple[Evaluation, ...]:
    """The grid's evaluation, once for every site that it leaves out of training."""
    asked = grid.evaluation.unseen
    if asked is None:
        return (grid.evaluation,)
    where = grid.location("evaluation", "unseen")
    column = grid.partition.column
    if column is None:
        raise UserError(
            where,
            f"scheme '{grid.partition.scheme}' has no sites",
            "give partition: {scheme: column, column: NAME}",
        )
    with at(lambda key: grid.location(*key.split("."))):
        sites = column_values(columns, column)[0].astype(np.str_).tolist()
    if asked != "each" and asked not in sites:
        raise UserError(
            where,
            f"column '{column}' of '{spec.display}' has no value '{asked}'",
            nearest(asked, [*sites, "each"]),
        )
    return tuple(
        grid.evaluation.model_copy(update={"unseen": site})
        for site in (sites if asked == "each" else [asked])
    )


def without_unseen(grid: Grid, data: Mapping[str, Embeddings]) -> dict[str, Embeddings]:
    """The data sets by key, and what is left of each without a site that takes no part, by
    :func:`fedsim.grid.models.data_key`.
    """
    views = dict(data)
    for spec in grid.sets:
        for evaluation in evaluations(grid, spec, data[spec.key].columns):
            if evaluation.unseen is not None:
                with at(grid.location("evaluation", "unseen")):
                    views[data_key(spec, evaluation)] = data[spec.key].unseen(
                        str(grid.partition.column), evaluation.unseen
                    )
    return views


def check_partitions(grid: Grid, data: Mapping[str, Embeddings]) -> None:
    """Check what partitions ask of labels, columns and split of what :func:`without_unseen` gave;
    rows are not looked at.
    """
    for spec in grid.sets:
        for (j, clients), evaluation in product(
            enumerate(grid.clients), evaluations(grid, spec, data[spec.key].columns)
        ):
            rows = data[data_key(spec, evaluation)]
            with at(grid_place(grid, j)):
                check_partition(
                    rows.y_train, spec=grid.division, clients=clients, columns=rows.columns
                )
                if grid.division.together is not None:
                    check_split(grid.division.together, rows.columns, rows.test_columns)


def grid_place(grid: Grid, clients: int) -> Callable[[str], str]:
    """How an error of a partition names the grid's keys, at a position on ``clients``."""
    own: dict[str, Loc] = {"clients": ("clients", clients)} | (
        {} if grid.partition.together else {TOGETHER_KEY: ("unit",)}
    )
    return lambda key: grid.location(*own.get(key, key.split(".")))


def partition_of(cell: Cell, data: Embeddings) -> Partition:
    """A cell's partition of its data set."""
    return make_partition(
        data.y_train,
        spec=cell.partition,
        alpha=cell.alpha,
        clients=cell.clients,
        seed=cell.seed,
        columns=data.columns,
    )


def client_views(
    cells: Sequence[Cell], partitions: Sequence[Partition], data: Mapping[str, Embeddings]
) -> tuple[Mapping[str, Embeddings], tuple[str, ...]]:
    """The data by key, with what each partition makes of them where clients see values of their
    own; and the key that each cell reads.
    """
    views = dict(data)
    keys = []
    for cell, partition in zip(cells, partitions, strict=True):
        key = cell.data_key
        if cell.partition.shifts:
            key = f"{key} {partition.fingerprint}"
            if key not in views:
                views[key] = as_seen(data[cell.data_key], partition, cell.partition, cell.seed)
        keys.append(key)
    return views, tuple(keys)


def expand(resolved: Resolved, data: Mapping[str, Embeddings]) -> tuple[Cell, ...]:
    """All cells, ordered by data set, alpha, clients, seed, then algorithm (with its scan) and
    epsilon.

    So cells that share a partition come together. An algorithm for which epsilon has no meaning
    makes one cell per partition, any other makes one per epsilon. No two are equal, or called the
    same. ``data`` are what :func:`without_unseen` gave.
    """
    grid = resolved.grid
    check_partitions(grid, data)
    cells = tuple(
        _cell(grid, variant, spec, data[spec.key], point, epsilon)
        for spec in grid.sets
        for point in product(
            grid.alpha, grid.clients, grid.seeds, evaluations(grid, spec, data[spec.key].columns)
        )
        for variant in resolved.variants
        for epsilon in (
            grid.epsilon
            if variant.cls.private
            else (float(variant.params["epsilon"]) if variant.cls is GivenRows else None,)
        )
    )
    seen: set[Any] = set()
    for cell in cells:
        named = (
            cell.label,
            shown(cell.dataset, cell.evaluation.unseen),
            cell.alpha,
            cell.clients,
            cell.epsilon,
            cell.seed,
        )
        if seen & {cell.cell_id, named}:
            what = (
                f"two cells are equal or are called the same: '{named[0]}' on {named[1]}, "
                f"alpha {named[2]:g}, {named[3]} clients"
            )
            raise UserError(
                grid.location(),
                what,
                "remove a value that is listed twice or changes nothing, or give one a "
                "label: or name: of its own",
            )
        seen |= {cell.cell_id, named}
    return cells


def _cell(
    grid: Grid,
    variant: Variant,
    spec: DatasetSpec,
    data: Embeddings,
    point: tuple[float, int, int, Evaluation],
    epsilon: float | None,
) -> Cell:
    alpha, clients, seed, evaluation = point
    public = public_for(grid, variant, data, clients)
    cell = Cell(
        cell_id="",
        source=source_hash(variant.cls),
        label=variant.label,
        algorithm=grid.algorithms[variant.entry].name,
        params=variant.params,
        dataset=spec,
        dataset_hash=data.fingerprint,
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
        # without an epsilon there is no budget to protect a unit with
        noise=grid.privacy.noise if variant.cls.private else "seeded",
        seed=seed,
        evaluation=evaluation,
        tuning=variant.tuning,
    )
    training = training_id_of(cell, place_of(variant.cls), harness_hash("evaluation"))
    ids = {"cell_id": judged_id(training, evaluation), "training_id": training}
    return cell.model_copy(update=ids)


def training_id_of(cell: Cell, place: str, code: str) -> str:
    """The id of a cell's training: of all that can change what is trained.

    :mod:`fedsim.evidence.prove` computes it again from the record of a training.

    Args:
        cell: its own ids are not looked at; of a tuned cell the parameters of its space are its
            first ones, whatever was chosen.
        place: which class it is of, by :func:`fedsim.plugins.code_hash.place_of`.
        code: hash of the code that evaluates, which decides the result of a search.
    """
    scheme = cell.partition.model_dump(mode="json")
    if cell.partition.uses_alpha:
        scheme["alpha"] = cell.alpha
    unit = {"column": cell.unit_column} if cell.unit_column else cell.unit
    budget = None
    if cell.epsilon is not None:
        budget = [json_number(cell.epsilon), cell.delta, unit, cell.trust, cell.noise]
    facts = {
        "algorithm": place,
        "params": cell.params,
        "dataset": cell.dataset_hash,
        "partition": scheme,
        "clients": cell.clients,
        "budget": budget,
        "seed": cell.seed,
        "unseen": cell.evaluation.unseen,
        # a task holds it, so that an algorithm may use the evaluation's probe
        "probe_c": cell.evaluation.real_c,
        "source": cell.source,
    }
    if cell.tuning is not None:
        # scores of held-out rows decide what is kept, and so does the code that computes them
        facts["params"] = {**cell.params, **cell.tuning.points[0]}
        facts["tuning"] = cell.tuning.model_dump(mode="json")
        facts["code"] = code
    if cell.public_hash is not None:
        facts["public"] = cell.public_hash
    return identity(facts)


def task_of(cell: Cell, data: Embeddings) -> Task:
    """The public facts that a cell's algorithm gets."""
    return Task(
        data.dim,
        data.classes,
        cell.clients,
        cell.unit,
        cell.trust,
        cell.evaluation.real_c,
        data.public,
    )


def public_for(grid: Grid, variant: Variant, data: Embeddings, clients: int) -> PublicRows | None:
    """The public rows beside the data, where the algorithm uses them with these parameters."""
    if data.public is None:
        return None
    task = Task(
        data.dim,
        data.classes,
        clients,
        grid.unit_kind,
        grid.trust,
        grid.evaluation.real_c,
        data.public,
    )
    if variant.tuning is None:
        points: Sequence[Mapping[str, Any]] = [{}]
    else:
        points = variant.tuning.points
    settings = (variant.cls.Params.model_validate({**variant.params, **point}) for point in points)
    if any(variant.cls(setting, task).uses_public() for setting in settings):
        return data.public
    return None


def judged_id(training_id: str, evaluation: Evaluation) -> str:
    """The id of a cell: of a training, judged by an evaluation and the code that is here."""
    asked = evaluation.model_dump(mode="json", exclude_none=True)
    return identity(
        {"training": training_id, "evaluation": asked, "code": harness_hash("evaluation")}
    )


def identity(facts: Mapping[str, Any]) -> str:
    """16 hex digits that are equal for equal facts, which are plain JSON values."""
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
