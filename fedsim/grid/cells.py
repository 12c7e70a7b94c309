"""Turns a grid into its cells.

A cell has an id of its training and an id of its result. Each is a hash of everything that decides
it, so that a later bench runs only what changed.

:func:`resolve` finds the algorithms, :func:`loaded` the data, and :func:`expand` makes one cell of
every combination of data set, partition, seed, algorithm and budget.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from fedsim.data.embeddings import Embeddings, PublicRows
from fedsim.data.sources.load import load, load_public
from fedsim.data.spec import DatasetSpec
from fedsim.errors import PluginError, UserError, at, nearest
from fedsim.grid.models import (
    AlgorithmEntry,
    Cell,
    Curve,
    Evaluation,
    Grid,
    Loc,
    Tuning,
    data_key,
    points_of,
    settings_of,
    shown,
)
from fedsim.grid.read import complaint
from fedsim.methods.algorithm import Algorithm
from fedsim.methods.given import GivenRows
from fedsim.methods.messages import Task
from fedsim.partition import Partition, check_partition, make_partition, with_validation
from fedsim.partition.partition import TOGETHER_KEY, check_split
from fedsim.partition.schemes import column_values
from fedsim.plugins.code_hash import harness_hash, place_of, source_hash
from fedsim.plugins.registry import lookup, registered_name
from fedsim.privacy.selection import SEEN
from fedsim.words import json_number, number, setting, spelled

CURVE_LABELS: dict[Curve, str] = {
    "default": "",
    "tuned": " tuned",
    "free": " tuned (free, on test rows)",
}
"""The text that follows the label of a tuned algorithm, by the way in which it runs."""
MOST_SYNTHETIC_NUMBERS = 2**28
"""How many features and class scores all synthetic examples of an evaluation may have."""


@dataclass(frozen=True)
class Variant:
    """One entry of ``algorithms`` at one point of its scan.

    Attributes:
        entry: The position of the entry in ``algorithms``.
        label: The name of the variant in tables and curves.
        cls: The class of the algorithm.
        params: All parameters, including defaults. Tuned ones have the first values of the space.
        tuning: How some of ``params`` are chosen. None: the grid gives all of them.
    """

    entry: int
    label: str
    cls: type[Algorithm]
    params: dict[str, Any]
    tuning: Tuning | None = None


@dataclass(frozen=True)
class Resolved:
    """A grid whose algorithms are known and labelled.

    Attributes:
        grid: The grid, in which entries have their final labels.
        variants: All variants of the entries that were found, in the order of the grid.
        refused: Why an entry was not found, by its position in ``algorithms``.
    """

    grid: Grid
    variants: tuple[Variant, ...]
    refused: Mapping[int, PluginError]


def resolve(grid: Grid, *, keep_going: bool = False) -> Resolved:
    """Find the grid's algorithms and check the parameters of each entry.

    Finding an algorithm imports its plug-in.

    Args:
        grid: The grid as it was read.
        keep_going: Whether to leave out plug-ins that are refused, if there are others.

    Raises:
        PluginError: A plug-in is refused.
        UserError: The algorithms do not have the parameters that the grid gives.
    """
    classes: dict[int, type[Algorithm]] = {}
    refused: dict[int, PluginError] = {}
    running = grid.running
    if not running:
        raise UserError(
            grid.location("algorithms"),
            "nothing runs, because all entries are published numbers",
            "add an algorithm",
        )
    for position, entry in running.items():
        where = grid.location("algorithms", position, "name")
        try:
            classes[position] = lookup(entry.name, where)
        except PluginError as error:
            if not keep_going:
                raise
            refused[position] = error
    if not classes:
        raise next(iter(refused.values()))
    if not refused:
        _check_shared_axes(grid, classes.values())
    grid = _with_labels(grid, classes)
    variants: list[Variant] = []
    for position, cls in classes.items():
        axes = _EntryAxes(grid, position, cls)
        variants += axes.variants()
    return Resolved(grid, tuple(variants), refused)


def _check_shared_axes(grid: Grid, classes: Iterable[type[Algorithm]]) -> None:
    """Refuse a parameter that the grid scans or tunes and no algorithm has."""
    known = {name for cls in classes for name in cls.Params.model_fields}
    shared: list[Loc] = [("scan", name) for name in grid.scan]
    shared += [("tune", "params", name) for name in grid.tune.params]
    for loc in shared:
        name = str(loc[-1])
        if name not in known:
            raise UserError(
                grid.location(*loc),
                f"no algorithm of the grid has the parameter '{name}'",
                nearest(name, known),
            )


def _with_labels(grid: Grid, classes: Mapping[int, type[Algorithm]]) -> Grid:
    """Return the grid with labels for entries that give a registered class by its path.

    The label is the registered name. An entry keeps its path if it has a label, if its class is not
    registered, or if another entry has the name.

    Args:
        grid: The grid as it was read.
        classes: The classes of the algorithms that could be imported, by position.
    """
    entries = list(grid.algorithms)
    labels = [entry.display for entry in entries]
    for position, cls in classes.items():
        name = registered_name(cls)
        if name is not None and grid.running[position].is_called_by_path:
            labels[position] = name
    uses = Counter(labels)
    for position, label in enumerate(labels):
        entry = entries[position]
        if label != entry.display and uses[label] == 1:
            entries[position] = entry.model_copy(update={"label": label})
    return grid.model_copy(update={"algorithms": tuple(entries)})


class _Value(NamedTuple):
    """A value of a scanned or tuned parameter, and the key of the grid that gives it."""

    value: Any
    loc: Loc


_Axes = dict[str, list[_Value]]
"""The values of each scanned or tuned parameter."""


@dataclass(frozen=True)
class _EntryAxes:
    """One entry of ``algorithms`` with its class; :meth:`variants` yields its variants."""

    grid: Grid
    position: int
    cls: type[Algorithm]

    @property
    def entry(self) -> AlgorithmEntry:
        """Return the entry."""
        return self.grid.running[self.position]

    def variants(self) -> Iterator[Variant]:
        """Yield the entry at every point of its scan, once for each curve if it is tuned.

        Raises:
            UserError: A key names a parameter that the entry lacks or has already, or the entry
                may not be tuned.
        """
        entry = self.entry
        loc: Loc = ("algorithms", self.position)
        set_at: dict[str, Loc] = dict.fromkeys(entry.params, (*loc, "params"))
        scanned = self._axes(entry.scan, (*loc, "scan"), set_at)
        scanned |= self._axes(self.grid.scan, ("scan",), set_at)
        tuned = self._axes(entry.tune, (*loc, "tune"), set_at)
        tuned |= self._axes(self.grid.tune.params, ("tune", "params"), set_at)
        curves: Sequence[Curve] = ("default",)
        if tuned:
            self._check_tuning()
            curves = self.grid.tune.curves
        for point, curve in product(points_of(scanned), curves):
            yield self._variant(point, tuned, curve)

    def _axes(
        self,
        values_of: Mapping[str, Sequence[Any]],
        root: Loc,
        set_at: dict[str, Loc],
    ) -> _Axes:
        """Return the parameters that one mapping of the grid scans or tunes.

        Args:
            values_of: The mapping: values by parameter.
            root: The key of the mapping. If all entries share the mapping, it may also name
                parameters that only other entries have; these are skipped.
            set_at: The key that gives each parameter. It gains the parameters of this mapping.

        Raises:
            UserError: The entry has no such parameter, or another key gives it too.
        """
        axes: _Axes = {}
        fields = self.cls.Params.model_fields
        for name, values in values_of.items():
            loc = (*root, name)
            where = self.grid.location(*loc)
            if name in fields:
                if name in set_at:
                    other = self.grid.location(*set_at[name])
                    raise UserError(where, f"{other} gives '{name}' too", "remove one of them")
                axes[name] = [_Value(value, (*loc, i)) for i, value in enumerate(values)]
                set_at[name] = root
            elif root[0] == "algorithms":
                what = f"{self.entry.name} has no parameter '{name}'"
                raise UserError(where, what, nearest(name, fields))
        return axes

    def _check_tuning(self) -> None:
        """Refuse to tune where no private search is possible.

        Raises:
            UserError: The unit is a client, single messages are seen, or nothing is trained.
        """
        if self.grid.unit == "client":
            raise UserError(
                self.grid.location("unit"),
                "tune does not work with unit: client, because it would hold out whole clients, "
                "and every method trains on all of them",
                "remove tune, or give unit: example or unit: {column: NAME}, such as patient",
            )
        if self.grid.trust == "silo":
            raise UserError(
                self.grid.location("trust"),
                SEEN,
                "give trust: aggregate, or remove tune",
            )
        if self.cls is GivenRows:
            raise UserError(
                self.grid.location("algorithms", self.position),
                "these external samples are not trained, so tune cannot search their parameters",
                "remove from tune every parameter that only this entry has",
            )

    def _variant(self, point: Mapping[str, _Value], tuned: _Axes, curve: Curve) -> Variant:
        """Return the entry at one point of its scan, on one curve."""
        label = self.entry.display
        for name, scanned in point.items():
            label += f" {name}={spelled(scanned.value)}"
        label += CURVE_LABELS[curve]
        if curve == "default":
            return Variant(self.position, label, self.cls, self._params_at(point))
        settings = [self._params_at({**point, **choice}) for choice in points_of(tuned)]
        # The space has the values as the algorithm's model returns them.
        space = {name: _distinct([params[name] for params in settings]) for name in tuned}
        tuning = self.grid.tune.of(space, free=curve == "free")
        return Variant(self.position, label, self.cls, settings[0], tuning)

    def _params_at(self, point: Mapping[str, _Value]) -> dict[str, Any]:
        """Return all parameters at one point, as plain JSON values.

        Raises:
            UserError: The algorithm's model refuses a parameter.
        """

        def location(loc: Loc) -> str:
            """Return the text that names the key of the grid which gave a parameter."""
            first = loc[:1]
            root: Loc = ("algorithms", self.position, "params", *first)
            if first and first[0] in point:
                root = point[str(first[0])].loc
            return self.grid.location(*root, *loc[1:])

        values = dict(self.entry.params)
        for name, scanned in point.items():
            values[name] = scanned.value
        model = self.cls.Params
        try:
            params = model.model_validate(values)
        except ValidationError as error:
            raise complaint(error, model, location) from error
        plain_params = params.model_dump(mode="json")
        if self.cls is GivenRows:
            self._check_statement(plain_params)
        return plain_params

    def _check_statement(self, params: Mapping[str, Any]) -> None:
        """Refuse external samples whose author states ε for another budget than the grid's.

        Tables show the δ, unit and trust of the grid for every result. Only the author of external
        samples knows for which δ, unit and trust their ε holds. So an entry with a finite ε must
        give all three. Each one that it gives must be the grid's.

        Raises:
            UserError: One of the three differs from the grid's, or is missing.
        """
        budget = self.grid.model_dump(include={"delta", "unit", "trust"})
        epsilon = float(params["epsilon"])
        where = self.grid.location("algorithms", self.position)
        missing = []
        for name, value in budget.items():
            stated = params[name]
            wanted = f"{name}: {spelled(value)}"
            if stated is None:
                missing.append(wanted)
            elif stated != value:
                given = f"{name}: {spelled(stated)}"
                raise UserError(
                    where,
                    f"has {given}, but the grid has {wanted}",
                    f"if the author's ε also holds for {wanted}, give that here; else give the "
                    f"grid {given}, or remove epsilon, delta, unit and trust here",
                )
        if missing and math.isfinite(epsilon):
            wanted = ", ".join(missing)
            raise UserError(
                where,
                f"has epsilon: {number(epsilon)}, but does not say whether that holds for the "
                f"grid's {wanted}",
                f"if it does, add {wanted} here; else remove epsilon here",
            )


def _distinct(values: list[Any]) -> tuple[Any, ...]:
    """Return each value once, in order; values may be lists, which have no hash."""
    return tuple(value for position, value in enumerate(values) if value not in values[:position])


def loaded(grid: Grid) -> dict[str, Embeddings]:
    """Return the grid's data sets by key, each with the public examples beside it.

    Raises:
        UserError: A data set cannot be loaded.
    """
    data: dict[str, Embeddings] = {}
    public_rows: dict[str, PublicRows] = {}
    for spec in grid.sets:
        with at(partial(grid.place_of, spec)):
            embeddings = load(spec)
        public = grid.public_beside(spec)
        if public is not None:
            with at(partial(grid.place_of, spec, public=True)):
                if public.key not in public_rows:
                    public_rows[public.key] = load_public(public)
                embeddings = public_rows[public.key].beside(embeddings)
        data[spec.key] = embeddings
    return data


def evaluations(
    grid: Grid,
    spec: DatasetSpec,
    columns: Mapping[str, NDArray[Any]],
) -> tuple[Evaluation, ...]:
    """Return the grid's evaluation, once for every site that it leaves out of training.

    Args:
        grid: The grid.
        spec: One of its data sets.
        columns: The columns of the training examples of this data set, each of shape ``[n]``.

    Raises:
        UserError: The partition has no sites, or none of this name.
    """
    unseen = grid.evaluation.unseen
    if unseen is None:
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
    if unseen == "each":
        left_out = sites
    elif unseen in sites:
        left_out = [unseen]
    else:
        raise UserError(
            where,
            f"column '{column}' of '{spec.display}' has no value '{unseen}'",
            nearest(unseen, [*sites, "each"]),
        )
    return tuple(grid.evaluation.model_copy(update={"unseen": site}) for site in left_out)


def without_unseen(grid: Grid, data: Mapping[str, Embeddings]) -> dict[str, Embeddings]:
    """Return the data sets and, for every site that is left out, each data set without it.

    The keys are those of :func:`fedsim.grid.models.data_key`.
    """
    views = dict(data)
    column = str(grid.partition.column)
    for spec in grid.sets:
        whole = data[spec.key]
        for evaluation in evaluations(grid, spec, whole.columns):
            site = evaluation.unseen
            if site is not None:
                with at(grid.location("evaluation", "unseen")):
                    views[data_key(spec, evaluation)] = whole.unseen(column, site)
    return views


def check_partitions(grid: Grid, data: Mapping[str, Embeddings]) -> None:
    """Check that the data has what the partition needs of labels, columns and split.

    Args:
        grid: The grid.
        data: The data sets as :func:`without_unseen` returns them. Embeddings are not looked at.

    Raises:
        UserError: A partition of the grid is not possible.
    """
    together = grid.division.together
    for spec in grid.sets:
        sites = evaluations(grid, spec, data[spec.key].columns)
        for (position, clients), evaluation in product(enumerate(grid.clients), sites):
            view = data[data_key(spec, evaluation)]
            with at(grid_place(grid, position)):
                check_partition(
                    view.y_train,
                    spec=grid.division,
                    clients=clients,
                    columns=view.columns,
                )
                if together is not None:
                    check_split(together, view.columns, view.test_columns)


def grid_place(grid: Grid, clients: int) -> Callable[[str], str]:
    """Return a function that translates the key in a partition's error into the grid's key.

    Args:
        grid: The grid.
        clients: The position of the number of clients in the grid's list ``clients``.
    """

    def place(key: str) -> str:
        """Return the text that names a key."""
        if key == "clients":
            return grid.location("clients", clients)
        if key == TOGETHER_KEY and not grid.partition.together:
            return grid.location("unit")
        return grid.location(*key.split("."))

    return place


def partition_of(cell: Cell, data: Embeddings) -> Partition:
    """Return the partition of a cell's data among its clients.

    Validation examples are cut here, before anything is trained.
    """
    partition = make_partition(
        data.y_train,
        spec=cell.partition,
        alpha=cell.alpha,
        clients=cell.clients,
        seed=cell.seed,
        columns=data.columns,
    )
    if cell.evaluation.has_validation:
        return with_validation(partition)
    return partition


def expand(resolved: Resolved, data: Mapping[str, Embeddings]) -> tuple[Cell, ...]:
    """Return all cells of a grid; cells that share a partition come together.

    The order is by data set, alpha, clients, seed and left-out site, then algorithm (with its scan)
    and ε. For each of these points, a private algorithm gets one cell for each ε, and any other
    algorithm gets one cell.

    Args:
        resolved: The grid with its algorithms.
        data: The data sets as :func:`without_unseen` returns them.

    Raises:
        UserError: A partition is not possible, two cells are equal or have the same name, or an
            evaluation has more synthetic examples than there is memory for.
    """
    grid = resolved.grid
    check_partitions(grid, data)
    cells = []
    for spec in grid.sets:
        embeddings = data[spec.key]
        most = MOST_SYNTHETIC_NUMBERS // embeddings.classes // (embeddings.dim + embeddings.classes)
        if (grid.evaluation.per_class or 0) > most:
            raise UserError(
                grid.location("evaluation", "per_class"),
                f"takes too much memory for {embeddings.classes} classes",
                f"give at most {most}",
            )
        sites = evaluations(grid, spec, embeddings.columns)
        points = product(
            grid.alpha,
            grid.clients,
            grid.seeds,
            sites,
        )
        for point, variant in product(points, resolved.variants):
            for epsilon in _epsilons(grid, variant):
                cell = _cell(
                    grid,
                    variant,
                    spec,
                    embeddings,
                    point,
                    epsilon,
                )
                cells.append(cell)
    _check_distinct(grid, cells)
    return tuple(cells)


def _epsilons(grid: Grid, variant: Variant) -> Sequence[float | None]:
    """Return the values of ε of a variant: those of the grid for private methods only.

    External samples have the ε that their author states; any other method has None.
    """
    if variant.cls.private:
        return grid.epsilon
    if variant.cls is GivenRows:
        return (float(variant.params["epsilon"]),)
    return (None,)


def _check_distinct(grid: Grid, cells: Iterable[Cell]) -> None:
    """Refuse cells that are equal, or that tables could not tell apart."""
    seen: set[Any] = set()
    for cell in cells:
        dataset = shown(cell.dataset, cell.evaluation.unseen)
        name = (cell.label, dataset, cell.alpha, cell.clients, cell.epsilon, cell.seed)
        if cell.cell_id in seen or name in seen:
            what = "two different cells would have the same name in tables"
            hint = "give each entry of algorithms its own label:, and each data set its own name:"
            if cell.cell_id in seen:
                what = "two cells are equal"
                hint = (
                    "remove the value, the data set or the entry of algorithms that the grid lists "
                    "twice, or that changes nothing"
                )
            words = setting(
                cell.label,
                dataset,
                alpha=cell.alpha,
                clients=cell.clients,
                epsilon=cell.epsilon,
                seed=cell.seed,
            )
            raise UserError(
                grid.location(),
                f"{what}: {words}",
                hint,
            )
        seen |= {cell.cell_id, name}


def _cell(
    grid: Grid,
    variant: Variant,
    spec: DatasetSpec,
    data: Embeddings,
    point: tuple[float, int, int, Evaluation],
    epsilon: float | None,
) -> Cell:
    """Return one cell with its ids.

    Args:
        grid: The grid.
        variant: The algorithm with its parameters.
        spec: The data set.
        data: The embeddings of the data set.
        point: Alpha, number of clients, seed and evaluation.
        epsilon: The ε of the budget, or None if it has no meaning for the algorithm.
    """
    alpha, clients, seed, evaluation = point
    cell = Cell(
        cell_id="",
        source=source_hash(variant.cls),
        label=variant.label,
        algorithm=grid.running[variant.entry].name,
        params=variant.params,
        dataset=spec,
        dataset_hash=data.fingerprint,
        partition=grid.division,
        alpha=alpha,
        clients=clients,
        epsilon=epsilon,
        delta=grid.delta,
        unit=grid.unit_kind,
        unit_column=grid.unit_column,
        trust=grid.trust,
        # Without private training there is no budget and no noise that could be secret.
        noise=grid.privacy.noise if variant.cls.private else "seeded",
        seed=seed,
        evaluation=evaluation,
        tuning=variant.tuning,
    )
    public = _public_rows_used(cell, variant.cls, data)
    if public is not None:
        cell = cell.model_copy(
            update={
                "public": public.name,
                "public_hash": public.fingerprint,
                "public_licence": public.licence,
            }
        )
    training_id = training_id_of(cell, place_of(variant.cls), harness_hash("evaluation"))
    return cell.model_copy(
        update={
            "cell_id": evaluation_id(training_id, evaluation),
            "training_id": training_id,
        }
    )


def training_id_of(cell: Cell, place: str, code: str) -> str:
    """Return the id of a cell's training: a hash of everything that can change what is trained.

    :mod:`fedsim.evidence.records` computes it again from the record of a training.

    Args:
        cell: The cell. Its own ids are ignored. Each tuned parameter enters the hash with the
            first value of its space, whatever value the search chose.
        place: Which class the algorithm is, by :func:`fedsim.plugins.code_hash.place_of`.
        code: The hash of the code that evaluates, which decides the result of a search.
    """
    scheme = cell.partition.model_dump(mode="json")
    if cell.partition.uses_alpha:
        scheme["alpha"] = cell.alpha
    unit: Any = cell.unit
    if cell.unit_column:
        unit = {"column": cell.unit_column}
    budget = None
    if cell.epsilon is not None:
        budget = [
            json_number(cell.epsilon),
            cell.delta,
            unit,
            cell.trust,
            cell.noise,
        ]
    facts = {
        "algorithm": place,
        "params": settings_of(cell.params, cell.tuning)[0],
        "dataset": cell.dataset_hash,
        "partition": scheme,
        "clients": cell.clients,
        "budget": budget,
        "seed": cell.seed,
        "unseen": cell.evaluation.unseen,
        # An algorithm may use the evaluation's probe, which its task describes.
        "probe_c": cell.evaluation.real_c,
        "source": cell.source,
    }
    if cell.tuning is not None:
        # Scores on held-out examples decide which training is kept, and so does their code.
        facts["tuning"] = cell.tuning.model_dump(mode="json")
        facts["code"] = code
    if cell.public_hash is not None:
        facts["public"] = cell.public_hash
    if cell.evaluation.has_validation:
        # Validation examples are cut from the training examples.
        facts["personal"] = "held-out"
    return identity(facts)


def public_size(units: int) -> int:
    """Return the data set's size as far as a cell treats it as public.

    It is the number of training units rounded down to a power of two. It is computed once per cell
    and then fixed; see :class:`fedsim.methods.messages.Task`.
    """
    return 1 << (units.bit_length() - 1)


def task_of(cell: Cell, data: Embeddings, partition: Partition) -> Task:
    """Return the public facts that a cell's algorithm gets."""
    return replace(
        _task_without_size(cell, data),
        public_size=public_size(partition.count(cell.unit)),
    )


def _task_without_size(cell: Cell, data: Embeddings) -> Task:
    """Return the public facts of a cell whose data set is not divided yet."""
    return Task(
        data.dim,
        data.classes,
        cell.clients,
        cell.unit,
        cell.trust,
        cell.evaluation.real_c,
        data.public,
    )


def _public_rows_used(cell: Cell, cls: type[Algorithm], data: Embeddings) -> PublicRows | None:
    """Return the public examples beside the data, or None if the algorithm does not use them.

    A search uses them if one of its points does.
    """
    if data.public is None:
        return None
    task = _task_without_size(cell, data)
    for values in settings_of(cell.params, cell.tuning):
        params = cls.Params.model_validate(values)
        if cls(params, task).uses_public():
            return data.public
    return None


def evaluation_id(training_id: str, evaluation: Evaluation) -> str:
    """Return the id of a cell: a hash of its training, its evaluation and the evaluating code."""
    return identity(
        {
            "training": training_id,
            "evaluation": evaluation.model_dump(mode="json", exclude_none=True),
            "code": harness_hash("evaluation"),
        }
    )


def identity(facts: Mapping[str, Any]) -> str:
    """Return 16 hex digits that are equal for equal facts, which are plain JSON values."""
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
