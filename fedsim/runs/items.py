"""The items that a worker streams to the driver while a job runs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from fedsim.evaluation.evaluate import EvaluationResult
from fedsim.results.records import TrainingPair
from fedsim.training.rounds import RoundRecord

FLUSH_SECONDS = 0.2
"""The seconds for which a worker collects items before it sends them together."""


@dataclass(frozen=True)
class Failure:
    """The reason why a job failed.

    Attributes:
        type: the class name of the exception.
        message: the text of the exception.
        traceback: the whole traceback, as Python prints it.
        goes_on: whether a retry may continue from the checkpoint of the cell.
    """

    type: str
    message: str
    traceback: str
    goes_on: bool = False

    def summary(self) -> str:
        """Return the type and the first line of the message."""
        first_line = self.message.strip().partition("\n")[0]
        return f"{self.type}: {first_line}"


@dataclass(frozen=True)
class Progress:
    """What has happened in a running job since the last item of this class.

    Attributes:
        rounds: the records of the finished rounds.
        output: the text that the job printed.
        checkpoint: the packed checkpoint, if there is a new one.
        pairs: the pairs of trainings that an audit has finished.
    """

    rounds: tuple[RoundRecord, ...] = ()
    output: str = ""
    checkpoint: bytes | None = field(default=None, repr=False)
    pairs: tuple[TrainingPair, ...] = ()


@dataclass(frozen=True)
class Evaluated:
    """The evaluation of a cell, and the seconds of wall time that it took."""

    evaluation: EvaluationResult
    seconds: float


Item = object
"""An item of a job's stream: :class:`Progress`, a result, or a :class:`Failure`, which ends it.

The classes of results depend on the job.
"""


def in_groups(items: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    """Yield the items in groups.

    A group ends with the first item that comes more than :data:`FLUSH_SECONDS` after the last
    group was yielded. If ``items`` raises an exception, the items before it are yielded first.
    """
    pending: list[Any] = []
    last_sent = time.monotonic()
    try:
        for item in items:
            pending.append(item)
            if time.monotonic() - last_sent > FLUSH_SECONDS:
                yield tuple(pending)
                pending = []
                last_sent = time.monotonic()
    # This is no `finally`, because a closed generator must not yield.
    except (Exception, SystemExit):
        if pending:
            yield tuple(pending)
        raise
    if pending:
        yield tuple(pending)
