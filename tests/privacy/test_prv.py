import warnings

import numpy as np
import pytest
from opacus.accountants import PRVAccountant
from opacus.accountants.analysis.prv import PoissonSubsampledGaussianPRV, TruncatedPrivacyRandomVariable

from fedsim.privacy.prv import PrivacyLoss, upper_bound

MECHANISMS = [
    [(3.5, 0.2, 300)],
    [(1.4, 0.2, 150)],
    [(0.6, 0.01, 99)],
    [(5.9, 1.0, 1), (18.0, 1.0, 3)],
    [(4.0, 1.0, 1), (3.0, 0.2, 100), (9.0, 1e-3, 7)],
    [(30.0, 0.9, 1)],
]


def of_opacus(events, delta, error):
    accountant = PRVAccountant()
    accountant.history = list(events)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return float(accountant.get_epsilon(delta, eps_error=error))


@pytest.mark.parametrize("delta", [1e-3, 1e-5])
@pytest.mark.parametrize("events", MECHANISMS)
def test_the_bound_is_opacus_own_to_the_last_bit(events, delta):
    assert upper_bound(events, delta, 0.01, delta / 1000) == of_opacus(events, delta, 0.01)


@pytest.mark.parametrize(("sigma", "rate"), [(3.5, 0.2), (0.6, 0.01), (30.0, 1.0), (1e4, 1e-13), (0.05, 0.5)])
def test_the_loss_is_opacus_own_to_the_last_bit(sigma, rate):
    mine, theirs = PrivacyLoss(sigma, rate, -6.0, 6.0), TruncatedPrivacyRandomVariable(PoissonSubsampledGaussianPRV(rate, sigma), -6.0, 6.0)
    t = np.linspace(-6.1, 6.1, 50_001)
    with np.errstate(all="ignore"):
        assert np.array_equal(mine.cdf(t), theirs.cdf(t), equal_nan=True)
        assert mine.mean() == theirs.mean() or np.isnan(theirs.mean())


def test_nothing_is_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        upper_bound([(0.05, 1.0, 1), (4.0, 0.3, 20)], 1e-5, 0.5, 1e-8)
