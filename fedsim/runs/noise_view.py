"""Expresses the noise of a cell's releases in units of the signal that it hides.

The signal is the largest norm that the released quantity itself can have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch

from fedsim.methods.messages import Message, Round, Tensors
from fedsim.privacy.plan import PrivacyPlan, Release
from fedsim.seeds import Seeds
from fedsim.training.cohort import Cohort, LocalPool
from fedsim.training.rounds import to_the_end, train
from fedsim.training.trial import Trial, first_rounds, made_up_cohort
from fedsim.words import number

Shapes = Mapping[str, tuple[int, ...]]
"""The shapes of the tensors that a client sends, by name."""
Parts = tuple[Cohort, Mapping[str, Shapes]]
"""Clients with made-up examples, and the shapes of what they send, by release."""
ROWS_A_CLIENT = 2
"""The made-up examples of every client in the rounds that show the shapes of what is sent."""


class Signal(NamedTuple):
    """The noise of one part of a release.

    Attributes:
        name: the name of the part.
        ratio: the expected norm of the noise over the largest norm of the part.
        words: what the largest norm is, and of how many units and dimensions.
    """

    name: str
    ratio: float
    words: str


def parts_of(trial: Trial) -> Parts:
    """Return a cell's clients and the shapes of what they send.

    The shapes are observed in the first round of each release, on made-up examples.
    """
    shapes: dict[str, Shapes] = {}

    class NotingPool(LocalPool):
        """Clients that note the shapes of what they send."""

        def round(self, round_: Round, broadcast: Tensors) -> list[Message]:
            messages = super().round(round_, broadcast)
            sums = messages[0].sums
            shapes[round_.release.name] = {name: tuple(value.shape) for name, value in sums.items()}
            return messages

    cell = trial.cell
    with torch.random.fork_rng(devices=[]):
        cohort = made_up_cohort(cell.algorithm, cell.params, trial.task, trial.plan, ROWS_A_CLIENT)
        schedule = first_rounds(cohort.algorithm)
        pool = NotingPool([cohort])
        to_the_end(train(cohort.algorithm, pool, trial.plan, Seeds(0), schedule=schedule))
    return cohort, shapes


def signals(trial: Trial, parts: Parts, release: Release) -> Iterator[Signal]:
    """Yield the noise of every part of a release.

    Args:
        trial: a cell with a privacy plan.
        parts: the cell's clients and the shapes of what they send.
        release: a release of the plan.
    """
    assert trial.plan is not None
    cohort, shapes_by_release = parts
    shapes = shapes_by_release[release.name]
    phases = [phase for phase in cohort.phases if phase.release.name == release.name]
    weights = phases[0].weights if phases else {}
    if not weights:
        yield _signal_of_gradients(trial, trial.plan, cohort, shapes, release)
        return
    for name, shape in shapes.items():
        weight = weights.get(name, 1.0)
        yield _signal_of_mean(trial, trial.plan, release, name, shape, weight)


def _signal_of_mean(
    trial: Trial,
    plan: PrivacyPlan,
    release: Release,
    name: str,
    shape: tuple[int, ...],
    weight: float,
) -> Signal:
    """Return the noise of a part of a one-shot release: means, second moments or counts.

    Args:
        trial: the cell.
        plan: its privacy plan.
        release: the release.
        name: the name of the tensor that is released.
        shape: the shape of that tensor.
        weight: its weight among the parts of the release, which share one sensitivity.
    """
    task = trial.task
    dim = trial.cell.params.get("project") or task.dim
    size = math.prod(shape[1:])
    is_matrix = shape == (dim, dim) or (name == "class_second" and shape[0] % size == 0)
    groups = shape[0] // size if is_matrix else shape[0]
    # A sum is released to be divided by the number of units, so its noise is that of a mean.
    std = (
        plan.noise_std_of_sum(release.name, task.clients)
        / (plan.clip * weight)
        / (trial.units / groups)
    )
    norm = 1.0
    if is_matrix:
        # The spectral norm of a matrix of independent noise is about twice the root of its size.
        norm = 2.0
        largest = "largest trace, spectral norm"
    elif size > 1:
        largest = "radius"
    else:
        largest = "count"
    title = name.replace("_sums", " means").replace("_second", " second moments")
    return Signal(
        title.replace("_", " "),
        norm * math.sqrt(size) * std,
        f"{largest} of n = {trial.units:,} in {groups} groups, {size} dimensions",
    )


def _signal_of_gradients(
    trial: Trial, plan: PrivacyPlan, cohort: Cohort, shapes: Shapes, release: Release
) -> Signal:
    """Return the noise of a sum of clipped gradients or updates.

    Args:
        trial: the cell.
        plan: its privacy plan.
        cohort: clients with made-up examples.
        shapes: the shapes of what a client sends.
        release: the release.
    """
    from fedsim.methods.local_training import LocalDPSGD, LocalTraining

    algorithm = cohort.algorithm
    # In local DP-SGD the noise is added in every client's own steps.
    in_local_steps = isinstance(algorithm, LocalDPSGD) and algorithm.in_local_steps
    clips_clients = algorithm.clips_clients() or (
        isinstance(algorithm, LocalTraining) and not in_local_steps
    )
    clients = trial.task.clients
    total = trial.train_rows
    called = "examples"
    if trial.train_groups is not None:
        total = trial.train_groups
        called = "groups"
    noise_clients = clients
    size = sum(math.prod(shape) for shape in shapes.values())
    if in_local_steps:
        noise_clients = 1
        size = sum(parameter.numel() for parameter in cohort.clients.model.parameters())
    if clips_clients:
        called = "clients"
    elif in_local_steps:
        called = f"{called} of a client"
    if in_local_steps:
        sampled_from = total / clients
    elif clips_clients:
        sampled_from = clients
    else:
        sampled_from = total
    units = sampled_from * release.sample_rate
    std = plan.noise_std_of_sum(release.name, noise_clients)
    ratio = std * math.sqrt(size) / (plan.clip * units)
    summed = "updates" if clips_clients else "gradients"
    steps = f"{size:,} parameters, in each of {release.steps} steps"
    words = f"clip {number(plan.clip)} × {units:,.0f} expected {called}, {steps}"
    return Signal(f"sum of {summed}", ratio, words)
