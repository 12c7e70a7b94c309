"""Preflight: everything that can go wrong before a cell runs goes wrong here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import joblib
import torch

from fedsim.data.embeddings import Embeddings
from fedsim.errors import PluginError, UserError, at, nearest
from fedsim.evaluation.readouts import READOUTS
from fedsim.evaluation.tuning import plans_of
from fedsim.grid.cells import (
    client_views,
    expand,
    grid_place,
    loaded,
    partition_of,
    resolve,
    task_of,
    without_unseen,
)
from fedsim.grid.models import Cell, Grid, shown
from fedsim.json_lines import dump
from fedsim.methods.messages import Task
from fedsim.partition import Partition, site_names
from fedsim.partition.matrix import LabelMatrix
from fedsim.plugins.code_hash import is_shipped
from fedsim.plugins.registry import lookup
from fedsim.training.cohort import build_algorithm
from fedsim.training.trial import Candidate, Trial, packing
from fedsim.words import counted

FEW_CELLS = 5
SHORT_WORK = 3e7
"""Cells, and numbers that their rounds read (rounds x rows x dimensions), up to which they take
less time than Ray to start.
"""
_SLACK = 1e-6
"""Shares are added up in floating point."""


class Node(NamedTuple):
    """What one machine offers."""

    cpus: float
    gpus: float

    def __str__(self) -> str:
        return f"{counted(self.cpus, 'CPU')} and {counted(self.gpus, 'GPU')}"


class Need(NamedTuple):
    """What a job needs: so many actors at once, each with CPUs and GPUs (a part of one, or a whole
    number).
    """

    cpus: float
    gpus: float = 0.0
    actors: int = 1

    def __str__(self) -> str:
        return str(Node(self.cpus, self.gpus))

    def fit(self, node: Node) -> int:
        """How many such actors a node holds; a part of a GPU lies on one GPU."""
        on_cpus = math.floor(node.cpus / self.cpus + _SLACK)
        if not self.gpus:
            return on_cpus
        whole = math.floor(node.gpus / self.gpus + _SLACK)
        return min(
            on_cpus,
            whole if self.gpus >= 1 else int(node.gpus) * math.floor(1 / self.gpus + _SLACK),
        )


@dataclass(frozen=True)
class Prepared:
    """A grid that is ready to run.

    Attributes:
        refused: why entries of ``algorithms``, by their positions, are left out.
        data: the data sets by key; where clients see values of their own also what each partition
            makes of them.
        trials: one a cell, in the grid's order.
        need: what one actor needs.
        parallel: how many cells may run at a time.
        equal: of cells whose result another partition cannot change, the training of the first that
            is equal to it.
        keep_going: whether a plug-in whose first training fails is a failed row rather than the
            end.
    """

    grid: Grid
    refused: Mapping[int, PluginError]
    data: Mapping[str, Embeddings]
    trials: tuple[Trial, ...]
    nodes: tuple[Node, ...]
    need: Need
    parallel: int
    equal: Mapping[str, str] = field(default_factory=dict)
    keep_going: bool = False

    @property
    def repeated(self) -> int:
        """How many cells are not trained because they are equal to another."""
        return sum(training != first for training, first in self.equal.items())

    def capacity(self, nodes: Sequence[Node]) -> int:
        """How many actors nodes have room for."""
        return sum(self.need.fit(node) for node in nodes)

    def need_of(self, trial: Trial) -> Need:
        """What the training of a cell needs."""
        return self.need._replace(actors=len(trial.sizes))

    @property
    def short(self) -> bool:
        """Whether all cells have run before a cluster has started: a handful of shipped methods on
        few rows, without limits or GPUs.
        """
        asked = self.grid.resources
        work = 0.0
        limits = (self.need.gpus, asked.cell_timeout, self.grid.audit, self.grid.check)
        if (
            len(self.trials) > FEW_CELLS
            or any(limits)
            or not all(is_shipped(lookup(trial.cell.algorithm)) for trial in self.trials)
        ):
            return False
        for trial in self.trials:
            algorithm = build_algorithm(trial.cell.algorithm, trial.cell.params, trial.task)
            rounds = sum(1 for _ in algorithm.schedule()) * max(1, len(trial.candidates))
            work += rounds * trial.train_rows * trial.task.dim
        return work <= SHORT_WORK


def this_machine() -> Node:
    """This machine, as far as this process may use it (affinity, container limits, visible
    GPUs).
    """
    return Node(float(joblib.cpu_count()), float(torch.cuda.device_count()))


def prepare(
    grid: Grid, nodes: Sequence[Node], max_parallel: int | None = None, *, keep_going: bool = False
) -> Prepared:
    """Find the algorithms, load the data, list the cells, partition, plan every budget, lay out the
    actors.

    Any mistake is raised with its place in the grid, but that of a plug-in is noted where the rest
    is to go on, ``keep_going``.
    """
    for name in set(grid.evaluation.readouts) - READOUTS.keys():
        raise UserError(
            grid.location("evaluation", "readouts"),
            f"there is no readout '{name}'",
            nearest(name, READOUTS),
        )
    resolved = resolve(grid, keep_going=keep_going)
    grid = resolved.grid
    need = Need(grid.resources.cpus_per_actor, grid.resources.gpus_per_actor)
    capacity = actors_that_fit(grid, need, nodes)
    parallel = min(capacity, capacity if max_parallel is None else max(1, max_parallel))
    data = without_unseen(grid, loaded(grid))
    cells = expand(resolved, data)
    partitions = partitioned(grid, cells, data)
    tasks = tuple(task_of(cell, data[cell.data_key]) for cell in cells)
    plans = planned(grid, cells, tasks)
    sizes = laid_out(grid, cells, capacity, parallel)
    views, keys = client_views(cells, partitions, data)
    trials = tuple(
        # public rows travel with the data
        Trial(
            cell,
            replace(task, public=None),
            own[0].plan,
            partition,
            size,
            key,
            own if cell.tuning else (),
        )
        for cell, task, own, partition, size, key in zip(
            cells, tasks, plans, partitions, sizes, keys, strict=True
        )
    )
    return Prepared(
        grid,
        resolved.refused,
        views,
        trials,
        tuple(nodes),
        need,
        parallel,
        equal_cells(trials),
        keep_going,
    )


def equal_cells(trials: Sequence[Trial]) -> dict[str, str]:
    """By training, the first that gives the same: of shipped methods that only release sums over
    rows, and are judged as a whole.
    """
    first: dict[str, str] = {}
    equal = {}
    for trial in trials:
        cell = trial.cell
        judged = trial.cell.evaluation
        known = (
            is_shipped(lookup(cell.algorithm))
            and build_algorithm(cell.algorithm, cell.params, trial.task).ignores_partition()
        )
        if known and not (
            cell.tuning or cell.partition.shifts or judged.per_client or judged.personal is not None
        ):
            facts = cell.model_dump(
                mode="json", exclude={"cell_id", "training_id", "partition", "alpha", "clients"}
            )
            key = dump([facts, trial.data_key, trial.train_rows, trial.train_groups])
            equal[cell.training_id] = first.setdefault(key, cell.training_id)
    return equal


def partitioned(
    grid: Grid, cells: Sequence[Cell], data: Mapping[str, Embeddings]
) -> list[Partition]:
    """Every cell's partition; cells of one data set, alpha, number of clients and seed share it."""
    made: dict[tuple[str, float, int, int], Partition] = {}
    keys = [(cell.data_key, cell.alpha, cell.clients, cell.seed) for cell in cells]
    for key, cell in zip(keys, cells, strict=True):
        if key not in made:
            with at(grid_place(grid, grid.clients.index(cell.clients))):
                made[key] = partition_of(cell, data[cell.data_key])
    return [made[key] for key in keys]


def planned(
    grid: Grid, cells: Sequence[Cell], tasks: Sequence[Task]
) -> list[tuple[Candidate, ...]]:
    """Every cell's parameters with their plan, several of a tuned cell; cells that differ in data,
    alpha or seed alone share them.
    """
    solved: dict[tuple[Any, ...], tuple[Candidate, ...]] = {}
    keys = []
    for cell, task in zip(cells, tasks, strict=True):

        def location(where: str, cell: Cell = cell) -> str:
            if where == "epsilon":
                named = grid.location("epsilon", grid.epsilon.index(cell.epsilon))
            else:
                if where in Grid.model_fields:
                    named = grid.location(where)
                else:
                    named = f"{grid.location('algorithms')}: {where}"
            return f"{named} with {cell.label}"

        tuned = dump(cell.tuning and cell.tuning.model_dump())
        keys.append(
            (cell.algorithm, dump(cell.params), tuned, task, cell.epsilon, cell.public_hash)
        )
        if keys[-1] not in solved:
            with at(location):
                solved[keys[-1]] = plans_of(
                    lookup(cell.algorithm), cell.params, cell.tuning, task, cell.epsilon, cell.delta
                )
    return [solved[key] for key in keys]


def laid_out(
    grid: Grid, cells: Sequence[Cell], capacity: int, parallel: int
) -> list[tuple[int, ...]]:
    """Clients per actor of every cell, in client order. ``auto``: all where cells keep every slot
    busy, else spread over idle ones.
    """
    asked = grid.resources.clients_per_actor
    sizes = []
    for cell in cells:
        if asked == "all" or len(cells) >= parallel:
            spread = cell.clients
        else:
            spread = -(-cell.clients // (parallel // len(cells)))
        sizes.append(
            packing(cell.clients, min(asked, cell.clients) if isinstance(asked, int) else spread)
        )
        if (actors := len(sizes[-1])) > capacity:
            what = (
                f"{cell.clients} clients need {actors} actors at once and the cluster has "
                f"room for {capacity}"
            )
            hint = "put more clients on an actor, or give actors a smaller share"
            raise UserError(grid.location("resources", "clients_per_actor"), what, hint)
    return sizes


def actors_that_fit(grid: Grid, need: Need, nodes: Sequence[Node]) -> int:
    """How many actors fit on the cluster."""
    if capacity := sum(need.fit(node) for node in nodes):
        return capacity
    has = ", ".join(sorted(map(str, set(nodes))))
    without = need.gpus and not any(node.gpus for node in nodes)
    if without:
        fix = "give gpus_per_actor: 0 and device: auto"
    else:
        fix = "give actors a smaller share"
    what = f"an actor needs {need}; no node has them ({has})"
    raise UserError(grid.location("resources"), what, fix)


def label_matrices(prepared: Prepared) -> list[LabelMatrix]:
    """The label-by-client matrix of every partition; clients by site are called by it, with a
    number where several are of one.
    """
    matrices: dict[tuple[Any, ...], LabelMatrix] = {}
    for trial in prepared.trials:
        cell = trial.cell
        partition = trial.partition
        data = prepared.data[trial.data_key]
        place = (
            shown(cell.dataset, cell.evaluation.unseen),
            partition.scheme,
            cell.concentration,
            cell.clients,
            cell.seed,
        )
        if place not in matrices:
            names = site_names(data, partition, cell.partition)
            matrices[place] = LabelMatrix(
                *place, partition.fingerprint, partition.label_counts, data.names, sites=names
            )
    return list(matrices.values())
