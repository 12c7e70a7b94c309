"""The label-by-client matrices of a grid that a run folder keeps for its report."""

from __future__ import annotations

from fedsim.data.embeddings import Embeddings
from fedsim.grid.models import shown
from fedsim.partition import Partition, PartitionSpec, site_names
from fedsim.partition.matrix import MOST_PANELS, LabelMatrix
from fedsim.planning.prepare import Prepared


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
