"""The cost of a sequence of Gaussian mechanisms: (epsilon, delta) under add-or-remove-one.

Neighbours are two data sets of which one has one unit more than the other.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterable, Sequence
from decimal import ROUND_CEILING, Context
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np

from fedsim import __version__
from fedsim.privacy.mechanism import Mechanism, merged

INTEGER_ORDERS: tuple[float, ...] = (
    *range(2, 64),
    72,
    80,
    96,
    112,
    128,
    160,
    192,
    256,
    320,
    384,
    512,
    640,
    768,
    1024,
)
LOW_ORDERS: tuple[float, ...] = (1.05, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8)
ORDERS: tuple[float, ...] = (
    1.005,
    1.01,
    1.02,
    1.05,
    *(1 + x / 10 for x in range(1, 100) if x % 10),
    *INTEGER_ORDERS,
)
"""Rényi orders; above 1024 a binomial coefficient of the subsampled formula leaves the range of a
double.
"""

# of epsilon; the discretisation error is part of the bound, so a smaller one wastes less budget
PRV_RELATIVE_ERROR = 1e-3
PRV_MAX_POINTS = (
    2**20
)  # of the discretised privacy loss; keeps one evaluation under about two seconds
PRV_MAX_EPSILON = (
    690.0  # above it losses are too large for exp in a double, and count as smaller ones
)
PRV_MIN_DELTA = (
    1e-10  # below it the rounding of the Fourier transform is no longer small against delta
)
_CODE = ("mechanism.py", "plan.py", "ledger.py", "accountant.py", "selection.py")
_PACKAGES = ("opacus", "dp-accounting", "numpy", "scipy")
_UP = Context(prec=10, rounding=ROUND_CEILING)
"""Rounds an epsilon up: further digits of its sums depend on the processor and the number of
threads.
"""


def epsilon(mechanisms: Iterable[Mechanism], delta: float) -> tuple[float, str]:
    """The epsilon that ``mechanisms`` spend together at ``delta`` in (0, 1), and the accountant
    that computed it: "prv", "rdp" or "none".

    The upper bound of numerical composition of privacy loss random variables (Gopi, Lee & Wutschitz
    2021, "Numerical composition of differential privacy", theorem 5.5; Opacus' implementation),
    rounded up to ten digits. If that fails or would need too fine a mesh: Rényi composition
    (:func:`rdp_epsilon`). (0.0, "none") if nothing ran, (inf, "none") if a step had no noise.
    """
    return _composed(_merged(mechanisms, delta), delta)


@cache
def _composed(mechanisms: tuple[Mechanism, ...], delta: float) -> tuple[float, str]:
    """:func:`epsilon` of merged mechanisms; kept, since cells of a grid share few plans and each
    evaluation takes half a second.
    """
    if not mechanisms:
        return 0.0, "none"
    if any(one.noise_multiplier == 0 for one in mechanisms):
        return math.inf, "none"
    rough = rough_epsilon(mechanisms, delta)
    spent = _prv_epsilon(mechanisms, delta, rough)
    # NaN fails the comparison too; a bound above the looser theorem's own bound is a numerical
    # failure
    if 0 <= spent <= rough + 0.1 * max(rough, 0.1):
        return rounded_up(spent), "prv"
    return rounded_up(rdp_epsilon(mechanisms, delta)), "rdp"


def rounded_up(spent: float) -> float:
    """An epsilon rounded up to ten digits; further ones depend on the processor."""
    return float(_UP.create_decimal(spent))


def rdp_epsilon(
    mechanisms: Iterable[Mechanism], delta: float, orders: Sequence[float] = ORDERS
) -> float:
    """The epsilon of ``mechanisms`` by Rényi composition: cheap, always an upper bound, looser than
    :func:`epsilon`.

    Conversion of :meth:`Mechanism.divergence` from Balle et al. 2020 (arXiv 1905.09982, theorem
    21): the minimum over orders a of R(a) + log((a - 1) / a) - (log delta + log a) / (a - 1).
    """
    costly = _merged(mechanisms, delta)
    if costly:
        return max(0.0, min(_order_bound(costly, delta, order) for order in orders))
    return 0.0


def rough_epsilon(mechanisms: Iterable[Mechanism], delta: float) -> float:
    """:func:`rdp_epsilon` from few orders, in milliseconds: an upper bound to start a search
    from.
    """
    costly = _merged(mechanisms, delta)
    rough = rdp_epsilon(costly, delta, INTEGER_ORDERS)
    # the best order falls below 2 only for a large epsilon; fractional orders are slow where sigma
    # is large and q near 1/2
    if rough < 20:
        return rough
    return min(rough, rdp_epsilon(costly, delta, LOW_ORDERS))


def _merged(mechanisms: Iterable[Mechanism], delta: float) -> tuple[Mechanism, ...]:
    if not 0 < delta < 1:
        raise ValueError(f"delta must be in (0, 1), not {delta}")
    return merged(mechanisms)


def _prv_epsilon(mechanisms: tuple[Mechanism, ...], delta: float, rough: float) -> float:
    """Opacus' PRV upper bound, its discretisation error scaled to the ``rough`` epsilon; nan if it
    fails.
    """
    if not math.isfinite(rough) or delta < PRV_MIN_DELTA:
        return math.nan
    # the mesh is error / sqrt(steps * log(12 / delta_error) / 2) over a domain of about (1.5
    # epsilon + 3) on both sides of 0
    scale = math.sqrt(sum(one.count for one in mechanisms) * math.log(12_000 / delta) / 2)
    error = max(PRV_RELATIVE_ERROR * rough, 2 * (1.5 * rough + 3) * scale / PRV_MAX_POINTS)
    if error >= 1:  # Opacus' rule for the domain holds for smaller errors only
        return math.nan
    from opacus.accountants import PRVAccountant  # late: Opacus imports its optimisers, too

    accountant = PRVAccountant()
    accountant.history = [(one.noise_multiplier, one.sample_rate, one.count) for one in mechanisms]
    # log(1 - q) at q = 1 and the far tails warn; the formulas handle them
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            spent = float(accountant.get_epsilon(delta, eps_error=error))
        except (ArithmeticError, ValueError, RuntimeError, IndexError, MemoryError):
            return math.nan
    if spent < PRV_MAX_EPSILON:
        return spent
    return math.nan


def _order_bound(mechanisms: tuple[Mechanism, ...], delta: float, order: float) -> float:
    """Epsilon from one Rényi order; +inf if its series overflows double precision."""
    spent = sum(one.divergence(order) for one in mechanisms)
    bound = spent + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
    if math.isnan(bound) or spent < 0:
        return math.inf
    return bound


@cache
def counted_by() -> str:
    """Fedsim's version with the hash of the code that plans and counts, and the versions of the
    packages it uses: a row records it.
    """
    folder = Path(__file__).parent
    code = hashlib.sha256(
        b"".join(hashlib.sha256((folder / name).read_bytes()).digest() for name in _CODE)
    ).hexdigest()[:12]
    return ", ".join(
        [f"fedsim {__version__} {code}", *(f"{name} {version(name)}" for name in _PACKAGES)]
    )
