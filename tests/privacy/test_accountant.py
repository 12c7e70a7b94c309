import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from fedsim.privacy.accountant import epsilon, rdp_epsilon, rough_epsilon
from fedsim.privacy.mechanism import Mechanism

# Computed by dp-accounting 0.6's PLD: connect-the-dots, pessimistic, both adjacencies,
# discretisation 2e-5
GOLDEN = [
    ([Mechanism(1.0, 0.01, 1000)], 1e-5, 1.82824),
    ([Mechanism(0.5, 0.05, 1)], 1e-4, 4.16204),
    ([Mechanism(0.8, 0.05, 20)], 1e-5, 3.37993),
    ([Mechanism(4.0, 0.2, 200)], 1e-4, 2.63155),
    ([Mechanism(30.0, 0.2, 200)], 1e-5, 0.32066),
    ([Mechanism(10.0, 0.5, 200)], 1e-5, 2.96777),
    ([Mechanism(1.0)], 1e-5, 4.37718),
    ([Mechanism(20.0, 1.0, 200)], 1e-4, 2.53253),
    ([Mechanism(4.0), Mechanism(3.0, 0.2, 200)], 1e-4, 3.89702),
]


def pld_epsilon(mechanisms, delta, pessimistic):
    """Google's PLD at a mesh whose rounding is small against the assertions here."""
    from dp_accounting.pld import privacy_loss_distribution

    mesh = 1e-4 / max(1.0, sum(one.count for one in mechanisms) / 20)
    total = privacy_loss_distribution.identity(mesh, pessimistic_estimate=pessimistic)
    for one in mechanisms:
        losses = privacy_loss_distribution.from_gaussian_mechanism(
            one.noise_multiplier,
            sampling_prob=one.sample_rate,
            value_discretization_interval=mesh,
            pessimistic_estimate=pessimistic,
            use_connect_dots=pessimistic,
        )
        total = total.compose(losses.self_compose(one.count))
    return total.get_epsilon_for_delta(delta)


def analytic_gaussian_epsilon(mechanism, delta):
    """Invert delta(epsilon) of a Gaussian mechanism on all units (Balle & Wang 2018, theorem 8)."""
    mu = math.sqrt(mechanism.count) / mechanism.noise_multiplier

    def excess(eps):
        likely = norm.cdf(mu / 2 - eps / mu)
        unlikely = math.exp(eps + norm.logcdf(-mu / 2 - eps / mu))
        return likely - unlikely - delta

    return brentq(
        excess,
        0,
        mu * mu / 2 + 40 * mu,
        xtol=1e-12,
    )


@pytest.mark.parametrize(("mechanisms", "delta", "golden"), GOLDEN)
def test_golden_epsilons(mechanisms, delta, golden):
    spent, name = epsilon(mechanisms, delta)
    assert name == "prv"
    assert golden - 1e-5 <= spent <= 1.005 * golden  # an upper bound, and a tight one
    assert golden < rdp_epsilon(mechanisms, delta) < 1.35 * golden


@settings(max_examples=4)
@given(
    noise=st.floats(0.6, 8.0),
    rate=st.sampled_from([0.02, 0.3, 1.0]),
    steps=st.sampled_from([1, 7, 60]),
    first=st.booleans(),
)
def test_epsilon_agrees_with_pld_and_is_monotone(noise, rate, steps, first):
    mechanisms = [Mechanism(noise, rate, steps)]
    if first:
        mechanisms.append(Mechanism(2 * noise))
    spent, _ = epsilon(mechanisms, 1e-4)
    lower_bound = pld_epsilon(mechanisms, 1e-4, pessimistic=False)
    upper_bound = pld_epsilon(mechanisms, 1e-4, pessimistic=True)
    assert lower_bound <= spent <= 1.01 * upper_bound + 2e-3
    one_step_more = [*mechanisms, Mechanism(noise, rate)]
    less_noise = [one.scaled(0.95) for one in mechanisms]
    assert spent < epsilon(one_step_more, 1e-4)[0]
    assert spent < epsilon(less_noise, 1e-4)[0]


@pytest.mark.parametrize(
    "nothing",
    [
        [],
        [Mechanism(1.0, 0.1, 0)],
        [Mechanism(1.0, 0.0, 5)],
        [Mechanism(math.inf, 0.1, 5)],
    ],
)
def test_what_releases_nothing_costs_nothing(nothing):
    assert epsilon(nothing, 1e-5) == (0.0, "none")
    assert rdp_epsilon(nothing, 1e-5) == 0.0
    assert rough_epsilon(nothing, 1e-5) == 0.0


def test_a_mechanism_without_noise_has_no_finite_epsilon():
    mechanisms = [Mechanism(0.0, 0.1), Mechanism(5.0, 0.1, 100)]
    assert epsilon(mechanisms, 1e-5) == (math.inf, "none")


@pytest.mark.parametrize(
    ("mechanism", "delta"),
    [
        (Mechanism(2.0, 1.0, 10), 1e-12),
        (Mechanism(0.01, 1.0, 10_000), 1e-5),
        (Mechanism(0.02), 1e-5),
    ],
    ids=["delta below the transform's rounding", "mesh too fine", "error too large for the domain"],
)
def test_falls_back_to_rdp_and_says_so(mechanism, delta):
    exact = analytic_gaussian_epsilon(mechanism, delta)
    spent, name = epsilon([mechanism], delta)
    assert name == "rdp"
    assert exact <= spent <= 1.15 * exact


@pytest.mark.parametrize(
    ("what", "delta"),
    [
        ((math.nan, 0.1, 1), 0.1),
        ((1.0, 1.1, 1), 0.1),
        ((1.0, 0.1, -1), 0.1),
        ((1.0, 0.1), 0.0),
        ((1.0, 0.1), math.nan),
    ],
)
def test_refuses_what_is_no_mechanism_or_no_delta(what, delta):
    with pytest.raises(ValueError, match=r"not a mechanism|delta"):
        epsilon([Mechanism(*what)], delta)
