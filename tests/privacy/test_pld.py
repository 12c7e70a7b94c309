import math

import numpy as np
import pytest
from scipy.stats import norm

from fedsim.privacy.mechanism import Mechanism
from fedsim.privacy.pld import compose, refuted_epsilon

RATES = np.array([0, 1e-4, 0.01, 0.1, 0.5, 0.9, 1])
SAMPLED = [
    [Mechanism(0.6, 0.01, 100)],
    [Mechanism(20.0, 0.5, 3000)],
    [Mechanism(4.0), Mechanism(3.0, 0.2, 200)],
]


def gaussian_delta(mu, epsilon):
    """Balle & Wang 2018, theorem 8."""
    return norm.cdf(-epsilon / mu + mu / 2) - math.exp(epsilon) * norm.cdf(-epsilon / mu - mu / 2)


@pytest.mark.parametrize(
    ("noise", "steps"), [(1.0, 1), (5.0, 10), (3.0, 200), (0.3, 1), (200.0, 3)]
)
def test_without_sampling_it_is_the_gaussian_mechanism_in_closed_form_bounded_from_the_safe_side(
    noise, steps
):
    mu, composed = math.sqrt(steps) / noise, compose([Mechanism(noise, 1.0, steps)])
    for epsilon in (0.0, 0.1 * mu, mu, 2 * mu):
        exact = gaussian_delta(mu, epsilon)
        for curve in (composed.present, composed.absent):
            assert exact <= curve.delta(epsilon) <= exact * 1.0005 + 1e-12
    exact = norm.cdf(norm.isf(RATES) - mu)
    bounds = composed.false_negatives(RATES)
    assert (bounds <= exact + 1e-12).all()
    np.testing.assert_allclose(bounds, exact, rtol=2e-3, atol=1e-9)


@pytest.mark.parametrize("mechanisms", SAMPLED)
def test_both_orders_agree_with_an_independent_accountant(mechanisms):
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    peer = PLDAccountant()
    for one in mechanisms:
        event = dp_accounting.PoissonSampledDpEvent(
            one.sample_rate, dp_accounting.GaussianDpEvent(one.noise_multiplier)
        )
        peer.compose(dp_accounting.SelfComposedDpEvent(event, one.count))
    for delta in (1e-3, 1e-5):
        assert compose(mechanisms).epsilon(delta) == pytest.approx(
            peer.get_epsilon(delta), rel=1e-4
        )


def test_the_best_test_of_a_mechanism_with_more_noise_refutes_exactly_up_to_it():
    claimed, delta, factor = [Mechanism(3.0, 0.1, 300)], 1e-4, 1.7
    real = [claimed[0].scaled(factor)]
    missed = float(compose(real).false_negatives(0.05))
    epsilon, least = refuted_epsilon(claimed, delta, 0.05, 1 - missed)
    assert factor < least < 1.002 * factor
    assert epsilon == pytest.approx(compose(real).epsilon(delta), rel=0.01)
