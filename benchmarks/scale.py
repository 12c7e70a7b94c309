"""How time and memory of a bench grow with the number of rows, classes and clients.

    python benchmarks/scale.py [--rows 20000 80000 320000 1280000] [--classes 10 100 1000]
        [--methods dp-gaussian dp-lda fedhypevae-warm fedhypevae] [--clients 100] [--together]
        [--json FILE]

The data is made up: unit-norm embeddings of 384 dimensions around one mean per class. Every
setting is one `fedsim bench` of one cell with ε = 4, in a folder and a process of its own. The
script reads the seconds of training, evaluation and references from the run folder, and adds up
the memory of all processes of the bench while it runs (proportional set size, so that shared pages
count once). Beside it is the forecast of a dry run. The floor is one pass of `x.T @ x` over the
data on one thread. Between two numbers of rows it prints the exponent with which the seconds grow.
With `--together` all methods are cells of one bench, which runs two of them at a time on two CPUs.
A measurement in the JSON file is replaced if the same setting is measured again; others stay.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, fields
from itertools import pairwise, product
from pathlib import Path
from typing import Any

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
class Setting:
    """The size of the data and the methods of one bench.

    Attributes:
        rows: the number of training rows.
        classes: the number of classes.
        clients: the number of clients.
        method: the method; several, separated by `` + ``, are cells of the same bench.
    """

    rows: int
    classes: int
    clients: int
    method: str

    def grid(self, data: Path) -> dict[str, Any]:
        """Return the grid of the bench, which reads its data from the folder ``data``."""
        return {
            "name": "scale",
            "dataset": {"npy": str(data)},
            "algorithms": [yaml.safe_load(entry) for entry in self.method.split(" + ")],
            "alpha": [0.3],
            "clients": [self.clients],
            "epsilon": [4],
            "seeds": [0],
            "delta": 1e-7,
        }


@dataclass(frozen=True)
class Measurement(Setting):
    """The seconds and the memory of one bench.

    Attributes:
        floor: seconds of one pass of ``x.T @ x`` on one thread.
        bench: seconds of the whole command.
        training: seconds of the trainings; None if the run folder records none.
        evaluation: seconds of the evaluations; None if the run folder records none.
        references: seconds of ceiling and local-only together; None if it records none.
        data_gib: the size of the training and test rows in GiB.
        peak_gib: the largest memory of all processes of the bench in GiB.
        worker_gib: the largest memory of one worker in GiB, without what processes share, such as
            the rows of the data. About 0.2 GiB of it is Python with torch.
        forecast_gib: the memory that the dry run forecasts in GiB.
        error: why the bench failed, or None.
    """

    floor: float
    bench: float
    training: float | None
    evaluation: float | None
    references: float | None
    data_gib: float
    peak_gib: float
    worker_gib: float
    forecast_gib: float | None
    error: str | None


def write_data(path: Path, rows: int, classes: int) -> None:
    """Write made-up embeddings, their labels and their split as three `.npy` files.

    The embeddings are written block by block, so that they need not fit into memory.

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
    # The split is 0 for a training row and 2 for a test row.
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
    """Samples the memory of all processes of this user that started after the sampler.

    Attributes:
        before: the processes that ran when the sampler was made; they do not count.
        bytes: the largest memory of all new processes together so far.
        worker_bytes: the largest memory of one worker so far, without shared memory.
        ended: the event that ends the sampling.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before = set(_processes())
        self.bytes = 0
        self.worker_bytes = 0
        self.ended = threading.Event()

    def run(self) -> None:
        """Take a sample every :data:`SAMPLE_SECONDS` until ``ended`` is set."""
        while not self.ended.wait(SAMPLE_SECONDS):
            new = set(_processes()) - self.before
            self.bytes = max(self.bytes, sum(_bytes(pid, "Pss") for pid in new))
            workers = filter(_is_worker, new)
            of_workers = [_bytes(pid, "Pss_Anon") for pid in workers]
            self.worker_bytes = max([self.worker_bytes, *of_workers])


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _is_worker(pid: int) -> bool:
    """Return whether a process is a worker of Ray that trains or evaluates."""
    try:
        name = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return name.startswith(b"ray::TrialWorker")


def _bytes(pid: int, part: str) -> int:
    """Return a part of the memory of a process in bytes; 0 if the process has ended.

    Args:
        pid: the number of the process.
        part: ``Pss`` for all of its memory, in which a page that n processes share counts 1/n.
            ``Pss_Anon`` for the part of ``Pss`` that is not backed by a file or by shared memory.
    """
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
    except OSError:
        return 0
    for line in text.splitlines():
        if line.startswith(f"{part}:"):
            return int(line.split()[1]) * 1024
    return 0


def measure(setting: Setting, data: Path, floor: float, timeout: float) -> Measurement:
    """Run one bench in a new folder and return its seconds and its memory.

    Args:
        setting: the size of the data and the methods.
        data: the folder with the data.
        floor: the seconds of :func:`floor_seconds` on this data.
        timeout: the seconds after which the bench is stopped.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        grid_file = folder / "scale.yaml"
        grid_file.write_text(yaml.safe_dump(setting.grid(data)), encoding="utf-8")
        program = Path(sys.executable).with_name("fedsim")
        command = [str(program), "bench", "--grid", str(grid_file)]
        dry_run = subprocess.run(
            [*command, "--dry-run"], cwd=folder, capture_output=True, text=True, check=False
        )
        peak = MemoryPeak()
        peak.start()
        start = time.perf_counter()
        error = None
        try:
            ended = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=timeout, check=False
            )
            if ended.returncode:
                output = ended.stderr or ended.stdout or f"exit code {ended.returncode}"
                error = output.strip().splitlines()[-1]
        except subprocess.TimeoutExpired:
            error = f"not done after {timeout:.0f} s"
        seconds = time.perf_counter() - start
        peak.ended.set()
        peak.join()
        run = folder / "runs" / "scale"
        return Measurement(
            **asdict(setting),
            floor=floor,
            bench=seconds,
            training=_recorded_seconds(run / "trainings.jsonl"),
            evaluation=_recorded_seconds(run / "evaluations.jsonl"),
            references=_recorded_seconds(run / "references.jsonl"),
            data_gib=(setting.rows + min(TEST_ROWS, setting.rows)) * DIM * 4 / GIB,
            peak_gib=peak.bytes / GIB,
            worker_gib=peak.worker_bytes / GIB,
            forecast_gib=_forecast_gib(dry_run.stdout),
            error=error,
        )


def _forecast_gib(dry_run: str) -> float | None:
    """Return the memory in GiB that the output of a dry run forecasts; None without a forecast."""
    match = re.search(r"memory: about ([0-9.]+) (MiB|GiB)", dry_run)
    if match is None:
        return None
    size = float(match[1])
    if match[2] == "MiB":
        return size / 1024
    return size


def _recorded_seconds(path: Path) -> float | None:
    """Return the sum of the seconds in a file of the run folder; None if there is no line."""
    if not path.exists():
        return None
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    seconds = [line["seconds"] for line in lines if line.get("seconds") is not None]
    if not seconds:
        return None
    return float(sum(seconds))


def exponents(measurements: list[Measurement]) -> list[tuple[Measurement, Measurement, float]]:
    """Return how the seconds of training grow between successive numbers of rows.

    Only measurements of the same method, classes and clients are compared.

    Returns:
        The measurement with fewer rows, the one with more, and the exponent b if the seconds grow
        as rows^b.
    """
    pairs = []
    in_order = sorted(measurements, key=lambda m: (m.method, m.classes, m.clients, m.rows))
    for before, after in pairwise(in_order):
        same = [(m.method, m.classes, m.clients) for m in (before, after)]
        if same[0] == same[1] and before.training and after.training:
            growth = math.log(after.training / before.training)
            pairs.append((before, after, growth / math.log(after.rows / before.rows)))
    return pairs


def show(measurements: list[Measurement], console: Console) -> None:
    """Print the table of measurements and the table of exponents."""
    table = Table(
        "rows", "classes", "clients", "method", "x.T @ x", "bench", "training", "evaluation",
        "references", "data GiB", "peak GiB", "worker GiB", "forecast GiB", "error",
        title="seconds and memory of a bench",
    )  # fmt: skip
    for m in measurements:
        seconds = [m.floor, m.bench, m.training, m.evaluation, m.references]
        sizes = [m.data_gib, m.peak_gib, m.worker_gib, m.forecast_gib]
        numbers = ["–" if value is None else f"{value:.1f}" for value in [*seconds, *sizes]]
        counts = [f"{m.rows:,}", str(m.classes), f"{m.clients:,}"]
        table.add_row(*counts, m.method, *numbers, m.error or "")
    console.print(table)
    growth = Table(
        "method", "classes", "clients", "from", "to", "exponent", title="growth of training"
    )
    for before, after, exponent in exponents(measurements):
        sizes_of_pair = [f"{before.rows:,}", f"{after.rows:,}"]
        counts = [str(after.classes), f"{after.clients:,}"]
        growth.add_row(after.method, *counts, *sizes_of_pair, f"{exponent:.2f}")
    console.print(growth)


def main() -> None:
    """Measure every setting, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 80_000, 320_000, 1_280_000])
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--clients", type=int, nargs="+", default=[100])
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["dp-gaussian", "dp-lda", "fedhypevae-warm", "fedhypevae"],
    )
    parser.add_argument("--together", action="store_true")
    parser.add_argument("--timeout", type=float, default=1800)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    methods = options.methods
    if options.together:
        methods = [" + ".join(methods)]
    console = Console()
    measurements: list[Measurement] = []
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch)
        for rows, classes in product(sorted(set(options.rows)), options.classes):
            write_data(data, rows, classes)
            floor = floor_seconds(data, rows)
            for clients, method in product(options.clients, methods):
                setting = Setting(rows, classes, clients, method)
                measurements.append(measure(setting, data, floor, options.timeout))
                console.print(measurements[-1])
                if options.json is not None:
                    keep(options.json, measurements[-1])
    show(measurements, console)


def keep(path: Path, measurement: Measurement) -> None:
    """Write a measurement into the JSON file, in place of an earlier one of the same setting."""
    records = []
    if path.exists():
        records = json.loads(path.read_text(encoding="utf-8"))
    names = [field.name for field in fields(Setting)]
    new = asdict(measurement)
    others = [record for record in records if any(record[n] != new[n] for n in names)]
    in_order = sorted([*others, new], key=lambda record: [record[name] for name in names])
    path.write_text(json.dumps(in_order, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
