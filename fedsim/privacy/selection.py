"""The privacy cost of a search, which releases the best of a random number of private trainings.

A run Q draws one of several parameter settings uniformly, trains with it, and gives the result a
noisy score. Q runs K times. The result with the best score is released, and K is kept secret. K has
a truncated negative binomial distribution (shape 1: geometric, shape 0: logarithmic). Then the
search is Rényi private by theorem 2 of Papernot and Steinke 2022 (arXiv 2110.03620, "Hyperparameter
tuning with Rényi differential privacy").

**The cost of Q.** Each unit has one coin for all runs. The coin puts the unit into the training or
into the score. Coins are independent of each other and of the data, and they are secret. (Coins
that are known and assigned in row order would leak: when a unit is removed, every later unit would
get the coin of its neighbour.) Two neighbouring data sets differ in one unit u. The coins of all
other units have the same distribution for both data sets, so take them as given. There are two
cases for the coin of u:

- *u is in training.* Both data sets have the same units in the score, so the score is
  post-processing of the trained result. Given the setting, the training costs what its mechanisms
  cost. The setting has the same distribution for both, and Rényi divergence is quasi-convex in such
  a mixture. So at every order Q costs at most the largest cost among the settings.
- *u is in the score.* Both data sets have the same units in training. Given the trained result, u
  changes the score by at most 1. So Q costs one Gaussian mechanism.

The theorem is about one pair of distributions, so it is applied to each case separately. The
release is a mixture of the two cases over the coins. A mixture is (epsilon, delta)-DP if each of
its parts is, because the hockey-stick divergence is jointly convex. So the search spends the larger
of the two costs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedsim.privacy.accountant import ORDERS, least_noise, rounded_up
from fedsim.privacy.mechanism import Mechanism

Distribution = Literal["geometric", "logarithmic"]
SHAPES: dict[Distribution, float] = {"geometric": 1.0, "logarithmic": 0.0}
"""The shape of the truncated negative binomial, by distribution."""
SCORE = "score"
"""The name of the release that scores a run on the units that its training does not see."""
SEEN = (
    "under trust: silo every training that tune compares would be seen, but the ε of tune covers "
    "only the best of them"
)
"""The reason why a search is refused if single messages are seen."""
_REACH = 0.995
"""The search for noise aims at this share of the target epsilon."""

Curve = NDArray[np.float64]
"""A Rényi divergence at each of :data:`ORDERS`."""


@dataclass(frozen=True)
class Selection:
    """A search: the distribution of its number of runs, and the mechanisms of a run.

    Attributes:
        mean: the mean number of runs, >= 1.
        distribution: the distribution of the number of runs.
        trainings: the mechanisms of a run, once for all settings with the same mechanisms.
        score: the noise multiplier of a run's score.
    """

    mean: float
    distribution: Distribution
    trainings: tuple[tuple[Mechanism, ...], ...]
    score: float

    def epsilon(self, delta: float) -> float:
        """Return the epsilon of the selection, rounded up to ten digits."""
        return rounded_up(self.spent(delta, curve_of))

    def spent(
        self,
        delta: float,
        curve_of: Callable[[Sequence[Mechanism]], Curve],
    ) -> float:
        """Return the epsilon of the selection with all its digits.

        Args:
            delta: in (0, 1).
            curve_of: composes mechanisms, as :func:`curve_of` does.
        """
        multipliers = [self.score]
        for training in self.trainings:
            multipliers += [mechanism.noise_multiplier for mechanism in training]
        if not all(multipliers):
            return math.inf
        return max(converted(curve, delta) for curve in self.curves(curve_of))

    def curves(self, curve_of: Callable[[Sequence[Mechanism]], Curve]) -> tuple[Curve, Curve]:
        """Return the divergences of the selection for a unit in training and for one in the score.

        Args:
            curve_of: composes mechanisms, as :func:`curve_of` does.
        """
        # The largest divergence of all settings, at each order.
        training = np.max(
            [curve_of(training) for training in self.trainings],
            axis=0,
        )
        score = curve_of([Mechanism(self.score)])
        return (
            selected(training, self.mean, self.distribution),
            selected(score, self.mean, self.distribution),
        )


def curve_of(mechanisms: Sequence[Mechanism]) -> Curve:
    """Return the joint Rényi divergence of mechanisms at each of :data:`ORDERS`.

    It is infinite where it cannot be computed.
    """
    curves = []
    for mechanism in mechanisms:
        single_run = replace(mechanism, count=1, release="")
        curves.append(_curve(single_run) * mechanism.count)
    return np.asarray(np.sum(curves, axis=0), np.float64)


@lru_cache(maxsize=4096)
def _curve(mechanism: Mechanism) -> Curve:
    with np.errstate(all="ignore"):
        curve = np.array([mechanism.divergence(order) for order in ORDERS])
    # NaN fails the comparison, too.
    return np.where(curve >= 0, curve, math.inf)


def selected(
    curve: Curve,
    mean: float,
    distribution: Distribution,
) -> Curve:
    """Return the divergence of the selection whose runs have the divergence ``curve``.

    dp-accounting computes the same for a ``RepeatAndSelectDpEvent``.
    """
    # Such an event cannot hold the largest curve of several settings, so the private function
    # behind the event is called.
    from dp_accounting.rdp.rdp_privacy_accountant import _compute_rdp_repeat_and_select

    with np.errstate(all="ignore"):
        divergence = _compute_rdp_repeat_and_select(
            ORDERS,
            curve,
            mean,
            SHAPES[distribution],
        )
        return np.asarray(divergence, np.float64)


def converted(curve: Curve, delta: float) -> float:
    """Return the epsilon of a Rényi divergence at ``delta``."""
    from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon

    with np.errstate(all="ignore"):
        return float(compute_epsilon(ORDERS, curve, delta)[0])


def solved_noise(
    mean: float,
    distribution: Distribution,
    epsilon: float,
    delta: float,
    mechanisms: Callable[[float], Sequence[Mechanism]],
) -> float:
    """Return about the least noise multiplier at which the search costs at most ``epsilon``.

    It has four digits, and it is 0 for an infinite epsilon.

    Args:
        mean: the mean number of runs.
        distribution: the distribution of the number of runs.
        epsilon: the target; ``math.inf`` for no noise.
        delta: in (0, 1).
        mechanisms: returns the mechanisms of a run at a noise multiplier.

    Raises:
        ValueError: no noise is enough.
    """
    if math.isinf(epsilon):
        return 0.0

    def spent(sigma: float) -> float:
        return converted(
            selected(curve_of(mechanisms(sigma)), mean, distribution),
            delta,
        )

    largest = 1e6
    if not spent(largest) <= epsilon:
        raise ValueError(
            f"a search over {mean:g} trainings costs more than ε = {epsilon:g}, however much noise "
            "is added"
        )
    sigma = least_noise(
        lambda sigma: spent(sigma) <= _REACH * epsilon,
        1e-2,
        largest,
        1.0005,
    )
    return float(f"{sigma:.4g}")


def runs_at(
    quantile: float,
    mean: float,
    distribution: Distribution,
) -> int:
    """Return the number of runs at a quantile in [0, 1) of its distribution.

    P(k) is proportional to (1 - gamma)^k k^(shape - 1). The code cuts it off at a large k. The
    theorem uses the distribution through sum_k k P(k) q^(k - 1), which is at least P(1). The terms
    beyond the cut add less than 2^-53 P(1) to this sum. The divergence of the selection is a
    logarithm of such sums, so it changes by less than the last bit of a double.
    """
    from dp_accounting.rdp.rdp_privacy_accountant import _gamma_truncated_negative_binomial

    shape = SHAPES[distribution]
    gamma = _gamma_truncated_negative_binomial(shape, mean)
    cut = math.ceil((60 - 3 * math.log(gamma)) / gamma)  # (1 - gamma)^cut <= e^-60 gamma^3
    runs = np.arange(1, cut + 1)
    cumulative = np.cumsum((1 - gamma) ** (runs - 1) * runs ** (shape - 1))
    return int(runs[np.searchsorted(cumulative, quantile * cumulative[-1])])


def distinct(trainings: Iterable[Sequence[Mechanism]]) -> tuple[tuple[Mechanism, ...], ...]:
    """Return each set of mechanisms once, however many trainings have it."""
    return tuple(dict.fromkeys(tuple(sorted(training)) for training in trainings))


def composed_by_renyi(
    mechanisms: Iterable[Mechanism],
    orders: Sequence[float] = ORDERS,
) -> Any:
    """Return dp-accounting's Rényi accountant after all ``mechanisms`` together."""
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    # dp-accounting warns of every order whose series does not converge. The warning is not needed,
    # because the bound stays valid without that order.
    logging.getLogger("absl").setLevel(logging.ERROR)
    accountant = RdpAccountant(orders)
    for mechanism in mechanisms:
        if not mechanism.count:
            continue
        event = dp_accounting.GaussianDpEvent(mechanism.noise_multiplier)
        if mechanism.sample_rate != 1:
            event = dp_accounting.PoissonSampledDpEvent(mechanism.sample_rate, event)
        accountant.compose(event, mechanism.count)
    return accountant
