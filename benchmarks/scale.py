"""How time and memory of a bench grow with the number of rows and classes.

    python benchmarks/scale.py [--rows 20000 80000 320000 1280000] [--classes 10 100 1000]
        [--methods dp-gaussian fedhypevae-warm fedhypevae] [--clients 100] [--json FILE]

The data is made up: unit-norm embeddings of 384 dimensions around one mean per class. Every
setting is one `fedsim bench` of one cell with ε = 4, in a process of its own. The script reads the
seconds of training, evaluation and references from the run folder, and adds up the memory of all
processes of the bench while it runs (proportional set size, so that shared pages count once).
Beside them it times the floor, one pass of `x.T @ x` over the data on one thread. Between two
numbers of rows it prints the exponent with which the seconds grow.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import yaml
from rich.console import Console
from rich.table import Table

DIM = 384
TEST_ROWS = 20_000
BLOCK = 8192
SAMPLE_SECONDS = 0.5
GIB = 2**30


@dataclass(frozen=True)
class Measurement:
    """What one bench of one cell took.

    Attributes:
        rows: the number of training rows.
        classes: the number of classes.
        clients: the number of clients.
        method: the method.
        floor: seconds of one pass of ``x.T @ x``.
        bench: seconds of the whole command.
        training: seconds of the training; None if the bench failed.
        evaluation: seconds of the evaluation.
        references: seconds of ceiling and local-only together.
        data_gib: the size of the training and test rows in GiB.
        peak_gib: the largest memory of all processes of the bench in GiB.
        error: why the bench failed, or None.
    """

    rows: int
    classes: int
    clients: int
    method: str
    floor: float
    bench: float
    training: float | None
    evaluation: float | None
    references: float | None
    data_gib: float
    peak_gib: float
    error: str | None


def write_data(path: Path, rows: int, classes: int) -> None:
    """Write made-up embeddings in blocks, as `.npy` files in a folder.

    Args:
        path: the folder.
        rows: the number of training rows; :data:`TEST_ROWS` test rows (at most) come after them.
        classes: the number of classes.
    """
    rng = np.random.default_rng(0)
    tests = min(TEST_ROWS, rows)
    total = rows + tests
    means = rng.standard_normal((classes, DIM), dtype=np.float32)
    scales = np.sqrt(np.arange(1, DIM + 1, dtype=np.float32) ** -0.7)
    y = np.arange(total, dtype=np.int64) % classes
    split = np.zeros(total, np.int64)
    split[rows:] = 2
    path.mkdir(parents=True, exist_ok=True)
    shape = (total, DIM)
    x = np.lib.format.open_memmap(path / "x.npy", mode="w+", dtype=np.float32, shape=shape)
    for start in range(0, total, BLOCK):
        labels = y[start : start + BLOCK]
        noise = rng.standard_normal((len(labels), DIM), dtype=np.float32)
        block = 6.0 + 0.6 * means[labels] + noise * scales * 4
        x[start : start + BLOCK] = block / np.linalg.norm(block, axis=1, keepdims=True)
    x.flush()
    np.save(path / "y.npy", y)
    np.save(path / "split.npy", split)


def floor_seconds(path: Path, rows: int) -> float:
    """Return the seconds of one pass of ``x.T @ x`` over the training rows, on one thread."""
    torch.set_num_threads(1)
    x = torch.from_numpy(np.load(path / "x.npy", mmap_mode="c"))[:rows]
    float(x.sum())  # reads the file before the clock starts
    total = torch.zeros(DIM, DIM)
    start = time.perf_counter()
    for block in torch.split(x, BLOCK):
        total += block.T @ block
    return time.perf_counter() - start


class MemoryPeak(threading.Thread):
    """Samples the memory of all processes of this user that started after the sampler."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before = set(_processes())
        self.bytes = 0
        self.ended = threading.Event()

    def run(self) -> None:
        """Sample until the end."""
        while not self.ended.wait(SAMPLE_SECONDS):
            new = set(_processes()) - self.before
            self.bytes = max(self.bytes, sum(map(_proportional_bytes, new)))


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _proportional_bytes(pid: int) -> int:
    """Return the proportional set size of a process; 0 if it has ended."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
    except OSError:
        return 0
    for line in text.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def measure(
    folder: Path,
    data: Path,
    rows: int,
    classes: int,
    clients: int,
    method: str,
    floor: float,
    timeout: float,
) -> Measurement:
    """Run one bench of one cell and return what it took."""
    name = f"{method}-{rows}-{classes}-{clients}"
    grid = {
        "name": name,
        "dataset": {"npy": str(data)},
        "algorithms": [method],
        "alpha": [0.3],
        "clients": [clients],
        "epsilon": [4],
        "seeds": [0],
        "delta": 1e-7,
    }
    grid_file = folder / f"{name}.yaml"
    grid_file.write_text(yaml.safe_dump(grid), encoding="utf-8")
    program = Path(sys.executable).with_name("fedsim")
    command = [str(program), "bench", "--grid", str(grid_file)]
    peak = MemoryPeak()
    peak.start()
    start = time.perf_counter()
    error = None
    try:
        ended = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=timeout, check=False
        )
        if ended.returncode:
            error = (ended.stderr or ended.stdout).strip().splitlines()[-1]
    except subprocess.TimeoutExpired:
        error = f"not done after {timeout:.0f} s"
    seconds = time.perf_counter() - start
    peak.ended.set()
    peak.join()
    run = folder / "runs" / name
    return Measurement(
        rows=rows,
        classes=classes,
        clients=clients,
        method=method,
        floor=floor,
        bench=seconds,
        training=_recorded_seconds(run / "trainings.jsonl"),
        evaluation=_recorded_seconds(run / "evaluations.jsonl"),
        references=_recorded_seconds(run / "references.jsonl"),
        data_gib=(rows + min(TEST_ROWS, rows)) * DIM * 4 / GIB,
        peak_gib=peak.bytes / GIB,
        error=error,
    )


def _recorded_seconds(path: Path) -> float | None:
    """Return the sum of the seconds in a file of the run folder; None if there is no line."""
    if not path.exists():
        return None
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    seconds = [line["seconds"] for line in lines if line.get("seconds") is not None]
    if not seconds:
        return None
    return float(sum(seconds))


def exponents(measurements: list[Measurement]) -> list[tuple[str, int, int, int, float]]:
    """Return (method, classes, rows before, rows, exponent of the training's seconds)."""
    known = {(m.method, m.classes, m.rows): m.training for m in measurements}
    found = []
    sizes = sorted({m.rows for m in measurements})
    for method, classes in sorted({(m.method, m.classes) for m in measurements}):
        for before, after in pairwise(sizes):
            first = known.get((method, classes, before))
            second = known.get((method, classes, after))
            if first and second:
                exponent = math.log(second / first) / math.log(after / before)
                found.append((method, classes, before, after, exponent))
    return found


def show(measurements: list[Measurement], console: Console) -> None:
    """Print the table of measurements and the table of exponents."""
    table = Table(
        "rows", "classes", "method", "x.T @ x", "bench", "training", "evaluation", "references",
        "data GiB", "peak GiB", "error", title="seconds and memory of a bench of one cell",
    )  # fmt: skip
    for m in measurements:
        parts = [m.floor, m.bench, m.training, m.evaluation, m.references]
        seconds = ["–" if part is None else f"{part:.1f}" for part in parts]
        memory = [f"{m.data_gib:.2f}", f"{m.peak_gib:.1f}"]
        table.add_row(f"{m.rows:,}", str(m.classes), m.method, *seconds, *memory, m.error or "")
    console.print(table)
    growth = Table("method", "classes", "from", "to", "exponent", title="growth of training")
    for method, classes, before, after, exponent in exponents(measurements):
        growth.add_row(method, str(classes), f"{before:,}", f"{after:,}", f"{exponent:.2f}")
    console.print(growth)


def main() -> None:
    """Measure every setting, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 80_000, 320_000, 1_280_000])
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["dp-gaussian", "dp-lda", "fedhypevae-warm", "fedhypevae"],
    )
    parser.add_argument("--timeout", type=float, default=1800)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    console = Console()
    measurements: list[Measurement] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for rows in options.rows:
            for classes in options.classes:
                data = folder / "data"
                write_data(data, rows, classes)
                floor = floor_seconds(data, rows)
                for method in options.methods:
                    measurement = measure(
                        folder,
                        data,
                        rows,
                        classes,
                        options.clients,
                        method,
                        floor,
                        options.timeout,
                    )
                    measurements.append(measurement)
                    console.print(measurement)
    show(measurements, console)
    if options.json is not None:
        records = [asdict(measurement) for measurement in measurements]
        options.json.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
