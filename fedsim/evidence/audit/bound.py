"""Computes a lower bound of ε from the error rates of an adversary, with dp-accounting.

The adversary guesses whether a unit took part in a training. The output of the training is
distributed as P if the unit took part and as Q if it did not. An (ε, δ) curve of P and Q bounds
every test: with a false-positive rate a and a false-negative rate b,

    b >= 1 - δ(e) - exp(e) a    and    b >= exp(-e) (1 - δ(e) - a)    for every e >= 0

(Kairouz, Oh & Viswanath 2015, "The composition theorem for differential privacy", section 2). For
the composed Gaussian mechanisms, dp-accounting computes a δ(e) that is never too small. So the
right-hand sides are never too large.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import brentq

from fedsim.privacy.mechanism import Mechanism

SLOPES = np.concatenate([np.arange(0.0, 1.0, 0.01), np.arange(1.0, 30.0, 0.05)])
"""Values of e at which a trade-off curve is bounded from below."""
MESH = 0.01
"""The width of the mesh of privacy losses, divided by the standard deviation of the composed loss.

A standard deviation above 1 counts as 1.
"""
LEAST_NOISE = 2.0**-6
"""The least factor by which the search multiplies the noise."""
MOST_NOISE = 2.0**14
"""The largest factor by which the search multiplies the noise."""
PRECISION = 1e-3
"""The relative precision of the factor of noise."""


def composed_losses(mechanisms: Sequence[Mechanism], mesh: float) -> Any:
    """Return dp-accounting's privacy loss distribution of all mechanisms together.

    It is an upper bound (Doroshenko et al. 2022, "Connect the dots"), and holds for both orders of
    two neighbouring data sets.

    Args:
        mechanisms: the mechanisms that ran.
        mesh: the width of the mesh to which losses are rounded.
    """
    from dp_accounting.pld import privacy_loss_distribution  # late: it takes a second to import

    total: Any = privacy_loss_distribution.identity(mesh)
    for mechanism in mechanisms:
        losses = privacy_loss_distribution.from_gaussian_mechanism(
            mechanism.noise_multiplier,
            sampling_prob=mechanism.sample_rate,
            value_discretization_interval=mesh,
            pessimistic_estimate=True,
            use_connect_dots=True,
        )
        total = total.compose(losses.self_compose(mechanism.count))
    return total


def refuted_epsilon(
    mechanisms: Sequence[Mechanism],
    delta: float,
    false_positives: float,
    true_positives: float,
) -> float:
    """Return the largest ε that a test with these rates refutes.

    Every ε stands for the claimed mechanisms with all noise multipliers times a factor. A factor is
    refuted if the test has a lower false-negative rate than the trade-off curve of these mechanisms
    allows. More noise is easier to refute, so the least factor that is refuted has the largest ε.

    Args:
        mechanisms: the mechanisms that are claimed to have run.
        delta: the δ of the claim.
        false_positives: the upper confidence limit of the rate with which the test says "present"
            of a training without the unit.
        true_positives: the lower confidence limit of that rate for a training with the unit.

    Returns:
        ε; 0 if no factor up to ``MOST_NOISE`` is refuted.
    """

    def scaled(log_factor: float) -> list[Mechanism]:
        factor = math.exp(log_factor)
        return [mechanism.scaled(factor) for mechanism in mechanisms if mechanism.costs]

    def excess(log_factor: float) -> float:
        """Return how far the test's false-negative rate is below the least possible one.

        A positive number refutes the factor.
        """
        least_possible = least_false_negatives(scaled(log_factor), false_positives)
        return least_possible - (1 - true_positives)

    if true_positives <= false_positives or excess(math.log(MOST_NOISE)) <= 0:
        return 0.0
    low, high = _bracket(excess)
    if low < high:
        high = brentq(excess, low, high, xtol=PRECISION / 2)
        # The root is approximate, and may lie on the side that is not refuted.
        while excess(high) <= 0:
            high += PRECISION / 2
    return epsilon_of(scaled(high), delta)


def least_false_negatives(mechanisms: Sequence[Mechanism], false_positives: float) -> float:
    """Return a lower bound of the false-negative rate of any test with this false-positive rate."""
    # The largest right-hand side of each inequality of the module's docstring.
    deltas = np.asarray(_composed(mechanisms).get_delta_for_epsilon(SLOPES))
    steep = 1 - deltas - np.exp(SLOPES) * false_positives
    flat = np.exp(-SLOPES) * (1 - deltas - false_positives)
    return max(0.0, float(steep.max()), float(flat.max()))


def epsilon_of(mechanisms: Sequence[Mechanism], delta: float) -> float:
    """Return the ε of composed mechanisms at ``delta``."""
    return float(_composed(mechanisms).get_epsilon_for_delta(delta))


def _bracket(excess: Any) -> tuple[float, float]:
    """Return log factors of noise: one that is not refuted, and one that is.

    Both are the least factor if even that one is refuted.
    """
    step = math.log(2)
    high = 0.0
    while excess(high) <= 0:
        high += step
    low = high - step
    while excess(low) > 0:
        if low <= math.log(LEAST_NOISE):
            return low, low
        high = low
        low -= step
    return low, high


def _composed(mechanisms: Sequence[Mechanism]) -> Any:
    """Return the privacy loss distribution of all mechanisms on a mesh that is fine enough."""
    # Roughly the variance of the composed privacy loss.
    variance = 0.0
    for mechanism in mechanisms:
        one_step = math.expm1(min(1.0, mechanism.noise_multiplier**-2))
        variance += mechanism.count * mechanism.sample_rate**2 * one_step
    return composed_losses(mechanisms, MESH * min(1.0, math.sqrt(variance)))
