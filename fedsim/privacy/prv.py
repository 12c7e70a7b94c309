"""Numerical composition of privacy loss random variables, as Opacus computes it to the last bit, without what cannot change it.

Gopi, Lee & Wutschitz 2021, "Numerical composition of differential privacy" (arXiv 2106.02848), and Opacus' implementation. Left out are
Rényi orders that cannot be the best one, the ends of a distribution where it is constant in double precision, and powers that underflow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.privacy.renyi import divergence_floors, least

Floats = NDArray[np.float64]

_UNDERFLOW = -760.0  # the exponential of less is 0 in double precision, with room for the rounding of a product
_ERFC_TWO, _ERFC_ZERO = -7.0, 28.0  # the complementary error function is exactly 2 below, exactly 0 above


def upper_bound(events: Sequence[tuple[float, float, int]], delta: float, eps_error: float, delta_error: float) -> float:
    """Upper bound of the epsilon that ``events`` spend at ``delta``; the discretisation errors are part of it.

    Args:
        events: (noise multiplier > 0, sample rate in (0, 1], steps) each.
        delta: in (0, 1).
        eps_error: of the discretisation, < 1.
        delta_error: of the discretisation, < ``delta``.

    Raises:
        ArithmeticError, ValueError, RuntimeError, IndexError, MemoryError: the mesh or double precision do not allow it.
    """
    from opacus.accountants.analysis.prv import Domain, discretize
    from opacus.accountants.analysis.prv.compose import _compose_convolution_tree

    # log(1 - q) at q = 1 and the far tails warn, and are handled by the formulas
    with np.errstate(all="ignore"):
        compositions = [steps for _, _, steps in events]
        half_width = _half_width(events, eps_error, delta_error)
        mesh = eps_error / np.sqrt(sum(compositions) * np.log(12 / delta_error) / 2)
        domain = Domain.create_aligned(-half_width, half_width, mesh)
        losses = [PrivacyLoss(noise_multiplier, rate, domain.t_min, domain.t_max) for noise_multiplier, rate, _ in events]
        discrete = [discretize(loss, domain) for loss in losses]
        composed = _compose_convolution_tree([_self_composed(each, n) for each, n in zip(discrete, compositions, strict=True)])
        return float(composed.compute_epsilon(delta, delta_error, eps_error)[2])


def _half_width(events: Sequence[tuple[float, float, int]], eps_error: float, delta_error: float) -> float:
    """Where the loss is cut off on both sides (remark 5.6): Rényi bounds of the whole, and of each mechanism once."""
    bound = max(eps_error, _rdp_epsilon(events, delta_error / 4))
    once = delta_error / (8 * sum(steps for _, _, steps in events))
    for noise_multiplier, rate, _ in events:
        bound = max(bound, _rdp_epsilon([(noise_multiplier, rate, 1)], once, enough=bound))
    return bound + 3


def _rdp_epsilon(events: Sequence[tuple[float, float, int]], delta: float, enough: float = -math.inf) -> float:
    """The epsilon of Opacus' Rényi accountant at its own orders; any bound that is at most ``enough`` does."""
    from opacus.accountants import RDPAccountant
    from opacus.accountants.analysis.rdp import compute_rdp

    listed = RDPAccountant.DEFAULT_ALPHAS
    orders = np.array(listed)
    price, shift = (np.log(delta) + np.log(orders)) / (orders - 1), np.log((orders - 1) / orders)

    def exact(position: int) -> float:
        order = float(listed[position])
        divergence = sum(compute_rdp(q=rate, noise_multiplier=noise, steps=steps, orders=order) for noise, rate, steps in events)
        return float(divergence - price[position] + shift[position])

    return least(divergence_floors(events, orders) - price + shift, exact, enough)


class PrivacyLoss:
    """The privacy loss of one Poisson-subsampled Gaussian step (propositions B1 and B4), cut off outside [``t_min``, ``t_max``].

    Args:
        noise_multiplier: > 0.
        rate: in (0, 1].
        t_min: lower end.
        t_max: upper end.
    """

    def __init__(self, noise_multiplier: float, rate: float, t_min: float, t_max: float) -> None:
        from scipy.special import erfc

        self._erfc: Any = erfc
        self.noise_multiplier, self.rate, self.t_min, self.t_max = noise_multiplier, rate, t_min, t_max
        self._edge = np.log(1 - rate)
        self._below = self._whole(t_min)
        self._mass = self._whole(t_max) - self._below

    def cdf(self, t: Floats) -> Floats:
        """The distribution function at ascending points, ``[n]`` to ``[n]``."""
        first, last = np.searchsorted(t, (self.t_min, self.t_max))
        values = np.zeros(len(t))
        values[last:] = 1.0
        values[first:last] = (self._whole_ascending(t[first:last]) - self._below) / self._mass
        return values

    def mean(self) -> float:
        """The expectation, by quadrature between points that crowd around 0."""
        from scipy.integrate import quad

        low, high = int(np.log10(np.abs(self.t_min))), int(np.log10(self.t_max))
        points = np.concatenate([[self.t_min], -np.logspace(low, -5, 10), [0], np.logspace(-5, high, 10), [self.t_max]])
        mean = 0.0
        for left, right in pairwise(points):
            # full output, where rounding is told instead of warned of: all threads share the filters of warnings
            integral = quad(self._at, left, right, limit=500, full_output=True)[0]
            mean += right * self._at(right) - left * self._at(left) - integral
        return mean

    def _at(self, t: float) -> float:
        if t < self.t_min:
            return 0.0
        return float((self._whole(t) - self._below) / self._mass) if t < self.t_max else 1.0

    def _whole(self, t: Any) -> Any:
        """The distribution function before it is cut off, at one point or where every point is above log(1 - rate)."""
        if np.ndim(t) == 0 and not t > self._edge:
            return np.float64(0.0)
        q, sigma, erfc = self.rate, self.noise_multiplier, self._erfc
        z = np.log((np.exp(t) + q - 1) / q)
        scale = 2 * np.sqrt(2) * sigma
        return -q * erfc((2 * z * sigma**2 - 1) / scale) / 2 - (1 - q) * erfc((2 * z * sigma**2 + 1) / scale) / 2 + 1.0

    def _whole_ascending(self, t: Floats) -> Floats:
        """The same at ascending points; computed only where it is not constant in double precision."""
        q = self.rate
        edge = int(np.searchsorted(t, self._edge, side="right"))
        low, high = (max(edge, int(np.searchsorted(t, self._where(value)))) for value in (_ERFC_TWO, _ERFC_ZERO))
        values = np.zeros(len(t))
        values[edge:low] = -q * 2.0 / 2 - (1 - q) * 2.0 / 2 + 1.0
        values[low:high] = self._whole(t[low:high])
        values[high:] = 1.0
        return values

    def _where(self, argument: float) -> float:
        """The loss at which the error functions have passed ``argument``; infinite where rounding may move it by more than the margin."""
        sigma, q = self.noise_multiplier, self.rate
        if sigma * np.finfo(np.float64).eps > 0.1 * q:
            return math.copysign(math.inf, argument)
        z = (argument * 2 * math.sqrt(2) * sigma - math.copysign(1, -argument)) / (2 * sigma**2)
        return float(np.log1p(np.maximum(q * np.expm1(z), -1.0)))


def _self_composed(loss: Any, times: int) -> Any:
    """A discrete loss ``times`` times; both are Opacus' ``DiscretePRV``."""
    from opacus.accountants.analysis.prv import DiscretePRV
    from scipy.fft import irfft, rfft

    if len(loss) % 2:
        raise ValueError("only distributions on an even number of points are composed")
    spectrum = rfft(loss.pmf)
    if times > 1:
        kept = np.abs(spectrum) > math.exp(_UNDERFLOW / times)
        powers = np.zeros_like(spectrum)
        powers[kept] = spectrum[kept] ** times
        spectrum = powers
    pmf = irfft(spectrum)
    shift = times - 1 + (len(pmf) // 2 if times % 2 == 0 else 0)
    return DiscretePRV(pmf=np.roll(pmf, shift), domain=loss.domain.shift_right(loss.domain.shifts * (times - 1)))
