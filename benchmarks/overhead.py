"""What a round costs when the clients compute nothing: broadcast, messages, their sum, records, the
ledger.

    python benchmarks/overhead.py [--rounds 400] [--repeats 3] [--json FILE]

The algorithm hands 100,000 numbers back as it got them. It runs through `run_bench`, as any
algorithm does, for 10 and 100 clients on one actor (all clients in one process) and on two. Each
server step notes its time, and a round lasts from one to the next; of the records' times, without
the first rounds, the median counts. Settings take turns.
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
from itertools import pairwise
from pathlib import Path

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
WARM = 50
SETTINGS = tuple((clients, actors) for clients in (10, 100) for actors in (1, 2))


class NothingParams(Params):
    """Parameters of :class:`Nothing`."""

    rounds: int = 400


class Nothing(Algorithm):
    """Every client sends the broadcast back, and the server leaves it as it was."""

    Params = NothingParams
    private = False

    def phases(self) -> tuple[Phase, ...]:
        """All rounds alike."""
        return (
            Phase(
                Release("nothing", 1.0, self.params.rounds),
                self.client_round,
                self.server_step,
                self.broadcast,
            ),
        )

    def build(self, clients: int) -> nn.Module:
        """A model of 100,000 numbers."""
        return nn.ParameterDict({"numbers": nn.Parameter(torch.zeros(NUMBERS))})

    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        """Every member's copy of what it was sent, added up."""
        total = torch.zeros(NUMBERS)
        for _ in clients.members:
            total += broadcast["numbers"].clone()
        return clients.send({"numbers": total})

    def server_step(self, server: Server, round_: Round, total: Tensors) -> Mapping[str, float]:
        """The time."""
        return {"clock": time.perf_counter()}

    def classifier(self, server: Server) -> LinearClassifier:
        """One that says the same of every row."""
        return LinearClassifier(
            torch.zeros(self.task.classes, self.task.dim), torch.zeros(self.task.classes)
        )


@dataclass(frozen=True)
class Record:
    """A row of the result: the median time of a round, over the best of the repeats."""

    clients: int
    actors: int
    ms_per_round: float
    updates_per_second: float


def main() -> None:
    """Measure every setting, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    records = measured(options.rounds, options.repeats)
    shown = Table("clients", "actors", "ms a round", "client updates / s")
    for record in records:
        shown.add_row(
            str(record.clients),
            str(record.actors),
            f"{record.ms_per_round:.2f}",
            f"{record.updates_per_second:,.0f}",
        )
    Console().print(shown)
    if options.json is not None:
        options.json.write_text(
            json.dumps([asdict(record) for record in records], indent=2) + "\n", encoding="utf-8"
        )


def measured(rounds: int, repeats: int) -> list[Record]:
    """Every setting ``repeats`` times, in turns."""
    times: dict[tuple[int, int], list[float]] = {setting: [] for setting in SETTINGS}
    with tempfile.TemporaryDirectory() as scratch, local_cluster(Node(2.0, 0.0)):
        for repeat in range(repeats):
            for clients, actors in SETTINGS:
                seconds = round_seconds(
                    Path(scratch) / f"{repeat} {clients} {actors}", clients, actors, rounds
                )
                times[clients, actors].append(seconds)
    return [
        Record(clients, actors, 1e3 * min(seconds), clients / min(seconds))
        for (clients, actors), seconds in times.items()
    ]


def round_seconds(folder: Path, clients: int, actors: int, rounds: int) -> float:
    """The median time of a round of a cell, in seconds."""
    grid = Grid.model_validate(
        {
            "dataset": {"name": "digits", "limit": 1000},
            "algorithms": [
                {"name": f"{Path(__file__).resolve()}:Nothing", "params": {"rounds": rounds}}
            ],
            "clients": clients,
            "partition": {"scheme": "iid"},
            "evaluation": {"per_class": 2},
            "resources": {"clients_per_actor": clients // actors},
        }
    )
    console = Console(file=io.StringIO())
    code = run_bench(prepare(grid, [Node(2.0, 0.0)]), folder, console, nullcontext(RayEngine()))
    if code:
        sys.exit(console.file.getvalue())  # type: ignore[attr-defined]
    clocks = [record["clock"] for record in read_results(folder).rounds()]
    return statistics.median(after - before for before, after in pairwise(clocks[WARM:]))


if __name__ == "__main__":
    main()
