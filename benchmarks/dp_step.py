"""What one private training step costs: every engine and the step without privacy, interleaved in one run.

    python benchmarks/dp_step.py [--rounds 30] [--json FILE]

A step is all of it: loss, gradient, and Adam; for a private one also clipping to C and a fresh Gaussian draw for every parameter.
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
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from algorithms.fedhypevae import FedHypeVAE
from fedsim.batch import Batch, Layout
from fedsim.methods.messages import Task
from fedsim.methods.optimise import adam_step
from fedsim.models.initialise import initial_model
from fedsim.models.layers import ClientCode, ClientLinear, one_hot
from fedsim.privacy.clipping import Norms, clipped_sum
from fedsim.privacy.clipping.materialised import LossModule, register_cohort_layers
from fedsim.privacy.noise import gaussian
from fedsim.runtime.worker import settle
from fedsim.seeds import Seeds

DIM, CLASSES, ROWS, CLIENTS = 768, 11, 256, 10
CLIP, SIGMA, LEARNING_RATE = 1.0, 1.0, 1e-3
FAST, SLOW = ("plain", "bookkeeping", "opacus-ghost"), ("opacus-hooks", "vmap")
METHODS = ("plain", "bookkeeping", "opacus-hooks", "opacus-ghost", "vmap")


@dataclass(frozen=True)
class Record:
    """One row of the result: the median time of a step, and its ratio to the plain step's median; None where a method cannot run."""

    model: str
    device: str
    method: str
    ms: float | None
    ratio_to_plain: float | None


@dataclass(frozen=True)
class Problem:
    """A model, its per-example loss, and a batch."""

    build: Callable[[], nn.Module]
    loss: Callable[[Any, Batch], Tensor]
    batch: Batch


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

    def loss(self, batch: Batch) -> Tensor:
        """Squared error plus KL divergence, per example."""
        label = one_hot(batch.y, CLASSES)
        h = self.encoder(torch.cat([batch.x, label], -1))
        mean, log_var = self.mean(h), self.log_var(h)
        z = mean + batch.draws["posterior"] * (0.5 * log_var).exp()
        kl = -0.5 * (1 + log_var - mean.square() - log_var.exp()).sum(-1)
        return (self.decoder(torch.cat([z, label], -1)) - batch.x).square().mean(-1) + 1e-3 * kl


def reference(device: str) -> Problem:
    """The reference CVAE, one client."""
    return Problem(
        lambda: ReferenceCVAE().to(device),
        lambda model, batch: model.loss(batch),
        _batch({"posterior": (100,)}, 1, device),
    )


def fedhypevae(device: str) -> Problem:
    """FedHypeVAE with its default parameters, the batch spread over ten clients."""
    algorithm = FedHypeVAE(FedHypeVAE.Params(), Task(DIM, CLASSES, CLIENTS))
    return Problem(
        lambda: initial_model(algorithm.build, Seeds(0), range(CLIENTS)).to(device),
        lambda model, batch: torch.stack(list(algorithm.loss(model, batch).values())).sum(0),
        _batch(algorithm.draws(), CLIENTS, device),
    )


PROBLEMS = {"reference-cvae": reference, "fedhypevae": fedhypevae}


def _batch(noise: Any, clients: int, device: str) -> Batch:
    stream = torch.Generator().manual_seed(0)
    x = torch.rand(ROWS, DIM, generator=stream)
    client = torch.randint(clients, (ROWS,), generator=stream).sort().values
    return Batch(
        x.to(device),
        torch.randint(CLASSES, (ROWS,), generator=stream).to(device),
        {name: torch.randn(ROWS, *shape, generator=stream).to(device) for name, shape in noise.items()},
        Layout(client.to(device), clients),
    )


# --- one step of each method; each has a model and an optimiser of its own ---


def plain(problem: Problem, device: str) -> Callable[[], None]:
    """No privacy: backward and torch's fused Adam."""
    model = problem.build()
    optimiser = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)

    def step() -> None:
        optimiser.zero_grad()
        problem.loss(model, problem.batch).mean().backward()
        optimiser.step()

    return step


def engine(name: str) -> Callable[[Problem, str], Callable[[], None]]:
    """A step with one of this package's engines, as ``fedsim.methods.dp_sgd`` makes it."""

    def make(problem: Problem, device: str) -> Callable[[], None]:
        model = problem.build()
        parameters = {name: p.detach() for name, p in model.named_parameters()}
        shapes = {name: p.shape for name, p in parameters.items()}
        stream, state, norms = Seeds(0).noise(), {}, Norms(CLIP)

        def step() -> None:
            noise = {name: part.to(device) for name, part in gaussian(shapes, SIGMA * CLIP, stream).parts.items()}
            noisy = clipped_sum(model, problem.loss, problem.batch, norms, name, onto=noise).sums
            adam_step(parameters, noisy, state, LEARNING_RATE, divisor=ROWS)

        return step

    return make


def opacus_hooks(problem: Problem, device: str) -> Callable[[], None]:
    """Opacus as its guide uses it: GradSampleModule and DPOptimizer."""
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    register_cohort_layers()
    model = GradSampleModule(LossModule(problem.build(), problem.loss))
    adam = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    stream = torch.Generator(device).manual_seed(0)
    optimiser = DPOptimizer(adam, noise_multiplier=SIGMA, max_grad_norm=CLIP, expected_batch_size=ROWS, generator=stream)

    def step() -> None:
        optimiser.zero_grad()
        model(_direct(problem.batch)).mean().backward()
        optimiser.step()

    return step


def opacus_ghost(problem: Problem, device: str) -> Callable[[], None]:
    """Opacus' fast gradient clipping with ghost norms: two backward passes."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping

    register_cohort_layers()
    _register_cohort_norms()
    model = GradSampleModuleFastGradientClipping(LossModule(problem.build(), problem.loss), max_grad_norm=CLIP, use_ghost_clipping=True)
    adam = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    stream = torch.Generator(device).manual_seed(0)
    optimiser = DPOptimizerFastGradientClipping(
        adam, noise_multiplier=SIGMA, max_grad_norm=CLIP, expected_batch_size=ROWS, generator=stream
    )

    def step() -> None:
        optimiser.zero_grad()
        DPTensorFastGradientClipping(model, optimiser, model(problem.batch), "mean").backward()
        optimiser.step()

    return step


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


STEPS: dict[str, Callable[[Problem, str], Callable[[], None]]] = {
    "plain": plain,
    "bookkeeping": engine("bookkeeping"),
    "opacus-hooks": opacus_hooks,
    "opacus-ghost": opacus_ghost,
    "vmap": engine("vmap"),
}


# --- timing ---


def measure(name: str, device: str, rounds: int) -> Iterator[Record]:
    """Medians over interleaved rounds: what the machine does meanwhile hits all methods alike. Slow methods run in every tenth."""
    problem = PROBLEMS[name](device)
    steps = {method: STEPS[method](problem, device) for method in METHODS if _runs(STEPS[method](problem, device))}
    times: dict[str, list[float]] = {method: [] for method in steps}
    for round_ in range(-2, rounds):
        for method in steps:
            if method in FAST or round_ % 10 == 0 or round_ == -1:
                elapsed = _timed(steps[method], device)
                if round_ >= 0:
                    times[method].append(elapsed)
    medians = {method: statistics.median(values) for method, values in times.items()}
    for method in METHODS:
        median = medians.get(method)
        ratio = None if median is None else round(median / medians["plain"], 3)
        yield Record(name, device, method, None if median is None else round(median, 3), ratio)


def _runs(step: Callable[[], None]) -> bool:
    """Opacus' ghost clipping refuses layers that are used twice in a forward, as FedHypeVAE's decoder is."""
    try:
        step()
    except NotImplementedError:
        return False
    return True


def _timed(step: Callable[[], None], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3


def table(records: list[Record]) -> Table:
    """The result for people."""
    shown = Table(title="One training step, Adam and noise included (median)")
    for heading in ("model", "device", "method", "ms", "x plain", "x opacus-ghost", "x opacus-hooks"):
        shown.add_column(heading, justify="left" if heading in ("model", "device", "method") else "right")
    for record in records:
        ms = {r.method: r.ms for r in records if (r.model, r.device) == (record.model, record.device)}
        numbers = (_ratio(record.ms, 1), *(_ratio(record.ms, ms[other]) for other in ("plain", "opacus-ghost", "opacus-hooks")))
        shown.add_row(record.model, record.device, record.method, *numbers)
    return shown


def _ratio(a: float | None, b: float | None) -> str:
    return "cannot run" if a is None else "" if b is None else f"{a / b:.3f}"


def main() -> None:
    """Measure, print, and write the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100, help="interleaved rounds; slow methods run in every tenth")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records here as a JSON list")
    options = parser.parse_args()
    settle(options.threads)
    warnings.filterwarnings("ignore")
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    records = [r for device in devices for name in PROBLEMS for r in measure(name, device, options.rounds)]
    Console(width=120).print(table(records))
    if options.json:
        options.json.write_text(json.dumps([asdict(record) for record in records], indent=1) + "\n")


if __name__ == "__main__":
    main()
