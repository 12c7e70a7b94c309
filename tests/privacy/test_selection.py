"""The best of a random number of trainings: its cost against exact divergences, and the number
against its distribution.
"""

import math

import numpy as np
import pytest
from dp_accounting import (
    ComposedDpEvent,
    GaussianDpEvent,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
    dp_event,
)
from dp_accounting.rdp import RdpAccountant
from scipy.optimize import brentq

from fedsim.privacy.accountant import ORDERS
from fedsim.privacy.mechanism import Mechanism
from fedsim.privacy.selection import (
    SHAPES,
    Distribution,
    Selection,
    converted,
    curve_of,
    runs_at,
    selected,
    solved_noise,
)

DELTA = 1e-4
EVENTS = [Mechanism(4.0), Mechanism(3.0, 0.1, 40)]


@pytest.mark.parametrize("distribution", SHAPES)
def test_one_setting_costs_what_the_event_of_dp_accounting_does(distribution: Distribution) -> None:
    base = ComposedDpEvent(
        [
            GaussianDpEvent(4.0),
            SelfComposedDpEvent(PoissonSampledDpEvent(0.1, GaussianDpEvent(3.0)), 40),
        ]
    )
    accountant = RdpAccountant(ORDERS)
    accountant.compose(dp_event.RepeatAndSelectDpEvent(base, 10, SHAPES[distribution]))
    spent = converted(selected(curve_of(EVENTS), 10, distribution), DELTA)
    assert spent == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-3)


def test_a_setting_more_never_costs_less_and_the_dearer_of_training_and_score_is_spent() -> None:
    one = tuple(EVENTS)
    other = (Mechanism(3.0, 1.0, 2),)
    costs = [
        Selection(10, "geometric", trainings, 9.0).epsilon(DELTA)
        for trainings in ((one,), (other,), (one, other))
    ]
    assert max(costs[:2]) <= costs[2]
    assert Selection(10, "geometric", (one,), 0.5).epsilon(DELTA) > costs[0]
    assert Selection(10, "geometric", (one,), 0.0).epsilon(DELTA) == math.inf


@pytest.mark.parametrize("distribution", SHAPES)
@pytest.mark.parametrize("mean", [1.5, 30])
def test_every_quantile_has_the_number_of_runs_that_its_distribution_says(
    distribution: Distribution, mean: float
) -> None:
    if distribution == "geometric":
        rate = 1 / mean
    else:
        rate = brentq(lambda gamma: (1 / gamma - 1) / math.log(1 / gamma) - mean, 1e-9, 0.999)
    number = 1
    below = 0.0
    if distribution == "geometric":
        weight = rate
    else:
        weight = (1 - rate) / -math.log(rate)
    for quantile in [0.0, *(np.arange(500) + 0.5) / 500, 0.9999]:
        while below + weight < quantile:
            below += weight
            weight *= (1 - rate) * (1 if distribution == "geometric" else number / (number + 1))
            number += 1
        assert runs_at(quantile, mean, distribution) == number
    assert runs_at(0.999, 1, distribution) == 1
    assert runs_at(1 - 2**-53, mean, distribution) < 80 * mean * (
        1 if distribution == "geometric" else math.log(1 / rate)
    )


@pytest.mark.parametrize("distribution", SHAPES)
def test_noise_is_solved_for_the_whole_search(distribution: Distribution) -> None:
    sigma = solved_noise(10, distribution, 2.0, DELTA, lambda sigma: [Mechanism(sigma, 1.0, 3)])
    spent = converted(selected(curve_of([Mechanism(sigma, 1.0, 3)]), 10, distribution), DELTA)
    assert 0.99 * 2 < spent <= 2
