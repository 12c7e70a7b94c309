"""The most that an adversary can infer: privacy curve and trade-off function of composed
mechanisms, without torch.

The output of a mechanism is distributed as P (the unit is present) or Q (it is absent); for one
step, a Poisson-subsampled Gaussian mechanism, P = (1 - q) N(0, s^2) + q N(1, s^2) and Q = N(0,
s^2). The product of the steps' pairs dominates the composed mechanism for any unit under
add-or-remove-one, in both orders (Zhu, Dong & Wang 2022, "Optimal accounting of differential
privacy via characteristic function", theorems 10 and 11).

The distribution of the privacy loss log P / Q gives the privacy curve delta(epsilon) = sup_S P(S) -
exp(epsilon) Q(S), for either order, and the trade-off function f(a): the least rate of false
negatives of any test with a rate of false positives of at most a (Dong, Roth & Su 2022, "Gaussian
differential privacy", definitions 2.1 and 2.3).

Each step's loss is moved to a grid that keeps P's and Q's mass between two points (Doroshenko et
al. 2022, "Connect the dots"). The pair on the grid dominates the original one, so every delta is an
upper and every trade-off a lower bound. Steps are then convolved by Fourier transforms;
:data:`LOST_MASS` bounds the mass that wraps around. Rounding of doubles is not bounded, but is
small against any delta above 1e-11.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft
from scipy.special import logsumexp, ndtr, ndtri

from fedsim.privacy.mechanism import Mechanism

Floats = NDArray[np.floating]

LOST_MASS = 1e-14
"""Mass of the composed loss outside the grid on either side; counted as an infinite loss."""
GRID_WIDTH = 0.0155
"""Width of the grid in standard deviations of a step's loss; it increases the composed loss by 1 to
2 parts in 100,000.
"""
MOST_POINTS = 2**22
MOST_SPREAD = 30.0
"""Largest standard deviation of a composed loss that is bounded (epsilon is then about 450); above
it exp(loss) overflows a double.
"""
MOST_SLOPES = 4096
"""Tangents that approximate a trade-off function; the maximum over any subset of them is a lower
bound.
"""
MOST_NOISE_FACTOR = 1e4
"""Largest factor of noise that is tried."""


@dataclass(frozen=True)
class Curve:
    """delta(epsilon) = sup_S X(S) - exp(epsilon) Y(S) for one order of the two, at epsilon >= 0.

    Attributes:
        losses: losses log X / Y >= 0 with mass, ascending.
        above: X's mass at these losses and above.
        weight: Y's mass at these losses and above.
        lost: X's mass at an infinite loss.
    """

    losses: Floats
    above: Floats
    weight: Floats
    lost: float

    def delta(self, epsilon: ArrayLike) -> Floats:
        """An upper bound at each epsilon >= 0."""
        epsilons = np.asarray(epsilon, float)
        # X(S) - exp(epsilon) Y(S) is largest for S = {X > exp(epsilon) Y} (Neyman & Pearson 1933):
        # all losses above epsilon
        at = np.searchsorted(self.losses, epsilons, side="right")
        above, weight = np.append(self.above, 0.0)[at], np.append(self.weight, 0.0)[at]
        with np.errstate(over="ignore", invalid="ignore"):
            subtracted = np.where(weight > 0, np.exp(epsilons) * weight, 0.0)
        return np.asarray(np.clip(above - subtracted, 0.0, None) + self.lost)

    def epsilon(self, delta: float) -> float:
        """The least epsilon >= 0 whose :meth:`delta` is at most ``delta``; inf if there is none."""
        spare = delta - self.lost
        if spare <= 0:
            return math.inf
        at = bisect_left(range(len(self.losses)), True, key=lambda i: self._delta_at(i) <= spare)
        if at == len(self.losses):
            return float(self.losses[-1]) if at else 0.0
        # between two losses S is constant, so delta = above - exp(epsilon) weight, which is solved
        # for epsilon
        if self.above[at] <= spare:
            return float(self.losses[at - 1]) if at else 0.0
        return max(0.0, math.log((self.above[at] - spare) / self.weight[at]))

    def _delta_at(self, i: int) -> float:
        """Delta at loss number ``i``, without the infinite losses."""
        weight = float(self.weight[i])
        return float(self.above[i]) - (
            math.exp(min(float(self.losses[i]), 709.0)) * weight if weight > 0 else 0.0
        )


@dataclass(frozen=True)
class Composition:
    """A composed mechanism as its adversary sees it.

    Attributes:
        present: the curve of P (the unit is present) against Q (it is absent).
        absent: the curve of Q against P.
    """

    present: Curve
    absent: Curve

    def epsilon(self, delta: float) -> float:
        """An upper bound of epsilon at ``delta``, of the worse order; inf if there is none."""
        return max(self.present.epsilon(delta), self.absent.epsilon(delta))

    def false_negatives(self, false_positives: ArrayLike) -> Floats:
        """The trade-off function of tests of "absent" against "present": a lower bound of the
        false-negative rate, both rates in [0, 1].

        At every rate of false positives it is the highest tangent of slope -exp(e) or -exp(-e).
        """
        # a test that rejects on S has false positives a = Q(S) and false negatives b = 1 - P(S).
        # With (e, d) from the curve of P against Q,
        # P(S) <= exp(e) Q(S) + d gives b >= 1 - d - exp(e) a; from that of Q against P, Q(not S) <=
        # exp(e) P(not S) + d gives
        # b >= exp(-e) (1 - d - a) (Kairouz, Oh & Viswanath 2015, "The composition theorem for
        # differential privacy", section 2)
        rate, steep, flat = (
            np.asarray(false_positives, float),
            _slopes(self.present),
            _slopes(self.absent),
        )
        with np.errstate(over="ignore", invalid="ignore"):
            on_rejected = (
                1
                - self.present.delta(steep)
                - np.where(rate[..., None] > 0, np.exp(steep) * rate[..., None], 0.0)
            )
            on_accepted = np.exp(-flat) * (1 - rate[..., None] - self.absent.delta(flat))
        best = np.maximum(on_rejected.max(-1), on_accepted.max(-1))
        return np.asarray(np.clip(best, 0.0, np.clip(1 - rate, 0.0, 1.0)))


def _slopes(curve: Curve) -> Floats:
    stride = max(1, len(curve.losses) // MOST_SLOPES)
    return np.concatenate([[0.0], curve.losses[::stride]])


def compose(mechanisms: Sequence[Mechanism]) -> Composition:
    """The composition of all ``mechanisms``.

    The loss of independent steps is the sum of theirs, so its distribution is their convolution:
    Fourier transforms multiply (Koskela, Jälkö & Honkela 2020, arXiv 1906.03049).
    """
    for one in mechanisms:
        if not (one.noise_multiplier > 0 and 0 <= one.sample_rate <= 1 and one.count >= 0):
            raise ValueError(f"not a mechanism with noise: {one}")
    costly = [one for one in mechanisms if one.costs]
    spread = math.sqrt(sum(one.count * _variance(one) for one in costly))
    if not costly or spread >= MOST_SPREAD:
        nothing = np.zeros(0)
        return Composition(*[Curve(nothing, nothing, nothing, 1.0 if costly else 0.0)] * 2)
    total, (low, high) = sum(one.count for one in costly), _window(costly)
    width = max(GRID_WIDTH * spread / math.sqrt(total), (high - low) / (MOST_POINTS - 4))
    first = min(math.floor(low / width) - 1, 0)
    points = int(fft.next_fast_len(math.ceil(high / width) + 2 - first, real=True))
    steps = [_step(one, width, LOST_MASS / total) for one in costly]
    curves = []
    for which in (0, 1):
        logs, lost = np.zeros(points // 2 + 1, complex), 2 * LOST_MASS
        for one, (at, *masses) in zip(costly, steps, strict=True):
            with np.errstate(divide="ignore", invalid="ignore"):
                logs = logs + one.count * np.log(
                    fft.rfft(np.bincount(at % points, masses[which], points))
                )
            lost += one.count * max(0.0, 1 - float(masses[which].sum()))
        with np.errstate(invalid="ignore"):
            mass = np.roll(fft.irfft(np.nan_to_num(np.exp(logs)), points), -first)
        # from the point of loss 0 the losses of either order, ascending: log Q / P is the negative
        # of log P / Q; exp(-loss) turns X's mass
        # into Y's
        forward = np.clip(mass[-first:] if which == 0 else mass[-first::-1], 0.0, None)
        losses = np.arange(len(forward)) * width
        weight = np.cumsum((forward * np.exp(-losses))[::-1])[::-1]
        curves.append(Curve(losses, np.cumsum(forward[::-1])[::-1], weight, lost))
    return Composition(*curves)


def refuted_epsilon(
    mechanisms: Sequence[Mechanism], delta: float, false_positives: float, true_positives: float
) -> tuple[float, float]:
    """The largest epsilon, over factors of noise, of the mechanisms that a test with these rates
    refutes; and its factor.

    The mechanism at a factor s has all noise multipliers times s. It did not run if the test's
    false-negative rate is below its trade-off function; more noise is easier to refute, so the
    least refuted factor, to a thousandth, has the largest epsilon: (0.0, inf) if not even
    :data:`MOST_NOISE_FACTOR` is refuted. A positive says that the unit is present. For a confidence
    bound give the upper confidence limit of the false positives and the lower one of the true
    positives.
    """

    def scaled(factor: float) -> Composition:
        return compose([one.scaled(factor) for one in mechanisms])

    def is_refuted(factor: float) -> bool:
        return 1 - true_positives < float(scaled(factor).false_negatives(false_positives)) - 1e-12

    if true_positives <= false_positives or not is_refuted(MOST_NOISE_FACTOR):
        return 0.0, math.inf
    low, high = 1 / MOST_NOISE_FACTOR, MOST_NOISE_FACTOR
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if is_refuted(middle) else (middle, high)
    return scaled(high).epsilon(delta), high


def _loss(y: Floats, noise: float, rate: float) -> Floats:
    """Log P / Q at the observation ``y``."""
    # P / Q = 1 - q + q N(y; 1, s^2) / N(y; 0, s^2), and the ratio of the normal densities is exp((2
    # y - 1) / (2 s^2))
    exponent = (2 * y - 1) / (2 * noise**2)
    if rate == 1:
        return exponent
    return np.asarray(np.logaddexp(math.log1p(-rate), math.log(rate) + exponent))


def _observation(loss: Floats, noise: float, rate: float) -> Floats:
    """The inverse of :func:`_loss`; -inf below the least loss, log(1 - q)."""
    if rate == 1:
        return np.asarray(loss * noise**2 + 0.5)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        # exp(loss) = 1 - q + q exp(t) gives q exp(t) = exp(loss) - (1 - q), whose logarithm is
        # taken without cancellation
        inner = loss + np.log(-np.expm1(math.log1p(-rate) - loss))
    return np.asarray(
        np.where(loss > math.log1p(-rate), (inner - math.log(rate)) * noise**2 + 0.5, -np.inf)
    )


def _between(edges: Floats, noise: float, mean: float) -> Floats:
    """N(mean, noise^2)'s mass between neighbouring ``edges``, computed from the nearer tail, so
    that small masses keep their digits.
    """
    z = (edges - mean) / noise
    return np.asarray(
        np.where(z[:-1] > 0, ndtr(-z[:-1]) - ndtr(-z[1:]), ndtr(z[1:]) - ndtr(z[:-1]))
    )


def _range(one: Mechanism, lost: float) -> tuple[float, float]:
    """The range of a step's losses up to a mass of ``lost`` on either side, under P and under Q."""
    noise, rate = one.noise_multiplier, one.sample_rate
    reach = -noise * float(ndtri(lost / 2))
    low, high = _loss(np.array([-reach, 1 + reach]), noise, rate)
    return float(low), float(high)


def _step(one: Mechanism, width: float, lost: float) -> tuple[NDArray[np.int64], Floats, Floats]:
    """One step's loss on a grid: the indices of the points, and P's and Q's mass at every point."""
    low, high = _range(one, lost)
    first, last = math.floor(low / width), math.ceil(high / width)
    at = np.arange(first, last + 1)
    observed = _observation(at * width, one.noise_multiplier, one.sample_rate)
    absent = _between(observed, one.noise_multiplier, 0.0)
    present = (1 - one.sample_rate) * absent + one.sample_rate * _between(
        observed, one.noise_multiplier, 1.0
    )
    # an interval's masses a (P) and b (Q) are split between its ends, u (Q) at the lower and v (Q)
    # at the upper; P = exp(loss) Q at a
    # point, so u + v = b and exp(low) u + exp(high) v = a, hence v / b = (a / b exp(-low) - 1) /
    # (exp(width) - 1)
    # (Doroshenko et al. 2022, arXiv 2207.04380)
    lows = at[:-1] * width
    ratio = np.divide(present, absent, out=np.exp(np.clip(lows, None, 700.0)), where=absent > 0)
    share = np.clip(
        (ratio * np.exp(-np.clip(lows, -700.0, 700.0)) - 1) / math.expm1(width), 0.0, 1.0
    )
    upper, lower = share * absent, (1 - share) * absent
    q = np.append(lower, 0.0) + np.append(0.0, upper)
    p = q * np.exp(np.clip(at * width, -700.0, 700.0))
    return at, p, q


def _variance(one: Mechanism) -> float:
    """The variance of a step's loss under P, by the trapezoidal rule; it only sets the grid's
    width, so it needs no error bound.
    """
    noise, rate = one.noise_multiplier, one.sample_rate
    y = np.linspace(-8 * noise, 1 + 8 * noise, 2001)
    loss = _loss(y, noise, rate)
    density = (1 - rate) * np.exp(-((y / noise) ** 2) / 2) + rate * np.exp(
        -(((y - 1) / noise) ** 2) / 2
    )
    density /= density.sum()
    mean = float(density @ loss)
    return max(float(density @ (loss - mean) ** 2), 1e-30)


def _window(mechanisms: Sequence[Mechanism]) -> tuple[float, float]:
    """Bounds beyond which the composed loss has a mass of at most :data:`LOST_MASS`, under P and
    under Q, by Chernoff's inequality.
    """
    total = sum(one.count for one in mechanisms)
    steps_of = []
    for one in mechanisms:
        low, high = _range(one, LOST_MASS / total)
        width = (high - low) / 4000
        at, p, q = _step(one, width, LOST_MASS / total)
        steps_of.append((at * width, p, q, one.count))
    spread = math.sqrt(sum(one.count * _variance(one) for one in mechanisms))
    # P(L >= t) <= E exp(a (L - t)) for any a > 0 (Chernoff 1952), and this bound equals LOST_MASS
    # at
    # t = (log E exp(a L) - log LOST_MASS) / a; for independent steps log E exp(a L) is the sum of
    # theirs
    exponents = np.geomspace(0.5, 40, 24) / spread
    lows: list[float] = []
    highs: list[float] = []
    for which in (1, 2):
        for sign, ends in ((1.0, highs), (-1.0, lows)):
            cumulant = np.zeros(len(exponents))
            for losses, p, q, steps in steps_of:
                mass = p if which == 1 else q
                has = mass > 0
                grown = sign * np.outer(exponents, losses[has]) + np.log(mass[has])
                cumulant += steps * np.asarray(logsumexp(grown, axis=1))
            ends.append(sign * float(((cumulant - math.log(LOST_MASS)) / exponents).min()))
    return min(lows), max(highs)
