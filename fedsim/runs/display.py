"""The display of a running bench: bars in a terminal, one line a minute anywhere else."""

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
"""The seconds between two lines where there is no terminal."""
_DAY = 86_400.0
"""The seconds of a day, over which the speed of the cells is averaged."""


@dataclass
class OtherJob:
    """A running job beside the cells.

    Attributes:
        name: the name of the job.
        task: its line in the terminal.
        progress: how far it is, in words.
    """

    name: str
    task: TaskID
    progress: str = ""


class Display:
    """Shows the progress of a bench; it leaves the terminal as it was.

    Args:
        console: where the progress is shown.
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
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        in_notebook = console.is_jupyter and find_spec("ipywidgets") is not None
        self._progress = Progress(
            *columns,
            console=console,
            transient=True,
            disable=not (console.is_terminal or in_notebook),
            speed_estimate_period=_DAY,
        )
        self._cells = self._progress.add_task("cells", total=total, completed=self.ended.total())
        self._audits: TaskID | None = None
        if audits:
            self._audits = self._progress.add_task("audits", total=audits, completed=audits_ended)
        self.running: dict[str, TaskID] = {}
        self.others: dict[tuple[str, ...], OtherJob] = {}
        self._started = self._printed = time.monotonic()

    def cell_started(self, cell_id: str, label: str) -> None:
        """Show a cell as running; ``label`` is its setting in a few words."""
        self.running[cell_id] = self._progress.add_task(label, total=None)

    def round_done(self, cell_id: str, round: int, rounds: int) -> None:
        """Show that ``round`` of ``rounds`` rounds of a cell are finished (1 after the first)."""
        self._progress.update(self.running[cell_id], completed=round, total=rounds)

    def cell_queued(self, cell_id: str) -> None:
        """Remove a cell that lost its slot; it waits in the queue again."""
        self._progress.remove_task(self.running.pop(cell_id))

    def cell_finished(self, row: Row) -> None:
        """Count a cell that has ended, and print why it is not ok."""
        if row.cell_id in self.running:
            self.cell_queued(row.cell_id)
        self.ended[row.status] += 1
        self._progress.update(self._cells, completed=self.ended.total())
        if row.status != "ok":
            self.note(f"{row.setting}: {row.outcome}")

    def job_started(self, key: tuple[str, ...], name: str) -> None:
        """Show a job beside the cells as running: a reference, an audit or a check."""
        self.others[key] = OtherJob(name, self._progress.add_task(name, total=None))

    def job_progress(self, key: tuple[str, ...], pairs: int, of: int) -> None:
        """Show that ``pairs`` pairs of trainings of a running audit are finished, out of ``of``."""
        job = self.others[key]
        job.progress = f" ({pairs} of {of} pairs)"
        self._progress.update(job.task, completed=pairs, total=of)

    def job_ended(self, key: tuple[str, ...]) -> None:
        """Remove a job beside the cells; cells are ignored."""
        job = self.others.pop(key, None)
        if job is not None:
            self._progress.remove_task(job.task)

    def audit_finished(self) -> None:
        """Count an audit that has ended."""
        self.audits_ended += 1
        if self._audits is not None:
            self._progress.update(self._audits, completed=self.audits_ended)

    def tick(self) -> None:
        """Print the progress once a minute where there is no terminal."""
        if not self._progress.disable or time.monotonic() - self._printed < EVERY:
            return
        self._printed = time.monotonic()
        left = self._progress.tasks[0].time_remaining
        if left is None:
            estimate = ""
        else:
            estimate = f", about {_duration(left)} left"
        gone = _duration(self._printed - self._started)
        finished = self._finished_words()
        self.note(f"{finished} finished, {self._running_words()} running, {gone} gone{estimate}")

    def _finished_words(self) -> str:
        """Return how many cells and audits have ended, in words."""
        cells = f"{self.ended.total()} of {counted(self.total, 'cell')}"
        if not self.audits:
            return cells
        return f"{cells} and {self.audits_ended} of {counted(self.audits, 'audit')}"

    def _running_words(self) -> str:
        """Return the number of running cells, and the names of the jobs beside them."""
        if not self.others:
            return str(len(self.running))
        words = []
        if self.running:
            words.append(counted(len(self.running), "cell"))
        names = Counter(f"{job.name}{job.progress}" for job in self.others.values())
        for name, count in names.items():
            words.append(name if count == 1 else f"{count} × {name}")
        *first, last = words
        if first:
            return f"{', '.join(first)} and {last}"
        return last

    def note(self, text: str) -> None:
        """Print a line that stays on the screen."""
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
        words = [f"{self.ended['ok']} of {counted(self.total, 'cell')} done"]
        for status, count in self.ended.items():
            if count and status != "ok":
                words.append(f"{count} {status}")
        left = self.total - self.ended.total()
        if left:
            words.append(f"{left} not finished")
        if self.audits:
            words.append(f"{self.audits_ended} of {counted(self.audits, 'audit')} done")
        self.note(f"{', '.join(words)} in {_duration(time.monotonic() - self._started)}")


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
