"""What a user sees while a bench runs: bars in a terminal, a line a minute anywhere else, and
failures in both.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fedsim.results.columns import Row
from fedsim.words import counted, print_line

EVERY = 60.0
"""Seconds between two lines where there is no terminal."""
_DAY = 86_400.0


@dataclass
class OtherJob:
    """A job that runs beside the cells, its line in the terminal, and how far it is in words."""

    name: str
    task: TaskID
    progress: str = ""


class Display:
    """The progress of a bench of ``total`` cells and of ``audits``, of which an earlier run ended
    some; it leaves the terminal as it was.

    Args:
        console: where it is shown.
        total: the number of cells.
        ended: the number of cells that an earlier run ended, by status.
        audits: the number of audits.
        audits_ended: the number of audits that an earlier run ended.
    """

    def __init__(
        self,
        console: Console,
        total: int,
        ended: Mapping[str, int] | None = None,
        *,
        audits: int = 0,
        audits_ended: int = 0,
    ) -> None:
        self.total = total
        self.ended = Counter(ended)
        self._console = console
        self.audits = audits
        self.audits_ended = audits_ended
        words = TextColumn("{task.description}", markup=False)
        columns = (
            words,
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        live = console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)
        self._progress = Progress(
            *columns, console=console, transient=True, disable=not live, speed_estimate_period=_DAY
        )
        self._cells = self._progress.add_task("cells", total=total, completed=self.ended.total())
        self._audits: TaskID | None = None
        if audits:
            self._audits = self._progress.add_task("audits", total=audits, completed=audits_ended)
        self.running: dict[str, TaskID] = {}
        self.others: dict[tuple[str, ...], OtherJob] = {}
        self._started = self._printed = time.monotonic()

    def cell_started(self, cell_id: str, label: str) -> None:
        """A cell runs now; ``label`` is its setting in a few words."""
        self.running[cell_id] = self._progress.add_task(label, total=None)

    def round_done(self, cell_id: str, round: int, rounds: int) -> None:
        """``round`` of ``rounds`` rounds of a running cell are finished (1 after the first)."""
        self._progress.update(self.running[cell_id], completed=round, total=rounds)

    def cell_queued(self, cell_id: str) -> None:
        """A cell lost its slot, and is queued again."""
        self._progress.remove_task(self.running.pop(cell_id))

    def cell_finished(self, row: Row) -> None:
        """A cell ended, well or badly."""
        if row.cell_id in self.running:
            self.cell_queued(row.cell_id)
        self.ended[row.status] += 1
        self._progress.update(self._cells, completed=self.ended.total())
        if row.status != "ok":
            self.note(f"{row.setting}: {row.outcome}")

    def job_started(self, key: tuple[str, ...], name: str) -> None:
        """A job beside the cells runs now: a reference, an audit, a check."""
        self.others[key] = OtherJob(name, self._progress.add_task(name, total=None))

    def job_progress(self, key: tuple[str, ...], pairs: int, of: int) -> None:
        """``pairs`` of so many pairs of trainings of a running audit are finished."""
        job = self.others[key]
        job.progress = f" ({pairs} of {of} pairs)"
        self._progress.update(job.task, completed=pairs, total=of)

    def job_ended(self, key: tuple[str, ...]) -> None:
        """A job beside the cells runs no more."""
        job = self.others.pop(key, None)
        if job is not None:
            self._progress.remove_task(job.task)

    def audit_finished(self) -> None:
        """An audit has its outcome."""
        self.audits_ended += 1
        if self._audits is not None:
            self._progress.update(self._audits, completed=self.audits_ended)

    def tick(self) -> None:
        """Where there is no terminal, print where it stands once a minute."""
        if self._progress.disable and time.monotonic() - self._printed >= EVERY:
            self._printed = time.monotonic()
            left = self._progress.tasks[0].time_remaining
            if left is None:
                estimate = ""
            else:
                estimate = f", about {_duration(left)} left"
            gone = _duration(self._printed - self._started)
            self.note(
                f"{self._finished_words()} finished, {self._running_words()} running, {gone} "
                f"gone{estimate}"
            )

    def _finished_words(self) -> str:
        """How many cells and audits have ended."""
        cells = f"{self.ended.total()} of {counted(self.total, 'cell')}"
        if not self.audits:
            return cells
        return f"{cells} and {self.audits_ended} of {counted(self.audits, 'audit')}"

    def _running_words(self) -> str:
        """The number of running cells, and the names of what runs beside them."""
        if not self.others:
            return str(len(self.running))
        names = Counter(f"{job.name}{job.progress}" for job in self.others.values())
        if self.running:
            words = [counted(len(self.running), "cell")]
        else:
            words = []
        words += [name if count == 1 else f"{count} × {name}" for name, count in names.items()]
        *first, last = words
        if first:
            return f"{', '.join(first)} and {last}"
        return last

    def note(self, text: str) -> None:
        """A line that stays on the screen."""
        print_line(self._console, text)

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
        parts = [f"{self.ended['ok']} of {counted(self.total, 'cell')} done"]
        parts += [
            f"{count} {status}" for status, count in self.ended.items() if count and status != "ok"
        ]
        left = self.total - self.ended.total()
        if left:
            parts += [f"{left} not finished"]
        if self.audits:
            parts.append(f"{self.audits_ended} of {counted(self.audits, 'audit')} done")
        self.note(f"{', '.join(parts)} in {_duration(time.monotonic() - self._started)}")


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
