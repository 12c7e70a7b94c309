"""What a user sees while a bench runs: a live view in a terminal, one line a finished cell anywhere else."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedsim.results.rows import Row
from fedsim.words import counted, number, print_line

_SHOWN = 12
_SILENT = 5.0
"""Seconds without a round after which that is told."""


class Preparing:
    """What a preparation does, where it takes long: in a terminal at once, elsewhere a line every ``every`` seconds.

    Args:
        console: where to print.
        every: seconds.
        clock: seconds, monotonic.
    """

    def __init__(self, console: Console, every: float = 20.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._every, self._clock = console, every, clock
        self._status = console.status("preparing") if console.is_terminal else None
        self._started = self._told = clock()

    def __call__(self, text: str) -> None:
        """What is going on now."""
        now = self._clock()
        if self._status is not None:
            self._status.update(Text(f"{text} ({now - self._started:.0f} s)"))
        elif now - self._told >= self._every:
            self._told = now
            print_line(self._console, f"{text} ({now - self._started:.0f} s)")

    def __enter__(self) -> Preparing:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._status is not None:
            self._status.stop()


class Display(ABC):
    """The progress of a bench; a context manager that leaves the terminal as it found it, however it is left.

    Safe to call from several threads.

    Args:
        console: where to print.
        total: cells of the grid.
        already_done: cells that an earlier run finished; they count as done at once.
        not_ok: cells that an earlier run ended otherwise, by status.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        console: Console,
        total: int,
        already_done: int = 0,
        not_ok: Mapping[str, int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._progress = Progress(total, already_done, clock, not_ok)
        self._lock = threading.Lock()

    def cell_started(self, cell_id: str, label: str) -> None:
        """A cell runs now; ``label`` tells its setting in a few words."""
        with self._lock:
            self._progress.started(cell_id, label)

    def round_done(self, cell_id: str, round: int, rounds: int) -> None:
        """``round`` of ``rounds`` rounds of a running cell are finished (1 after the first)."""
        with self._lock:
            self._progress.advanced(cell_id, round, rounds)

    def cell_queued(self, cell_id: str) -> None:
        """A cell lost its slot, and is queued again."""
        with self._lock:
            self._progress.queued(cell_id)

    def cell_waiting(self, cell_id: str) -> None:
        """A cell ran; its row waits for a reference, and its slot is another's."""
        with self._lock:
            self._progress.waiting(cell_id)

    def cell_finished(self, row: Row) -> None:
        """A cell ended, well or badly."""
        with self._lock:
            self._progress.finished(row)
            line = self._finished_line(row)
        # Printed outside the lock: rich holds its own lock when it asks for the view, which takes ours.
        if line is not None:
            self._print(line)

    def cell_failed(self, cell_id: str) -> None:
        """A cell ended badly, and no new row tells of it."""
        with self._lock:
            self._progress.failed_without_row(cell_id)

    def note(self, text: str) -> None:
        """A line that stays on the screen."""
        self._print(Text(text))

    def __enter__(self) -> Display:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._print(Text(self._progress.closing_line()))

    @abstractmethod
    def _finished_line(self, row: Row) -> Text | None:
        """The line that stays on the screen for a finished cell, if any."""

    def _print(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True)


class LineDisplay(Display):
    """One line a finished cell: for logs, pipes and continuous integration."""

    def _finished_line(self, row: Row) -> Text:
        return Text(f"[{self._progress.ended}/{self._progress.total}] {row.setting}: {outcome(row)}")


class LiveDisplay(Display):
    """A live view: counts and time left on top, below it every running cell with its rounds; failures stay above it."""

    def __enter__(self) -> LiveDisplay:
        self._live = Live(console=self._console, get_renderable=self._view, refresh_per_second=4, transient=True)
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._live.stop()
        super().__exit__(kind, error, trace)

    def _finished_line(self, row: Row) -> Text | None:
        if row.status == "ok":
            return None
        return Text(f"{row.setting}: {outcome(row)}", style="red" if row.status == "failed" else "yellow")

    def _view(self) -> RenderableType:
        with self._lock:
            progress = self._progress
            shown = list(progress.running.values())[:_SHOWN]
            more = len(progress.running) - len(shown)
            cells = Table.grid(padding=(0, 2))
            cells.add_column(no_wrap=True, overflow="ellipsis")
            cells.add_column(width=24)
            cells.add_column(justify="right", no_wrap=True)
            for cell in shown:
                # A cell that has not ended its first round shows an empty bar, not a full one.
                cells.add_row(
                    Text(cell.label),
                    ProgressBar(max(cell.rounds, 1), cell.round, width=24),
                    Text(cell.round_text(progress.now()), style="dim"),
                )
            parts: list[RenderableType] = [self._heading(), cells]
            if more > 0:
                parts.append(Text(f"… and {more} more running", style="dim"))
            return Group(*parts)

    def _heading(self) -> RenderableType:
        progress = self._progress
        heading = Table.grid(padding=(0, 2))
        counts = Text.assemble(
            (f"{progress.ended}/{progress.total}", "bold"),
            " cells",
            (f" · {progress.done} done", "green"),
            (f" · {progress.at_work} running", "cyan"),
            (f" · {progress.failed} failed", "red" if progress.failed else "dim"),
            *((f" · {count} {word}", "yellow") for word, count in progress.undrawn.items() if count),
        )
        heading.add_row(ProgressBar(max(progress.total, 1), progress.ended, width=16), counts)
        return Group(heading, Text(progress.time_text(), style="dim"))


def make_display(console: Console, total: int, already_done: int = 0, not_ok: Mapping[str, int] | None = None) -> Display:
    """The live view in a terminal, lines elsewhere."""
    return (LiveDisplay if console.is_terminal else LineDisplay)(console, total, already_done, not_ok)


@dataclass
class RunningCell:
    """A cell under way; ``rounds`` is 0 until its first round ends, ``heard`` when one last did; ``waits`` once a reference is lacking."""

    label: str
    since: float
    heard: float
    round: int = 0
    rounds: int = 0
    waits: bool = False

    @property
    def fraction(self) -> float:
        """Share of the rounds that are finished."""
        return self.round / self.rounds if self.rounds else 0.0

    def round_text(self, now: float) -> str:
        """The round in words, and how long ago it ended where that is long ago."""
        if self.waits:
            return "waits for a reference"
        told, silent = f"round {self.round}/{self.rounds}" if self.rounds else "starting", now - self.heard
        return told if silent < _SILENT else f"{told}, {_duration(silent)} ago" if self.rounds else f"{told} for {_duration(silent)}"


class Progress:
    """Counts, running cells and the estimate of the time left; ``undrawn`` counts cells whose epsilon is not what was planned."""

    def __init__(self, total: int, already_done: int, clock: Callable[[], float], not_ok: Mapping[str, int] | None = None) -> None:
        earlier = Counter(not_ok)
        self.total, self.done, self.failed = total, already_done, earlier["failed"]
        self.undrawn = {status: earlier[status] for status in ("overspent", "unaccounted", "refuted")}
        self.running: dict[str, RunningCell] = {}
        self._clock, self._start = clock, clock()
        self._seconds: list[float] = []
        self._parallel = 1

    def now(self) -> float:
        """Seconds on the clock of ``RunningCell.heard``."""
        return self._clock()

    @property
    def ended(self) -> int:
        """Cells that will not run again in this bench."""
        return self.done + self.failed + sum(self.undrawn.values())

    def started(self, cell_id: str, label: str) -> None:
        """See ``Display.cell_started``."""
        self.running[cell_id] = RunningCell(label, self._clock(), self._clock())
        self._parallel = max(self._parallel, self.at_work)

    @property
    def at_work(self) -> int:
        """Cells that hold a slot."""
        return sum(not cell.waits for cell in self.running.values())

    def queued(self, cell_id: str) -> None:
        """See ``Display.cell_queued``."""
        self.running.pop(cell_id, None)

    def waiting(self, cell_id: str) -> None:
        """See ``Display.cell_waiting``."""
        if cell := self.running.get(cell_id):
            cell.waits = True

    def advanced(self, cell_id: str, round: int, rounds: int) -> None:
        """See ``Display.round_done``; a late message of a cell that ended is ignored."""
        if cell := self.running.get(cell_id):
            cell.round, cell.rounds, cell.heard = round, rounds, self._clock()

    def finished(self, row: Row) -> None:
        """See ``Display.cell_finished``."""
        cell = self.running.pop(row.cell_id, None)
        if row.status == "failed":
            # A cell that failed early says nothing about how long the others take.
            self.failed += 1
            return
        self.done += row.status == "ok"
        if row.status in self.undrawn:
            self.undrawn[row.status] += 1
        # The time between start and end is how long a slot was taken; without a start, the row's own seconds stand in.
        seconds = self._clock() - cell.since if cell else row.seconds
        if seconds is not None:
            self._seconds.append(seconds)

    def failed_without_row(self, cell_id: str) -> None:
        """See ``Display.cell_failed``."""
        self.running.pop(cell_id, None)
        self.failed += 1

    def seconds_left(self) -> float | None:
        """Mean seconds of finished cells times the work left, over the most cells seen at once; None before the first."""
        if not self._seconds:
            return None
        work = self.total - self.ended - sum(cell.fraction for cell in self.running.values())
        return max(0.0, work) * sum(self._seconds) / len(self._seconds) / min(self._parallel, max(1.0, work))

    def time_text(self) -> str:
        """Time gone and time left in words."""
        left = self.seconds_left()
        gone = f"{_duration(self._clock() - self._start)} gone"
        return gone if left is None else f"{gone}, about {_duration(left)} left"

    def closing_line(self) -> str:
        """The last line of a bench, finished or interrupted."""
        parts = [f"{self.done} of {counted(self.total, 'cell')} done"]
        parts += [f"{count} {word}" for word, count in {"failed": self.failed, **self.undrawn}.items() if count]
        waiting = self.total - self.ended
        parts += [f"{waiting} not finished"] if waiting else []
        return f"{', '.join(parts)} in {_duration(self._clock() - self._start)}"


def outcome(row: Row) -> str:
    """A cell's result in a few words."""
    if row.error is not None:
        first = (row.error.message.strip().splitlines() or [""])[0]
        return f"unaccounted, {first}" if row.status == "unaccounted" else f"failed, {row.error.type}: {first}"
    told = f"balanced accuracy {row.balanced_accuracy:.3f}"
    if row.epsilon_spent is not None:
        told += f", ε spent {number(row.epsilon_spent, 3)}"
    if row.status == "overspent":
        told = f"overspent ({told} of {number(row.epsilon_target)})"
    if row.status == "refuted":
        found = f"an audit finds ε ≥ {number(row.audited_epsilon, 3)}"
        if row.audited_epsilon <= (row.epsilon_target or 0.0):
            found = f"a canary adds {number(row.audit_canary_ratio, 3)} of the claimed sensitivity"
        found += f", {row.audited_form}" if row.audited_form else ""
        told = f"refuted (ε = {number(row.epsilon_target)} claimed, {found})"
    return told if row.seconds is None else f"{told}, {row.seconds:.1f} s"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
