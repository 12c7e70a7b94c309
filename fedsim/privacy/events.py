"""What an accountant counts: Gaussian and exponential mechanisms.

A Gaussian :class:`Event` is ``steps`` runs of f(S) + N(0, (noise_multiplier * D)^2 I), where S takes every unit independently with
probability ``sample_rate`` and D is f's L2 sensitivity; ``sample_rate`` 1 is the plain Gaussian mechanism. An exponential one is ``steps``
choices of the largest score after Gumbel noise of scale noise_multiplier * D on every score, where a unit more raises scores by at most D
and lowers none.

Gumbel noise and the largest score are the exponential mechanism (McSherry & Talwar 2007): candidate k is chosen with a probability
proportional to exp(epsilon_0 * score_k / D), epsilon_0 = 1 / noise_multiplier. As scores only grow, it is epsilon_0-DP (Dwork & Roth 2014,
theorem 3.10 and the remark on monotonic scores), and its privacy loss has a range of at most epsilon_0 (Durfee & Rogers 2019, arXiv
1905.04273, "bounded range"), which costs less once steps are composed (:mod:`fedsim.privacy.tradeoff`).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Mechanism = Literal["gaussian", "exponential"]
"""What a step releases: a noisy sum, or the candidate with the largest noisy score."""


class Event(NamedTuple):
    """``steps`` runs of one mechanism; accountants also accept plain tuples of its fields."""

    noise_multiplier: float
    sample_rate: float
    steps: int
    mechanism: Mechanism = "gaussian"

    def scaled(self, factor: float) -> Event:
        """The same with ``factor`` times the noise."""
        return self._replace(noise_multiplier=self.noise_multiplier * factor)


AnyEvent = Event | tuple[float, float, int]
