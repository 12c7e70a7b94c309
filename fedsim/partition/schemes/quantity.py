"""Sizes by a power law."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedsim.partition.schemes.scheme import Division, Integers, Scheme


def quantity(division: Division, rng: np.random.Generator) -> Integers:
    """Labels at random, sizes by a power law: the client of rank r holds rows in proportion to ``r ** -power`` above the minimum."""
    clients, least = division.clients, division.min_size
    weights = np.arange(1, clients + 1) ** -float(division.given["power"] or 0.0)
    sizes = least + _apportioned(len(division.y) - clients * least, rng.permutation(weights))
    return rng.permutation(np.repeat(np.arange(clients), sizes))


def _apportioned(total: int, weights: NDArray[np.float64]) -> Integers:
    """Whole parts of ``total`` in proportion to ``weights``, by largest remainders."""
    exact = total * weights / weights.sum()
    parts: Integers = np.floor(exact).astype(np.int64)
    order = np.argsort(parts - exact, kind="stable")
    parts[order[: total - int(parts.sum())]] += 1
    return parts


QUANTITY = Scheme(quantity, takes={"power": 1.0})
