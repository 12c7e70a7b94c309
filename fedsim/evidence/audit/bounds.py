"""Lower bounds of epsilon from how well trainings with and without a unit are distinguished, with confidence.

A test with a rate of false positives F and of true positives T refutes every (epsilon, delta) with T > exp(epsilon) F + delta (Kairouz, Oh
& Viswanath 2015), and every mechanism whose trade-off function is above 1 - T at F (Dong, Roth & Su 2022). The rates are known to a
confidence: both get an exact interval (Clopper and Pearson 1934), which hold together with 95 %. A mechanism is tested on all pairs at the
threshold 0 of the log likelihood ratio, which is fixed beforehand and where the two errors are fewest together; for any mechanism the
threshold is chosen on one half of the pairs, and errors are counted on the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, norm

from fedsim.privacy.mechanism import Mechanism
from fedsim.privacy.pld import compose, refuted_epsilon

CONFIDENCE = 0.95
_EACH = (1 - CONFIDENCE) / 2
"""What each of the two rates may be wrong with."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Bound:
    """What pairs of scores refute; each bound holds with a confidence of 95 % by itself.

    Attributes:
        mechanism: the largest epsilon of the claimed mechanism with other noise that is refuted.
        clopper_pearson: the largest epsilon of any mechanism that is refuted.
        pairs: how many pairs there are.
        false_positives, true_positives: upper and lower limit of the rates behind ``mechanism``.
    """

    mechanism: float
    clopper_pearson: float
    pairs: int
    false_positives: float
    true_positives: float

    @property
    def epsilon(self) -> float:
        """The sharper of the two."""
        return max(self.mechanism, self.clopper_pearson)


def least_pairs(delta: float) -> int:
    """Pairs with which an attack without a single error would refute an epsilon above 0."""
    pairs = 2
    while _epsilon(upper(np.zeros(1), pairs // 2), lower(np.full(1, pairs // 2), pairs // 2), delta)[0] <= 0:
        pairs += 2
    return pairs


def bound(absent: Sequence[float], present: Sequence[float], mechanisms: Sequence[Mechanism], delta: float) -> Bound:
    """The bounds from the log likelihood ratios of trainings without and with the unit, in the order they were made.

    Args:
        absent: scores of the trainings without it.
        present: scores of those with it.
        mechanisms: as claimed.
        delta: of the claim.
    """
    without, with_ = np.asarray(absent, float), np.asarray(present, float)
    (false,), (true,) = _rates(without, with_, np.zeros(1))
    half = len(without) // 2
    threshold = _threshold(without[:half], with_[:half], len(without) - half, delta)
    (tested,) = _epsilon(*_rates(without[half:], with_[half:], np.array([threshold])), delta)
    return Bound(
        _of_mechanism(mechanisms, delta, float(false), float(true)), max(0.0, float(tested)), len(without), float(false), float(true)
    )


@lru_cache(maxsize=256)
def at_best(mechanisms: tuple[Mechanism, ...], delta: float, pairs: int) -> Bound:
    """The bounds where these mechanisms run and every rate that the best adversary counts is the one that it expects."""
    false = norm.sf(np.linspace(-4, 4, 161))
    true = np.asarray(1 - compose(mechanisms).false_negatives(false), float)
    tested = pairs - pairs // 2
    reached = _epsilon(upper(false * tested, tested), lower(true * tested, tested), delta).max()
    # there the log likelihood ratio is 0
    middle = int(np.argmax(true - false))
    limits = float(upper(false[middle] * pairs, pairs)), float(lower(true[middle] * pairs, pairs))
    return Bound(_of_mechanism(mechanisms, delta, *limits), float(reached), pairs, *limits)


def _of_mechanism(mechanisms: Sequence[Mechanism], delta: float, false: float, true: float) -> float:
    return refuted_epsilon(mechanisms, delta, false, true)[0] if true > false else 0.0


def upper(count: Floats, total: int) -> Floats:
    """The rate that ``count`` of ``total`` do not exceed but with a probability of 2.5 %."""
    return np.where(count < total, beta.ppf(1 - _EACH, count + 1, np.maximum(total - count, 1e-9)), 1.0)


def lower(count: Floats, total: int) -> Floats:
    """The rate that ``count`` of ``total`` do not fall below but with a probability of 2.5 %."""
    return np.where(count > 0, beta.ppf(_EACH, np.maximum(count, 1e-9), total - count + 1), 0.0)


def _threshold(absent: Floats, present: Floats, tested: int, delta: float) -> float:
    """The threshold that would refute most if the other half were like this one."""
    thresholds = np.unique(np.concatenate([absent, present, [math.inf]]))
    rates = _rates(absent, present, thresholds, tested / max(len(absent), 1))
    return float(thresholds[int(np.argmax(_epsilon(*rates, delta)))])


def _rates(absent: Floats, present: Floats, thresholds: Floats, share: float = 1.0) -> tuple[Floats, Floats]:
    """Upper limits of the false, lower limits of the true positives at each threshold, as if there were ``share`` times as many scores."""
    total = round(len(absent) * share)
    false = (len(absent) - np.searchsorted(np.sort(absent), thresholds)) * (total / len(absent))
    true = (len(present) - np.searchsorted(np.sort(present), thresholds)) * (total / len(present))
    return upper(np.asarray(false, float), total), lower(np.asarray(true, float), total)


def _epsilon(false: Floats, true: Floats, delta: float) -> Floats:
    """What the rates refute of any mechanism, by those called present and by those called absent."""
    with np.errstate(divide="ignore", invalid="ignore"):
        called = np.log(np.maximum(true - delta, 0) / false)
        others = np.log(np.maximum(1 - false - delta, 0) / (1 - true))
    return np.asarray(np.fmax(np.nan_to_num(called, nan=0.0, neginf=0.0), np.nan_to_num(others, nan=0.0, neginf=0.0)))
