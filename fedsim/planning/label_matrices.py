"""The label-by-client matrices of a grid: what ``fedsim partition`` shows, and what a run folder keeps for its report."""

from __future__ import annotations

from itertools import product

from fedsim.data.sources.load import training_rows
from fedsim.errors import at
from fedsim.grid.cells import evaluations, grid_place
from fedsim.grid.models import Grid, shown
from fedsim.partition import make_partition
from fedsim.partition.matrix import MOST_PANELS, LabelMatrix
from fedsim.planning.prepare import Prepared


def label_matrices(grid: Grid) -> list[LabelMatrix]:
    """The label-by-client matrix of every partition of the grid, in the grid's order; reads labels and columns only.

    Raises:
        UserError: a data set cannot be read or does not allow a partition; the message says where in the grid.
    """
    alphas = grid.alpha if grid.partition.uses_alpha else (None,)
    matrices = []
    for i, spec in enumerate(grid.dataset):
        with at(grid.place("dataset", i)):
            whole = training_rows(spec, grid.encoder)
        unseen = [evaluation.unseen for evaluation in evaluations(grid, spec, whole.columns)]
        for alpha, (j, clients), seed, left_out in product(alphas, enumerate(grid.clients), grid.seeds, unseen):
            rows = whole if left_out is None else whole.without(str(grid.partition.given.site_column), left_out)
            with at(grid_place(grid, i, j, left_out)):
                partition = make_partition(
                    rows.y,
                    spec=grid.division,
                    alpha=grid.alpha[0] if alpha is None else alpha,
                    clients=clients,
                    seed=seed,
                    columns=rows.columns,
                )
            name = shown(spec, left_out)
            counts, scheme = partition.label_counts, partition.scheme
            matrices.append(LabelMatrix(name, scheme, alpha, clients, seed, partition.fingerprint, counts, rows.class_names))
    return matrices


def drawn_matrices(prepared: Prepared) -> list[LabelMatrix]:
    """The matrices that a report draws: those of the first seed, at most 12."""
    first = prepared.grid.seeds[0]
    matrices: dict[tuple[str, str], LabelMatrix] = {}
    for trial in prepared.trials:
        cell, partition = trial.cell, trial.partition
        if cell.seed != first:
            continue
        data = prepared.data[trial.data_key]
        names = data.class_names or tuple(map(str, range(data.classes)))
        place = (shown(cell.dataset, cell.evaluation.unseen), partition.scheme, cell.concentration, cell.clients, cell.seed)
        key = (cell.dataset.key, partition.fingerprint)
        matrices[key] = LabelMatrix(*place, partition.fingerprint, partition.label_counts, names)
    return list(matrices.values())[:MOST_PANELS]
