"""How long a private training round takes, and how long three commands of fedsim take.

    python benchmarks/speed.py [step] [kernel] [start] [report] [account] [--against TREE]
        [--grid FILE] [--run FOLDER] [--repeats 3] [--json FILE]

`step` times one training round of three training problems on one thread, in three variants:

- `bare` is the loop that one would write by hand: gather a batch, run backward, and take a step of
  torch's fused Adam.
- `without privacy` is the round of `fedsim bench` with the plain gradient. It computes no norms,
  clips nothing, adds no noise and keeps no ledger.
- `fedsim` is the round of `fedsim bench`: broadcast, Poisson samples, gathered examples, clipped
  sum, noise, Adam, running means, diagnostics and ledger.

The result is the median of the processor seconds of many rounds (100 rounds with `--repeats 3`),
and its ratio to `bare`.

`kernel` times twenty rounds of `fedhypevae` as `fedsim bench` runs them: without the MMD, with the
MMD in one of the twenty, which is the default, and with the MMD in every round. The result is the
median of the processor seconds, and its ratio to the rounds without the MMD.

The other three time a command in a new process. `start` benches one small cell, or the grid of
`--grid`. `report` draws the report of the run folder `--run`. `account` asks for the noise of a
budget twice: the first time it is new, the second time it is in the cache. The results are medians
of wall-clock seconds and of processor seconds. Processor seconds are those of the command and of
the child processes for which it waited. `--against` times the same commands with another source
tree as well, such as a worktree of an earlier revision.

Variants and trees take turns, so that all of them meet the same load of the machine. On a busy
machine only the ratios mean anything.
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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Any, cast
from unittest.mock import patch

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from fedsim.batch import Batch, Layout
from fedsim.data.sources.known import read_digits
from fedsim.data.spec import DatasetSpec
from fedsim.methods.algorithm import solved_plan
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
KINDS = ("step", "kernel", "start", "report", "account")
"""The kinds of measurements that can be asked for."""
DIM = 768
CLASSES = 11
LATENT = 100
CLIENTS = 10
EXAMPLES = 12_000
"""The number of made-up training examples of all clients."""
SAMPLED = 256
"""The expected number of examples in a round, over all clients."""
EPSILON = 8.0
DELTA = 1e-5
LEARNING_RATE = 1e-3
ROUNDS = 100
"""The number of rounds that are timed if there are three repeats."""
WARM_UP = 3
"""The number of rounds before the first one that is timed."""
PROBLEMS = {
    "reference-cvae": "benchmark-reference-cvae",
    "fedhypevae": "fedhypevae",
    "fedhypevae on digits": "fedhypevae",
}
"""The algorithm of every training problem, by the problem's name."""
KERNELS: dict[str, dict[str, Any]] = {
    "without the MMD": {"kernel": 0},
    "the MMD in one round": {},
    "the MMD in every round": {"kernel_every": 1},
}
"""The parameters of `fedhypevae` in every variant of `kernel`."""
PERIOD = 20
"""The number of rounds of which one has the MMD by default."""
PAPER_DIM = 384
"""The dimension of the embeddings of `kernel`, as in the paper's setting."""
ONE_CELL = (
    "{name: one, dataset: digits, algorithms: [{name: weight-noise, params: {rounds: 3}}], "
    "clients: [4], epsilon: [4]}"
)
"""The grid of `start` if `--grid` names none."""
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
"""The command line of `account`."""
RunRound = Callable[[], object]
"""A function that runs one training round."""


@dataclass(frozen=True)
class Measurement:
    """The medians of one measurement.

    Attributes:
        name: what was measured, such as a round of a model or a command.
        variant: the variant of a round, or the source tree of a command.
        seconds: wall-clock seconds; None for a round.
        cpu_seconds: processor seconds.
        ratio: for a round, its processor seconds divided by those of `bare`. For a command, its
            wall-clock seconds divided by those in this source tree.
    """

    name: str
    variant: str
    seconds: float | None
    cpu_seconds: float
    ratio: float

    def json_record(self) -> dict[str, Any]:
        """Return the measurement with the keys of ``results/speed.json``.

        ``fill_pages.py`` reads these keys, so they keep their names.
        """
        return {
            "what": self.name,
            "of": self.variant,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "ratio": self.ratio,
        }


def three_layers(inputs: int, width: int) -> nn.Sequential:
    """Return three linear layers of equal width, each with a ReLU."""
    return nn.Sequential(
        nn.Linear(inputs, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
    )


class ReferenceCVAE(nn.Module):
    """A conditional VAE of usual size, with 740,000 parameters.

    The encoder has widths 768 + 11, 256, 256, 256 and 100, and the decoder 100 + 11, 256, 256, 256
    and 768. Both get the label.
    """

    def __init__(self, hidden: int = 256, latent: int = LATENT) -> None:
        super().__init__()
        self.encoder = three_layers(DIM + CLASSES, hidden)
        self.mean = nn.Linear(hidden, latent)
        self.log_var = nn.Linear(hidden, latent)
        self.decoder = nn.Sequential(
            three_layers(latent + CLASSES, hidden), nn.Linear(hidden, DIM), nn.Sigmoid()
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the squared error and the weighted KL divergence of each example, ``[N]``."""
        label = one_hot(batch.y, CLASSES)
        h = self.encoder(torch.cat([batch.x, label], -1))
        mean = self.mean(h)
        log_var = self.log_var(h)
        z = mean + batch.draws["posterior"] * (0.5 * log_var).exp()
        decoded = self.decoder(torch.cat([z, label], -1))
        kl = -0.5 * (1 + log_var - mean.square() - log_var.exp()).sum(-1)
        return {"error": (decoded - batch.x).square().mean(-1), "kl": 1e-3 * kl}


@register("benchmark-reference-cvae")
class Reference(DPSGD):
    """The method that trains the reference CVAE, which all clients share."""

    Params = DPSGDParams

    def build(self, clients: int) -> nn.Module:
        """Return the reference CVAE."""
        return ReferenceCVAE()

    def draws(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of an example's random numbers: one point of the latent space."""
        return {"posterior": (LATENT,)}

    def loss(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """Return the parts of the reference CVAE's loss."""
        return cast(dict[str, Tensor], model.loss(batch))

    def generator(self, server: Server) -> Generator:
        """Raise an error, because the benchmark ends before a generator is made."""
        raise NotImplementedError


@dataclass(frozen=True)
class Problem:
    """A training problem whose rounds are timed.

    Attributes:
        algorithm: the name of the algorithm.
        x: the training examples of all clients, ``[n, d]``.
        y: their labels, ``[n]``.
        sampled: the expected number of examples in a round.
        variant: parameters of the algorithm that differ from its defaults.
    """

    algorithm: str
    x: NDArray[np.float32]
    y: NDArray[np.int64]
    sampled: int
    variant: Mapping[str, Any] = field(default_factory=dict)

    @property
    def params(self) -> dict[str, Any]:
        """The parameters of the algorithm, with more rounds than are ever timed."""
        return {
            "rounds": 100_000,
            "sample_rate": self.sampled / len(self.x),
            "expected_batch": self.sampled,
            **self.variant,
        }

    def new_algorithm(self) -> DPSGD:
        """Return a new instance of the algorithm."""
        task = Task(self.x.shape[1], int(self.y.max()) + 1, CLIENTS)
        return cast(DPSGD, build_algorithm(self.algorithm, self.params, task))

    def fedsim_round(self, *, private: bool) -> RunRound:
        """Return a function that runs a round as `fedsim bench` does.

        Args:
            private: whether the training has a privacy plan, so that there are noise and a ledger.
        """
        algorithm = self.new_algorithm()
        plan = None
        if private:
            plan = solved_plan(algorithm, EPSILON, DELTA)
        seeds = Seeds(0)
        spec = CohortSpec(
            algorithm=self.algorithm,
            params=self.params,
            task=algorithm.task,
            plan=plan,
            seeds=seeds,
            members=tuple(range(CLIENTS)),
            rows=tuple(np.array_split(np.arange(len(self.x)), CLIENTS)),
        )
        pool = LocalPool([Cohort(spec, self.x, self.y)])
        rounds = train(algorithm, pool, plan, seeds)
        return lambda: next(rounds)

    def bare_round(self) -> RunRound:
        """Return a function that runs a training step written by hand, without fedsim's engine.

        The batch is drawn with replacement and has a fixed size.
        """
        algorithm = self.new_algorithm()
        model = initial_model(algorithm.build, Seeds(0), range(CLIENTS))
        optimiser = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
        x = torch.from_numpy(self.x)
        y = torch.from_numpy(self.y)
        shapes = algorithm.draws()
        stream = torch.Generator().manual_seed(0)
        examples = len(self.x)

        def step() -> None:
            chosen = torch.randint(examples, (self.sampled,), generator=stream).sort().values
            draws = {}
            for name, shape in shapes.items():
                draws[name] = torch.randn(self.sampled, *shape, generator=stream)
            # Each client has an equal part of the examples, one client's after the other's.
            layout = Layout(chosen * CLIENTS // examples, CLIENTS)
            batch = Batch(x[chosen], y[chosen], draws, layout)
            optimiser.zero_grad()
            loss_terms = list(algorithm.loss(model, batch).values())
            torch.autograd.backward(torch.stack(loss_terms).sum(0).mean())
            optimiser.step()

        return step


def problem_of(name: str) -> Problem:
    """Return a training problem on digits, or on random unit-norm embeddings with random labels.

    Args:
        name: a key of :data:`PROBLEMS`.
    """
    algorithm = PROBLEMS[name]
    if name.endswith("digits"):
        digits = read_digits(DatasetSpec(name="digits"))
        return Problem(algorithm, digits.x_train, digits.y_train, len(digits.x_train) // 5)
    stream = np.random.default_rng(0)
    x = stream.standard_normal((EXAMPLES, DIM), dtype=np.float32)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    y = stream.integers(CLASSES, size=EXAMPLES)
    return Problem(algorithm, x, y, SAMPLED)


def plain_sum(
    model: nn.Module, loss: Callable[[nn.Module, Batch], Tensor], batch: Batch, *_: object
) -> ClippedSum:
    """Return the gradient of the summed loss as if it were a clipped sum; all norms are 0.

    It takes the place of :func:`fedsim.privacy.clipping.clipped_sum` and has its arguments, but
    ignores the clip norms and the engine.
    """
    losses = loss(model, batch)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(losses.sum(), list(parameters.values()), materialize_grads=True)
    sums = dict(zip(parameters, gradients, strict=True))
    return ClippedSum(sums, torch.zeros(len(batch)), losses.detach())


def processor_seconds(run_round: RunRound) -> float:
    """Run a round and return its processor seconds."""
    start = time.process_time()
    run_round()
    return time.process_time() - start


def round_medians(problem: Problem, rounds: int) -> dict[str, float]:
    """Return the median processor seconds of a round, by variant.

    Args:
        problem: the training problem.
        rounds: the number of rounds that are timed. In each of them every variant runs once.
    """
    bare = problem.bare_round()
    without_privacy = problem.fedsim_round(private=False)
    private = problem.fedsim_round(private=True)
    times: dict[str, list[float]] = {"bare": [], "without privacy": [], "fedsim": []}
    for number in range(WARM_UP + rounds):
        seconds = {"bare": processor_seconds(bare)}
        # Without privacy, a round must not clip: it sums the gradients as they are.
        with patch("fedsim.methods.dp_sgd.clipped_sum", plain_sum):
            seconds["without privacy"] = processor_seconds(without_privacy)
        seconds["fedsim"] = processor_seconds(private)
        if number < WARM_UP:
            continue
        for variant, value in seconds.items():
            times[variant].append(value)
    return {variant: statistics.median(values) for variant, values in times.items()}


def measure_rounds(repeats: int) -> list[Measurement]:
    """Return the cost of a round of every problem in every variant."""
    settle(1)
    measurements = []
    for name in PROBLEMS:
        medians = round_medians(problem_of(name), repeats * ROUNDS // 3)
        for variant, median in medians.items():
            measurement = Measurement(
                name=f"a round of {name}",
                variant=variant,
                seconds=None,
                cpu_seconds=median,
                ratio=median / medians["bare"],
            )
            measurements.append(measurement)
    return measurements


def measure_kernel(repeats: int) -> list[Measurement]:
    """Return the cost of :data:`PERIOD` rounds of `fedhypevae` in every variant of the MMD.

    The sizes are those of the paper's setting; a fifth of the examples is sampled in every round.
    """
    settle(1)
    problem = problem_of("fedhypevae")
    problem = replace(problem, x=problem.x[:, :PAPER_DIM].copy(), sampled=EXAMPLES // 5)
    run_round = {}
    times: dict[str, list[float]] = {}
    for variant, params in KERNELS.items():
        run_round[variant] = replace(problem, variant=params).fedsim_round(private=True)
        times[variant] = []
    for number in range(1 + repeats):
        for variant, values in times.items():
            seconds = sum(processor_seconds(run_round[variant]) for _ in range(PERIOD))
            # The first rounds warm up.
            if number > 0:
                values.append(seconds)
    medians = {variant: statistics.median(values) for variant, values in times.items()}
    return [
        Measurement(
            name=f"{PERIOD} rounds of fedhypevae",
            variant=variant,
            seconds=None,
            cpu_seconds=median,
            ratio=median / medians["without the MMD"],
        )
        for variant, median in medians.items()
    ]


def measure_commands(
    kind: str,
    trees: Mapping[str, Path],
    repeats: int,
    grid: Path | None,
    run: Path | None,
) -> list[Measurement]:
    """Return the cost of the commands of one kind in every source tree.

    Args:
        kind: ``start``, ``report`` or ``account``.
        trees: the source trees by name; "this" is the one to which the others are compared.
        repeats: how often each command runs.
        grid: the grid of ``start``; None for one small cell.
        run: the run folder of ``report``.
    """
    times: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(repeats):
        for tree_name, tree in trees.items():
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch)
                for name, arguments in commands_of(kind, folder, grid, run):
                    seconds = command_seconds(tree, arguments, folder)
                    times.setdefault((name, tree_name), []).append(seconds)
    medians = {}
    for key, pairs in times.items():
        wall_clock = statistics.median(pair[0] for pair in pairs)
        processor = statistics.median(pair[1] for pair in pairs)
        medians[key] = (wall_clock, processor)
    measurements = []
    for (name, tree_name), (wall_clock, processor) in medians.items():
        this_wall_clock, _ = medians[name, "this"]
        ratio = wall_clock / this_wall_clock
        measurements.append(Measurement(name, tree_name, wall_clock, processor, ratio))
    return measurements


def commands_of(
    kind: str, folder: Path, grid: Path | None, run: Path | None
) -> list[tuple[str, tuple[str, ...]]]:
    """Return the commands of one kind, each with its name and its arguments.

    Args:
        kind: ``start``, ``report`` or ``account``.
        folder: the working folder of the commands. ``start`` gets its grid there.
        grid: the grid of ``start``; None for one small cell.
        run: the run folder of ``report``.
    """
    if kind == "start":
        name = "fedsim bench of one cell"
        if grid is None:
            (folder / "grid.yaml").write_text(ONE_CELL, encoding="utf-8")
        else:
            name = f"fedsim bench {grid.name}"
            shutil.copy(grid, folder / "grid.yaml")
        return [(name, ("bench", "grid.yaml", "--out", "run"))]
    if kind == "report":
        if run is None:
            sys.exit("report: give --run FOLDER")
        return [(f"fedsim report {run.name}", ("report", str(run.resolve())))]
    return [
        ("fedsim account, a new budget", ACCOUNT),
        ("fedsim account, a known budget", ACCOUNT),
    ]


def command_seconds(tree: Path, arguments: tuple[str, ...], folder: Path) -> tuple[float, float]:
    """Run a command of fedsim and return its wall-clock seconds and its processor seconds.

    Args:
        tree: the source tree whose code runs.
        arguments: the arguments of the command.
        folder: the working folder, which also gets the cache.
    """
    environment = os.environ | {"PYTHONPATH": str(tree), "FEDSIM_CACHE": str(folder / "cache")}
    code = "from fedsim_command import main; main()"
    command = [sys.executable, "-c", code, *arguments]
    start = time.perf_counter()
    # wait4 returns the processor seconds of the command, which Popen.wait does not.
    process = Popen(command, cwd=folder, env=environment, stdout=DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"{tree}: `fedsim {' '.join(arguments)}` failed")
    return seconds, usage.ru_utime + usage.ru_stime


def show(measurements: list[Measurement]) -> None:
    """Print the table of measurements, with the load of the machine as its title."""
    table = Table(
        "measured",
        "variant",
        "seconds",
        "processor seconds",
        "ratio",
        title=f"load {os.getloadavg()[0]:.1f}",
    )
    for measurement in measurements:
        seconds = ""
        if measurement.seconds is not None:
            seconds = f"{measurement.seconds:.2f}"
        table.add_row(
            measurement.name,
            measurement.variant,
            seconds,
            f"{measurement.cpu_seconds:.4f}",
            f"{measurement.ratio:.2f}",
        )
    Console(width=120).print(table)


def main() -> None:
    """Measure the chosen kinds, print the table and write the records."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "kinds",
        nargs="*",
        default=["step", "start", "account"],
        metavar="what",
        help="step, kernel, start, report, account; default: step start account",
    )
    parser.add_argument("--against", type=Path, metavar="TREE", help="another source tree")
    parser.add_argument("--grid", type=Path, metavar="FILE", help="the grid of start")
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="the run folder of report")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each command")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the records are written")
    options = parser.parse_args()
    for kind in options.kinds:
        if kind not in KINDS:
            parser.error(f"'{kind}' is not one of {', '.join(KINDS)}")
    trees = {"this": ROOT}
    if options.against:
        trees["against"] = options.against.resolve()
    measurements: list[Measurement] = []
    for kind in options.kinds:
        if kind == "step":
            measurements += measure_rounds(options.repeats)
        elif kind == "kernel":
            measurements += measure_kernel(options.repeats)
        else:
            measurements += measure_commands(
                kind, trees, options.repeats, options.grid, options.run
            )
    show(measurements)
    if options.json:
        records = [measurement.json_record() for measurement in measurements]
        options.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
