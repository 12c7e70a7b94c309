"""What a bench costs from command to report: one small cell or a grid, a fresh process each time, wall clock and processor time.

    python benchmarks/startup.py [--grid FILE] [--against TREE] [--repeats 3] [--json FILE]

The share of the processors that is busy is processor time by wall clock and processors, over all and while cells run: from when the first
round is written until the last judgement is. `--against` names another source tree, such as a
worktree of an earlier revision; the two take turns, and the ratio of the medians is of value on a machine that does other things, too.
Processor time is that of the command and of everything that it started, Ray's processes and workers among them, as Linux counts it for a
control group; without the right to make one it is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
PROCESSORS = len(os.sched_getaffinity(0))
GROUPS = Path("/sys/fs/cgroup/cpuacct")
GRID = """
name: one
dataset: digits
algorithms: [{name: weight-noise, params: {rounds: 3}}]
clients: [4]
epsilon: [4]
"""


@dataclass(frozen=True)
class Record:
    """The medians of a tree: seconds on the clock, seconds of processors and their busy shares (None: unknown), highest load average."""

    tree: str
    seconds: float
    cpu_seconds: float | None
    busy: float | None
    busy_while_cells_run: float | None
    load: float


@dataclass(frozen=True)
class Moment:
    """How many bytes of results there are at a time, and how many seconds of processors have gone."""

    seconds: float
    cpu_seconds: float
    written: int


def main() -> None:
    """Measure the trees in turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    trees = [ROOT, *([options.against.resolve()] if options.against else [])]
    runs = [(tree, *command_to_report(tree, options.grid), os.getloadavg()[0]) for _ in range(options.repeats) for tree in trees]
    records = []
    for tree in trees:
        seconds, cpu, running, load = zip(*(run[1:] for run in runs if run[0] == tree), strict=True)
        name = "this" if tree == ROOT else "against"
        wall, spent = statistics.median(seconds), _median(cpu)
        busy = None if spent is None else spent / wall / PROCESSORS
        records.append(Record(name, wall, spent, busy, _median(running), max(load)))
    Console().print(table(records))
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(record) for record in records], indent=2) + "\n", encoding="utf-8")


def command_to_report(tree: Path, grid: Path | None) -> tuple[float, float | None, float | None]:
    """Of ``fedsim bench`` in a fresh folder: seconds, processor seconds, busy share while cells run; without a grid, of one small cell."""
    group = _group()

    def enter() -> None:
        if group is not None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    with tempfile.TemporaryDirectory() as folder:
        if grid is None:
            Path(folder, "one.yaml").write_text(GRID)
        else:
            shutil.copy(grid, Path(folder, "one.yaml"))
        command = [sys.executable, "-c", "from fedsim.cli import main; main()", "bench", "--grid", "one.yaml", "--out", "run"]
        started = time.perf_counter()
        run = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(tree)},
            preexec_fn=enter,
            stdout=subprocess.DEVNULL,
        )
        moments = list(_watched(run, Path(folder, "run"), group))
        seconds = time.perf_counter() - started
        if run.returncode or not Path(folder, "run/report.html").stat().st_size:
            sys.exit("there is no report")
    if group is None:
        return seconds, None, None
    while (group / "cgroup.procs").read_text():  # Ray's last processes end a moment after the command
        time.sleep(0.02)
    cpu = _spent(group)
    group.rmdir()
    return seconds, cpu, _busy_share(moments)


def _watched(run: subprocess.Popen[bytes], folder: Path, group: Path | None) -> Iterator[Moment]:
    """Look now and then, until it ends."""
    while run.poll() is None:
        files = [folder / f"{kind}.jsonl" for kind in ("rounds", "trainings", "judgements")]
        written = sum(file.stat().st_size for file in files if file.exists())
        yield Moment(time.perf_counter(), 0.0 if group is None else _spent(group), written)
        time.sleep(0.05)


def _busy_share(moments: list[Moment]) -> float | None:
    """Of all processors, from the first result to the last; None where that is no time."""
    whole = max(moment.written for moment in moments)
    first, last = (next(moment for moment in moments if moment.written >= least) for least in (1, whole))
    elapsed = last.seconds - first.seconds
    return (last.cpu_seconds - first.cpu_seconds) / elapsed / PROCESSORS if elapsed > 0 else None


def _spent(group: Path) -> float:
    return int((group / "cpuacct.usage").read_text()) / 1e9


def _median(values: Sequence[float | None]) -> float | None:
    known = [each for each in values if each is not None]
    return statistics.median(known) if known else None


def _group() -> Path | None:
    """A control group of its own that counts processor time; None where there is no right to make one."""
    group = GROUPS / f"fedsim-startup-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        return None
    return group


def table(records: list[Record]) -> Table:
    """The result for a terminal."""
    shown = Table("tree", "seconds", "processor seconds", "busy", "while cells run", "load")
    for record in records:
        cpu = "" if record.cpu_seconds is None else f"{record.cpu_seconds:.1f}"
        busy = ("" if share is None else f"{share:.2f}" for share in (record.busy, record.busy_while_cells_run))
        shown.add_row(record.tree, f"{record.seconds:.1f}", cpu, *busy, f"{record.load:.1f}")
    return shown


if __name__ == "__main__":
    main()
