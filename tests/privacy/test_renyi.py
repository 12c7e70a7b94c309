import math

import numpy as np
import pytest
from opacus.accountants.analysis.rdp import compute_rdp

from fedsim.privacy.accountant import INTEGER_ORDERS, ORDERS
from fedsim.privacy.renyi import divergence_floors, least

EVENTS = [
    [(20.0, 0.2, 300)],
    [(0.7, 0.01, 1)],
    [(1.1, 0.5, 10), (3.0, 1.0, 1)],
    [(40.0, 1e-4, 20_000)],
    [(1e-3, 0.9, 2)],
    [(1e7, 0.3, 1250)],
]


def divergence(events, order):
    return sum(compute_rdp(q=rate, noise_multiplier=sigma, steps=steps, orders=float(order)) for sigma, rate, steps in events)


@pytest.mark.parametrize("events", EVENTS)
def test_no_divergence_falls_below_its_floor(events):
    orders = np.array([*ORDERS, 1.5001, 17.3, 61.9])
    assert (divergence_floors(events, orders) <= [divergence(events, order) for order in orders]).all()


@pytest.mark.parametrize("events", EVENTS)
def test_at_an_integer_the_floor_is_the_divergence_but_for_rounding(events):
    orders = np.array(INTEGER_ORDERS, dtype=np.float64)
    exact = np.array([divergence(events, order) for order in orders])
    slack = 1e-8 * (1 + exact) + 1e-11 * sum(steps for _, _, steps in events)
    assert (divergence_floors(events, orders) > exact - slack).all()


def test_where_nothing_is_known_the_floor_is_minus_infinity():
    assert (divergence_floors([(1.0, 0.1, 1)], np.array([63.5, 1000.0, 5000.0])) == -math.inf).all()
    assert (divergence_floors([(0.0, 0.1, 1)], np.array([2.0])) == -math.inf).all()


def test_the_least_value_is_found_without_a_look_at_what_cannot_be_less():
    values, seen = [5.0, 3.0, math.nan, 4.0, 9.0], []

    def exact(position):
        seen.append(position)
        return values[position]

    assert least(np.array([4.5, 2.0, -math.inf, 2.5, 8.0]), exact) == 3.0
    assert seen == [2, 1, 3]


def test_a_search_ends_at_what_is_enough():
    assert least(np.array([1.0, 2.0, 0.5]), [1.5, 2.5, 0.9].__getitem__, enough=1.0) == 0.9
    assert least(np.array([]), abs) == math.inf
