"""Preflight: everything that can go wrong before a cell runs goes wrong here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fedsim.data.embeddings import Embeddings
from fedsim.data.sources.load import load
from fedsim.errors import UserError, at
from fedsim.grid.cells import expand, grid_place
from fedsim.grid.models import Cell, Grid, Resources
from fedsim.methods.claims import worth
from fedsim.methods.messages import Task
from fedsim.partition import SCHEMES, Partition, as_seen, make_partition
from fedsim.privacy.plan import PrivacyPlan
from fedsim.simulation.cohort import build_algorithm
from fedsim.simulation.node import Node
from fedsim.simulation.rehearsal import rehearse_grid
from fedsim.simulation.trial import Trial, packing


@dataclass(frozen=True)
class Prepared:
    """A grid that is ready to run.

    Attributes:
        grid: the grid.
        data: the data sets by key; under feature shift also what each partition makes of them.
        trials: one a cell, in the grid's order.
        capacity: how many actors fit on the cluster.
        parallel: how many cells may run at a time.
    """

    grid: Grid
    data: Mapping[str, Embeddings]
    trials: tuple[Trial, ...]
    capacity: int
    parallel: int


def prepare(
    grid: Grid, nodes: Sequence[Node], max_parallel: int | None = None, *, keep_going: bool = False, rehearse: bool = True
) -> Prepared:
    """Load the data, rehearse the plug-ins, expand the grid, partition, calibrate every plan, lay out the actors.

    Args:
        grid: a checked grid.
        nodes: what the cluster has.
        max_parallel: at most so many cells at a time.
        keep_going: leave out the algorithms whose plug-in is refused.
        rehearse: whether plug-ins are rehearsed at all.

    Raises:
        UserError: a data set, a plug-in, a partition, a plan or the layout does not work out; the message says where in the grid.
    """
    capacity = actors_that_fit(grid, nodes)
    parallel = min(capacity, max_parallel or capacity)
    data = {spec.key: load(spec, grid.place("dataset", i), grid.encoder) for i, spec in enumerate(grid.dataset)}
    if rehearse:
        grid = rehearse_grid(grid, data, keep_going=keep_going)
    cells = expand(grid, data)
    partitions: dict[tuple[str, float, int, int], Partition] = {}
    trials = []
    for cell in cells:
        embeddings = data[cell.dataset.key]
        key = (cell.dataset.key, cell.alpha, cell.clients, cell.seed)
        if key not in partitions:
            with at(grid_place(grid, grid.dataset.index(cell.dataset), grid.clients.index(cell.clients))):
                partitions[key] = make_partition(
                    embeddings.y_train,
                    spec=cell.partition,
                    alpha=cell.alpha,
                    clients=cell.clients,
                    seed=cell.seed,
                    columns=embeddings.columns,
                )
        data_key = cell.dataset.key
        if SCHEMES[cell.partition.scheme].map_rows is not None:
            data_key = f"{data_key} {partitions[key].fingerprint}"
            if data_key not in data:
                data[data_key] = as_seen(embeddings, partitions[key], cell.partition, cell.seed)
        sizes = packing(cell.clients, clients_per_actor(grid.resources, cell.clients, len(cells), parallel))
        if len(sizes) > capacity:
            raise UserError(
                grid.place("resources", "clients_per_actor"),
                f"{cell.clients} clients need {len(sizes)} actors at once and the cluster has room for {capacity}",
                "put more clients on an actor, or give actors a smaller share",
            )
        task = Task(embeddings.dim, embeddings.classes, cell.clients, cell.unit, cell.trust)
        trials.append(Trial(cell, task, calibrated(grid, cell, task), partitions[key], sizes, data_key))
    return Prepared(grid, data, tuple(trials), capacity, parallel)


def calibrated(grid: Grid, cell: Cell, task: Task) -> PrivacyPlan | None:
    """The cell's plan, with what its claim is worth: the harness says that, whatever the algorithm's own plan does.

    Raises:
        UserError: there is none; with the place in the grid.
    """
    try:
        algorithm = build_algorithm(cell.algorithm, cell.params, task)
        plan = algorithm.plan(cell.epsilon, cell.delta)
        return plan and replace(plan, claim=worth(plan.claim, algorithm))
    except UserError as error:
        if error.where == "epsilon":
            where = grid.place("epsilon", grid.epsilon.index(cell.epsilon))
        else:
            where = grid.place(error.where) if error.where in Grid.model_fields else f"{grid.place('algorithms')}: {error.where}"
        raise UserError(f"{where} with {cell.label}", error.what, error.right) from error


def actors_that_fit(grid: Grid, nodes: Sequence[Node]) -> int:
    """How many actors of the grid's shares fit on the cluster.

    Raises:
        UserError: not even one.
    """
    cpus, gpus = grid.resources.cpus_per_actor, grid.resources.gpus_per_actor
    fitting = 0
    for node in nodes:
        on_node = math.floor(node.cpus / cpus + 1e-9)
        fitting += min(on_node, math.floor(node.gpus / gpus + 1e-9)) if gpus else on_node
    if fitting < 1:
        has = ", ".join(sorted({f"{node.cpus:g} CPUs and {node.gpus:g} GPUs" for node in nodes}))
        raise UserError(
            grid.place("resources"),
            f"an actor needs {cpus:g} CPUs and {gpus:g} GPUs; no node has them ({has})",
            "give actors a smaller share",
        )
    return fitting


def clients_per_actor(resources: Resources, clients: int, cells: int, parallel: int) -> int:
    """As the grid says; ``auto``: all where cells keep every slot busy, else spread over the slots that would idle."""
    asked = resources.clients_per_actor
    if isinstance(asked, int):
        return min(asked, clients)
    return clients if asked == "all" or cells >= parallel else -(-clients // (parallel // cells))
