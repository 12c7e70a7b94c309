"""Cells a minute on the CPU and on a GPU that 1, 4 or 16 cells share; without a GPU it says so and measures the CPU alone.

    python benchmarks/device.py [--cells 16] [--rounds 100] [--json FILE]

Cells of fedhypevae (10 clients, 12,000 rows of 1,280 made-up numbers) run through `run_bench`, as those of any grid do. A setting's
time is that of its whole bench: the workers' start, training, synthesis, probe and report.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from fedsim.grid.models import Grid
from fedsim.planning.gpu_memory import even_share
from fedsim.planning.node import Node
from fedsim.planning.prepare import prepare
from fedsim.runs.bench import run_bench
from fedsim.runs.cluster import local_cluster, this_machine
from fedsim.runs.ray_engine import RayEngine

ROWS, TEST, DIM, CLASSES, CLIENTS = 12_000, 2_000, 1280, 8, 10
SHARING = (1, 4, 16)


@dataclass(frozen=True)
class Record:
    """One row of the result: where cells ran, how many on a device at a time, and how many a minute became finished."""

    device: str
    at_a_time: int
    cells: int
    cells_per_minute: float


def main() -> None:
    """Measure, print, and write the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=16, help="cells of a setting")
    parser.add_argument("--rounds", type=int, default=100, help="rounds of a cell")
    parser.add_argument("--rows", type=int, default=ROWS, help="training rows of all clients")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records here as a JSON list")
    options = parser.parse_args()
    machine = this_machine()
    if not machine.gpus:
        print("there is no GPU here: the CPU alone is measured")
    with tempfile.TemporaryDirectory() as scratch, local_cluster(machine):
        data = save_rows(Path(scratch) / "rows.npz", options.rows)
        records = list(measured(Path(scratch), data, machine, options.cells, options.rounds))
    Console().print(table(records))
    if options.json:
        options.json.write_text(json.dumps([asdict(record) for record in records], indent=2) + "\n", encoding="utf-8")


def save_rows(path: Path, rows: int) -> Path:
    """A data set of made-up unit rows around class means."""
    stream = np.random.default_rng(0)
    y = np.arange(rows + TEST) % CLASSES
    x = stream.standard_normal((len(y), DIM), dtype=np.float32) + 2 * stream.standard_normal((CLASSES, DIM), dtype=np.float32)[y]
    np.savez(path, x=x / np.linalg.norm(x, axis=1, keepdims=True), y=y, split=np.where(np.arange(len(y)) < rows, 0, 2))
    return path


def measured(scratch: Path, data: Path, machine: Node, cells: int, rounds: int) -> Iterable[Record]:
    """The CPU, then every way to share the GPUs."""
    settings: list[tuple[str, int, dict[str, Any]]] = [("cpu", int(machine.cpus), {"device": "cpu"})]
    if machine.gpus:
        settings += [("cuda", sharing, {"device": "cuda", "gpus_per_actor": even_share(sharing)}) for sharing in SHARING]
    for device, at_a_time, resources in settings:
        grid = Grid.model_validate(
            {
                "dataset": {"npz": str(data), "name": "made up"},
                "algorithms": [{"name": "fedhypevae", "params": {"rounds": rounds}}],
                "clients": CLIENTS,
                "epsilon": 8.0,
                "delta": 1e-5,
                "seeds": list(range(cells)),
                # sixteen cells on a GPU are fed by as many processes, however few CPUs there are
                "resources": {"clients_per_actor": "all", "cpus_per_actor": min(1.0, machine.cpus / at_a_time), **resources},
            }
        )
        yield Record(device, at_a_time, cells, 60 * cells / bench_seconds(grid, scratch / f"{device} {at_a_time}", machine))


def bench_seconds(grid: Grid, folder: Path, machine: Node) -> float:
    """How long a bench of the grid takes."""
    console, prepared = Console(file=io.StringIO()), prepare(grid, [machine])
    start = time.perf_counter()
    code = run_bench(prepared, folder, console, nullcontext(RayEngine()))
    if code:
        sys.exit(console.file.getvalue())  # type: ignore[attr-defined]
    return time.perf_counter() - start


def table(records: Iterable[Record]) -> Table:
    """The result for a terminal."""
    shown = Table("device", "cells at a time", "cells a minute")
    for record in records:
        shown.add_row(record.device, str(record.at_a_time), f"{record.cells_per_minute:.2f}")
    return shown


if __name__ == "__main__":
    main()
