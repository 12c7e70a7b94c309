"""The Gaussian mechanism.

A plan chooses its noise, clients or the server run it, and a ledger counts its runs. One run
releases

    f(S) + N(0, (noise_multiplier * D)^2 I),

where the sample S contains every unit independently with probability ``sample_rate``, and D is the
L2 sensitivity of f to one unit. A ``sample_rate`` of 1 gives the plain Gaussian mechanism.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from fedsim.words import number


@dataclass(frozen=True, order=True)
class Mechanism:
    """A number of runs of one Gaussian mechanism.

    Attributes:
        noise_multiplier: the standard deviation of the noise divided by the sensitivity; 0 for no
            noise.
        sample_rate: the Poisson rate of the sample; 1 for all units.
        count: the number of runs in which a unit may take part.
        release: the plan's name for what is released; it does not change the cost.
    """

    noise_multiplier: float
    sample_rate: float = 1.0
    count: int = 1
    release: str = ""

    def scaled(self, factor: float) -> Mechanism:
        """Return the mechanism with ``factor`` times the noise."""
        return replace(self, noise_multiplier=self.noise_multiplier * factor)

    def times(self, count: int) -> Mechanism:
        """Return the mechanism with ``count`` runs."""
        return replace(self, count=count)

    @property
    def costs(self) -> bool:
        """Whether it releases anything about a unit, that is, whether it spends any epsilon."""
        return bool(self.count and self.sample_rate) and not math.isinf(self.noise_multiplier)

    def divergence(self, order: float) -> float:
        """Return the Rényi divergence of all runs together at ``order``, computed by Opacus.

        It is the series of Mironov, Talwar & Zhang (2019, arXiv 1908.10530, section 3.3), and +inf
        if the series overflows double precision.
        """
        # Opacus is imported late, because it imports its optimisers, too, which is slow.
        from opacus.accountants.analysis.rdp import compute_rdp

        try:
            divergence = compute_rdp(
                q=self.sample_rate,
                noise_multiplier=self.noise_multiplier,
                steps=self.count,
                orders=float(order),
            )
            return float(divergence)
        except (ArithmeticError, ValueError):
            return math.inf

    def sentence(self, sensitivity: float) -> str:
        """Return in words what is released, how often, of which units, and with what noise."""
        times = "once" if self.count == 1 else f"{self.count} times"
        sampled = "on all units, no sampling"
        if self.sample_rate < 1:
            sampled = f"on a fresh Poisson sample of the units at rate {number(self.sample_rate)}"
        noise = (
            f"noise of standard deviation {number(self.noise_multiplier, 5)} × the "
            f"sensitivity {number(sensitivity)}"
        )
        return f"{self.release}, {times}, {sampled}, {noise}"


def merged(mechanisms: Iterable[Mechanism]) -> tuple[Mechanism, ...]:
    """Return the mechanisms in sorted order, with the runs of equal mechanisms added up.

    Mechanisms that cost nothing are left out, and so are the names of releases. The result does
    therefore not depend on the order in which mechanisms ran, or on how they were grouped.

    Raises:
        ValueError: a noise multiplier, sample rate or count is out of range.
    """
    counts: Counter[tuple[float, float]] = Counter()
    for mechanism in mechanisms:
        noise = mechanism.noise_multiplier
        rate = mechanism.sample_rate
        if not (noise >= 0 and 0 <= rate <= 1 and mechanism.count >= 0):
            raise ValueError(f"not a mechanism: {mechanism}")
        if mechanism.costs:
            counts[float(noise), float(rate)] += int(mechanism.count)
    return tuple(sorted(Mechanism(noise, rate, count) for (noise, rate), count in counts.items()))
