"""Decides what a cell still needs, from the result lines that its run folder has.

The bench, its list of jobs, the dry run and the workers all use these functions.
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
    """The state of a cell that has to be trained and evaluated.

    The cell has no training line, or the state that its training left was not kept.
    """


@dataclass(frozen=True)
class Trained:
    """The state of a cell that only has to be evaluated.

    Attributes:
        training: its training line.
    """

    training: TrainingRecord


@dataclass(frozen=True)
class Evaluated:
    """The state of a cell that is trained and evaluated."""


@dataclass(frozen=True)
class Failed:
    """The state of a cell whose training or evaluation failed.

    Attributes:
        before: the state from which the cell continues if it is tried again.
    """

    before: Missing | Trained


CellState = Missing | Trained | Evaluated | Failed


def state_of(cell: Cell | Entry, lines: RunResults) -> CellState:
    """Return the state of a cell, according to the result lines of its run folder.

    A training that failed leaves no state, so the cell starts anew if it is tried again.
    """
    training = lines.trainings.get(cell.training_id)
    if training is None:
        return Missing()
    if training["error"] is not None:
        return Failed(Missing())
    evaluation = lines.evaluations.get(cell.cell_id)
    if evaluation is not None and evaluation["error"] is None:
        return Evaluated()
    state: Missing | Trained = Missing()
    if lines.folder.has_state(training):
        state = Trained(training)
    if evaluation is not None:
        return Failed(state)
    return state


def work_left(state: CellState, *, retry_failed: bool = False) -> Missing | Trained | None:
    """Return the state from which a cell continues; None if nothing is left to do.

    Args:
        state: the state of the cell.
        retry_failed: whether a failed cell runs again.
    """
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
    """Return the cells for which nothing is left to do, in the given order."""
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
    """Return whether the code of a cell's algorithm in this process has the hash in the cell."""
    return source_hash(lookup(cell.algorithm)) == cell.source


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
