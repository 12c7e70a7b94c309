"""What a round costs as the clients become many and the rows stay: fedhypevae on 12,000 rows of 1,280, over 10 to 10,000 clients.

    python benchmarks/clients.py [--clients 10 100 1000] [--rounds 10] [--json FILE]

The round is what `fedsim bench` runs for clients that share a process, through `train`. Every number of clients has a process of its own,
so that its peak memory is its own; the processes take turns, a round each. Times are processor time of one thread.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import time
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from rich.console import Console
from rich.table import Table

from fedsim.methods.algorithm import solved_plan
from fedsim.methods.messages import Task
from fedsim.runs.worker import settle
from fedsim.seeds import Seeds
from fedsim.training.cohort import Cohort, CohortSpec, LocalPool, build_algorithm
from fedsim.training.rounds import train

DIM, CLASSES, ROWS = 1280, 10, 12_000
NAME = "fedhypevae"
EPSILON, DELTA, FOREVER = 8.0, 1e-5, 1000
WARM_UP = 2


@dataclass(frozen=True)
class Record:
    """One row of the result: the median round, its ratio to the first count's, and the process's peak memory."""

    clients: int
    seconds: float
    ratio: float
    peak_gb: float


def work(clients: int, turns: Connection) -> None:
    """A round for every message, answered by its seconds and the most bytes held so far; until the other end closes."""
    settle(1)
    stream = np.random.default_rng(0)
    x = stream.standard_normal((ROWS, DIM), dtype=np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = stream.integers(CLASSES, size=ROWS)
    # averaged from the first round on: the most that a round does
    params = {"rounds": FOREVER, "average_from": 0.0}
    algorithm = build_algorithm(NAME, params, Task(DIM, CLASSES, clients))
    plan = solved_plan(algorithm, EPSILON, DELTA)
    rows = tuple(np.array_split(np.arange(ROWS), clients))
    cohort = Cohort(CohortSpec(NAME, params, algorithm.task, plan, Seeds(0), tuple(range(clients)), rows), x, y)
    rounds = train(algorithm, LocalPool([cohort]), plan, Seeds(0))
    while True:
        try:
            turns.recv()
        except EOFError:
            return
        start = time.process_time()
        next(rounds)
        turns.send((time.process_time() - start, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


def measure(counts: list[int], rounds: int) -> list[Record]:
    """A process for every count; medians over rounds that take turns."""
    spawn = multiprocessing.get_context("spawn")
    ends: list[Connection] = []
    for clients in counts:
        ours, theirs = spawn.Pipe()
        spawn.Process(target=work, args=(clients, theirs), daemon=True).start()
        theirs.close()
        ends.append(ours)
    found: list[list[tuple[float, int]]] = [[] for _ in counts]
    for _ in range(WARM_UP + rounds):
        for own, end in zip(found, ends, strict=True):
            end.send(None)
            own.append(end.recv())
    for end in ends:
        end.close()
    medians = [statistics.median(seconds for seconds, _ in own[WARM_UP:]) for own in found]
    return [
        Record(clients, round(seconds, 4), round(seconds / medians[0], 3), round(own[-1][1] / 1e9, 2))
        for clients, seconds, own in zip(counts, medians, found, strict=True)
    ]


def table(records: list[Record]) -> Table:
    """The result for people."""
    shown = Table(title=f"One round of {NAME}, {ROWS:,} rows of {DIM:,}, one thread (median)")
    for heading in ("clients", "s", f"x {records[0].clients} clients", "peak GB"):
        shown.add_column(heading, justify="right")
    for record in records:
        numbers = (f"{record.seconds:.3f}", f"{record.ratio:.2f}", f"{record.peak_gb:.2f}")
        shown.add_row(f"{record.clients:,}", *numbers)
    return shown


def main() -> None:
    """Measure, print, and write the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 100, 1000], help="numbers of clients; ratios are to the first")
    parser.add_argument("--rounds", type=int, default=10, help="rounds that are timed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records here as a JSON list")
    options = parser.parse_args()
    records = measure(options.clients, options.rounds)
    Console(width=120).print(table(records))
    if options.json:
        options.json.write_text(json.dumps([asdict(record) for record in records], indent=1) + "\n")


if __name__ == "__main__":
    main()
