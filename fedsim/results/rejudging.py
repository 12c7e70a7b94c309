"""Finished cells judged anew: from a row and its saved generator to a judgement by the code of today, without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedsim.data.embeddings import Embeddings
from fedsim.errors import UserError
from fedsim.evaluation.judge import Judge, Judgement
from fedsim.grid.cells import without_unseen
from fedsim.grid.models import Cell, Grid, shown
from fedsim.methods.messages import Tensors
from fedsim.planning.node import Node, Share
from fedsim.planning.prepare import Prepared, loaded, partitioned, seen, task_of
from fedsim.plugins.registry import lookup
from fedsim.results.folder import RunFolder
from fedsim.results.generators import read_generator, releasable
from fedsim.results.rows import Row
from fedsim.seeds import Seeds
from fedsim.training.cohort import build_algorithm
from fedsim.training.rounds import restored
from fedsim.training.trial import Trial
from fedsim.words import counted

SHARE = Share(1.0, 0.0, "cpu")
"""What judging a cell takes: probes are the CPU's."""


@dataclass(frozen=True)
class Finished:
    """A finished cell: its row, what a worker needs, and the file of its generator's facts; None where there is none."""

    row: Row
    trial: Trial
    saved: Path | None

    def state(self) -> tuple[Trial, Tensors | None]:
        """The cell with the task and the plan that its generator was saved with, and what the generator is made from.

        Raises:
            UserError: it cannot be read.
        """
        if self.saved is None:
            return self.trial, None
        facts, state = read_generator(self.saved, self.row.generator)
        return replace(self.trial, task=facts.task, plan=facts.plan), state


def saved_generators(grid: Grid, rows: Sequence[Row], folder: RunFolder) -> dict[str, Path]:
    """The files of the saved generators' facts, by the ids of the cells that have one.

    Raises:
        UserError: there is none at all.
    """
    paths = {row.cell_id: folder.generator(releasable(cell_of(row, grid)).cell_id) for row in rows}
    saved = {cell_id: path for cell_id, path in paths.items() if path.exists()}
    if not saved:
        raise UserError(
            str(folder.path),
            f"there are no generators of its {counted(len(rows), 'finished cell')}",
            "run the grid in a new folder with resources: {save_generators: true}, which is the default",
        )
    return saved


def prepare_judging(
    grid: Grid, rows: Sequence[Row], saved: Mapping[str, Path], folder: RunFolder, nodes: Sequence[Node], max_parallel: int | None = None
) -> tuple[Prepared, dict[str, Finished]]:
    """Load the data and make the partitions again.

    Args:
        grid: that the rows are of, as the manifest has it.
        rows: of finished cells.
        saved: from :func:`saved_generators`.
        folder: of the run.
        nodes: what the cluster has.
        max_parallel: at most so many cells at a time.

    Returns:
        What a scheduler needs, and the finished cells by id.

    Raises:
        UserError: data or partitions are not those of the rows.
    """
    cells = [cell_of(row, grid) for row in rows]
    data = without_unseen(grid, loaded(grid))
    partitions = partitioned(grid, cells, data)
    for row, cell, partition in zip(rows, cells, partitions, strict=True):
        same_data = row.dataset_hash in (None, data[cell.dataset.key].fingerprint)
        if not same_data or row.partition_hash not in (None, partition.fingerprint):
            what = f"the {'partition' if same_data else 'content'} of data set '{cell.dataset.display}' is not that of its rows"
            raise UserError(str(folder.path), what, "give back what the grid ran on, or run it again")
    views, keys = seen(cells, partitions, data)
    trials = tuple(
        Trial(cell, task_of(cell, data[cell.data_key]), None, partition, (cell.clients,), key)
        for cell, partition, key in zip(cells, partitions, keys, strict=True)
    )
    parallel = max(1, sum(SHARE.fit(node) for node in nodes))
    resources = grid.resources.model_copy(update={"gpus_per_actor": 0.0, "device": "cpu"})
    grid = grid.model_copy(update={"resources": resources})
    prepared = Prepared(grid, {}, views, trials, tuple(nodes), SHARE, min(parallel, max_parallel or parallel))
    return prepared, {row.cell_id: Finished(row, trial, saved.get(row.cell_id)) for row, trial in zip(rows, trials, strict=True)}


def cell_of(row: Row, grid: Grid) -> Cell:
    """The cell that a row is of.

    Raises:
        UserError: the grid has no such data set.
    """
    evaluation = grid.evaluation.model_copy(update={"unseen": row.unseen})
    named = {shown(spec, row.unseen): spec for spec in grid.dataset}
    if row.dataset not in named:
        raise UserError("manifest.json", f"its grid has no data set '{row.dataset}', a row has", "run the grid again")
    return Cell(
        cell_id=row.cell_id,
        source=row.source or "",
        label=row.label,
        algorithm=row.algorithm,
        params=row.params,
        dataset=named[row.dataset],
        dataset_hash=row.dataset_hash,
        partition=grid.division,
        alpha=grid.alpha[0] if row.alpha is None else row.alpha,
        clients=row.clients or grid.clients[0],
        epsilon=row.epsilon_target,
        delta=grid.delta,
        unit=grid.unit_kind,
        unit_column=grid.unit_column,
        trust=grid.trust,
        noise=row.noise or "seeded",
        seed=row.seed or 0,
        evaluation=evaluation,
    )


def generators_missing(finished: Mapping[str, Finished]) -> int:
    """How many cells of algorithms that generate have no saved generator."""
    return sum(each.saved is None and lookup(each.row.algorithm).generates() for each in finished.values())


def judged_anew(trial: Trial, state: Tensors, data: Embeddings) -> Judgement:
    """What a saved generator is worth.

    Args:
        trial: its cell, with the plan that it was saved with.
        state: what it is made from.
        data: real rows.
    """
    cell = trial.cell
    algorithm = build_algorithm(cell.algorithm, cell.params, trial.task)
    made, shares = restored(algorithm, state, trial.plan, Seeds(cell.seed))
    return Judge(cell, data, trial.partition, made, shares).judgement()
