"""Decides what a cell still needs, from the result lines that its run folder has.

The bench, its list of jobs and the dry run all use these functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedsim.evidence.audit.audit import ClaimAudit
    from fedsim.grid.models import Cell
    from fedsim.results.join import Entry, RunResults
    from fedsim.results.records import AuditRecord, TrainingRecord


def work_left(cell: Cell | Entry, lines: RunResults, *, retry_failed: bool = False) -> bool:
    """Return whether a cell still has to be trained or evaluated.

    Args:
        cell: the cell.
        lines: the lines of its run folder.
        retry_failed: whether a cell runs again if its training or evaluation failed.
    """
    training = lines.trainings.get(cell.training_id)
    if training is None:
        return True
    if training["error"] is not None:
        return retry_failed
    evaluation = lines.evaluations.get(cell.cell_id)
    if evaluation is None:
        return True
    return evaluation["error"] is not None and retry_failed


def kept_training(cell: Cell, lines: RunResults) -> TrainingRecord | None:
    """Return the training line of a cell that can be evaluated without another training.

    It is None if the training is missing or failed, or if the tensors that it left were not kept.
    """
    training = lines.trainings.get(cell.training_id)
    if training is None or training["error"] is not None or not lines.folder.has_state(training):
        return None
    return training


def ended_cells(
    cells: Iterable[Entry],
    lines: RunResults,
    *,
    retry_failed: bool = False,
) -> list[Entry]:
    """Return the cells for which nothing is left to do, in the given order."""
    return [cell for cell in cells if not work_left(cell, lines, retry_failed=retry_failed)]


def is_trained(training_id: str, lines: RunResults) -> bool:
    """Return whether a training has ended without an error."""
    training = lines.trainings.get(training_id)
    return training is not None and training["error"] is None


def missing_audits(audits: Sequence[ClaimAudit], ended: Sequence[AuditRecord]) -> list[ClaimAudit]:
    """Return the audits whose largest line has fewer pairs of trainings than they ask for.

    Args:
        audits: the audits of the grid's claims.
        ended: the lines of all finished audits.
    """
    missing = []
    for audit in audits:
        pairs = [line["pairs"] for line in ended if line["audit"] == audit.run.key]
        if max(pairs, default=0) < audit.run.count:
            missing.append(audit)
    return missing
