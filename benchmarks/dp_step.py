"""What a private round costs: the product's, the same harness without privacy, a bare PyTorch step, Opacus; interleaved in one run.

    python benchmarks/dp_step.py [--rounds 100] [--json FILE]

The product's round is what `fedsim bench` runs, through `train`: broadcast, every client's Poisson sample and gathered rows, the clipped
sum, noise at server and clients, Adam, iterate averages, diagnostics, ledger. *Without privacy* is the same with a plain gradient: no
norms, no clip, no noise, no ledger. *Bare* is what one would write by hand: gather a batch, backward, torch's fused Adam. The digits are so
small that a round of them is all dispatch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from fedsim.batch import Batch, Layout
from fedsim.data.sources.digits import digits_embeddings
from fedsim.methods.algorithm import Algorithm, solved_plan
from fedsim.methods.dp_sgd import DPSGD, DPSGDParams
from fedsim.methods.messages import Server, Task
from fedsim.methods.products import Generator
from fedsim.models.initialise import initial_model
from fedsim.models.layers import ClientCode, ClientLinear, one_hot
from fedsim.plugins.registry import register
from fedsim.privacy.clipping import ClippedSum
from fedsim.privacy.clipping.materialised import LossModule, register_cohort_layers
from fedsim.runs.worker import settle
from fedsim.seeds import Seeds
from fedsim.training.cohort import Cohort, CohortSpec, LocalPool, build_algorithm
from fedsim.training.rounds import train

DIM, CLASSES, ROWS, CLIENTS, HELD = 768, 11, 256, 10, 12_000
EPSILON, DELTA, LEARNING_RATE, FOREVER = 8.0, 1e-5, 1e-3, 100_000
SLOW = ("opacus-hooks", "vmap")
METHODS = ("bare", "without privacy", "fedsim", "opacus-ghost", "opacus-hooks", "vmap")


@dataclass(frozen=True)
class Record:
    """One row of the result: the median processor time of a round, and its ratios; None where a method cannot run."""

    model: str
    device: str
    method: str
    ms: float | None
    ratio_to_bare: float | None
    ratio_to_without_privacy: float | None


class ReferenceCVAE(nn.Module):
    """768+11 -> 256 x 3 -> 100 -> 256 x 3 -> 768: 740 k parameters, ReLU, label given to encoder and decoder."""

    def __init__(self, hidden: int = 256, latent: int = 100) -> None:
        super().__init__()
        self.encoder = self._mlp(DIM + CLASSES, hidden)
        self.mean, self.log_var = nn.Linear(hidden, latent), nn.Linear(hidden, latent)
        self.decoder = nn.Sequential(self._mlp(latent + CLASSES, hidden), nn.Linear(hidden, DIM), nn.Sigmoid())

    @staticmethod
    def _mlp(inputs: int, hidden: int) -> nn.Sequential:
        pairs = pairwise((inputs, hidden, hidden, hidden))
        return nn.Sequential(*(module for a, b in pairs for module in (nn.Linear(a, b), nn.ReLU())))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Squared error and KL divergence, per example."""
        label = one_hot(batch.y, CLASSES)
        h = self.encoder(torch.cat([batch.x, label], -1))
        mean, log_var = self.mean(h), self.log_var(h)
        z = mean + batch.draws["posterior"] * (0.5 * log_var).exp()
        kl = -0.5 * (1 + log_var - mean.square() - log_var.exp()).sum(-1)
        return {"error": (self.decoder(torch.cat([z, label], -1)) - batch.x).square().mean(-1), "kl": 1e-3 * kl}


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


PROBLEMS = {"reference-cvae": "benchmark-reference-cvae", "fedhypevae": "fedhypevae", "fedhypevae on digits": "fedhypevae"}


def plain_sum(model: nn.Module, loss: Any, batch: Batch, *_: Any, **__: Any) -> ClippedSum:
    """In the place of ``clipped_sum``: the gradient of the summed loss, nothing clipped."""
    losses = loss(model, batch)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(losses.sum(), list(parameters.values()), materialize_grads=True)
    return ClippedSum(dict(zip(parameters, found, strict=True)), torch.zeros(len(batch)), losses.detach())


@dataclass(frozen=True)
class Problem:
    """A method, the rows of its clients, and how many of them a round samples on average."""

    name: str
    x: np.ndarray[Any, np.dtype[np.float32]]
    y: np.ndarray[Any, np.dtype[np.int64]]
    rows: int

    @property
    def params(self) -> dict[str, Any]:
        """Rounds without end."""
        return {"rounds": FOREVER, "sample_rate": self.rows / len(self.x), "expected_batch": self.rows}

    @property
    def task(self) -> Task:
        """The public facts."""
        return Task(self.x.shape[1], int(self.y.max()) + 1, CLIENTS)

    def algorithm(self) -> Algorithm:
        """A fresh instance."""
        return build_algorithm(self.name, self.params, self.task)

    def batches(self) -> Iterator[Batch]:
        """Without end: rows of a fixed number, gathered, with their draws."""
        x, y, shapes = torch.from_numpy(self.x), torch.from_numpy(self.y), cast(DPSGD, self.algorithm()).draws()
        stream, held = torch.Generator().manual_seed(0), len(self.x)
        while True:
            chosen = torch.randint(held, (self.rows,), generator=stream).sort().values
            draws = {name: torch.randn(self.rows, *shape, generator=stream) for name, shape in shapes.items()}
            yield Batch(x[chosen], y[chosen], draws, Layout(chosen * CLIENTS // held, CLIENTS))


def problem(name: str) -> Problem:
    """The digits, or unit-norm rows and labels at random."""
    if name.endswith("digits"):
        digits = digits_embeddings("digits")
        return Problem(PROBLEMS[name], digits.x_train, digits.y_train, len(digits.x_train) // 5)
    stream = np.random.default_rng(0)
    x = stream.standard_normal((HELD, DIM), dtype=np.float32)
    return Problem(PROBLEMS[name], x / np.linalg.norm(x, axis=1, keepdims=True), stream.integers(CLASSES, size=HELD), ROWS)


# --- one round of each method; each has a model and an optimiser of its own ---


def fedsim_round(private: bool, engine: str = "bookkeeping") -> Callable[[Problem], Callable[[], None]]:
    """The product's round, with its privacy or without."""

    def make(problem: Problem) -> Callable[[], None]:
        params = {**problem.params, "engine": engine}
        algorithm = build_algorithm(problem.name, params, problem.task)
        plan = solved_plan(algorithm, EPSILON, DELTA) if private else None
        rows = tuple(np.array_split(np.arange(len(problem.x)), CLIENTS))
        spec = CohortSpec(problem.name, params, algorithm.task, plan, Seeds(0), tuple(range(CLIENTS)), rows)
        rounds = train(algorithm, LocalPool([Cohort(spec, problem.x, problem.y)]), plan, Seeds(0))
        return lambda: cast(None, next(rounds))

    return make


def bare(problem: Problem) -> Callable[[], None]:
    """A batch, backward, torch's fused Adam."""
    algorithm: Any = problem.algorithm()
    model = initial_model(algorithm.build, Seeds(0), range(CLIENTS))
    optimiser, batches, loss = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True), problem.batches(), _total(algorithm)

    def step() -> None:
        optimiser.zero_grad()
        loss(model, next(batches)).mean().backward()
        optimiser.step()

    return step


def opacus_hooks(problem: Problem) -> Callable[[], None]:
    """Opacus as its guide uses it: GradSampleModule and DPOptimizer."""
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    register_cohort_layers()
    algorithm: Any = problem.algorithm()
    model = GradSampleModule(LossModule(initial_model(algorithm.build, Seeds(0), range(CLIENTS)), _total(algorithm)))
    adam, stream = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True), torch.Generator().manual_seed(0)
    batches = problem.batches()
    optimiser = DPOptimizer(adam, noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=problem.rows, generator=stream)

    def step() -> None:
        optimiser.zero_grad()
        model(_direct(next(batches))).mean().backward()
        optimiser.step()

    return step


def opacus_ghost(problem: Problem) -> Callable[[], None]:
    """Opacus' fast gradient clipping with ghost norms: two backward passes."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping

    register_cohort_layers()
    _register_cohort_norms()
    algorithm: Any = problem.algorithm()
    loss = LossModule(initial_model(algorithm.build, Seeds(0), range(CLIENTS)), _total(algorithm))
    model = GradSampleModuleFastGradientClipping(loss, max_grad_norm=1.0, use_ghost_clipping=True)
    adam, stream = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True), torch.Generator().manual_seed(0)
    batches = problem.batches()
    optimiser = DPOptimizerFastGradientClipping(
        adam, noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=problem.rows, generator=stream
    )

    def step() -> None:
        optimiser.zero_grad()
        DPTensorFastGradientClipping(model, optimiser, model(next(batches)), "mean").backward()
        optimiser.step()

    return step


def _total(algorithm: Any) -> Callable[[nn.Module, Batch], Tensor]:
    return lambda model, batch: torch.stack(list(algorithm.loss(model, batch).values())).sum(0)


def _direct(batch: Batch) -> Batch:
    """Opacus' hooks for the cohort layers expect one weight set per row."""
    return Batch(batch.x, batch.y, batch.draws, Layout(batch.layout.client, batch.layout.clients, direct=True))


def _register_cohort_norms() -> None:
    """Ghost norms of the cohort layers, so that Opacus need not form their per-example gradients."""
    from opacus.grad_sample import register_norm_sampler

    def client_linear(layer: ClientLinear, inputs: list[Any], grads: Tensor) -> dict[nn.Parameter, Tensor]:
        g = grads.square().sum(1)
        return {layer.weight: (inputs[0].square().sum(1) * g).sqrt(), layer.bias: g.sqrt()}

    def client_code(layer: ClientCode, inputs: list[Any], grads: Tensor) -> dict[nn.Parameter, Tensor]:
        return {layer.weight: grads.norm(dim=1)}

    for kind, sampler in ((ClientLinear, client_linear), (ClientCode, client_code)):
        register_norm_sampler(kind)(sampler)


ROUNDS: dict[str, Callable[[Problem], Callable[[], None]]] = {
    "bare": bare,
    "without privacy": fedsim_round(private=False),
    "fedsim": fedsim_round(private=True),
    "opacus-ghost": opacus_ghost,
    "opacus-hooks": opacus_hooks,
    "vmap": fedsim_round(private=True, engine="vmap"),
}


# --- timing ---


def measure(name: str, rounds: int) -> Iterator[Record]:
    """Medians over interleaved rounds: what the machine does meanwhile hits all methods alike. Slow methods run in every tenth."""
    given = problem(name)
    made = {method: _runnable(ROUNDS[method](given), method) for method in METHODS}
    times: dict[str, list[float]] = {method: [] for method in METHODS}
    for round_ in range(-2, rounds):
        for method, run in made.items():
            if run is not None and (method not in SLOW or round_ % 10 == 0 or round_ == -1):
                elapsed = _timed(run, method)
                if round_ >= 0:
                    times[method].append(elapsed)
    medians = {method: statistics.median(values) for method, values in times.items() if values}
    for method in METHODS:
        median = medians.get(method)
        ratios = (None if median is None else round(median / medians[other], 3) for other in ("bare", "without privacy"))
        yield Record(name, "cpu", method, None if median is None else round(median, 3), *ratios)


def _runnable(run: Callable[[], None], method: str) -> Callable[[], None] | None:
    """None for Opacus' ghost clipping of layers that are used twice in a forward, as FedHypeVAE's decoder is."""
    try:
        _timed(run, method)
    except NotImplementedError:
        return None
    return run


def _timed(run: Callable[[], None], method: str) -> float:
    """Milliseconds of processor time, whoever else uses the machine; without privacy the product's round makes plain sums."""
    import fedsim.methods.dp_sgd as dp_sgd

    clipped = dp_sgd.clipped_sum
    dp_sgd.clipped_sum = plain_sum if method == "without privacy" else clipped  # type: ignore[assignment]
    try:
        start = time.process_time()
        run()
        return (time.process_time() - start) * 1e3
    finally:
        dp_sgd.clipped_sum = clipped


def table(records: list[Record]) -> Table:
    """The result for people."""
    shown = Table(title="One round, 256 of 12,000 rows or 269 of 1,348 digits, 10 clients (median, processor time)")
    for heading in ("model", "method", "ms", "x bare", "x without privacy"):
        shown.add_column(heading, justify="left" if heading in ("model", "method") else "right")
    for record in records:
        numbers = (record.ms, record.ratio_to_bare, record.ratio_to_without_privacy)
        shown.add_row(record.model, record.method, *("cannot run" if number is None else f"{number:.3f}" for number in numbers))
    return shown


def main() -> None:
    """Measure, print, and write the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100, help="interleaved rounds; slow methods run in every tenth")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records here as a JSON list")
    options = parser.parse_args()
    settle(options.threads)
    warnings.filterwarnings("ignore")
    records = [record for name in PROBLEMS for record in measure(name, options.rounds)]
    Console(width=120).print(table(records))
    if options.json:
        options.json.write_text(json.dumps([asdict(record) for record in records], indent=1) + "\n")


if __name__ == "__main__":
    main()
