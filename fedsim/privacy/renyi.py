"""Rényi divergences of the sampled Gaussian mechanism from below, for all orders at once: which orders a search need not look at."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CONTIGUOUS = 64  # orders up to here stand one beside the other, so that chords bound what is between them
INTEGERS = (*range(CONTIGUOUS + 1), 72, 80, 96, 112, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024)
ROUNDING = 1e-9  # relative, of a bound
ROUNDING_STEP = 1e-12  # of a step's log moment: rounding and the tail that a fractional order's series leaves out


def least(floors: Floats, exact: Callable[[int], float], enough: float = -math.inf) -> float:
    """The minimum of ``exact`` over all positions of ``floors``, none of which it falls below; positions that cannot hold it are skipped.

    Args:
        floors: a lower bound of ``exact`` at each position; -inf where none is known.
        exact: the value at a position; inf or nan where there is none.
        enough: the search stops at a value that is not above, though it may not be the minimum.
    """
    best = math.inf
    for position in np.argsort(floors):
        if floors[position] > best or best <= enough:
            break
        best = min(best, exact(int(position)))
    return best


def divergence_floors(events: Sequence[tuple[float, float, int]], orders: Floats) -> Floats:
    """Lower bounds of the composed Rényi divergence of (noise multiplier, sample rate, steps) at each order > 1, rounding allowed for.

    At integers up to 1024 that :data:`INTEGERS` lists the bound is the divergence itself (Mironov, Talwar & Zhang 2019, arXiv 1908.10530,
    section 3.3). Between integers up to 64 the log moment, convex in the order, lies above the chords of its neighbours, prolonged.
    Anywhere else it is -inf.
    """
    below = np.floor(orders).astype(np.int64)
    whole = below == orders
    places = np.searchsorted(INTEGERS, orders).clip(max=len(INTEGERS) - 1)
    listed = whole & (np.asarray(INTEGERS)[places] == orders)
    between = ~whole & (below + 2 <= CONTIGUOUS)
    n, part = below[between], orders[between] - below[between]
    total = np.full(len(orders), -math.inf)
    total[listed | between] = 0.0
    with np.errstate(all="ignore"):
        for noise_multiplier, rate, steps in events:
            moments = _log_moments(noise_multiplier, rate)
            total[listed] += steps * moments[places[listed]]
            left = moments[n] + part * (moments[n] - moments[n - 1])
            right = moments[n + 1] - (1 - part) * (moments[n + 2] - moments[n + 1])
            total[between] += steps * np.maximum(left, right)
        slack = ROUNDING_STEP * sum(steps for _, _, steps in events)
        divergences = (total - slack) / (orders - 1)
        floors: Floats = divergences - ROUNDING * (1 + np.abs(divergences))
    return np.where(np.isnan(floors), -math.inf, floors)


class _Terms(NamedTuple):
    """The binomial sums of all integer orders, one after another: of each term its order and rank, of each order where it starts."""

    order: Floats
    rank: Floats
    log_binomial: Floats
    starts: NDArray[np.int64]


@lru_cache(maxsize=1)
def _terms() -> _Terms:
    from scipy.special import gammaln

    lengths = np.asarray(INTEGERS) + 1
    order = np.repeat(INTEGERS, lengths).astype(np.float64)
    rank = np.concatenate([np.arange(length) for length in lengths]).astype(np.float64)
    log_binomial = gammaln(order + 1) - gammaln(rank + 1) - gammaln(order - rank + 1)
    return _Terms(order, rank, log_binomial, np.cumsum(lengths) - lengths)


@lru_cache(maxsize=64)
def _log_probabilities(rate: float) -> Floats:
    """Log of each term without the noise: the binomial distribution with ``rate``, in (0, 1)."""
    terms = _terms()
    return terms.log_binomial + terms.rank * math.log(rate) + (terms.order - terms.rank) * math.log1p(-rate)


def _log_moments(noise_multiplier: float, rate: float) -> Floats:
    """(order - 1) times the divergence of one step, at each of :data:`INTEGERS`; a rate in (0, 1]."""
    variance = np.float64(noise_multiplier) ** 2
    if rate == 1:
        orders = np.asarray(INTEGERS, dtype=np.float64)
        return np.asarray(orders * (orders - 1) / (2 * variance))
    terms = _terms()
    logs = _log_probabilities(rate) + (terms.rank**2 - terms.rank) / (2 * variance)
    largest = np.maximum.reduceat(logs, terms.starts)
    sums = np.add.reduceat(np.exp(logs - np.repeat(largest, np.asarray(INTEGERS) + 1)), terms.starts)
    return np.asarray(largest + np.log(sums))
