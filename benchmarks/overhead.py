"""Measure how long a round takes if the clients compute nothing.

    python benchmarks/overhead.py [--rounds 400] [--repeats 3] [--json FILE]

Such a round costs only what the simulator adds to every method: the broadcast, the messages, their
sum, the records and the ledger. The clients of this script return the 100,000 numbers that they
receive. Each setting is one cell, which runs through `run_bench` as every method does: 10 and 100
clients, on one actor (all clients in one process) and on two.

The server notes the time in each of its steps, and a round lasts from one step to the next. The
script takes the median over the rounds of a cell, without the first 50, and the smallest median of
all repeats. It prints this time in milliseconds, and the number of client updates in a second at
this speed. Every repeat runs all settings, so that other load of the machine affects them alike.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import pairwise, product
from pathlib import Path

# Torch reads this variable when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from fedsim.grid.models import Grid
from fedsim.methods.algorithm import Algorithm, Params, Phase
from fedsim.methods.clients import Clients
from fedsim.methods.messages import Message, Round, Server, Tensors
from fedsim.models.linear import LinearClassifier
from fedsim.privacy.plan import Release
from fedsim.results.join import read_results
from fedsim.runs.bench import run_bench
from fedsim.runs.prepare import Node, prepare
from fedsim.runs.ray import RayEngine, local_cluster

NUMBERS = 100_000
"""The length of the vector that the server sends to every client, and every client sends back."""
WARM_UP = 50
"""The number of rounds before the first one that counts."""
CLIENTS = (10, 100)
ACTORS = (1, 2)
MACHINE = Node(2.0, 0.0)  # CPUs and GPUs


class EchoParams(Params):
    """Parameters of :class:`Echo`.

    Attributes:
        rounds: the number of rounds.
    """

    rounds: int = 400


class Echo(Algorithm):
    """A method whose clients return what they receive, and whose server changes nothing."""

    Params = EchoParams
    private = False

    def phases(self) -> tuple[Phase, ...]:
        """Return one phase with all rounds."""
        release = Release("echo", 1.0, self.params.rounds)
        return (Phase(release, self.client_round, self.server_step, self.broadcast),)

    def build(self, clients: int) -> nn.Module:
        """Return a model that consists of the numbers that are sent."""
        return nn.ParameterDict({"numbers": nn.Parameter(torch.zeros(NUMBERS))})

    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        """Return the sum of the members' messages, each a copy of the broadcast."""
        total = torch.zeros(NUMBERS)
        for _ in clients.members:
            total += broadcast["numbers"].clone()
        return clients.send({"numbers": total})

    def server_step(self, server: Server, round_: Round, total: Tensors) -> Mapping[str, float]:
        """Return the time in seconds, which goes into the record of the round."""
        return {"clock": time.perf_counter()}

    def classifier(self, server: Server) -> LinearClassifier:
        """Return a classifier that gives every class the same probability."""
        weight = torch.zeros(self.task.classes, self.task.dim)
        bias = torch.zeros(self.task.classes)
        return LinearClassifier(weight, bias)


@dataclass(frozen=True)
class Measurement:
    """The time of a round in one setting.

    Attributes:
        clients: the number of clients.
        actors: the number of processes that hold them.
        ms_per_round: the smallest median over the repeats, in milliseconds.
        updates_per_second: the number of clients divided by this time in seconds.
    """

    clients: int
    actors: int
    ms_per_round: float
    updates_per_second: float


def measure(rounds: int, repeats: int) -> list[Measurement]:
    """Return the measurement of every setting.

    Args:
        rounds: the number of rounds of a cell.
        repeats: how often the cell of each setting runs.
    """
    settings = list(product(CLIENTS, ACTORS))
    medians: dict[tuple[int, int], list[float]] = {setting: [] for setting in settings}
    with tempfile.TemporaryDirectory() as scratch, local_cluster(MACHINE):
        for repeat in range(repeats):
            for clients, actors in settings:
                folder = Path(scratch) / f"{repeat} {clients} {actors}"
                seconds = round_seconds(folder, clients, actors, rounds)
                medians[clients, actors].append(seconds)
    measurements = []
    for (clients, actors), repeat_seconds in medians.items():
        seconds = min(repeat_seconds)
        measurements.append(Measurement(clients, actors, 1e3 * seconds, clients / seconds))
    return measurements


def round_seconds(folder: Path, clients: int, actors: int, rounds: int) -> float:
    """Run one cell and return the median time of its rounds, in seconds.

    Args:
        folder: the run folder, which is created.
        clients: the number of clients.
        actors: the number of processes that hold them.
        rounds: the number of rounds.

    Raises:
        SystemExit: the cell failed; it carries the output of the run.
    """
    method = {"name": f"{Path(__file__).resolve()}:Echo", "params": {"rounds": rounds}}
    grid = {
        "dataset": {"name": "digits", "limit": 1000},
        "algorithms": [method],
        "clients": clients,
        "partition": {"scheme": "iid"},
        "evaluation": {"per_class": 2},
        "resources": {"clients_per_actor": clients // actors},
    }
    prepared = prepare(Grid.model_validate(grid), [MACHINE])
    output = io.StringIO()
    exit_code = run_bench(prepared, folder, Console(file=output), nullcontext(RayEngine()))
    if exit_code:
        sys.exit(output.getvalue())
    clocks = [record["clock"] for record in read_results(folder).rounds()]
    seconds = [after - before for before, after in pairwise(clocks[WARM_UP:])]
    return float(statistics.median(seconds))


def show(measurements: list[Measurement]) -> None:
    """Print the table of measurements."""
    table = Table("clients", "actors", "ms a round", "client updates / s")
    for measurement in measurements:
        table.add_row(
            str(measurement.clients),
            str(measurement.actors),
            f"{measurement.ms_per_round:.2f}",
            f"{measurement.updates_per_second:,.0f}",
        )
    Console().print(table)


def main() -> None:
    """Measure every setting, print the table and write the records."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rounds", type=int, default=400, help="rounds of a cell; the first 50 do not count"
    )
    parser.add_argument("--repeats", type=int, default=3, help="cells of each setting")
    parser.add_argument("--json", type=Path, help="where the records are written")
    options = parser.parse_args()
    if options.rounds < WARM_UP + 2:
        parser.error(f"--rounds must be at least {WARM_UP + 2}, got {options.rounds}")
    measurements = measure(options.rounds, options.repeats)
    show(measurements)
    if options.json is not None:
        records = [asdict(measurement) for measurement in measurements]
        options.json.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
