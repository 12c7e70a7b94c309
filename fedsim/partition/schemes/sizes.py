"""Clients alike but for their sizes: equal ones, or by a power law."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedsim.partition.schemes.scheme import Division, Integers, Scheme, SchemeParams


def iid(division: Division[Any], rng: np.random.Generator) -> Integers:
    """Rows at random, sizes equal to within one."""
    owner: Integers = rng.permutation(np.arange(len(division.y)) % division.clients)
    return owner


class QuantityParams(SchemeParams):
    """Parameters of scheme ``quantity``.

    Attributes:
        power: the client of rank r holds rows in proportion to ``r ** -power``.
    """

    power: float = Field(default=1.0, ge=0, le=10, allow_inf_nan=False, strict=True)


def quantity(division: Division[QuantityParams], rng: np.random.Generator) -> Integers:
    """Labels at random, sizes by a power law: the client of rank r holds rows in proportion to ``r ** -power`` above the minimum."""
    clients, least = division.clients, division.min_size
    weights = np.arange(1, clients + 1) ** -division.given.power
    sizes = least + _apportioned(len(division.y) - clients * least, rng.permutation(weights))
    return rng.permutation(np.repeat(np.arange(clients), sizes))


def _apportioned(total: int, weights: NDArray[np.float64]) -> Integers:
    """Whole parts of ``total`` in proportion to ``weights``, by largest remainders."""
    exact = total * weights / weights.sum()
    parts: Integers = np.floor(exact).astype(np.int64)
    order = np.argsort(parts - exact, kind="stable")
    parts[order[: total - int(parts.sum())]] += 1
    return parts


IID = Scheme(iid)
QUANTITY = Scheme(quantity, params=QuantityParams)
