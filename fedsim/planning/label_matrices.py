"""The label-by-client matrices of a grid: what ``fedsim partition`` shows, and what a run folder keeps for its report."""

from __future__ import annotations

from itertools import product

from fedsim.data.embeddings import Embeddings
from fedsim.data.sources.load import labelled
from fedsim.errors import at
from fedsim.grid.cells import evaluations, grid_place, without_unseen
from fedsim.grid.models import Grid, data_key, shown
from fedsim.partition import Partition, PartitionSpec, make_partition, site_names
from fedsim.partition.matrix import MOST_PANELS, LabelMatrix
from fedsim.planning.prepare import Prepared


def label_matrices(grid: Grid) -> list[LabelMatrix]:
    """The label-by-client matrix of every partition of the grid, in the grid's order; reads labels and columns only.

    Raises:
        UserError: a data set cannot be read or does not allow a partition; the message says where in the grid.
    """
    alphas = grid.alpha if grid.partition.uses_alpha else (None,)
    data = {}
    for spec in grid.sets:
        with at(grid.place_of(spec)):
            data[spec.key] = labelled(spec)
    data = without_unseen(grid, data)
    matrices = []
    for spec in grid.sets:
        views = evaluations(grid, spec, data[spec.key].columns)
        for alpha, (j, clients), seed, evaluation in product(alphas, enumerate(grid.clients), grid.seeds, views):
            rows = data[data_key(spec, evaluation)]
            with at(grid_place(grid, spec, j, evaluation.unseen)):
                partition = make_partition(
                    rows.y_train,
                    spec=grid.division,
                    alpha=grid.alpha[0] if alpha is None else alpha,
                    clients=clients,
                    seed=seed,
                    columns=rows.columns,
                )
            place = (shown(spec, evaluation.unseen), partition.scheme, alpha, clients, seed)
            matrices.append(_matrix(place, partition, rows, grid.division))
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
        place = (shown(cell.dataset, cell.evaluation.unseen), partition.scheme, cell.concentration, cell.clients, cell.seed)
        key = (cell.dataset.key, partition.fingerprint)
        matrices[key] = _matrix(place, partition, data, prepared.grid.division)
    return list(matrices.values())[:MOST_PANELS]


def _matrix(place: tuple[str, str, float | None, int, int], partition: Partition, data: Embeddings, spec: PartitionSpec) -> LabelMatrix:
    return LabelMatrix(*place, partition.fingerprint, partition.label_counts, data.names, sites=site_names(data, partition, spec))
