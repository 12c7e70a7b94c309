"""How many rows of each class a client holds, made into who holds which row."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedsim.partition.schemes.scheme import Division, Integers


def dealt(table: Integers, division: Division[Any], rng: np.random.Generator) -> Integers:
    """Owners by a table ``[clients, C]`` of how many rows of each class a client holds; which rows is random."""
    owner = np.empty(len(division.y), dtype=np.int64)
    for c in range(table.shape[1]):
        rows = rng.permutation(np.flatnonzero(division.y == c))
        owner[rows] = np.repeat(np.arange(len(table)), table[:, c])
    return owner


def even(total: int, parts: int) -> Integers:
    """Whole sizes equal to within one."""
    sizes = np.full(parts, total // parts, dtype=np.int64)
    sizes[: total % parts] += 1
    return sizes
