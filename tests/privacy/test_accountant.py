import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from fedsim.privacy.accountant import ORDERS, epsilon, rdp_epsilon, rough_epsilon

# Computed by dp-accounting 0.6's PLD: connect-the-dots, pessimistic, both adjacencies, discretisation 2e-5
GOLDEN = [
    ([(1.0, 0.01, 1000)], 1e-5, 1.82824),
    ([(0.5, 0.05, 1)], 1e-4, 4.16204),
    ([(0.8, 0.05, 20)], 1e-5, 3.37993),
    ([(2.0, 0.2, 20)], 1e-4, 1.83915),
    ([(4.0, 0.2, 200)], 1e-4, 2.63155),
    ([(30.0, 0.2, 200)], 1e-5, 0.32066),
    ([(10.0, 0.5, 200)], 1e-5, 2.96777),
    ([(1.0, 1.0, 1)], 1e-5, 4.37718),
    ([(20.0, 1.0, 200)], 1e-4, 2.53253),
    ([(4.0, 1.0, 1), (3.0, 0.2, 200)], 1e-4, 3.89702),
]


def pld_epsilon(events, delta, pessimistic):
    """Google's PLD at a mesh whose rounding is small against the assertions here."""
    from dp_accounting.pld import privacy_loss_distribution

    mesh = 1e-4 / max(1.0, sum(steps for _, _, steps in events) / 20)
    total = privacy_loss_distribution.identity(mesh, pessimistic_estimate=pessimistic)
    for noise_multiplier, rate, steps in events:
        one = privacy_loss_distribution.from_gaussian_mechanism(
            noise_multiplier,
            sampling_prob=rate,
            value_discretization_interval=mesh,
            pessimistic_estimate=pessimistic,
            use_connect_dots=pessimistic,
        )
        total = total.compose(one.self_compose(steps))
    return total.get_epsilon_for_delta(delta)


def analytic_gaussian_epsilon(mu, delta):
    """Balle & Wang 2018, theorem 8: delta(epsilon) of the Gaussian mechanism with sensitivity / sigma = mu, inverted."""

    def excess(eps):
        return norm.cdf(mu / 2 - eps / mu) - math.exp(eps + norm.logcdf(-mu / 2 - eps / mu)) - delta

    return brentq(excess, 0, mu * mu / 2 + 40 * mu, xtol=1e-12)


@pytest.mark.parametrize(("events", "delta", "golden"), GOLDEN)
def test_golden_epsilons(events, delta, golden):
    spent, name = epsilon(events, delta)
    assert name == "prv"
    assert golden - 1e-5 <= spent <= 1.005 * golden  # an upper bound, and a tight one
    assert golden < rdp_epsilon(events, delta) < 1.35 * golden


@pytest.mark.parametrize(
    ("events", "delta"), [([(1.0, 0.01, 1000)], 1e-5), ([(4.0, 1.0, 1), (3.0, 0.2, 200)], 1e-12), ([(30.0, 0.2, 200)], 1e-3)]
)
def test_the_renyi_bound_is_that_of_an_independent_accountant(events, delta):
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    peer = RdpAccountant(ORDERS)
    for noise_multiplier, rate, steps in events:
        peer.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(noise_multiplier)), steps)
    assert rdp_epsilon(events, delta) == pytest.approx(peer.get_epsilon(delta), rel=1e-5)


def test_an_epsilon_has_ten_digits_and_the_last_one_is_rounded_up():
    for noise_multiplier in np.linspace(2, 3, 20):
        exact = rdp_epsilon([(noise_multiplier, 1.0, 10)], 1e-12)
        assert exact <= epsilon([(noise_multiplier, 1.0, 10)], 1e-12)[0] <= (1 + 1e-9) * exact


@settings(max_examples=4)
@given(
    noise_multiplier=st.floats(0.6, 8.0),
    rate=st.sampled_from([0.02, 0.1, 0.3, 0.7, 1.0]),
    steps=st.sampled_from([1, 7, 60]),
    delta=st.sampled_from([1e-4, 1e-5]),
    first=st.booleans(),
)
def test_agrees_with_pld_and_is_never_below_it(noise_multiplier, rate, steps, delta, first):
    events = [(noise_multiplier, rate, steps)] + ([(2 * noise_multiplier, 1.0, 1)] if first else [])
    spent, _ = epsilon(events, delta)
    assert spent >= pld_epsilon(events, delta, pessimistic=False)
    upper = pld_epsilon(events, delta, pessimistic=True)
    assert spent <= 1.01 * upper + 2e-3


@pytest.mark.parametrize("delta", [1e-4, 1e-5])
@pytest.mark.parametrize("events", [[(1.0, 1.0, 1)], [(20.0, 1.0, 200)], [(3.0, 1.0, 4), (50.0, 1.0, 1000)]])
def test_full_sampling_is_the_analytic_gaussian(events, delta):
    exact = analytic_gaussian_epsilon(math.sqrt(sum(steps / sigma**2 for sigma, _, steps in events)), delta)
    spent, name = epsilon(events, delta)
    assert name == "prv"
    assert exact <= spent <= 1.005 * exact


@pytest.mark.parametrize("mu", [33.0, 34.0, 35.0, 39.0])
def test_where_losses_are_too_large_for_a_double_epsilon_is_still_an_upper_bound(mu):
    exact = analytic_gaussian_epsilon(mu, 1e-5)
    assert exact <= epsilon([(1 / mu, 1.0, 1)], 1e-5)[0] <= 1.05 * exact


def test_full_sampling_is_the_limit_of_subsampling():
    assert epsilon([(5.0, 0.9999, 30)], 1e-5)[0] == pytest.approx(epsilon([(5.0, 1.0, 30)], 1e-5)[0], rel=1e-3)


def test_trivial_compositions():
    assert epsilon([], 1e-5) == (0.0, "none")
    assert epsilon([(1.0, 0.1, 0), (1.0, 0.0, 5), (math.inf, 0.1, 5)], 1e-5) == (0.0, "none")
    assert epsilon([(0.0, 0.1, 1), (5.0, 0.1, 100)], 1e-5) == (math.inf, "none")
    assert rdp_epsilon([], 1e-5) == rough_epsilon([], 1e-5) == 0.0


def test_what_ran_counts_and_not_how_it_is_written():
    written = [(2.0, 0.2, 30), (6.0, 1.0, 1), (2.0, 0.2, 20)]
    assert epsilon(written, 1e-5) == epsilon([(6.0, 1.0, 1), (2.0, 0.2, 50)], 1e-5)


def test_one_more_step_and_less_noise_cost_more():
    base = epsilon([(2.0, 0.2, 50)], 1e-5)[0]
    assert epsilon([(2.0, 0.2, 51)], 1e-5)[0] > base
    assert epsilon([(1.9, 0.2, 50)], 1e-5)[0] > base
    assert epsilon([(2.0, 0.21, 50)], 1e-5)[0] > base
    assert epsilon([(2.0, 0.2, 50)], 0.9e-5)[0] > base


@pytest.mark.parametrize(
    ("events", "delta"),
    [([(2.0, 1.0, 10)], 1e-12), ([(0.01, 1.0, 10_000)], 1e-5), ([(0.02, 1.0, 1)], 1e-5)],
    ids=["delta below the transform's rounding", "mesh too fine", "error too large for the domain"],
)
def test_falls_back_to_rdp_and_says_so(events, delta):
    exact = analytic_gaussian_epsilon(math.sqrt(sum(steps / sigma**2 for sigma, _, steps in events)), delta)
    spent, name = epsilon(events, delta)
    assert name == "rdp"
    assert exact <= spent <= 1.15 * exact


@pytest.mark.parametrize("event", [(-1.0, 0.1, 1), (math.nan, 0.1, 1), (1.0, 1.1, 1), (1.0, -0.1, 1), (1.0, math.nan, 1), (1.0, 0.1, -1)])
def test_refuses_what_is_no_event(event):
    with pytest.raises(ValueError, match="not an event"):
        epsilon([event], 1e-5)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_refuses_what_is_no_delta(delta):
    with pytest.raises(ValueError, match="delta"):
        epsilon([(1.0, 0.1, 1)], delta)
