import math

import numpy as np
import pytest
from scipy.stats import norm

from fedsim.privacy.accountant import ORDERS, rdp_epsilon
from fedsim.privacy.events import Event
from fedsim.privacy.selection import repeat_and_select_epsilon

NOISE, DELTA = 5.0, 1e-5
ALPHA = np.array(ORDERS)
RENYI = ALPHA / (2 * NOISE**2)


def converted(renyi):
    """Balle et al. 2020, theorem 21."""
    return (renyi + np.log1p(-1 / ALPHA) - (math.log(DELTA) + np.log(ALPHA)) / (ALPHA - 1)).min()


@pytest.mark.parametrize(("mean", "shape"), [(4.0, 1.0), (40.0, 1.0)])
def test_the_best_of_a_geometric_number_of_gaussian_trainings_costs_what_theorem_2_says(mean, shape):
    constant = (1 + shape) * ((1 - 1 / ALPHA) * RENYI + math.log(mean) / ALPHA).min()  # gamma is 1 / mean
    expected = converted(RENYI + math.log(mean) / (ALPHA - 1) + constant)
    assert repeat_and_select_epsilon([(NOISE, 1.0, 1)], mean, shape, DELTA) == pytest.approx(expected, rel=1e-9)


def test_the_best_of_a_poisson_number_of_gaussian_trainings_costs_what_theorem_6_says():
    def delta_of(epsilon):
        """Canonne, Kamath & Steinke 2020, proposition 12, at the best order."""
        return np.exp(((ALPHA - 1) * (RENYI - epsilon + np.log1p(-1 / ALPHA)) - np.log(ALPHA)).min())

    mean, at = 10.0, np.log1p(1 / (ALPHA - 1))
    deltas = np.array([delta_of(epsilon) for epsilon in at])
    exact = norm.cdf(0.5 / NOISE - at * NOISE) - np.exp(at) * norm.cdf(-0.5 / NOISE - at * NOISE)
    assert (exact <= deltas).all()
    expected = converted(RENYI + mean * deltas + math.log(mean) / (ALPHA - 1))
    assert repeat_and_select_epsilon([(NOISE, 1.0, 1)], mean, math.inf, DELTA) == pytest.approx(expected, rel=1e-6)


def test_all_mechanisms_of_a_training_count_and_a_choice_is_one_of_them():
    events = [(8.0, 1.0, 2), (3.0, 0.1, 50), Event(10.0, 1.0, 3, "exponential")]
    assert repeat_and_select_epsilon(events, 1.0, 1.0, DELTA) == pytest.approx(rdp_epsilon(events, DELTA), rel=1e-3)
    assert repeat_and_select_epsilon(events, 8.0, 1.0, DELTA) > repeat_and_select_epsilon(events[:2], 8.0, 1.0, DELTA)


def test_less_than_one_training_is_refused():
    with pytest.raises(ValueError, match="Mean"):
        repeat_and_select_epsilon([(NOISE, 1.0, 1)], 0.5, 1.0, DELTA)
