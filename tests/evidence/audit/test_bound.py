"""The lower bound of ε that an adversary's error rates give."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from fedsim.evidence.audit.bound import epsilon_of, least_false_negatives, refuted_epsilon
from fedsim.privacy.accountant import epsilon
from fedsim.privacy.mechanism import Mechanism

SAMPLED = [
    [Mechanism(0.6, 0.01, 100)],
    [Mechanism(20.0, 0.5, 300)],
    [Mechanism(4.0), Mechanism(3.0, 0.2, 200)],
]


@pytest.mark.parametrize(("noise", "steps"), [(1.0, 1), (5.0, 10), (0.5, 1), (200.0, 3)])
def test_trade_off_of_gaussians_is_bounded_from_below(
    noise: float,
    steps: int,
) -> None:
    mu = math.sqrt(steps) / noise
    for rate in (1e-4, 0.01, 0.1, 0.5):
        exact = norm.cdf(norm.isf(rate) - mu)
        bound = least_false_negatives([Mechanism(noise, 1.0, steps)], rate)
        assert exact * 0.995 - 1e-4 <= bound <= exact + 1e-9


@pytest.mark.parametrize("mechanisms", SAMPLED)
def test_epsilon_agrees_with_the_accountant(mechanisms: list[Mechanism]) -> None:
    assert epsilon_of(mechanisms, 1e-4) == pytest.approx(epsilon(mechanisms, 1e-4)[0], rel=5e-3)


def test_best_test_refutes_exactly_up_to_the_real_noise() -> None:
    claimed = [Mechanism(3.0, 0.1, 300)]
    real = [claimed[0].scaled(1.7)]
    missed = least_false_negatives(real, 0.05)
    bound = refuted_epsilon(claimed, 1e-4, 0.05, 1 - missed)
    more_noise = [real[0].scaled(1.005)]
    less_noise = [real[0].scaled(0.998)]
    assert epsilon_of(more_noise, 1e-4) < bound < epsilon_of(less_noise, 1e-4)


def test_guessing_refutes_nothing() -> None:
    for true_positives in (0.3, 0.2):
        bound = refuted_epsilon([Mechanism(1.0)], 1e-4, 0.3, true_positives)
        assert bound == 0


def test_certain_test_refutes_a_large_epsilon() -> None:
    bounds = []
    for rate in (0.9, 0.99, 0.999):
        bound = refuted_epsilon([Mechanism(1.0)], 1e-4, 0.003, rate)
        bounds.append(bound)
    assert np.all(np.diff(bounds) > 0)
    assert bounds[-1] > 30
