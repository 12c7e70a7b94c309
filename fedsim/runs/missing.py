"""Decides what a cell still needs, from the result lines that its run folder has.

The bench, the dry run, the clean-up of checkpoints, the manifest and the workers all ask here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedsim.plugins.code_hash import source_hash
from fedsim.plugins.registry import lookup

if TYPE_CHECKING:
    from fedsim.evidence.audit.audit import ClaimAudit
    from fedsim.grid.models import Cell
    from fedsim.results.join import Entry, RunResults
    from fedsim.results.records import AuditRecord, TrainingRecord


@dataclass(frozen=True)
class Missing:
    """The state of a cell that is to be trained and evaluated.

    It has no training line, or what its training left was not kept.
    """


@dataclass(frozen=True)
class Trained:
    """The state of a cell that only is to be evaluated; ``training`` is its training line."""

    training: TrainingRecord


@dataclass(frozen=True)
class Evaluated:
    """The state of a cell that is trained and evaluated."""


@dataclass(frozen=True)
class Failed:
    """The state of a cell whose training or evaluation failed; ``before`` is the state before."""

    before: Missing | Trained


CellState = Missing | Trained | Evaluated | Failed


def state_of(cell: Cell | Entry, lines: RunResults) -> CellState:
    """Return how far a cell has come, according to the lines of its run folder."""
    training = lines.trainings.get(cell.training_id)
    if training is None:
        return Missing()
    if training["error"] is not None:
        return Failed(Missing())
    evaluation = lines.evaluations.get(cell.cell_id)
    if evaluation is not None and evaluation["error"] is None:
        return Evaluated()
    state: Missing | Trained = Missing()
    if training["state"] is not None and lines.folder.state(cell.training_id).exists():
        state = Trained(training)
    if evaluation is not None:
        return Failed(state)
    return state


def work_left(state: CellState, *, retry_failed: bool = False) -> Missing | Trained | None:
    """Return the state from which a cell continues; None if nothing is to be done for it."""
    if isinstance(state, Failed) and retry_failed:
        return state.before
    if isinstance(state, Missing | Trained):
        return state
    return None


def ended_cells(
    cells: Iterable[Entry],
    lines: RunResults,
    *,
    retry_failed: bool = False,
) -> list[Entry]:
    """Return the cells for which nothing is to be done any more, in the given order."""
    ended = []
    for cell in cells:
        if work_left(state_of(cell, lines), retry_failed=retry_failed) is None:
            ended.append(cell)
    return ended


def is_trained(training_id: str, lines: RunResults) -> bool:
    """Return whether a training has ended without an error."""
    training = lines.trainings.get(training_id)
    return training is not None and training["error"] is None


def runs_code_of(cell: Cell) -> bool:
    """Return whether this process has imported the code that a cell's id stands for."""
    return source_hash(lookup(cell.algorithm)) == cell.source


def missing_audits(audits: Sequence[ClaimAudit], ended: Sequence[AuditRecord]) -> list[ClaimAudit]:
    """Return the audits that lack pairs of trainings.

    Args:
        audits: the audits of the grid's claims.
        ended: the lines of the audits that have ended.
    """
    missing = []
    for audit in audits:
        pairs = [line["pairs"] for line in ended if line["audit"] == audit.run.key]
        if max(pairs, default=0) < audit.run.count:
            missing.append(audit)
    return missing
