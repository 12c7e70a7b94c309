"""A phase of a training: one release, what clients do for it, and what the server does with what they send."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedsim.methods.clients import Clients
from fedsim.methods.messages import Message, Round, Server, Tensors, Values
from fedsim.privacy.plan import Release


@dataclass(frozen=True)
class Phase:
    """A stretch of rounds that are alike; a training is a sequence of phases.

    Attributes:
        release: the mechanism of its rounds; for what is not private, how many rounds there are.
        at_clients: (clients, round, broadcast): what a cohort computes and sends.
        at_server: (server, round, the noisy sum of the messages): updates the server; returns diagnostics that depend on nothing private,
            as numbers or as tensors that hold one.
        broadcast: what every client receives at the start of a round.
        weights: of statistics in a unit's joint norm, by name: one of norm 1 is sent times its weight; none of gradients and updates.
    """

    release: Release
    at_clients: Callable[[Clients, Round, Tensors], Message]
    at_server: Callable[[Server, Round, Tensors], Values]
    broadcast: Callable[[Server], Tensors]
    weights: Mapping[str, float] = field(default_factory=dict)

    def taking(self, share: float) -> Phase:
        """The phase with the noise that a share of the budget buys, in units of 1 / sigma^2: many sampled steps count as their sum."""
        noise = self.release.sample_rate * math.sqrt(self.release.steps / share)
        return replace(self, release=replace(self.release, relative_noise=noise))


def rounds_of(phases: Sequence[Phase]) -> Iterator[Round]:
    """Every round of the phases, in order; streams are numbered over all of them, so that no two phases draw from the same."""
    number = stream = 0
    for index, phase in enumerate(phases):
        for step in range(phase.release.rounds):
            yield Round(number, index, step, stream, phase.release)
            number, stream = number + 1, stream + phase.release.per_round
