"""Decides what a cell still needs, from the result lines that its run folder has.

The bench, the dry run, the clean-up of checkpoints, the manifest and the workers all ask here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from fedsim.plugins.code_hash import source_hash
from fedsim.plugins.registry import lookup

if TYPE_CHECKING:
    from fedsim.evidence.audit.audit import ClaimAudit
    from fedsim.grid.models import Cell
    from fedsim.results.join import RunResults

Line = Mapping[str, Any]
"""One result line of a run folder."""


class CellIds(Protocol):
    """Anything with the two ids of a cell: a cell of the grid, or an entry of a manifest."""

    @property
    def cell_id(self) -> str:
        """The key of the cell's evaluation line."""
        ...

    @property
    def training_id(self) -> str:
        """The key of the cell's training line."""
        ...


_Ids = TypeVar("_Ids", bound=CellIds)


@dataclass(frozen=True)
class Missing:
    """The state of a cell that has no training line."""


@dataclass(frozen=True)
class Trained:
    """The state of a cell that is trained and not yet evaluated."""

    training: Line


@dataclass(frozen=True)
class Evaluated:
    """The state of a cell that is trained and evaluated."""


@dataclass(frozen=True)
class Failed:
    """The state of a cell whose training or evaluation failed.

    Attributes:
        trained: the line of its training if that succeeded and the evaluation failed, else None.
    """

    trained: Line | None


CellState = Missing | Trained | Evaluated | Failed


@dataclass(frozen=True)
class Train:
    """The next step of a cell that is to be trained, then evaluated."""


@dataclass(frozen=True)
class Evaluate:
    """The next step of a cell that is only to be evaluated; ``training`` is its training line."""

    training: Line


def state_of(cell: CellIds, lines: RunResults) -> CellState:
    """Return how far a cell has come, according to the lines of its run folder."""
    training = lines.trainings.get(cell.training_id)
    if training is None:
        return Missing()
    if training["error"] is not None:
        return Failed(trained=None)
    evaluation = lines.judgements.get(cell.cell_id)
    if evaluation is None:
        return Trained(training)
    if evaluation["error"] is not None:
        return Failed(trained=training)
    return Evaluated()


def next_step(state: CellState, *, retry_failed: bool = False) -> Train | Evaluate | None:
    """Return what is to be done for a cell in this state; None if nothing is."""
    if isinstance(state, Missing):
        return Train()
    if isinstance(state, Trained):
        return Evaluate(state.training)
    if isinstance(state, Failed) and retry_failed:
        return Train() if state.trained is None else Evaluate(state.trained)
    return None


def ended_cells(
    cells: Iterable[_Ids], lines: RunResults, *, retry_failed: bool = False
) -> list[_Ids]:
    """Return the cells for which nothing is to be done any more, in order."""
    ended = []
    for cell in cells:
        state = state_of(cell, lines)
        if next_step(state, retry_failed=retry_failed) is None:
            ended.append(cell)
    return ended


def is_trained(training_id: str, lines: RunResults) -> bool:
    """Return whether a training has ended without an error."""
    training = lines.trainings.get(training_id)
    return training is not None and training["error"] is None


def runs_code_of(cell: Cell) -> bool:
    """Return whether this process has imported the code that a cell's id stands for."""
    return source_hash(lookup(cell.algorithm)) == cell.source


def is_of_older_code(recorded_cell: Line, sources: Mapping[str, str | None]) -> bool:
    """Return whether a recorded cell was trained with code that its algorithm no longer has.

    Args:
        recorded_cell: the ``cell`` of a training line.
        sources: the hash of today's code by algorithm; other algorithms count as unchanged.
    """
    algorithm = recorded_cell["algorithm"]
    return algorithm in sources and recorded_cell["source"] != sources[algorithm]


def older_trainings(cells: Iterable[Cell], lines: RunResults) -> list[Line]:
    """Return the recorded trainings of older code of the algorithms that have cells to train."""
    sources: dict[str, str | None] = {}
    for cell in cells:
        if isinstance(state_of(cell, lines), Missing):
            sources[cell.algorithm] = cell.source
    return [line for line in lines.trainings.values() if is_of_older_code(line["cell"], sources)]


def missing_audits(audits: Sequence[ClaimAudit], ended: Sequence[Line]) -> list[ClaimAudit]:
    """Return the audits that lack pairs of trainings.

    Args:
        audits: the audits of the grid's claims.
        ended: the lines of the audits that have ended.
    """
    most_pairs: dict[str, int] = {}
    for line in ended:
        key = line["audit"]
        most_pairs[key] = max(line["pairs"], most_pairs.get(key, 0))
    return [audit for audit in audits if most_pairs.get(audit.run.key, 0) < audit.run.count]
