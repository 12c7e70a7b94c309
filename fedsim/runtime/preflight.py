"""Preflight: everything that can go wrong before a cell runs goes wrong here, and what will run is shown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from fedsim.algorithm import Task
from fedsim.config import Cell, Grid, Resources, expand
from fedsim.data.embeddings import Embeddings
from fedsim.data.sources import load
from fedsim.errors import UserError
from fedsim.partition import Partition, make_partition
from fedsim.runtime.cohort import build_algorithm
from fedsim.runtime.trial import Trial, packing


@dataclass(frozen=True)
class Prepared:
    """A grid that is ready to run.

    Attributes:
        grid: the grid.
        data: the data sets by :attr:`fedsim.data.sources.DatasetSpec.key`.
        trials: one a cell, in the grid's order.
        partitions: the partition of every cell, by cell id.
        slots: how many cells run at a time.
    """

    grid: Grid
    data: Mapping[str, Embeddings]
    trials: tuple[Trial, ...]
    partitions: Mapping[str, Partition]
    slots: int


def prepare(grid: Grid, cpus: float, gpus: float, max_parallel: int | None = None) -> Prepared:
    """Load the data, expand the grid, partition, calibrate every plan, lay out the actors.

    Args:
        grid: a checked grid.
        cpus: what the cluster has.
        gpus: what the cluster has.
        max_parallel: at most so many cells at a time.

    Raises:
        UserError: a data set, a partition, a plan or the layout does not work out; the message says where in the grid.
    """
    data = {spec.key: load(spec, grid.place("dataset", i)) for i, spec in enumerate(grid.dataset)}
    cells = expand(grid, data)
    slots = slot_count(grid.resources, cpus, gpus, max_parallel, grid.place("resources"))
    partitions: dict[str, Partition] = {}
    made: dict[tuple[str, float, int, int], Partition] = {}
    trials = []
    for cell in cells:
        embeddings = data[cell.dataset.key]
        key = (cell.dataset.key, cell.alpha, cell.clients, cell.seed)
        if key not in made:
            made[key] = make_partition(
                embeddings.y_train,
                spec=cell.partition,
                alpha=cell.alpha,
                clients=cell.clients,
                seed=cell.seed,
                columns=embeddings.columns,
            )
        partitions[cell.cell_id] = made[key]
        sizes = packing(cell.clients, clients_per_actor(grid.resources, cell, len(cells), slots))
        check_layout(len(sizes), grid.resources, cpus, gpus, grid.place("resources", "clients_per_actor"))
        trials.append(prepare_trial(cell, embeddings, made[key], sizes))
    return Prepared(grid, data, tuple(trials), partitions, slots)


def prepare_trial(cell: Cell, data: Embeddings, partition: Partition, sizes: tuple[int, ...]) -> Trial:
    """A cell with its task and its calibrated plan."""
    task = Task(data.dim, data.classes, cell.clients, cell.unit, cell.trust)
    try:
        plan = build_algorithm(cell.algorithm, cell.params, task).plan(cell.epsilon, cell.delta)
    except UserError as error:
        raise UserError(f"{cell.label} at epsilon {cell.epsilon:g}: {error.where}", error.what, error.right) from error
    return Trial(cell, task, plan, partition.rows, sizes)


def slot_count(resources: Resources, cpus: float, gpus: float, max_parallel: int | None, where: str) -> int:
    """How many single-actor cells fit at a time.

    Raises:
        UserError: not even one actor fits.
    """
    fitting = math.floor(cpus / resources.cpus_per_actor + 1e-9)
    if resources.gpus_per_actor:
        fitting = min(fitting, math.floor(gpus / resources.gpus_per_actor + 1e-9))
    if fitting < 1:
        need = f"an actor needs {resources.cpus_per_actor:g} CPUs and {resources.gpus_per_actor:g} GPUs"
        raise UserError(where, f"{need}; the cluster has {cpus:g} and {gpus:g}", "ask for less")
    return min(fitting, max_parallel or fitting)


def clients_per_actor(resources: Resources, cell: Cell, cells: int, slots: int) -> int:
    """As the grid says; ``auto``: all where cells keep every slot busy, else spread over the slots that would idle."""
    asked = resources.clients_per_actor
    if isinstance(asked, int):
        return min(asked, cell.clients)
    if asked == "all" or cells >= slots:
        return cell.clients
    return -(-cell.clients // (slots // cells))


def check_layout(actors: int, resources: Resources, cpus: float, gpus: float, where: str) -> None:
    """Refuse a cell that needs more actors at once than the cluster can hold.

    Raises:
        UserError: with the arithmetic.
    """
    need_cpus, need_gpus = actors * resources.cpus_per_actor, actors * resources.gpus_per_actor
    if need_cpus > cpus + 1e-9 or need_gpus > gpus + 1e-9:
        raise UserError(
            where,
            f"a cell needs {actors} actors at once: {need_cpus:g} CPUs and {need_gpus:g} GPUs; the cluster has {cpus:g} and {gpus:g}",
            "put more clients on an actor, or give actors a smaller share",
        )


def show_plan(prepared: Prepared, console: Console) -> None:
    """Print every cell with its plan, the actor layout and the number of cells."""
    table = Table(title=f"{prepared.grid.name}: {len(prepared.trials)} cells", title_justify="left", show_edge=False)
    for name in ("cell", "algorithm", "data", "α", "clients", "seed"):
        table.add_column(name, no_wrap=True)
    for name in ("ε", "σ", "q", "steps", "ε reached"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("claim", "unit, trust, scope", "accountant", "actors"):
        table.add_column(name, no_wrap=True)
    for trial in prepared.trials:
        cell, plan = trial.cell, trial.plan
        facts = [cell.cell_id, cell.label, cell.dataset.display, f"{cell.alpha:g}", str(cell.clients), str(cell.seed)]
        actors = f"{len(trial.sizes)} × {'/'.join(map(str, sorted(set(trial.sizes), reverse=True)))} clients"
        if plan is None:
            table.add_row(*facts, "–", "–", "–", "–", "–", "none", "not private", "–", actors)
            continue
        budget = [
            f"{plan.epsilon_target:g}",
            f"{plan.sigma:.4g}",
            ", ".join(f"{release.sample_rate:g}" for release in plan.releases),
            ", ".join(str(release.steps) for release in plan.releases),
            f"{plan.epsilon_reached:.4g}",
        ]
        table.add_row(*facts, *budget, plan.claim, f"{plan.unit}, {plan.trust}, {plan.scope}", plan.accountant, actors)
    # A table is for reading, also in a pipe: rows are not cut to a terminal's width.
    wide = Console(file=console.file, width=max(console.width, 200), force_terminal=console.is_terminal, no_color=console.no_color)
    wide.print(table)
    sizes = ", ".join(f"{d.name}: {len(d.y_train)} × {d.dim}, {d.x_train.nbytes / 2**20:.1f} MiB" for d in prepared.data.values())
    shares = prepared.grid.resources
    console.print(f"data: {sizes}", soft_wrap=True, highlight=False)
    console.print(
        f"{prepared.slots} cells at a time, {shares.cpus_per_actor:g} CPUs and {shares.gpus_per_actor:g} GPUs an actor; "
        f"{len(prepared.trials)} cells; nothing was run",
        soft_wrap=True,
        highlight=False,
    )
