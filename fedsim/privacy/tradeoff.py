"""What an adversary can at best tell: the privacy curve and the trade-off function of composed Gaussian mechanisms, without torch.

A run of a mechanism gives a draw of P (the unit is there) or of Q (it is not), one step being a Poisson-subsampled Gaussian
mechanism: P = (1 - q) N(0, s^2) + q N(1, s^2), Q = N(0, s^2). The composition is the product of its steps' pairs, which dominates
what any unit does to the composed mechanism under add-or-remove-one, for each of the two orders (Zhu, Dong & Wang 2022, "Optimal
accounting of differential privacy via characteristic function", theorems 10 and 11). From the distribution of its privacy loss
log P / Q follow

- the privacy curve delta(epsilon) = sup_S P(S) - exp(epsilon) Q(S), for either order of P and Q, and
- the trade-off function f(a): the least rate of false negatives of any test with a rate of false positives of at most a (Dong,
  Roth & Su 2022, "Gaussian differential privacy", definitions 2.1 and 2.3).

Each step's loss is moved to a grid so that both P's and Q's mass between two points stay what they are (Doroshenko et al. 2022,
"Connect the dots"): whoever sees the grid's point and not the loss sees more, so every delta is an upper and every trade-off a
lower bound, for both orders. Steps are then convolved by Fourier transforms; :data:`LOST` bounds what wraps around. Doubles are
rounded, which is small against any delta above 1e-11 and is not bounded.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft
from scipy.special import logsumexp, ndtr, ndtri

from fedsim.privacy.accountant import Event

Floats = NDArray[np.floating]

Relation = Literal["add-or-remove-one", "add-one", "remove-one"]
"""Of a trade-off function: ``add-one`` tests that a unit is there against that it is not, ``remove-one`` the other way round,
``add-or-remove-one`` is the worse of both at every point."""

LOST = 1e-14
"""Mass of the composed loss outside the grid on either side; counted as if it gave the unit away."""
FINENESS = 0.0155
"""Width of the grid in standard deviations of a step's loss: it then widens the composed loss by a hundred-thousandth or two."""
MOST_POINTS = 2**22
MOST_SPREAD = 30.0
"""Standard deviation of the composed loss above which nothing is promised (epsilon is then some 450): exp of a loss leaves a double."""
MOST_SLOPES = 4096
"""Tangents that a trade-off function is drawn from; any subset of all of them is a lower bound."""
NOISIEST = 1e4
"""Factor of noise above which no mechanism is tried."""


@dataclass(frozen=True)
class Curve:
    """delta(epsilon) = sup_S X(S) - exp(epsilon) Y(S) for one order of the two, at epsilon >= 0.

    Attributes:
        losses: the losses log X / Y >= 0 that have mass, ascending.
        above: X's mass at these losses and above.
        weight: Y's mass there.
        lost: X's mass of an infinite loss.
    """

    losses: Floats
    above: Floats
    weight: Floats
    lost: float

    def delta(self, epsilon: ArrayLike) -> Floats:
        """An upper bound at each epsilon >= 0."""
        asked = np.asarray(epsilon, float)
        # the supremum is at the set where X > exp(epsilon) Y (Neyman and Pearson): all losses above epsilon
        at = np.searchsorted(self.losses, asked, side="right")
        above, weight = np.append(self.above, 0.0)[at], np.append(self.weight, 0.0)[at]
        with np.errstate(over="ignore", invalid="ignore"):
            paid = np.where(weight > 0, np.exp(asked) * weight, 0.0)
        return np.asarray(np.clip(above - paid, 0.0, None) + self.lost)

    def epsilon(self, delta: float) -> float:
        """The least epsilon >= 0 whose :meth:`delta` is at most ``delta``; inf where there is none."""
        spare = delta - self.lost
        if spare <= 0:
            return math.inf
        at = bisect_left(range(len(self.losses)), True, key=lambda i: self._delta_at(i) <= spare)
        if at == len(self.losses):
            return float(self.losses[-1]) if at else 0.0
        # between the points before and at, delta is the mass above less exp(epsilon) times the weight above
        if self.above[at] <= spare:
            return float(self.losses[at - 1]) if at else 0.0
        return max(0.0, math.log((self.above[at] - spare) / self.weight[at]))

    def _delta_at(self, i: int) -> float:
        """Delta at a loss, without what is lost."""
        paid = float(self.weight[i])
        return float(self.above[i]) - (math.exp(min(float(self.losses[i]), 709.0)) * paid if paid > 0 else 0.0)


@dataclass(frozen=True)
class Composition:
    """A composed mechanism as its adversary sees it.

    Attributes:
        present: the curve of P (the unit is there) against Q (it is not).
        absent: the curve of Q against P.
    """

    present: Curve
    absent: Curve

    def delta(self, epsilon: ArrayLike) -> Floats:
        """An upper bound of delta at each ``epsilon`` >= 0, of the worse order."""
        return np.asarray(np.maximum(self.present.delta(epsilon), self.absent.delta(epsilon)))

    def epsilon(self, delta: float) -> float:
        """An upper bound of epsilon at ``delta``, of the worse order; inf where none is found."""
        return max(self.present.epsilon(delta), self.absent.epsilon(delta))

    def false_negatives(self, false_positives: ArrayLike, relation: Relation = "add-or-remove-one") -> Floats:
        """The trade-off function: a lower bound of the rate of false negatives at each rate of false positives, both in [0, 1]."""
        rate = np.asarray(false_positives, float)
        if relation == "add-one":
            return _tradeoff(rate, self.present, self.absent)
        if relation == "remove-one":
            return _tradeoff(rate, self.absent, self.present)
        return np.asarray(np.minimum(self.false_negatives(rate, "add-one"), self.false_negatives(rate, "remove-one")))


def _tradeoff(rate: Floats, alternative: Curve, null: Curve) -> Floats:
    """T(Y, X) at ``rate`` from the curves of X against Y and of Y against X: the highest of the tangents with slopes -exp(e), -exp(-e).

    X(S) <= exp(e) Y(S) + d for the set S that a test rejects, Y(not S) <= exp(e) X(not S) + d for its complement.
    """
    steep, flat = _slopes(alternative), _slopes(null)
    with np.errstate(over="ignore", invalid="ignore"):
        factor = np.exp(steep)
        rises = 1 - alternative.delta(steep) - np.where(rate[..., None] > 0, factor * rate[..., None], 0.0)
        falls = np.exp(-flat) * (1 - rate[..., None] - null.delta(flat))
    best = np.maximum(rises.max(-1), falls.max(-1))
    return np.asarray(np.clip(best, 0.0, np.clip(1 - rate, 0.0, 1.0)))


def _slopes(curve: Curve) -> Floats:
    stride = max(1, len(curve.losses) // MOST_SLOPES)
    return np.concatenate([[0.0], curve.losses[::stride]])


class Spectra:
    """The logarithms of single steps' Fourier transforms, from which any numbers of them are composed in milliseconds."""

    def __init__(self, events: Sequence[Event]) -> None:
        """Prepare for compositions of at most the steps of ``events``.

        Raises:
            ValueError: a noise multiplier that is not above 0, a sample rate outside [0, 1] or negative steps.
        """
        for noise, rate, steps in events:
            if not (noise > 0 and 0 <= rate <= 1 and steps >= 0):
                raise ValueError(f"not a step with noise (noise multiplier, sample rate, steps): {(noise, rate, steps)}")
        self._costs = [bool(steps and rate) and math.isfinite(noise) for noise, rate, steps in events]
        costly = [event for event, costs in zip(events, self._costs, strict=True) if costs]
        self._spectra: list[tuple[NDArray[np.complex128], NDArray[np.complex128]]] = []
        if not costly:
            return
        total = sum(steps for *_, steps in costly)
        spread = math.sqrt(sum(steps * _variance(noise, rate) for noise, rate, steps in costly))
        self._bounded = spread < MOST_SPREAD
        if not self._bounded:
            return
        width = FINENESS * spread / math.sqrt(total)
        low, high = _window(costly)
        self._width = max(width, (high - low) / (MOST_POINTS - 4))
        self._first = min(math.floor(low / self._width) - 1, 0)
        self._points = int(fft.next_fast_len(math.ceil(high / self._width) + 2 - self._first, real=True))
        # the point of loss 0, and the losses from there on either way, with what turns X's mass into Y's
        self._zero = -self._first
        sides = [np.arange(n) * self._width for n in (self._points - self._zero, self._zero + 1)]
        self._grids = [(side, np.exp(-side)) for side in sides]
        self._lost = [0.0, 0.0]
        for noise, rate, steps in costly:
            at, present, absent = _step(noise, rate, self._width, LOST / total)
            self._spectra.append((self._transform(at, present), self._transform(at, absent)))
            self._lost[0] += steps * max(0.0, 1 - float(present.sum()))
            self._lost[1] += steps * max(0.0, 1 - float(absent.sum()))

    def compose(self, steps: Sequence[int]) -> Composition:
        """The composition of so many steps of every event, none more than was prepared for."""
        counts = [count for count, costs in zip(steps, self._costs, strict=True) if costs]
        if not any(counts) or not self._bounded:
            nothing = np.zeros(0)
            return Composition(*[Curve(nothing, nothing, nothing, 1.0 if any(counts) else 0.0)] * 2)
        curves = []
        for which in (0, 1):
            with np.errstate(invalid="ignore"):
                logs = sum(count * pair[which] for pair, count in zip(self._spectra, counts, strict=True) if count)
                product = np.nan_to_num(np.exp(logs))
            mass = np.roll(fft.irfft(product, self._points), -self._first)
            # the losses >= 0 of either order, ascending
            told = np.clip(mass[self._zero :] if which == 0 else mass[self._zero :: -1], 0.0, None)
            losses, shrunk = self._grids[which]
            weight = np.cumsum((told * shrunk)[::-1])[::-1]
            curves.append(Curve(losses, np.cumsum(told[::-1])[::-1], weight, 2 * LOST + self._lost[which]))
        return Composition(*curves)

    def _transform(self, at: NDArray[np.int64], mass: Floats) -> NDArray[np.complex128]:
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(fft.rfft(np.bincount(at % self._points, mass, self._points))))


def compose(events: Sequence[Event]) -> Composition:
    """What all of ``events`` give away together.

    Raises:
        ValueError: see :class:`Spectra`.
    """
    return Spectra(events).compose([steps for *_, steps in events])


def refuted_epsilon(events: Sequence[Event], delta: float, false_positives: float, true_positives: float) -> tuple[float, float]:
    """The largest epsilon of the same mechanism with other noise that a test with these rates refutes, and that factor of noise.

    The mechanism at a factor s has all noise multipliers times s. It cannot be what ran if a test's false negatives are below its trade-off
    function; more noise is easier to refute, so the least refuted factor has the largest epsilon. For a bound with confidence give upper
    confidence limits of the false positives and lower ones of the true positives.

    Args:
        events: (noise multiplier, sample rate, steps) each, of the claimed mechanism.
        delta: of the epsilon.
        false_positives: in [0, 1]; a positive says that the unit is there.
        true_positives: in [0, 1].

    Returns:
        (epsilon, factor), the factor to a thousandth; (0.0, inf) where not even much noise is refuted.

    Raises:
        ValueError: see :class:`Spectra`.
    """

    def scaled(factor: float) -> Composition:
        return compose([(noise * factor, rate, steps) for noise, rate, steps in events])

    def is_refuted(factor: float) -> bool:
        return 1 - true_positives < float(scaled(factor).false_negatives(false_positives, "add-one")) - 1e-12

    if true_positives <= false_positives or not is_refuted(NOISIEST):
        return 0.0, math.inf
    low, high = 1 / NOISIEST, NOISIEST
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if is_refuted(middle) else (middle, high)
    return scaled(high).epsilon(delta), high


def _loss(y: Floats, noise: float, rate: float) -> Floats:
    """Log P / Q at the observation ``y``."""
    # P / Q = 1 - q + q N(1, s^2) / N(0, s^2), and the normals' ratio at y is exp((2 y - 1) / (2 s^2))
    exponent = (2 * y - 1) / (2 * noise**2)
    if rate == 1:
        return exponent
    return np.asarray(np.logaddexp(math.log1p(-rate), math.log(rate) + exponent))


def _observation(loss: Floats, noise: float, rate: float) -> Floats:
    """The observation at which log P / Q is ``loss``; -inf below all losses."""
    if rate == 1:
        return np.asarray(loss * noise**2 + 0.5)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        # log(exp(loss) - (1 - q)) without a difference of near numbers
        inner = loss + np.log(-np.expm1(math.log1p(-rate) - loss))
    return np.asarray(np.where(loss > math.log1p(-rate), (inner - math.log(rate)) * noise**2 + 0.5, -np.inf))


def _between(edges: Floats, noise: float, mean: float) -> Floats:
    """N(mean, noise^2)'s mass between neighbouring ``edges``, each with the precision of its nearer tail."""
    z = (edges - mean) / noise
    return np.asarray(np.where(z[:-1] > 0, ndtr(-z[:-1]) - ndtr(-z[1:]), ndtr(z[1:]) - ndtr(z[:-1])))


def _range(noise: float, rate: float, lost: float) -> tuple[float, float]:
    """The losses of a step but for a mass of ``lost`` on either side, under P and under Q."""
    reach = -noise * float(ndtri(lost / 2))
    low, high = _loss(np.array([-reach, 1 + reach]), noise, rate)
    return float(low), float(high)


def _step(noise: float, rate: float, width: float, lost: float) -> tuple[NDArray[np.int64], Floats, Floats]:
    """One step's loss on a grid: the points' numbers, P's mass and Q's mass at each."""
    low, high = _range(noise, rate, lost)
    first, last = math.floor(low / width), math.ceil(high / width)
    at = np.arange(first, last + 1)
    edges = _observation(at * width, noise, rate)
    absent = _between(edges, noise, 0.0)
    present = (1 - rate) * absent + rate * _between(edges, noise, 1.0)
    # an interval's masses a (P) and b (Q) go to its ends: u + v = b, exp(low) u + exp(high) v = a, since P is exp(loss) Q at a point;
    # so v / b = (a / b exp(-low) - 1) / (exp(width) - 1) (Doroshenko et al. 2022, arXiv 2207.04380)
    lows = at[:-1] * width
    ratio = np.divide(present, absent, out=np.exp(np.clip(lows, None, 700.0)), where=absent > 0)
    share = np.clip((ratio * np.exp(-np.clip(lows, -700.0, 700.0)) - 1) / math.expm1(width), 0.0, 1.0)
    upper, lower = share * absent, (1 - share) * absent
    q = np.append(lower, 0.0) + np.append(0.0, upper)
    p = q * np.exp(np.clip(at * width, -700.0, 700.0))
    return at, p, q


def _variance(noise: float, rate: float) -> float:
    """The variance of a step's loss under P, by the trapezoidal rule."""
    y = np.linspace(-8 * noise, 1 + 8 * noise, 2001)
    loss = _loss(y, noise, rate)
    density = (1 - rate) * np.exp(-((y / noise) ** 2) / 2) + rate * np.exp(-(((y - 1) / noise) ** 2) / 2)
    density /= density.sum()
    mean = float(density @ loss)
    return max(float(density @ (loss - mean) ** 2), 1e-30)


def _window(events: Sequence[Event]) -> tuple[float, float]:
    """Bounds outside of which the composed loss has a mass of at most :data:`LOST` each, under P and under Q, by Chernoff's inequality."""
    total = sum(steps for *_, steps in events)
    steps_of = []
    for noise, rate, steps in events:
        low, high = _range(noise, rate, LOST / total)
        width = (high - low) / 4000
        at, p, q = _step(noise, rate, width, LOST / total)
        steps_of.append((at * width, p, q, steps))
    spread = math.sqrt(sum(steps * _variance(noise, rate) for noise, rate, steps in events))
    # P(L >= t) <= E exp(a L - a t) for any a > 0, which is LOST at t = (log E exp(a L) - log LOST) / a; cumulants of steps add up
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
            ends.append(sign * float(((cumulant - math.log(LOST)) / exponents).min()))
    return min(lows), max(highs)
