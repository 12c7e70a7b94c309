"""The best of a random number of private trainings: its cost, and how many trainings there are.

A mechanism Q draws one of several parameter settings uniformly, trains with it, and gives what it
made a noisy score. It is run K times, and of what the K runs made the one with the best score is
released; K itself is not. If K has a truncated negative binomial distribution (shape 1: geometric,
shape 0: logarithmic), the whole is Rényi private by theorem 2 of Papernot and Steinke 2022 (arXiv
2110.03620, "Hyperparameter tuning with Rényi differential privacy").

**Q's own cost.** A coin, drawn without a look at the data, puts each unit into the training or into
the score, for all runs alike. Coins are independent and secret: assigned in row order and known,
they would show every later unit change sides when one is removed. Two neighbours differ in one unit
u; given the coins of all others, which have the same distribution in both worlds, and the coin of
u:

- *u is in training.* Both worlds have the same rows to score on, so the score is post-processing of
  what was trained. Given the parameters, training costs what its mechanisms do. The setting is
  drawn in the same way in both worlds, and Rényi divergence is quasi-convex in such a mixture: at
  every order Q costs at most the largest cost among the settings.
- *u is in the score.* Both worlds train the same way, and given what was trained, u changes the
  score by at most 1: one Gaussian mechanism.

The theorem is of one pair of distributions, so each case is a whole of its own. What is released is
a mixture of them over the coins, and a mixture is (epsilon, delta)-DP if each of its parts is (the
hockey-stick divergence is jointly convex): the larger of the two is spent.
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

from fedsim.privacy.accountant import ORDERS, rounded_up
from fedsim.privacy.mechanism import Mechanism

Distribution = Literal["geometric", "logarithmic"]
SHAPES: dict[Distribution, float] = {"geometric": 1.0, "logarithmic": 0.0}
"""Shapes of the truncated negative binomial."""
SCORE = "score"
"""The release of a run's score, on units that its training does not see."""
SEEN = "every training would be seen, and ε of a search is of its best training alone"
"""Why nobody searches where single messages are seen."""
_REACH = 0.995
"""The share of a target that noise is solved for."""

Curve = NDArray[np.float64]
"""A Rényi divergence at each of :data:`ORDERS`."""


@dataclass(frozen=True)
class Selection:
    """How many runs there are, and what each may cost.

    Attributes:
        mean: of the number of runs, >= 1.
        distribution: of that number.
        trainings: a run's mechanisms, once for all settings whose mechanisms are the same.
        score: noise multiplier of a run's score.
    """

    mean: float
    distribution: Distribution
    trainings: tuple[tuple[Mechanism, ...], ...]
    score: float

    def epsilon(self, delta: float) -> float:
        """What is spent, rounded up to ten digits; see the module's text."""
        return rounded_up(self.spent(delta, curve_of))

    def spent(self, delta: float, curve_of: Callable[[Sequence[Mechanism]], Curve]) -> float:
        """The same to all digits, by an accountant that composes mechanisms as ``curve_of``
        does.
        """
        if not self.score or any(
            not one.noise_multiplier for training in self.trainings for one in training
        ):
            return math.inf
        return max(converted(curve, delta) for curve in self.curves(curve_of))

    def curves(self, curve_of: Callable[[Sequence[Mechanism]], Curve]) -> tuple[Curve, Curve]:
        """Of the selection where the unit is in training, and where it is in the score;
        ``curve_of`` composes mechanisms.
        """
        training = np.max([curve_of(training) for training in self.trainings], axis=0)
        score = curve_of([Mechanism(self.score)])
        return selected(training, self.mean, self.distribution), selected(
            score, self.mean, self.distribution
        )


def curve_of(mechanisms: Sequence[Mechanism]) -> Curve:
    """The Rényi divergence of some mechanisms together at each of :data:`ORDERS`; infinite where it
    cannot be computed.
    """
    curves = [_curve(replace(one, count=1, release="")) * one.count for one in mechanisms]
    return np.asarray(np.sum(curves, axis=0), np.float64)


@lru_cache(maxsize=4096)
def _curve(mechanism: Mechanism) -> Curve:
    with np.errstate(all="ignore"):
        curve = np.array([mechanism.divergence(order) for order in ORDERS])
    return np.where(curve >= 0, curve, math.inf)  # not a number fails the comparison, too


def selected(curve: Curve, mean: float, distribution: Distribution) -> Curve:
    """The divergence of the selection whose runs have the divergence ``curve``: dp-accounting's
    ``RepeatAndSelectDpEvent``.
    """
    # of several settings the largest curve is no event, so the function behind the event is called
    from dp_accounting.rdp.rdp_privacy_accountant import _compute_rdp_repeat_and_select

    with np.errstate(all="ignore"):
        return np.asarray(
            _compute_rdp_repeat_and_select(ORDERS, curve, mean, SHAPES[distribution]), np.float64
        )


def converted(curve: Curve, delta: float) -> float:
    """The epsilon of a Rényi divergence at ``delta``."""
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
    """The least noise multiplier, to four digits, at which the best of the runs costs ``epsilon``;
    0 if that is infinite.

    ``mechanisms`` are a run's at a noise multiplier, ``mean`` and ``distribution`` those of the
    number of runs.
    """
    if math.isinf(epsilon):
        return 0.0

    def spent(sigma: float) -> float:
        return converted(selected(curve_of(mechanisms(sigma)), mean, distribution), delta)

    low = 1e-2
    high = 1e6
    if not spent(high) <= epsilon:
        raise ValueError(f"the best of {mean:g} runs costs more than {epsilon:g} with any noise")
    while high / low > 1.0005:
        middle = math.sqrt(low * high)
        if spent(middle) <= _REACH * epsilon:
            low = low
            high = middle
        else:
            low = middle
            high = high
    return float(f"{high:.4g}")


def runs_at(quantile: float, mean: float, distribution: Distribution) -> int:
    """The number of runs at a quantile in [0, 1) of its distribution: P(k) in proportion to (1 -
    gamma)^k k^(shape - 1), k up to a cut.

    The theorem takes the distribution by sum_k k P(k) q^(k - 1), which is P(1) at least. What lies
    beyond the cut adds less than 2^-53 P(1) to it, so that the divergence of the selection, a
    logarithm of such sums, changes by less than a double's last bit.
    """
    from dp_accounting.rdp.rdp_privacy_accountant import _gamma_truncated_negative_binomial

    shape = SHAPES[distribution]
    gamma = _gamma_truncated_negative_binomial(shape, mean)
    # (1 - gamma)^cut <= e^-60 gamma^3
    runs = np.arange(1, math.ceil((60 - 3 * math.log(gamma)) / gamma) + 1)
    below = np.cumsum((1 - gamma) ** (runs - 1) * runs ** (shape - 1))
    return int(runs[np.searchsorted(below, quantile * below[-1])])


def distinct(trainings: Iterable[Sequence[Mechanism]]) -> tuple[tuple[Mechanism, ...], ...]:
    """Trainings of the same mechanisms once."""
    return tuple(dict.fromkeys(tuple(sorted(training)) for training in trainings))


def composed_by_renyi(mechanisms: Iterable[Mechanism], orders: Sequence[float] = ORDERS) -> Any:
    """Dp-accounting's Rényi accountant of all ``mechanisms`` together."""
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    # it warns of every order whose series does not converge, and leaves it out, which is what is
    # wanted
    logging.getLogger("absl").setLevel(logging.ERROR)
    accountant = RdpAccountant(orders)
    for one in mechanisms:
        if one.count:
            gaussian = dp_accounting.GaussianDpEvent(one.noise_multiplier)
            if one.sample_rate == 1:
                sampled = gaussian
            else:
                sampled = dp_accounting.PoissonSampledDpEvent(one.sample_rate, gaussian)
            accountant.compose(sampled, one.count)
    return accountant
