"""Computes the epsilon that Gaussian mechanisms spend together at a given delta.

Each mechanism may see a Poisson sample of the units, and may depend on earlier outputs. Two data
sets are neighbours if one has one unit more than the other (add or remove one).

Numerical composition gives the epsilon. Where it is not reliable, Rényi composition replaces it.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from decimal import ROUND_CEILING, Context
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np

from fedsim import __version__
from fedsim.privacy.mechanism import Mechanism, merged

AccountantName = Literal["prv", "rdp", "none"]
"""How an epsilon was computed.

``prv``: by numerical composition of privacy loss random variables. ``rdp``: by Rényi divergences.
``none``: not at all, because nothing ran or a mechanism had no noise.
"""
LARGE_ORDERS = (72, 80, 96, 112, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024)
INTEGER_ORDERS: tuple[float, ...] = (*range(2, 64), *LARGE_ORDERS)
"""The integer Rényi orders, whose divergence is fast to compute."""
LOW_ORDERS: tuple[float, ...] = (1.05, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8)
"""Low Rényi orders; one of them gives the smallest bound if epsilon is large."""
ORDERS: tuple[float, ...] = (
    1.005,
    1.01,
    1.02,
    1.05,
    *(1 + x / 10 for x in range(1, 100) if x % 10),
    *INTEGER_ORDERS,
)
"""All Rényi orders.

Above 1024 a binomial coefficient of the subsampled formula leaves the range of a double.
"""

PRV_RELATIVE_ERROR = 1e-3
"""The discretisation error as a share of epsilon.

The bound includes the error, so a smaller error wastes less of the budget.
"""
PRV_MAX_POINTS = 2**20
"""The largest number of points of the discretised privacy loss.

With this limit one evaluation takes under about two seconds.
"""
PRV_MAX_EPSILON = 690.0
"""Numerical composition is used below this epsilon only.

Above it exp overflows for some losses, so that losses and epsilon would come out too small.
"""
PRV_MIN_DELTA = 1e-10
"""The smallest delta of numerical composition.

Below it the rounding of the Fourier transform is no longer small against delta.
"""
_CODE = ("mechanism.py", "plan.py", "ledger.py", "accountant.py", "selection.py")
_PACKAGES = ("opacus", "dp-accounting", "numpy", "scipy")
_UP = Context(prec=10, rounding=ROUND_CEILING)
"""Rounds an epsilon up to ten significant digits.

Further digits depend on the processor and the number of threads, which change the order of sums.
"""


def epsilon(
    mechanisms: Iterable[Mechanism],
    delta: float,
) -> tuple[float, AccountantName]:
    """Return the epsilon that ``mechanisms`` spend together at ``delta``, and its accountant.

    It is the upper bound of numerical composition of privacy loss random variables (Gopi, Lee &
    Wutschitz 2021, "Numerical composition of differential privacy", theorem 5.5; Opacus'
    implementation), rounded up to ten digits. If that fails or would need too fine a mesh, it is
    the bound of Rényi composition (:func:`rdp_epsilon`).

    Opacus composes the losses of removing a unit only. This function assumes that adding a unit
    costs no more. ``fedsim verify`` composes both directions with dp-accounting.

    Args:
        mechanisms: the mechanisms that ran.
        delta: in (0, 1).

    Returns:
        The epsilon and "prv" or "rdp"; (0.0, "none") if nothing ran, and (inf, "none") if a
        mechanism had no noise.
    """
    return _composed(_merged(mechanisms, delta), delta)


@cache
def _composed(
    mechanisms: tuple[Mechanism, ...],
    delta: float,
) -> tuple[float, AccountantName]:
    """Return :func:`epsilon` of merged mechanisms.

    The result is cached, because most cells of a grid have one of a few plans, and an evaluation
    takes half a second.
    """
    if not mechanisms:
        return 0.0, "none"
    if any(mechanism.noise_multiplier == 0 for mechanism in mechanisms):
        return math.inf, "none"
    rough = rough_epsilon(mechanisms, delta)
    spent = _prv_epsilon(mechanisms, delta, rough)
    # A bound far above that of the looser theorem is a numerical failure. So is NaN, which fails
    # both comparisons.
    if 0 <= spent <= rough + 0.1 * max(rough, 0.1):
        return rounded_up(spent), "prv"
    return rounded_up(rdp_epsilon(mechanisms, delta)), "rdp"


def rounded_up(spent: float) -> float:
    """Return an epsilon rounded up to ten significant digits; others depend on the processor."""
    return float(_UP.create_decimal(spent))


def rdp_epsilon(
    mechanisms: Sequence[Mechanism],
    delta: float,
    orders: Sequence[float] = ORDERS,
) -> float:
    """Return the epsilon of ``mechanisms`` by Rényi composition.

    It is fast to compute, always an upper bound, and looser than :func:`epsilon`. It is the minimum
    over orders a of

        R(a) + log((a - 1) / a) - (log delta + log a) / (a - 1),

    where R is the sum of :meth:`Mechanism.divergence` (Balle et al. 2020, arXiv 1905.09982,
    theorem 21).
    """
    costly = _merged(mechanisms, delta)
    if not costly:
        return 0.0
    return max(0.0, min(_order_bound(costly, delta, order) for order in orders))


def rough_epsilon(mechanisms: Sequence[Mechanism], delta: float) -> float:
    """Return :func:`rdp_epsilon` from few orders, in milliseconds, to start a search from."""
    rough = rdp_epsilon(mechanisms, delta, INTEGER_ORDERS)
    # The best order falls below 2 only for a large epsilon. Fractional orders are slow where sigma
    # is large and q near 1/2.
    if rough < 20:
        return rough
    return min(rough, rdp_epsilon(mechanisms, delta, LOW_ORDERS))


def least_noise(
    is_enough: Callable[[float], bool],
    low: float,
    high: float,
    ratio: float,
) -> float:
    """Return a sigma that is enough and at most ``ratio`` times the least such sigma.

    Args:
        is_enough: returns whether a sigma is enough. If a sigma is, every larger one must be.
        low: the lower end of the search, above 0.
        high: the upper end of the search, which must be enough.
        ratio: the precision of the search, above 1.
    """
    while high / low > ratio:
        middle = math.sqrt(low * high)
        if is_enough(middle):
            high = middle
        else:
            low = middle
    return high


def _merged(
    mechanisms: Iterable[Mechanism],
    delta: float,
) -> tuple[Mechanism, ...]:
    if not 0 < delta < 1:
        raise ValueError(f"delta must be in (0, 1), not {delta}")
    return merged(mechanisms)


def _prv_epsilon(
    mechanisms: tuple[Mechanism, ...],
    delta: float,
    rough: float,
) -> float:
    """Return Opacus' PRV upper bound, with a mesh that is scaled to the ``rough`` epsilon.

    It is NaN if Opacus fails, or if its result is not reliable: if delta is below PRV_MIN_DELTA,
    the mesh would be too coarse, or epsilon is not below PRV_MAX_EPSILON.
    """
    if not math.isfinite(rough) or delta < PRV_MIN_DELTA:
        return math.nan
    # The mesh is error / sqrt(steps * log(12 / delta_error) / 2), over a domain of about
    # (1.5 epsilon + 3) on both sides of 0.
    steps = sum(mechanism.count for mechanism in mechanisms)
    scale = math.sqrt(steps * math.log(12_000 / delta) / 2)
    finest_error = 2 * (1.5 * rough + 3) * scale / PRV_MAX_POINTS
    error = max(PRV_RELATIVE_ERROR * rough, finest_error)
    if error >= 1:
        return math.nan  # Opacus' rule for the domain holds for errors below 1 only
    # Opacus is imported late, because it imports its optimisers, too, which is slow.
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [
        (mechanism.noise_multiplier, mechanism.sample_rate, mechanism.count)
        for mechanism in mechanisms
    ]
    # log(1 - q) at q = 1 and the far tails give warnings; the formulas handle both.
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            spent = float(accountant.get_epsilon(delta, eps_error=error))
        except (ArithmeticError, ValueError, RuntimeError, IndexError, MemoryError):
            return math.nan
    if spent < PRV_MAX_EPSILON:
        return spent
    return math.nan


def _order_bound(
    mechanisms: tuple[Mechanism, ...],
    delta: float,
    order: float,
) -> float:
    """Return the epsilon from one Rényi order; +inf if its series overflows double precision."""
    spent = sum(mechanism.divergence(order) for mechanism in mechanisms)
    conversion = (math.log(delta) + math.log(order)) / (order - 1)
    bound = spent + math.log1p(-1 / order) - conversion
    if math.isnan(bound) or spent < 0:
        return math.inf
    return bound


@cache
def counted_by() -> str:
    """Return the versions of the code that plans and counts, as results record them.

    They are fedsim's version with a hash of that code, and the versions of the packages it uses.
    """
    folder = Path(__file__).parent
    hashes = [hashlib.sha256((folder / name).read_bytes()).digest() for name in _CODE]
    code = hashlib.sha256(b"".join(hashes)).hexdigest()[:12]
    packages = [f"{name} {version(name)}" for name in _PACKAGES]
    return ", ".join([f"fedsim {__version__} {code}", *packages])
