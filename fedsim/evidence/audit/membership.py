"""How well scores tell rows that were trained on from rows that were not: AUC, and true positives at few false ones, with intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.metrics import auc, roc_curve

FALSE_POSITIVE_RATES = (0.01, 0.001)
"""Rates of false positives at which true ones are printed (Carlini et al. 2022, arXiv 2112.03570)."""
RESAMPLES = 400

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval, by the bootstrap over rows (Efron 1979)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Membership:
    """What an attack reaches.

    Attributes:
        attack: its name.
        auc: area under its curve of true against false positives; 0.5 is guessing.
        true_positives: at each of :data:`FALSE_POSITIVE_RATES`.
        rows: how many rows it was tried on.
    """

    attack: str
    auc: Estimate
    true_positives: tuple[Estimate, ...]
    rows: int

    def words(self) -> str:
        """The outcome on a line."""
        rates = [f"TPR {estimate} at {rate:.1%} FPR" for rate, estimate in zip(FALSE_POSITIVE_RATES, self.true_positives, strict=True)]
        return f"{self.attack}: AUC {self.auc}, {', '.join(rates)}; {self.rows} rows"


def membership(attack: str, scores: Floats, inside: Bools) -> Membership:
    """How well scores ``[trainings, rows]`` say which rows were ``inside``; rows are resampled, with all their trainings."""
    stream = np.random.default_rng(0)
    count = scores.shape[1]
    draws = [np.arange(count), *(np.asarray(stream.integers(0, count, count)) for _ in range(RESAMPLES))]
    measured = np.array([_measured(scores[:, rows].ravel(), inside[:, rows].ravel()) for rows in draws])
    low, high = np.quantile(measured[1:], (0.025, 0.975), axis=0)
    area, *rest = (Estimate(*map(float, numbers)) for numbers in zip(measured[0], low, high, strict=True))
    return Membership(attack, area, tuple(rest), scores.shape[1])


def _measured(scores: Floats, inside: Bools) -> list[float]:
    if inside.all() or not inside.any():
        return [0.5, *FALSE_POSITIVE_RATES]
    false, true, _ = roc_curve(inside, scores)
    return [float(auc(false, true)), *(float(true[false <= rate].max()) for rate in FALSE_POSITIVE_RATES)]


def likelihood_ratios(scores: Floats, inside: Bools, *, designed: bool = False) -> Floats:
    """LiRA: how much likelier each score is if its row was trained on, by Gaussians of the other trainings' scores of the row.

    Carlini et al. 2022 (arXiv 2112.03570), with one variance for all rows, as for few shadow trainings; a row that all other trainings
    have, or none, has a ratio of 1.

    Args:
        scores: ``[trainings, rows]``.
        inside: the same.
        designed: whether it is fixed how many trainings have a row. The count of the others would then give away whether the attacked one
            does, so one other that differs from it is no shadow: there are equally many of either kind whatever the truth is.
    """
    ratios, count = np.zeros_like(scores), len(scores)
    for target in range(count):
        others = (target + np.arange(1, count)) % count
        own, held = scores[others], inside[others]
        differs = held != inside[target]
        shadow = ~(differs & (differs.cumsum(0) == 1)) if designed else np.ones_like(held)
        means = [_mean(own, which & shadow) for which in (held, ~held)]
        left = np.where(shadow, np.where(held, own - means[0], own - means[1]), np.nan)
        spread = float(np.sqrt(np.nanmean(np.square(left)))) or 1.0
        ratio = norm.logpdf(scores[target], means[0], spread) - norm.logpdf(scores[target], means[1], spread)
        ratios[target] = np.nan_to_num(ratio, nan=0.0)
    return ratios


def _mean(scores: Floats, which: Bools) -> Floats:
    count = which.sum(0)
    return np.asarray(np.divide((scores * which).sum(0), count, out=np.full(scores.shape[1], np.nan), where=count > 0))
