"""Prepares a grid to run, so that every mistake shows before the first cell runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import joblib
import numpy as np
import torch

from fedsim.data.embeddings import Embeddings
from fedsim.errors import PluginError, UserError, at, check_choice, nearest
from fedsim.evaluation.evaluators import EVALUATORS
from fedsim.evaluation.measures import MEASURES
from fedsim.evaluation.plans import plans_of
from fedsim.grid.cells import (
    expand,
    grid_place,
    loaded,
    partition_of,
    resolve,
    task_of,
    without_unseen,
)
from fedsim.grid.models import Cell, Grid, Published, shown
from fedsim.json_lines import dump
from fedsim.methods.messages import Task
from fedsim.partition import Partition, as_seen, site_names
from fedsim.partition.matrix import LabelMatrix
from fedsim.plugins.code_hash import is_shipped
from fedsim.plugins.registry import lookup
from fedsim.training.cohort import build_algorithm
from fedsim.training.trial import Candidate, Trial
from fedsim.words import counted

FEW_CELLS = 5
"""The largest number of cells of a short grid, which runs in less time than Ray needs to start."""
SHORT_WORK = 3e7
"""The largest work of a short grid: rounds x examples x dimensions, summed over its cells."""
MOST_NUMBERS_OF_ACTORS = 2**24
"""A cell whose statistics have more numbers than this has one actor, unless a grid asks for more.

Each actor has a copy of all statistics, and their sum is another copy.
"""
_SLACK = 1e-6
"""The tolerance for shares that were added up in floating point."""


class Node(NamedTuple):
    """The CPUs and GPUs that one machine offers."""

    cpus: float
    gpus: float

    def __str__(self) -> str:
        return f"{counted(self.cpus, 'CPU')} and {counted(self.gpus, 'GPU')}"


class Need(NamedTuple):
    """The actors that a job needs, and the CPUs and GPUs of each.

    Attributes:
        cpus: the CPUs of each actor.
        gpus: the GPUs of each actor: a fraction of one GPU, or a whole number.
        actors: the number of actors at once.
    """

    cpus: float
    gpus: float = 0.0
    actors: int = 1

    def __str__(self) -> str:
        return str(Node(self.cpus, self.gpus))

    def fit(self, node: Node) -> int:
        """Return how many such actors fit on a node.

        An actor that needs less than one GPU has its part on a single GPU.
        """
        on_cpus = math.floor(node.cpus / self.cpus + _SLACK)
        if not self.gpus:
            return on_cpus
        if self.gpus >= 1:
            on_gpus = math.floor(node.gpus / self.gpus + _SLACK)
        else:
            on_gpus = int(node.gpus) * math.floor(1 / self.gpus + _SLACK)
        return min(on_cpus, on_gpus)

    def fit_all(self, nodes: Sequence[Node]) -> int:
        """Return how many such actors fit on several nodes together."""
        return sum(map(self.fit, nodes))


@dataclass(frozen=True)
class Prepared:
    """A grid that is ready to run.

    Attributes:
        grid: the grid file, with everything resolved.
        refused: the errors of the entries of ``algorithms`` that are left out, by position.
        data: the data sets by key, including those that a partition shifts for each client. Once
            Ray has a data set, its training rows are removed here (:mod:`fedsim.runs.scheduler`).
        trials: the cells, in the grid's order.
        nodes: the machines on which the grid is to run.
        need: what one actor needs.
        parallel: how many cells may run at a time.
        equal: for each training id, the id of the training that is run in its place. Trainings
            with equal results share one; any other is run itself (:func:`equal_cells`).
        keep_going: whether the run goes on if the first training of a plug-in fails. The cell is
            then recorded as failed. If False, the failure ends the run.
    """

    grid: Grid
    refused: Mapping[int, PluginError]
    data: dict[str, Embeddings]
    trials: tuple[Trial, ...]
    nodes: tuple[Node, ...]
    need: Need
    parallel: int
    equal: Mapping[str, str]
    keep_going: bool = False

    @property
    def repeated(self) -> int:
        """The number of trainings that are not run because another has the same results."""
        return len(self.equal) - len(set(self.equal.values()))

    @property
    def at_a_time(self) -> int:
        """The most cells that can run at a time."""
        fewest_actors = min(len(trial.sizes) for trial in self.trials)
        return min(self.parallel, self.need.fit_all(self.nodes) // fewest_actors, len(self.trials))

    def need_of(self, trial: Trial) -> Need:
        """Return what the training of a cell needs."""
        return self.need._replace(actors=len(trial.sizes))

    @property
    def short(self) -> bool:
        """Whether running all cells in this process takes less time than starting Ray.

        A short grid has a few cells of shipped methods, on few examples, and uses no GPU. It has no
        time limit, no audit and no check.
        """
        grid = self.grid
        if len(self.trials) > FEW_CELLS:
            return False
        if self.need.gpus or grid.resources.cell_timeout or grid.audit or grid.check:
            return False
        work = 0.0
        for trial in chain.from_iterable(trial.candidate_trials for trial in self.trials):
            name = trial.cell.algorithm
            if not is_shipped(lookup(name)):
                return False
            algorithm = build_algorithm(name, trial.cell.params, trial.task)
            rounds = len(list(algorithm.schedule()))
            work += rounds * trial.train_rows * trial.task.dim
        return work <= SHORT_WORK


def this_machine() -> Node:
    """Return this machine, as far as this process may use it.

    CPU affinity, the limits of a container and the choice of visible GPUs are respected.
    """
    return Node(float(joblib.cpu_count()), float(torch.cuda.device_count()))


def prepare(
    grid: Grid,
    nodes: Sequence[Node],
    max_parallel: int | None = None,
    *,
    keep_going: bool = False,
) -> Prepared:
    """Prepare a grid: load data, list cells, plan budgets and divide clients among actors.

    Args:
        grid: the grid.
        nodes: the machines on which it is to run.
        max_parallel: the most cells that may run at a time; default: as many as fit.
        keep_going: whether a plug-in with a mistake is left out. If False, its mistake is raised.

    Raises:
        UserError: the grid has a mistake; the error names its place in the grid.
    """
    for name in set(grid.evaluation.evaluators) - EVALUATORS.keys():
        where = grid.location("evaluation", "evaluators")
        raise UserError(where, f"there is no evaluator '{name}'", nearest(name, EVALUATORS))
    _check_published(grid)
    resolved = resolve(grid, keep_going=keep_going)
    grid = resolved.grid
    need = Need(grid.resources.cpus_per_actor, grid.resources.gpus_per_actor)
    capacity = actors_that_fit(grid, need, nodes)
    parallel = capacity
    if max_parallel is not None:
        parallel = min(capacity, max(1, max_parallel))
    data = without_unseen(grid, loaded(grid))
    cells = expand(resolved, data)
    shared = _Shared(grid, data)
    trials = []
    for cell in cells:
        partition = shared.partition(cell)
        task = task_of(cell, data[cell.data_key], partition)
        candidates = shared.candidates(cell, task)
        numbers = max(
            build_algorithm(cell.algorithm, candidate.params, task).statistic_numbers()
            for candidate in candidates
        )
        trial = Trial(
            cell=cell,
            # Public examples travel with the data, so the task does not repeat them.
            task=replace(task, public=None),
            plan=candidates[0].plan,
            partition=partition,
            sizes=_clients_of_actors(
                grid,
                cell.clients,
                len(cells),
                capacity,
                parallel,
                spread=numbers <= MOST_NUMBERS_OF_ACTORS,
            ),
            data_key=shared.key_of_view(cell, partition),
            candidates=candidates if cell.tuning else (),
        )
        trials.append(trial)
    return Prepared(
        grid=grid,
        refused=resolved.refused,
        data=shared.data,
        trials=tuple(trials),
        nodes=tuple(nodes),
        need=need,
        parallel=parallel,
        equal=equal_cells(trials),
        keep_going=keep_going,
    )


def _check_published(grid: Grid) -> None:
    """Refuse published numbers that no table or curve could show, or that have the same name.

    Raises:
        UserError: a measure or data set does not exist, a value is outside the measure's range, or
            two numbers have the same name.
    """
    datasets = [spec.display for spec in grid.sets]
    names = set()
    for position, entry in enumerate(grid.algorithms):
        if not isinstance(entry, Published):
            continue
        where = partial(grid.location, "algorithms", position)
        check_choice(where("measure"), entry.measure, MEASURES)
        measure = MEASURES[entry.measure]
        if not measure.least <= entry.published <= measure.most:
            problem = f"{entry.measure} is from {measure.least:g} to {measure.most:g}"
            raise UserError(where("published"), problem)
        if not any(map(entry.belongs_to, datasets)):
            check_choice(where("dataset"), entry.dataset, datasets)
        name = (entry.display, entry.measure, entry.epsilon, entry.dataset)
        if name in names:
            hint = "give each a label: of its own"
            raise UserError(where(), "two published numbers have the same name", hint)
        names.add(name)


@dataclass
class _Shared:
    """The partitions, the plans and the data that the cells of a grid share.

    Attributes:
        grid: the grid.
        data: the data sets by key.
        partitions: the partitions so far, by what they depend on.
        plans: the candidates of cells so far, by what they depend on.
    """

    grid: Grid
    data: dict[str, Embeddings]
    partitions: dict[Any, Partition] = field(default_factory=dict)
    plans: dict[Any, tuple[Candidate, ...]] = field(default_factory=dict)

    def partition(self, cell: Cell) -> Partition:
        """Return the partition of a cell."""
        key = (cell.data_key, cell.alpha, cell.clients, cell.seed)
        if key not in self.partitions:
            with at(grid_place(self.grid, self.grid.clients.index(cell.clients))):
                self.partitions[key] = partition_of(cell, self.data[cell.data_key])
        return self.partitions[key]

    def candidates(self, cell: Cell, task: Task) -> tuple[Candidate, ...]:
        """Return the parameters of a cell with their privacy plan; a tuned cell has several."""
        tuning = dump(cell.tuning and cell.tuning.model_dump())
        params = dump(cell.params)
        key = (cell.algorithm, params, tuning, task, cell.epsilon, cell.public_hash)
        if key not in self.plans:
            with at(partial(self._location_of_plan, cell)):
                cls = lookup(cell.algorithm)
                self.plans[key] = plans_of(
                    cls,
                    cell.params,
                    cell.tuning,
                    task,
                    cell.epsilon,
                    cell.delta,
                )
        return self.plans[key]

    def _location_of_plan(self, cell: Cell, where: str) -> str:
        """Return the place in the grid of a mistake in the plan of a cell.

        Args:
            cell: the cell.
            where: a key of the grid, or a parameter of the cell's algorithm.
        """
        grid = self.grid
        if where == "epsilon":
            location = grid.location("epsilon", grid.epsilon.index(cell.epsilon))
        elif where in Grid.model_fields:
            location = grid.location(where)
        else:
            location = f"{grid.location('algorithms')}: {where}"
        return f"{location} (method {cell.label})"

    def key_of_view(self, cell: Cell, partition: Partition) -> str:
        """Return the key of the data that a cell reads.

        Under ``feature-shift`` every client sees the examples in its own way, so each such
        partition has a copy of the data.
        """
        if not cell.partition.shifts:
            return cell.data_key
        key = f"{cell.data_key} {partition.fingerprint}"
        if key not in self.data:
            whole = self.data[cell.data_key]
            self.data[key] = as_seen(whole, partition, cell.partition, cell.seed)
        return key


def equal_cells(trials: Sequence[Trial]) -> dict[str, str]:
    """Return the training that gives each cell's results, by training id.

    A cell whose results do not depend on its partition gets the first training with equal results.
    Any other cell gets its own training.
    """
    first_trainings: dict[str, str] = {}
    equal = {}
    for trial in trials:
        cell = trial.cell
        first = cell.training_id
        if _ignores_partition(trial):
            left_out = {"cell_id", "training_id", "partition", "alpha", "clients"}
            settings = cell.model_dump(mode="json", exclude=left_out)
            key = dump([settings, trial.data_key, trial.train_rows, trial.train_groups])
            first = first_trainings.setdefault(key, first)
        equal[cell.training_id] = first
    return equal


def _ignores_partition(trial: Trial) -> bool:
    """Return whether the results of a cell are the same for every partition.

    This holds for shipped methods that only release sums over all examples, if the cell is not
    tuned, no client sees shifted features, and no score is computed per client.
    """
    cell = trial.cell
    evaluation = cell.evaluation
    if not is_shipped(lookup(cell.algorithm)) or cell.tuning or cell.partition.shifts:
        return False
    if evaluation.per_client or evaluation.personal is not None:
        return False
    algorithm = build_algorithm(cell.algorithm, cell.params, trial.task)
    return algorithm.ignores_partition()


def _clients_of_actors(
    grid: Grid,
    clients: int,
    cells: int,
    capacity: int,
    parallel: int,
    *,
    spread: bool,
) -> tuple[int, ...]:
    """Return how many clients each actor of a cell has.

    With ``clients_per_actor: auto`` a cell has one actor if there are at least as many cells as can
    run at a time. Otherwise its clients are spread over idle actors if ``spread`` allows it.

    Args:
        grid: the grid.
        clients: the number of clients of the cell.
        cells: the number of cells of the grid.
        capacity: the most actors at once.
        parallel: the most cells at once.
        spread: whether ``auto`` may use several actors. Each actor has a copy of all statistics.

    Raises:
        UserError: the cell needs more actors than the cluster has room for.
    """
    per_actor = clients
    asked = grid.resources.clients_per_actor
    if isinstance(asked, int):
        per_actor = asked
    elif asked == "auto" and spread and cells < parallel:
        per_actor = -(-clients // (parallel // cells))
    actors = -(-clients // per_actor)
    if actors > capacity:
        problem = (
            f"{clients} clients need {actors} actors at once and the cluster has room for "
            f"{capacity}"
        )
        hint = "give a larger clients_per_actor, or a smaller cpus_per_actor or gpus_per_actor"
        raise UserError(grid.location("resources", "clients_per_actor"), problem, hint)
    numbers_of_clients = np.array_split(range(clients), actors)  # in parts as even as possible
    return tuple(map(len, numbers_of_clients))


def actors_that_fit(grid: Grid, need: Need, nodes: Sequence[Node]) -> int:
    """Return how many actors fit on the cluster.

    Raises:
        UserError: no node has room for an actor.
    """
    capacity = need.fit_all(nodes)
    if capacity:
        return capacity
    offers = ", ".join(sorted(map(str, set(nodes))))
    if need.gpus and not any(node.gpus for node in nodes):
        hint = "give gpus_per_actor: 0 and device: auto"
    else:
        hint = "give a smaller cpus_per_actor or gpus_per_actor"
    problem = f"an actor (a worker process) needs {need}, and no machine has them ({offers})"
    raise UserError(grid.location("resources"), problem, hint)


def label_matrices(prepared: Prepared) -> list[LabelMatrix]:
    """Return the label-by-client matrix of every partition.

    Under a scheme with sites, a client is named after its site, with a number if several clients
    share the site.
    """
    matrices: dict[Any, LabelMatrix] = {}
    for trial in prepared.trials:
        cell = trial.cell
        partition = trial.partition
        data = prepared.data[trial.data_key]
        setting = (
            shown(cell.dataset, cell.evaluation.unseen),
            partition.scheme,
            cell.concentration,
            cell.clients,
            cell.seed,
        )
        if setting in matrices:
            continue
        matrices[setting] = LabelMatrix(
            *setting,
            fingerprint=partition.fingerprint,
            counts=partition.label_counts,
            classes=data.names,
            sites=site_names(data, partition, cell.partition),
        )
    return list(matrices.values())
