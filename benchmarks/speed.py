"""What a private round, a bench from command to report, `fedsim report` and `fedsim account` cost;
what is compared takes turns.

    python benchmarks/speed.py [step] [start] [report] [account] [--against TREE] [--grid FILE]
    [--run FOLDER] [--repeats 3] [--json FILE]

`step` is the product's round as `fedsim bench` runs it, through `train`: broadcast, Poisson
samples, gathered rows, clipped sum, noise, Adam, averages, diagnostics, ledger. *Without privacy*
is the same with a plain gradient: no norms, no clip, no noise, no ledger. *Bare* is what one would
write by hand: gather a batch, backward, torch's fused Adam. Processor time of one thread, medians
of 100 rounds.

The others are commands in a fresh process each, by the clock and by the processor, as far as that
counts what they started: `start` benches one small cell, or `--grid`; `report` draws `--run`;
`account` has a budget that is new and one that is known. `--against` is another source tree, such
as a worktree of an earlier revision: of a busy machine only ratios are of value.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Any, cast

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from fedsim.batch import Batch, Layout
from fedsim.data.sources.known import read_digits
from fedsim.data.spec import DatasetSpec
from fedsim.methods.algorithm import Algorithm, solved_plan
from fedsim.methods.dp_sgd import DPSGD, DPSGDParams
from fedsim.methods.messages import Server, Task
from fedsim.methods.products import Generator
from fedsim.models.layers import initial_model, one_hot
from fedsim.plugins.registry import register
from fedsim.privacy.clipping import ClippedSum
from fedsim.runs.process import settle
from fedsim.seeds import Seeds
from fedsim.training.cohort import Cohort, CohortSpec, LocalPool, build_algorithm
from fedsim.training.rounds import train

ROOT = Path(__file__).resolve().parents[1]
DIM = 768
CLASSES = 11
ROWS = 256
CLIENTS = 10
HELD = 12_000
EPSILON = 8.0
DELTA = 1e-5
LEARNING_RATE = 1e-3
ROUNDS = 100
PROBLEMS = {
    "reference-cvae": "benchmark-reference-cvae",
    "fedhypevae": "fedhypevae",
    "fedhypevae on digits": "fedhypevae",
}
ONE_CELL = (
    "{name: one, dataset: digits, algorithms: [{name: weight-noise, params: {rounds: 3}}], "
    "clients: [4], epsilon: [4]}"
)
ACCOUNT = (
    "account",
    "--epsilon",
    "1",
    "--delta",
    "1e-4",
    "--rounds",
    "300",
    "--sample-rate",
    "0.1",
)


@dataclass(frozen=True)
class Record:
    """Medians of what was measured: seconds by the clock (None: not asked) and of the processor,
    and the ratio of these to the first's.
    """

    what: str
    of: str
    seconds: float | None
    cpu_seconds: float
    ratio: float


class ReferenceCVAE(nn.Module):
    """768+11 -> 256 x 3 -> 100 -> 256 x 3 -> 768: 740 k parameters, ReLU, label given to encoder
    and decoder.
    """

    def __init__(self, hidden: int = 256, latent: int = 100) -> None:
        super().__init__()
        self.encoder = self._mlp(DIM + CLASSES, hidden)
        self.mean = nn.Linear(hidden, latent)
        self.log_var = nn.Linear(hidden, latent)
        self.decoder = nn.Sequential(
            self._mlp(latent + CLASSES, hidden), nn.Linear(hidden, DIM), nn.Sigmoid()
        )

    @staticmethod
    def _mlp(inputs: int, hidden: int) -> nn.Sequential:
        pairs = pairwise((inputs, hidden, hidden, hidden))
        return nn.Sequential(*(module for a, b in pairs for module in (nn.Linear(a, b), nn.ReLU())))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Squared error and KL divergence, per example."""
        label = one_hot(batch.y, CLASSES)
        h = self.encoder(torch.cat([batch.x, label], -1))
        mean = self.mean(h)
        log_var = self.log_var(h)
        z = mean + batch.draws["posterior"] * (0.5 * log_var).exp()
        kl = -0.5 * (1 + log_var - mean.square() - log_var.exp()).sum(-1)
        return {
            "error": (self.decoder(torch.cat([z, label], -1)) - batch.x).square().mean(-1),
            "kl": 1e-3 * kl,
        }


@register("benchmark-reference-cvae")
class Reference(DPSGD):
    """The reference CVAE, shared by all clients."""

    Params = DPSGDParams

    def build(self, clients: int) -> nn.Module:
        """The model."""
        return ReferenceCVAE()

    def draws(self) -> dict[str, tuple[int, ...]]:
        """One draw of z."""
        return {"posterior": (100,)}

    def loss(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """The model's."""
        return cast(dict[str, Tensor], model.loss(batch))

    def generator(self, server: Server) -> Generator:
        """None is made here."""
        raise NotImplementedError


@dataclass(frozen=True)
class Problem:
    """A method, the rows of its clients, and how many of them a round samples on average."""

    name: str
    x: np.ndarray[Any, np.dtype[np.float32]]
    y: np.ndarray[Any, np.dtype[np.int64]]
    rows: int

    @classmethod
    def of(cls, name: str) -> Problem:
        """The digits, or unit-norm rows and labels at random."""
        if name.endswith("digits"):
            digits = read_digits(DatasetSpec(name="digits"))
            return cls(PROBLEMS[name], digits.x_train, digits.y_train, len(digits.x_train) // 5)
        stream = np.random.default_rng(0)
        x = stream.standard_normal((HELD, DIM), dtype=np.float32)
        return cls(
            PROBLEMS[name],
            x / np.linalg.norm(x, axis=1, keepdims=True),
            stream.integers(CLASSES, size=HELD),
            ROWS,
        )

    @property
    def params(self) -> dict[str, Any]:
        """Rounds without end."""
        return {
            "rounds": 100_000,
            "sample_rate": self.rows / len(self.x),
            "expected_batch": self.rows,
        }

    def algorithm(self) -> Algorithm:
        """A fresh instance."""
        return build_algorithm(
            self.name, self.params, Task(self.x.shape[1], int(self.y.max()) + 1, CLIENTS)
        )

    def product(self, *, private: bool) -> Callable[[], object]:
        """The product's round."""
        algorithm = self.algorithm()
        if private:
            plan = solved_plan(algorithm, EPSILON, DELTA)
        else:
            plan = None
        rows = tuple(np.array_split(np.arange(len(self.x)), CLIENTS))
        spec = CohortSpec(
            self.name, self.params, algorithm.task, plan, Seeds(0), tuple(range(CLIENTS)), rows
        )
        rounds = train(algorithm, LocalPool([Cohort(spec, self.x, self.y)]), plan, Seeds(0))
        return lambda: next(rounds)

    def bare(self) -> Callable[[], object]:
        """A batch, backward, torch's fused Adam."""
        algorithm: Any = self.algorithm()
        model = initial_model(algorithm.build, Seeds(0), range(CLIENTS))
        optimiser = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
        x = torch.from_numpy(self.x)
        y = torch.from_numpy(self.y)
        shapes = cast(DPSGD, algorithm).draws()
        stream = torch.Generator().manual_seed(0)
        held = len(self.x)

        def step() -> None:
            chosen = torch.randint(held, (self.rows,), generator=stream).sort().values
            draws = {
                name: torch.randn(self.rows, *shape, generator=stream)
                for name, shape in shapes.items()
            }
            batch = Batch(x[chosen], y[chosen], draws, Layout(chosen * CLIENTS // held, CLIENTS))
            optimiser.zero_grad()
            torch.stack(list(algorithm.loss(model, batch).values())).sum(0).mean().backward()
            optimiser.step()

        return step


def plain_sum(model: nn.Module, loss: Any, batch: Batch, *_: Any, **__: Any) -> ClippedSum:
    """In the place of ``clipped_sum``: the gradient of the summed loss, nothing clipped."""
    losses = loss(model, batch)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(losses.sum(), list(parameters.values()), materialize_grads=True)
    return ClippedSum(
        dict(zip(parameters, found, strict=True)), torch.zeros(len(batch)), losses.detach()
    )


def steps(repeats: int) -> Iterator[Record]:
    """Medians over interleaved rounds: what the machine does meanwhile hits all alike."""
    import fedsim.methods.dp_sgd as dp_sgd

    settle(1)
    clipped = dp_sgd.clipped_sum
    for name in PROBLEMS:
        problem = Problem.of(name)
        made = {
            "bare": problem.bare(),
            "without privacy": problem.product(private=False),
            "fedsim": problem.product(private=True),
        }
        times: dict[str, list[float]] = {of: [] for of in made}
        for round_ in range(-3, repeats * ROUNDS // 3):
            for of, run in made.items():
                if of == "without privacy":
                    dp_sgd.clipped_sum = plain_sum
                else:
                    dp_sgd.clipped_sum = clipped  # type: ignore[assignment]
                started = time.process_time()
                run()
                times[of].extend([time.process_time() - started] if round_ >= 0 else [])
        dp_sgd.clipped_sum = clipped
        medians = {of: statistics.median(values) for of, values in times.items()}
        yield from (
            Record(f"a round of {name}", of, None, median, median / medians["bare"])
            for of, median in medians.items()
        )


def commands(
    what: str, trees: dict[str, Path], repeats: int, grid: Path | None, run: Path | None
) -> Iterator[Record]:
    """Medians of a command in every tree, which take turns."""
    times: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(repeats):
        for of, tree in trees.items():
            with tempfile.TemporaryDirectory() as scratch:
                for name, arguments in _asked(what, Path(scratch), grid, run):
                    times.setdefault((name, of), []).append(_timed(tree, arguments, Path(scratch)))
    medians = {
        key: [statistics.median(column) for column in zip(*each, strict=True)]
        for key, each in times.items()
    }
    for (name, of), (seconds, cpu) in medians.items():
        yield Record(name, of, seconds, cpu, seconds / medians[name, "this"][0])


def _asked(
    what: str, scratch: Path, grid: Path | None, run: Path | None
) -> Iterator[tuple[str, tuple[str, ...]]]:
    if what == "start":
        if grid is None:
            (scratch / "grid.yaml").write_text(ONE_CELL, encoding="utf-8")
        else:
            shutil.copy(grid, scratch / "grid.yaml")
        yield (
            f"fedsim bench {grid.name if grid else 'of one cell'}",
            ("bench", "grid.yaml", "--out", "run"),
        )
    elif what == "report":
        if run is None:
            sys.exit("report: give --run FOLDER")
        yield f"fedsim report {run.name}", ("report", str(run.resolve()))
    else:
        yield "fedsim account, a new budget", ACCOUNT
        yield "fedsim account, a known budget", ACCOUNT


def _timed(tree: Path, arguments: tuple[str, ...], folder: Path) -> tuple[float, float]:
    """Seconds by the clock and by the processor of a command of a tree, whose cache is in
    ``folder``.
    """
    environment = os.environ | {"PYTHONPATH": str(tree), "FEDSIM_CACHE": str(folder / "cache")}
    started = time.perf_counter()
    code = ("-c", "from fedsim_command import main; main()", *arguments)
    process = Popen([sys.executable, *code], cwd=folder, env=environment, stdout=DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"{tree}: `fedsim {' '.join(arguments)}` failed")
    return seconds, usage.ru_utime + usage.ru_stime


def main() -> None:
    """Measure, print, and write the records."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what", nargs="*", default=["step", "start", "account"], help="step, start, report, account"
    )
    parser.add_argument("--against", type=Path, metavar="TREE")
    parser.add_argument("--grid", type=Path, metavar="FILE")
    parser.add_argument("--run", type=Path, metavar="FOLDER")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    trees = {"this": ROOT} | ({"against": options.against.resolve()} if options.against else {})
    records: list[Record] = []
    for what in options.what:
        if what not in ("step", "start", "report", "account"):
            parser.error(f"'{what}' is not one of step, start, report, account")
        if what == "step":
            found = steps(options.repeats)
        else:
            found = commands(what, trees, options.repeats, options.grid, options.run)
        records.extend(found)
    shown = Table(
        "what",
        "of",
        "seconds",
        "processor seconds",
        "ratio",
        title=f"load {os.getloadavg()[0]:.1f}",
    )
    for each in records:
        if each.seconds is None:
            seconds = ""
        else:
            seconds = f"{each.seconds:.2f}"
        shown.add_row(each.what, each.of, seconds, f"{each.cpu_seconds:.4f}", f"{each.ratio:.2f}")
    Console(width=120).print(shown)
    if options.json:
        options.json.write_text(
            json.dumps([asdict(record) for record in records], indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
