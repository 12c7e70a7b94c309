"""Preflight: everything that can go wrong before a cell runs goes wrong here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from fedsim.data.embeddings import Embeddings
from fedsim.data.public import PublicRows
from fedsim.data.sources.load import load_public, opened
from fedsim.device import device_of
from fedsim.errors import PluginError, UserError, at
from fedsim.grid.cells import check_partitions, expand, grid_place, without_unseen
from fedsim.grid.models import Cell, Grid, Resources
from fedsim.grid.resolve import resolve
from fedsim.json_lines import dump
from fedsim.methods.messages import Task
from fedsim.partition import Partition, as_seen, make_partition
from fedsim.planning.gpu_memory import GIB, MOST_ACTORS_PER_GPU, even_share, least
from fedsim.planning.node import Node, Share
from fedsim.planning.process import plug_in_code
from fedsim.planning.rehearsal import Rehearsal, rehearse_grid
from fedsim.planning.tuning import plans_of
from fedsim.plugins.registry import lookup
from fedsim.training.trial import Candidate, Trial, packing
from fedsim.words import counted


@dataclass(frozen=True)
class Prepared:
    """A grid that is ready to run.

    Attributes:
        grid: the grid.
        refused: why entries of ``algorithms``, by their positions, are left out.
        data: the data sets by key; where clients see values of their own also what each partition makes of them.
        trials: one a cell, in the grid's order.
        nodes: what the cluster has.
        share: what an actor takes of it; with a whole GPU where its share is still to be measured.
        parallel: how many cells may run at a time.
    """

    grid: Grid
    refused: Mapping[int, PluginError]
    data: Mapping[str, Embeddings]
    trials: tuple[Trial, ...]
    nodes: tuple[Node, ...]
    share: Share
    parallel: int


Tell = Callable[[str], None]
"""Takes a few words on what is going on."""


def _silent(text: str) -> None:
    pass


def prepare(
    grid: Grid,
    nodes: Sequence[Node],
    max_parallel: int | None = None,
    *,
    keep_going: bool = False,
    rehearsal: Rehearsal | None = None,
    tell: Tell = _silent,
) -> Prepared:
    """Find the algorithms, load the data, rehearse the plug-ins, list the cells, partition, plan every budget, lay out the actors.

    Args:
        grid: a checked grid.
        nodes: what the cluster has.
        max_parallel: at most so many cells at a time.
        keep_going: leave out the algorithms whose plug-in is refused.
        rehearsal: how plug-ins are rehearsed; default: in this process.
        tell: hears of every step that may take long.

    Raises:
        UserError: an algorithm, a data set, a plug-in, a partition, a plan or the layout does not work out; the message says where in
            the grid.
    """
    with plug_in_code():  # imports run it
        resolved = resolve(grid, keep_going=keep_going)
    share, capacity = share_of(grid.resources), actors_that_fit(grid, nodes)
    parallel = min(capacity, max_parallel or capacity)
    data = loaded(grid, tell)
    tell("rehearsing plug-ins")
    device = device_of(share.device, share.gpus)
    resolved = rehearse_grid(resolved, data, device, keep_going=keep_going, rehearsal=rehearsal)
    data = without_unseen(grid, data)
    tell("listing the cells")
    cells = expand(resolved, data)
    partitions = partitioned(grid, cells, data, tell)
    tasks = tuple(task_of(cell, data[cell.data_key]) for cell in cells)
    plans = planned(grid, cells, tasks, tell)
    candidates = [own if cell.tuning else () for cell, own in zip(cells, plans, strict=True)]
    tasks = tuple(replace(task, public=None) for task in tasks)  # rows travel with the data
    sizes = laid_out(grid, cells, capacity, parallel)
    views, keys = seen(cells, partitions, data)
    first = [own[0].plan for own in plans]
    trials = tuple(Trial(*facts) for facts in zip(cells, tasks, first, partitions, sizes, keys, candidates, strict=True))
    check_memory(grid, trials, views, nodes)
    return Prepared(grid, resolved.refused, views, trials, tuple(nodes), share, parallel)


def task_of(cell: Cell, data: Embeddings) -> Task:
    """The public facts that a cell's algorithm gets."""
    return Task(data.dim, data.classes, cell.clients, cell.unit, cell.trust, cell.evaluation.real_c, data.public)


def loaded(grid: Grid, tell: Tell = _silent) -> dict[str, Embeddings]:
    """The grid's data sets by key. What labels and columns can refuse is refused before any image is decoded.

    Raises:
        UserError: a set cannot be had or does not do, or no partition of it is possible.
    """
    sets, data = {}, {}
    for spec in grid.sets:
        tell(f"reading {spec.display}")
        with at(grid.place_of(spec)):
            sets[spec.key] = opened(spec)
    if not any(spec.skip_bad for spec in grid.sets):  # else partitions depend on which images are bad
        check_partitions(grid, without_unseen(grid, {key: held.labelled() for key, held in sets.items()}))
    for spec in grid.sets:
        with at(grid.place_of(spec)):
            data[spec.key] = sets.pop(spec.key).embedded()  # rows as they were read need no memory beside those of unit norm
    return data if grid.public is None else with_public(grid, data, tell)


def with_public(grid: Grid, data: Mapping[str, Embeddings], tell: Tell) -> dict[str, Embeddings]:
    """The data sets by key, each with the grid's public rows beside it; arguments as in :func:`loaded`.

    Raises:
        UserError: public rows cannot be had, are of another dimension, or are private rows too.
    """
    held: dict[str, PublicRows] = {}
    both = {}
    for spec in grid.sets:
        public, rows = grid.public_beside(spec), data[spec.key]
        assert public is not None
        with at(grid.place("public")):
            if public.key not in held:
                tell(f"reading {public.display}")
                held[public.key] = load_public(public)
            beside = held[public.key]
            if beside.x.shape[1] != rows.dim:
                what = f"'{public.display}' has rows of {beside.x.shape[1]} dimensions, data set '{spec.display}' of {rows.dim}"
                raise UserError("", what, "give public rows that the same encoder embeds")
            for part, private in (("training", rows.x_train), ("test", rows.x_test)):
                beside.check_apart(private, part, spec.display)
        both[spec.key] = replace(rows, public=beside)
    return both


def partition_of(cell: Cell, data: Embeddings) -> Partition:
    """A cell's partition of its data set.

    Raises:
        UserError: the data do not allow it.
    """
    return make_partition(data.y_train, spec=cell.partition, alpha=cell.alpha, clients=cell.clients, seed=cell.seed, columns=data.columns)


def partitioned(grid: Grid, cells: Sequence[Cell], data: Mapping[str, Embeddings], tell: Tell = _silent) -> tuple[Partition, ...]:
    """Every cell's partition; cells of one data set, alpha, number of clients and seed share it.

    Raises:
        UserError: the data do not allow one.
    """
    made: dict[tuple[str, float, int, int], Partition] = {}
    total = len({_shares(cell) for cell in cells})
    for cell in cells:
        key, rows = _shares(cell), data[cell.data_key]
        if key not in made:
            tell(f"dividing the data: partition {len(made) + 1} of {total}")
            with at(grid_place(grid, cell.dataset, grid.clients.index(cell.clients), cell.evaluation.unseen)):
                made[key] = partition_of(cell, rows)
    return tuple(made[_shares(cell)] for cell in cells)


def _shares(cell: Cell) -> tuple[str, float, int, int]:
    """What decides a cell's partition."""
    return cell.data_key, cell.alpha, cell.clients, cell.seed


def seen(
    cells: Sequence[Cell], partitions: Sequence[Partition], data: Mapping[str, Embeddings]
) -> tuple[Mapping[str, Embeddings], tuple[str, ...]]:
    """The data by key, with what each partition makes of them where clients see values of their own; and the key that each cell reads."""
    views, keys = dict(data), []
    for cell, partition in zip(cells, partitions, strict=True):
        key = cell.data_key
        if cell.partition.shifts:
            key = f"{key} {partition.fingerprint}"
            if key not in views:
                views[key] = as_seen(data[cell.data_key], partition, cell.partition, cell.seed)
        keys.append(key)
    return views, tuple(keys)


def planned(grid: Grid, cells: Sequence[Cell], tasks: Sequence[Task], tell: Tell = _silent) -> tuple[tuple[Candidate, ...], ...]:
    """Every cell's parameters with their plan, several of a tuned cell; cells that differ in data, alpha or seed alone share them.

    Raises:
        UserError: the first cell without a plan; with the place in the grid.
    """
    solved: dict[tuple[str, str, str, Task, float | None, str | None], tuple[Candidate, ...]] = {}
    keys = [
        (cell.algorithm, dump(cell.params), dump(cell.tuning and cell.tuning.model_dump()), task, cell.epsilon, cell.public_hash)
        for cell, task in zip(cells, tasks, strict=True)
    ]
    total = len(set(keys))
    for key, cell, task in zip(keys, cells, tasks, strict=True):
        if key not in solved:
            tell(f"planning the budgets: {len(solved) + 1} of {total}")
            solved[key] = calibrated(grid, cell, task)
    return tuple(solved[key] for key in keys)


def calibrated(grid: Grid, cell: Cell, task: Task) -> tuple[Candidate, ...]:
    """The cell's parameters with their plan and the claim that it may make; of a tuned cell every point of its space.

    Raises:
        UserError: there is none; with the place in the grid.
    """

    def place(where: str) -> str:
        if where == "epsilon":
            key = grid.place("epsilon", grid.epsilon.index(cell.epsilon))
        else:
            key = grid.place(where) if where in Grid.model_fields else f"{grid.place('algorithms')}: {where}"
        return f"{key} with {cell.label}"

    with at(place):
        return plans_of(lookup(cell.algorithm), cell.params, cell.tuning, task, cell.epsilon, cell.delta)


def laid_out(grid: Grid, cells: Sequence[Cell], capacity: int, parallel: int) -> tuple[tuple[int, ...], ...]:
    """Clients per actor of every cell, in client order.

    Raises:
        UserError: a cell needs more actors at once than fit.
    """
    sizes = [packing(cell.clients, clients_per_actor(grid.resources, cell.clients, len(cells), parallel)) for cell in cells]
    for cell, clients in zip(cells, sizes, strict=True):
        if len(clients) > capacity:
            raise UserError(
                grid.place("resources", "clients_per_actor"),
                f"{cell.clients} clients need {len(clients)} actors at once and the cluster has room for {capacity}",
                "put more clients on an actor, or give actors a smaller share",
            )
    return tuple(sizes)


def actors_that_fit(grid: Grid, nodes: Sequence[Node]) -> int:
    """How many actors of the grid's shares fit on the cluster.

    Raises:
        UserError: not even one.
    """
    share, measured = share_of(grid.resources), grid.resources.gpus_per_actor == "auto"
    fitting = sum(share.fit(node) for node in nodes)
    if fitting < 1:
        has = ", ".join(sorted({node.words for node in nodes}))
        needs = "a share of a GPU" if measured else counted(share.gpus, "GPU")
        without = share.gpus and not any(node.gpus for node in nodes)
        fix = "give gpus_per_actor: 0 and device: auto" if without else "give actors a smaller share"
        raise UserError(grid.place("resources"), f"an actor needs {counted(share.cpus, 'CPU')} and {needs}; no node has them ({has})", fix)
    # shares that are still to be measured are small enough, or the cell fails and says that it does not fit
    return sum(Share(share.cpus, even_share(MOST_ACTORS_PER_GPU)).fit(node) for node in nodes) if measured else fitting


def share_of(resources: Resources) -> Share:
    """What an actor takes; a whole GPU where its share is still to be measured."""
    gpus = resources.gpus_per_actor
    return Share(resources.cpus_per_actor, 1.0 if gpus == "auto" else float(gpus), resources.device)


def check_memory(grid: Grid, trials: Sequence[Trial], data: Mapping[str, Embeddings], nodes: Sequence[Node]) -> None:
    """Refuse a cell that cannot fit in an actor's share of any GPU.

    Raises:
        UserError: with the arithmetic.
    """
    share = share_of(grid.resources)
    largest = max((node.gpu_memory for node in nodes if node.gpus), default=0.0)
    if not share.gpus or not largest or share.device == "cpu":
        return
    for trial in trials:
        rows, parameters = least(trial, data[trial.data_key])
        room = min(share.gpus, 1.0) * largest
        if rows + parameters > room:
            clients = f"{max(trial.sizes)} clients" if max(trial.sizes) > 1 else "a client"
            raise UserError(
                grid.place("resources"),
                f"an actor of {trial.cell.label} with {clients} needs at least {rows / GIB:.3g} GiB for rows and "
                f"{parameters / GIB:.3g} GiB for parameters, {(rows + parameters) / GIB:.3g} GiB; "
                f"{min(share.gpus, 1.0):g} of a GPU of {largest / GIB:.3g} GiB is {room / GIB:.3g} GiB",
                "put fewer clients on an actor, give it a larger share, or set device: cpu",
            )


def clients_per_actor(resources: Resources, clients: int, cells: int, parallel: int) -> int:
    """As the grid says; ``auto``: all where cells keep every slot busy, else spread over the slots that would idle."""
    asked = resources.clients_per_actor
    if isinstance(asked, int):
        return min(asked, clients)
    return clients if asked == "all" or cells >= parallel else -(-clients // (parallel // cells))
