"""The Gaussian mechanism: what a plan plans, clients and server draw, a ledger counts, a row holds
and a proof composes.

A run of it releases f(S) + N(0, (noise_multiplier * D)^2 I), where S takes every unit independently
with probability ``sample_rate`` and D is f's L2 sensitivity to one unit; ``sample_rate`` 1 is the
plain Gaussian mechanism.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from fedsim.words import number


@dataclass(frozen=True, order=True)
class Mechanism:
    """``count`` runs of one mechanism.

    Attributes:
        noise_multiplier: standard deviation of the noise over the sensitivity; 0 for none.
        sample_rate: the Poisson rate of the sample; 1 for all units.
        count: how often it runs on a unit.
        release: what is released, as the plan calls it; it costs nothing.
    """

    noise_multiplier: float
    sample_rate: float = 1.0
    count: int = 1
    release: str = ""

    def scaled(self, factor: float) -> Mechanism:
        """The same with ``factor`` times the noise."""
        return replace(self, noise_multiplier=self.noise_multiplier * factor)

    def times(self, count: int) -> Mechanism:
        """The same, run ``count`` times."""
        return replace(self, count=count)

    @property
    def costs(self) -> bool:
        """Whether anything of a unit is released."""
        return bool(self.count and self.sample_rate) and not math.isinf(self.noise_multiplier)

    def divergence(self, order: float) -> float:
        """The Rényi divergence of all runs at ``order``; +inf if its series overflows double
        precision.

        Mironov, Talwar & Zhang 2019 (arXiv 1908.10530, section 3.3).
        """
        from opacus.accountants.analysis.rdp import (
            compute_rdp,
        )  # late: Opacus imports its optimisers, too

        try:
            return float(
                compute_rdp(
                    q=self.sample_rate,
                    noise_multiplier=self.noise_multiplier,
                    steps=self.count,
                    orders=float(order),
                )
            )
        except (ArithmeticError, ValueError):
            return math.inf

    def sentence(self, sensitivity: float) -> str:
        """What is released, how often, of which units and under which noise."""
        if self.count == 1:
            times = "once"
        else:
            times = f"{self.count} times"
        rate = self.sample_rate
        if rate < 1:
            sampled = f"on a fresh Poisson sample of the units at rate {number(rate)}"
        else:
            sampled = "on all units, no sampling"
        noise = (
            f"noise of standard deviation {number(self.noise_multiplier, 5)} × the "
            f"sensitivity {number(sensitivity)}"
        )
        return f"{self.release}, {times}, {sampled}, {noise}"


def merged(mechanisms: Iterable[Mechanism]) -> tuple[Mechanism, ...]:
    """Equal mechanisms added up and sorted, without their releases' names and without what costs
    nothing.

    The cost of what ran depends on neither order nor grouping.
    """
    counts: dict[tuple[float, float], int] = {}
    for one in mechanisms:
        if not (one.noise_multiplier >= 0 and 0 <= one.sample_rate <= 1 and one.count >= 0):
            raise ValueError(f"not a mechanism: {one}")
        if one.costs:
            key = (float(one.noise_multiplier), float(one.sample_rate))
            counts[key] = counts.get(key, 0) + int(one.count)
    return tuple(sorted(Mechanism(noise, rate, count) for (noise, rate), count in counts.items()))
