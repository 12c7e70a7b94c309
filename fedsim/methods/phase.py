"""A phase of a training: one release, the clients' computation, and the server's step on their sum."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedsim.methods.clients import Clients
from fedsim.methods.messages import Message, Round, Server, Tensors, Values
from fedsim.privacy.plan import Release


@dataclass(frozen=True)
class Phase:
    """Consecutive rounds of one mechanism; a training is a sequence of phases.

    Attributes:
        release: the mechanism of its rounds; without privacy only their number counts.
        at_clients: (clients, round, broadcast): a cohort's computation; returns its message.
        at_server: (server, round, the noisy sum of the messages): updates the server; returns diagnostics that depend on no private
            values, as numbers or as tensors of one number.
        broadcast: (server): the tensors that every client receives at the start of a round.
        weights: of statistics in a unit's joint norm, by name: a statistic is sent times its weight; empty for gradients and updates.
    """

    release: Release
    at_clients: Callable[[Clients, Round, Tensors], Message]
    at_server: Callable[[Server, Round, Tensors], Values]
    broadcast: Callable[[Server], Tensors]
    weights: Mapping[str, float] = field(default_factory=dict)

    def taking(self, share: float) -> Phase:
        """The phase with the noise for a share of the budget, in units of 1 / sigma^2; sampled steps cost q^2 / sigma^2 and add up."""
        noise = self.release.sample_rate * math.sqrt(self.release.steps / share)
        return replace(self, release=replace(self.release, relative_noise=noise))


def rounds_of(phases: Sequence[Phase]) -> Iterator[Round]:
    """Every round of the phases, in order; streams are numbered over all of them, so that no two phases share one."""
    number = stream = 0
    for index, phase in enumerate(phases):
        for step in range(phase.release.rounds):
            yield Round(number, index, step, stream, phase.release)
            number, stream = number + 1, stream + phase.release.per_round
