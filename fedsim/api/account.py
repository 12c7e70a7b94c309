"""Noise and epsilon of a mechanism, without data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedsim.errors import UserError
from fedsim.words import Printed, counted, number, print_line

if TYPE_CHECKING:
    from rich.console import Console

DELTAS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-8)
"""Deltas at which epsilon is given, beside the one that is asked for."""


@dataclass(frozen=True, repr=False)
class Account(Printed):
    """A Gaussian mechanism on Poisson samples of the units, run ``rounds`` times.

    Attributes:
        sigma: standard deviation of the noise over the L2 sensitivity.
        epsilons: epsilon by delta, under add-or-remove-one.
    """

    sigma: float
    epsilon: float
    delta: float
    rounds: int
    sample_rate: float
    epsilons: Mapping[float, float]

    def show(self, console: Console) -> None:
        """Print it."""
        sampled = "on all units" if self.sample_rate == 1 else f"on Poisson samples of rate {self.sample_rate:g}"
        print_line(
            console, f"σ = {self.sigma:.6g}, {counted(self.rounds, 'round')} {sampled}: ε = {self.epsilon:.4f} at δ = {self.delta:g}"
        )
        for delta, epsilon in self.epsilons.items():
            print_line(console, f"  ε = {epsilon:.4f} at δ = {number(delta)}")


def account(
    *,
    epsilon: float | None = None,
    sigma: float | None = None,
    delta: float = 1e-4,
    rounds: int = 1,
    sample_rate: float = 1.0,
) -> Account:
    """Turn a budget into noise, or noise into a budget.

    Of the Gaussian mechanism on Poisson samples of the units, without data.

    Args:
        epsilon: the budget, for which the noise is solved as a grid solves it; or give sigma.
        sigma: the noise multiplier, whose epsilon is computed: noise standard deviation over the L2 sensitivity.
        delta: of (epsilon, delta).
        rounds: how often the mechanism runs.
        sample_rate: the probability with which a unit (an example, or a client) is in a round.

    Raises:
        UserError: a value is out of its range, or no noise reaches the budget.
    """
    from fedsim.privacy.mechanism import Mechanism
    from fedsim.privacy.plan import Release, calibrate
    from fedsim.privacy.pld import compose

    if (epsilon is None) == (sigma is None):
        raise UserError("epsilon", "one of `epsilon` and `sigma` is needed, and not both")
    for name, value, most in (("epsilon", epsilon, 1e6), ("sigma", sigma, 1e6), ("rounds", rounds, 1e9), ("sample_rate", sample_rate, 1.0)):
        if value is not None and not 0 < value <= most:
            raise UserError(name, f"must be above 0 and at most {most:g}, got {value:g}")
    if not 0 < delta < 1:
        raise UserError("delta", f"must be between 0 and 1, got {delta:g}")
    if epsilon is not None:
        fixed = {"unit": "example", "trust": "aggregate", "scope": "joint", "claim": "stated", "clip": 1.0, "sensitivity": 1.0}
        sigma = calibrate(epsilon=epsilon, delta=delta, releases=[Release("rounds", sample_rate, rounds)], **fixed).sigma  # type: ignore[arg-type]
    assert sigma is not None
    spent = compose([Mechanism(sigma, sample_rate, rounds)])
    return Account(sigma, spent.epsilon(delta), delta, rounds, sample_rate, {each: spent.epsilon(each) for each in DELTAS})
