"""The best of a random number of trainings: its cost, and how many trainings there are."""

import math
from typing import Any

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
from scipy.stats import geom, logser

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
every_distribution = pytest.mark.parametrize("distribution", SHAPES)
EVENTS = [Mechanism(4.0), Mechanism(3.0, 0.1, 40)]


@every_distribution
def test_one_setting_costs_the_same_as_in_dp_accounting(distribution: Distribution) -> None:
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


ONE = tuple(EVENTS)
OTHER = (Mechanism(3.0, 1.0, 2),)


def cost(*trainings: tuple[Mechanism, ...], score: float = 9.0) -> float:
    return Selection(10, "geometric", trainings, score).epsilon(DELTA)


def test_a_further_setting_never_costs_less() -> None:
    assert cost(ONE, OTHER) >= max(cost(ONE), cost(OTHER))


def test_a_score_that_costs_more_than_training_is_spent() -> None:
    assert cost(ONE, score=0.5) > cost(ONE)
    assert cost(ONE, score=0.0) == math.inf


def runs_distribution(mean: float, distribution: Distribution) -> Any:
    """Return scipy's distribution of the number of runs."""
    if distribution == "geometric":
        return geom(1 / mean)
    return logser(brentq(lambda p: logser.mean(p) - mean, 1e-3, 1 - 1e-9))


@every_distribution
@pytest.mark.parametrize("mean", [1.5, 30])
def test_every_quantile_has_the_number_of_runs_of_its_distribution(
    distribution: Distribution,
    mean: float,
) -> None:
    quantiles = [*(np.arange(500) + 0.5) / 500, 0.9999]
    numbers = np.arange(1, 2000)
    cumulative = runs_distribution(mean, distribution).pmf(numbers).cumsum()
    expected = numbers[np.searchsorted(cumulative, quantiles)]
    assert [runs_at(quantile, mean, distribution) for quantile in quantiles] == expected.tolist()


@pytest.mark.parametrize(
    ("distribution", "mean", "most"),
    [
        ("geometric", 1.5, 120),
        ("geometric", 30, 2400),
        ("logarithmic", 1.5, 91),
        ("logarithmic", 30, 12_000),
    ],
)
def test_number_of_runs_is_bounded(distribution: Distribution, mean: float, most: int) -> None:
    assert runs_at(0.0, mean, distribution) == 1
    assert runs_at(0.999, 1, distribution) == 1
    assert runs_at(1 - 2**-53, mean, distribution) < most


@every_distribution
def test_noise_is_solved_for_the_whole_search(distribution: Distribution) -> None:
    def run_of(sigma: float) -> list[Mechanism]:
        return [Mechanism(sigma, 1.0, 3)]

    sigma = solved_noise(10, distribution, 2.0, DELTA, run_of)
    spent = converted(
        selected(curve_of(run_of(sigma)), 10, distribution),
        DELTA,
    )
    assert 0.99 * 2 < spent <= 2
