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
        correlation: c_0, ..., c_{b-1} of the lower triangular, b-banded Toeplitz matrix C: the server's noise in round t of the phase is
            ``(C^-1 z)_t`` of independent z. With c of norm 1 and b turns, a client's parts of ``C x + z`` are in disjoint rows, and each is
            a mechanism with the noise of z (Choquette-Choo et al. 2023, arXiv 2306.08153). Empty: z itself.

    Raises:
        ValueError: ``correlation`` is longer than there are turns, of a norm above 1, begins with 0, or is no Gaussian mechanism's.
    """

    release: Release
    at_clients: Callable[[Clients, Round, Tensors], Message]
    at_server: Callable[[Server, Round, Tensors], Values]
    broadcast: Callable[[Server], Tensors]
    weights: Mapping[str, float] = field(default_factory=dict)
    correlation: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a correlation that the plan's account does not cover."""
        c, release = self.correlation, self.release
        covered = len(c) <= release.turns and math.hypot(*c) <= 1 + 1e-12 and release.mechanism == "gaussian"
        if c and not (covered and c[0] > 0):
            raise ValueError(f"correlation {c} of '{release.name}': give at most {release.turns} numbers (turns), of norm 1, to a gaussian")

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
