"""What a user sees while a bench runs: a live view in a terminal, one line a finished cell anywhere else."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedsim.results.columns import Result
from fedsim.words import counted, is_live, number, print_line

_CELLS_SHOWN = 12
_SILENT_SECONDS = 5.0
"""Without a round, after which that is shown."""


class Preparing:
    """Shows what a preparation does: in a terminal at once, elsewhere a line every ``every`` seconds.

    Args:
        console: where to print.
        every: seconds.
        clock: seconds, monotonic.
    """

    def __init__(self, console: Console, every: float = 20.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._every, self._clock = console, every, clock
        self._status = console.status("preparing") if is_live(console) else None
        self._started = self._printed = clock()

    def __call__(self, text: str) -> None:
        """Show what happens now."""
        now = self._clock()
        if self._status is not None:
            self._status.update(Text(f"{text} ({now - self._started:.0f} s)"))
        elif now - self._printed >= self._every:
            self._printed = now
            print_line(self._console, f"{text} ({now - self._started:.0f} s)")

    def __enter__(self) -> Preparing:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._status is not None:
            self._status.stop()


@dataclass
class RunningCell:
    """A running cell; ``rounds`` is 0 until its first round ends, ``heard`` the time at which one last did."""

    label: str
    since: float
    heard: float
    round: int = 0
    rounds: int = 0

    @property
    def fraction(self) -> float:
        """Share of the rounds that are finished."""
        return self.round / self.rounds if self.rounds else 0.0

    def round_text(self, now: float) -> str:
        """The round in words, and how long ago it ended if that is long ago."""
        words, silent = f"round {self.round}/{self.rounds}" if self.rounds else "starting", now - self.heard
        if silent < _SILENT_SECONDS:
            return words
        return f"{words}, {_duration(silent)} ago" if self.rounds else f"{words} for {_duration(silent)}"


class Display:
    """The progress of a bench; a context manager that leaves the terminal as it was, however it is left.

    In a terminal a live view, with failures above it; elsewhere a line for every finished cell. Safe to call from several threads.

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
        earlier = Counter(not_ok)
        self.total, self.done, self.failed = total, already_done, earlier["failed"]
        self.undrawn = {status: earlier[status] for status in ("overspent", "unaccounted", "refuted")}
        """Cells whose epsilon is not what was planned."""
        self.running: dict[str, RunningCell] = {}
        self._console, self._lock = console, threading.Lock()
        self._clock, self._start = clock, clock()
        self._seconds: list[float] = []
        self._parallel = 1
        self._live = Live(console=console, get_renderable=self._view, refresh_per_second=4, transient=True) if is_live(console) else None

    @property
    def ended(self) -> int:
        """Cells that will not run again in this bench."""
        return self.done + self.failed + sum(self.undrawn.values())

    def cell_started(self, cell_id: str, label: str) -> None:
        """A cell runs now; ``label`` is its setting in a few words."""
        with self._lock:
            self.running[cell_id] = RunningCell(label, self._clock(), self._clock())
            self._parallel = max(self._parallel, len(self.running))

    def round_done(self, cell_id: str, round: int, rounds: int) -> None:
        """``round`` of ``rounds`` rounds of a running cell are finished (1 after the first); of a cell that ended it is ignored."""
        with self._lock:
            if cell := self.running.get(cell_id):
                cell.round, cell.rounds, cell.heard = round, rounds, self._clock()

    def cell_queued(self, cell_id: str) -> None:
        """A cell lost its slot, and is queued again."""
        with self._lock:
            self.running.pop(cell_id, None)

    def cell_finished(self, row: Result) -> None:
        """A cell ended, well or badly."""
        with self._lock:
            self._count(row)
            position = "" if self._live else f"[{self.ended}/{self.total}] "
        # outside the lock: rich holds its own lock when it asks for the view, which takes ours
        if self._live is None or row.status != "ok":
            style = "" if self._live is None else "red" if row.status == "failed" else "yellow"
            self._print(Text(f"{position}{row.setting}: {outcome(row)}", style))

    def _count(self, row: Result) -> None:
        cell = self.running.pop(row.cell_id, None)
        self.done += row.status == "ok"
        self.failed += row.status == "failed"
        if row.status in self.undrawn:
            self.undrawn[row.status] += 1
        # The time between start and end is how long a slot was taken; without a start, the row's own seconds stand in.
        seconds = self._clock() - cell.since if cell else row.seconds
        if seconds is not None and row.status != "failed":  # which may have been early, and says nothing about the others
            self._seconds.append(seconds)

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
        counts = {"failed": self.failed, **self.undrawn, "not finished": self.total - self.ended}
        parts = [f"{self.done} of {counted(self.total, 'cell')} done", *(f"{count} {word}" for word, count in counts.items() if count)]
        return f"{', '.join(parts)} in {_duration(self._clock() - self._start)}"

    def note(self, text: str) -> None:
        """A line that stays on the screen."""
        self._print(Text(text))

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
        self.note(self.closing_line())

    def _print(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True)

    def _view(self) -> RenderableType:
        """Counts and time left on top, below them the running cells with their rounds."""
        with self._lock:
            now, cells = self._clock(), Table.grid(padding=(0, 2))
            cells.add_column(no_wrap=True, overflow="ellipsis")
            cells.add_column(width=24)
            cells.add_column(justify="right", no_wrap=True)
            for cell in list(self.running.values())[:_CELLS_SHOWN]:
                # a cell that has not ended its first round shows an empty bar, not a full one
                bar = ProgressBar(max(cell.rounds, 1), cell.round, width=24)
                cells.add_row(Text(cell.label), bar, Text(cell.round_text(now), style="dim"))
            more = len(self.running) - cells.row_count
            rest = [Text(f"… and {more} more running", style="dim")] if more else []
            return Group(self._heading(), Text(self.time_text(), style="dim"), cells, *rest)

    def _heading(self) -> RenderableType:
        heading = Table.grid(padding=(0, 2))
        counts = Text.assemble(
            (f"{self.ended}/{self.total}", "bold"),
            " cells",
            (f" · {self.done} done", "green"),
            (f" · {len(self.running)} running", "cyan"),
            (f" · {self.failed} failed", "red" if self.failed else "dim"),
            *((f" · {count} {word}", "yellow") for word, count in self.undrawn.items() if count),
        )
        heading.add_row(ProgressBar(max(self.total, 1), self.ended, width=16), counts)
        return heading


def outcome(row: Result) -> str:
    """A cell's result in a few words."""
    if row.error is not None:
        first = (row.error["message"].strip().splitlines() or [""])[0]
        return f"unaccounted, {first}" if row.status == "unaccounted" else f"failed, {row.error['type']}: {first}"
    words = f"balanced accuracy {row.balanced_accuracy:.3f}"
    if row.epsilon_spent is not None:
        words += f", ε spent {number(row.epsilon_spent, 3)}"
    if row.status == "overspent":
        words = f"overspent ({words} of {number(row.epsilon_target)})"
    if row.status == "refuted":
        reason = f"an audit finds ε ≥ {number(row.audited_epsilon, 3)}"
        if row.audited_epsilon <= (row.epsilon_target or 0.0):
            reason = f"a canary adds {number(row.audit_canary_ratio, 3)} of the claimed sensitivity"
        reason += f", {row.audited_form}" if row.audited_form else ""
        words = f"refuted (ε = {number(row.epsilon_target)} claimed, {reason})"
    return words if row.seconds is None else f"{words}, {row.seconds:.1f} s"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
