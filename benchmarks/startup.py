"""What a bench costs from command to report: one small cell or a grid, a fresh process each time, wall clock and processor time.

    python benchmarks/startup.py [--grid FILE] [--against TREE] [--repeats 3] [--json FILE]

The share of the processors that is busy is processor time by wall clock and processors. `--against` names another source tree, such as a
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
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
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
    """The medians of a tree: seconds on the clock, seconds of processors and their busy share (None: unknown), highest load average."""

    tree: str
    seconds: float
    cpu_seconds: float | None
    busy: float | None
    load: float


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
        seconds, cpu, load = zip(*(run[1:] for run in runs if run[0] == tree), strict=True)
        known = [each for each in cpu if each is not None]
        name = "this" if tree == ROOT else "against"
        wall, spent = statistics.median(seconds), statistics.median(known) if known else None
        busy = None if spent is None else spent / wall / len(os.sched_getaffinity(0))
        records.append(Record(name, wall, spent, busy, max(load)))
    Console().print(table(records))
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(record) for record in records], indent=2) + "\n", encoding="utf-8")


def command_to_report(tree: Path, grid: Path | None) -> tuple[float, float | None]:
    """Seconds and processor seconds of ``fedsim bench`` in a fresh folder; without a grid, of one small cell."""
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
        subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(tree)},
            preexec_fn=enter,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        seconds = time.perf_counter() - started
        if not Path(folder, "run/report.html").stat().st_size:
            sys.exit("there is no report")
    if group is None:
        return seconds, None
    while (group / "cgroup.procs").read_text():  # Ray's last processes end a moment after the command
        time.sleep(0.02)
    cpu = int((group / "cpuacct.usage").read_text()) / 1e9
    group.rmdir()
    return seconds, cpu


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
    shown = Table("tree", "seconds", "processor seconds", "busy", "load")
    for record in records:
        cpu = "" if record.cpu_seconds is None else f"{record.cpu_seconds:.1f}"
        busy = "" if record.busy is None else f"{record.busy:.2f}"
        shown.add_row(record.tree, f"{record.seconds:.1f}", cpu, busy, f"{record.load:.1f}")
    return shown


if __name__ == "__main__":
    main()
