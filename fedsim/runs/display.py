"""Shows the progress of a running bench: bars in a terminal, one line per minute elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from importlib.util import find_spec
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fedsim.results.columns import Row
from fedsim.words import counted, print_line

EVERY = 60.0
"""The seconds between two lines of progress if there is no terminal."""
_DAY = 86_400.0
"""The seconds of a day, over which the speed of the cells is averaged."""


JobKey = tuple[str, ...]
"""The key of a job (:attr:`fedsim.runs.jobs.Job.key`); its first part is the kind of job."""


class Display:
    """Shows the progress of a bench, and removes its bars from the terminal at the end.

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
        self._audits = self._progress.add_task(
            "audits", total=audits, completed=audits_ended, visible=audits > 0
        )
        self.running: dict[JobKey, Task] = {}
        self._started = self._last_printed = time.monotonic()

    def job_started(self, key: JobKey, name: str) -> None:
        """Show a job as running, with its name."""
        self._progress.add_task(name, total=None)
        self.running[key] = self._progress.tasks[-1]

    def job_progress(self, key: JobKey, done: int, total: int) -> None:
        """Show how many rounds of a running cell, or pairs of a running audit, are finished."""
        self._progress.update(self.running[key].id, completed=done, total=total)

    def job_ended(self, key: JobKey) -> None:
        """Remove a job that has ended, or waits in the queue again."""
        self._progress.remove_task(self.running.pop(key).id)

    def cell_finished(self, row: Row) -> None:
        """Count a cell that has ended, and print why it is not ok."""
        self.ended[row.status] += 1
        self._progress.update(self._cells, completed=self.ended.total())
        if row.status != "ok":
            self.note(f"{row.setting}: {row.outcome}")

    def audit_finished(self) -> None:
        """Count an audit that has ended."""
        self.audits_ended += 1
        self._progress.update(self._audits, completed=self.audits_ended)

    def tick(self) -> None:
        """Print the progress once a minute where there is no terminal."""
        if not self._progress.disable or time.monotonic() - self._last_printed < EVERY:
            return
        self._last_printed = time.monotonic()
        elapsed = duration(self._last_printed - self._started)
        words = [self._finished_words(), self._running_words(), f"{elapsed} elapsed"]
        # The first task counts all cells.
        left = self._progress.tasks[0].time_remaining
        if left is not None:
            words.append(f"about {duration(left)} left")
        self.note(", ".join(words))

    def _finished_words(self) -> str:
        """Return how many cells and audits have ended, in words."""
        cells = f"{self.ended.total()} of {counted(self.total, 'cell')}"
        if not self.audits:
            return f"{cells} finished"
        return f"{cells} and {self.audits_ended} of {counted(self.audits, 'audit')} finished"

    def _running_words(self) -> str:
        """Return the number of running cells and the names of the other running jobs, in words."""
        cells = 0
        names = Counter[str]()
        for key, task in self.running.items():
            if key[0] == "cell":
                cells += 1
            elif task.total is None:
                names[task.description] += 1
            else:
                names[f"{task.description} ({task.completed:g} of {task.total:g} pairs)"] += 1
        words = []
        if cells:
            words.append(counted(cells, "cell"))
        for name, count in names.items():
            words.append(name if count == 1 else f"{count} × {name}")
        return f"{' and '.join(words) or 'nothing'} running"

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
        self.note(f"{', '.join(words)} in {duration(time.monotonic() - self._started)}")


def duration(seconds: float) -> str:
    """Return a time as hours, minutes and seconds, such as ``0:01:30``."""
    return str(timedelta(seconds=round(seconds)))
