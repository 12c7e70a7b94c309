"""Expresses the noise of a cell's releases in units of the signal.

The signal of a part of a release is the largest norm that the part can have without noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch

from fedsim.methods.messages import Message, Round, Tensors
from fedsim.privacy.plan import PrivacyPlan, Release
from fedsim.seeds import Seeds
from fedsim.training.cohort import Cohort, LocalPool
from fedsim.training.rehearsal import first_rounds, made_up_cohort
from fedsim.training.rounds import to_the_end, train
from fedsim.training.trial import Trial
from fedsim.words import number

Shapes = Mapping[str, tuple[int, ...]]
"""The shapes of the tensors that a client sends, by name."""
Parts = tuple[Cohort, Mapping[str, Shapes]]
"""Clients with made-up examples, and the shapes of the tensors that they send, by release."""
ROWS_A_CLIENT = 2
"""The number of made-up examples of every client in the rounds that show these shapes."""


class Signal(NamedTuple):
    """The noise of one part of a release.

    Attributes:
        name: the name of the part.
        ratio: the expected norm of the noise over the largest norm of the part.
        words: a description of the largest norm, with the numbers of units and dimensions.
    """

    name: str
    ratio: float
    words: str


def parts_of(trial: Trial) -> Parts:
    """Return clients of a cell with made-up examples, and the shapes of the tensors that they send.

    The shapes are those of the first round of each release.
    """
    shapes: dict[str, Shapes] = {}

    class NotingPool(LocalPool):
        """A pool that notes the shapes of the tensors that its clients send."""

        def round(self, round_: Round, broadcast: Tensors) -> list[Message]:
            messages = super().round(round_, broadcast)
            sums = messages[0].sums
            shapes[round_.release.name] = {name: tuple(value.shape) for name, value in sums.items()}
            return messages

    with torch.random.fork_rng(devices=[]):
        cohort = made_up_cohort(trial, ROWS_A_CLIENT)
        schedule = first_rounds(cohort.algorithm, 1)
        pool = NotingPool([cohort])
        to_the_end(train(cohort.algorithm, pool, trial.plan, Seeds(0), schedule=schedule))
    return cohort, shapes


def signals(trial: Trial, parts: Parts, release: Release) -> list[Signal]:
    """Return the noise of every part of a release.

    Args:
        trial: a cell with a privacy plan.
        parts: the clients and shapes from :func:`parts_of`.
        release: a release of the plan.
    """
    plan = trial.plan
    assert plan is not None
    cohort, shapes_by_release = parts
    shapes = shapes_by_release[release.name]
    weights_by_release = {phase.release.name: phase.weights for phase in cohort.phases}
    weights = weights_by_release[release.name]
    if not weights:
        return [_signal_of_gradients(trial, plan, cohort, shapes, release)]
    part_signals = []
    for full_name, shape in shapes.items():
        # A dot and a client's number end the name of a statistic of this client alone. These
        # statistics have the same shape for all clients, so the first client stands for all.
        name, _, client = full_name.partition(".")
        if client not in ("", "0"):
            continue
        units: float = trial.units
        noise_clients = trial.task.clients
        if client:
            units /= noise_clients
            noise_clients = 1
        # The server divides a sum by the number of units, so its noise is shown as that of a mean.
        std = plan.noise_std_of_sum(release.name, noise_clients)
        relative_std = std / (plan.clip * weights.get(name, 1.0))
        part_signals.append(_signal_of_mean(name, shape, relative_std, units))
    return part_signals


def _signal_of_mean(name: str, shape: tuple[int, ...], std: float, units: float) -> Signal:
    """Return the noise of a part of a one-shot release: means, second moments or counts.

    Args:
        name: the name of the statistic.
        shape: the shape of the statistic.
        std: the standard deviation of the noise on the sum, in units of the largest norm that one
            unit of privacy adds to the sum.
        units: the number of units in the sum.
    """
    size = math.prod(shape[1:])
    groups = shape[0]
    norm = 1.0
    largest = "count"
    if name.endswith("second") and shape[0] % size == 0:
        groups = shape[0] // size
        # The spectral norm of a d x d matrix of independent noise is about 2 sqrt(d) times its std.
        norm = 2.0
        largest = "largest trace, spectral norm"
    elif size > 1:
        largest = "radius"
    title = name.replace("_sums", " means").replace("_second", " second moments")
    return Signal(
        title.replace("_", " "),
        norm * math.sqrt(size) * std / (units / groups),
        f"{largest} of n = {units:,.0f} in {groups} groups, {size} dimensions",
    )


def _signal_of_gradients(
    trial: Trial,
    plan: PrivacyPlan,
    cohort: Cohort,
    shapes: Shapes,
    release: Release,
) -> Signal:
    """Return the noise of a sum of clipped gradients or updates.

    Args:
        trial: the cell.
        plan: its privacy plan.
        cohort: clients with made-up examples.
        shapes: the shapes of the tensors that a client sends, by name.
        release: the release.
    """
    from fedsim.methods.local_training import LocalDPSGD, LocalTraining

    algorithm = cohort.algorithm
    clients = trial.task.clients
    noise_clients = clients
    units = float(trial.train_groups or trial.train_rows)
    unit_name = "groups" if trial.train_groups else "examples"
    summed = "gradients"
    size = sum(math.prod(shape) for shape in shapes.values())
    if isinstance(algorithm, LocalDPSGD) and algorithm.in_local_steps:
        # The noise is added in every client's own steps.
        noise_clients = 1
        units /= clients
        unit_name += " of a client"
        size = sum(parameter.numel() for parameter in cohort.clients.model.parameters())
    elif algorithm.clips_clients() or isinstance(algorithm, LocalTraining):
        units = clients
        unit_name = "clients"
        summed = "updates"
    units *= release.sample_rate
    std = plan.noise_std_of_sum(release.name, noise_clients)
    ratio = std * math.sqrt(size) / (plan.clip * units)
    steps = f"{size:,} parameters, in each of {release.steps} steps"
    words = f"clip {number(plan.clip)} × {units:,.0f} expected {unit_name}, {steps}"
    return Signal(f"sum of {summed}", ratio, words)
