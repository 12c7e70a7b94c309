"""Normalisation that costs no privacy: each row is scaled by itself, so no row's value depends on another row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def unit_norm(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale every row of finite ``x`` ``[n, d]`` to L2 norm 1: ``x_i / ||x_i||``; zero rows stay zero."""
    # dividing by the largest entry first keeps the squares of huge and tiny rows inside float32
    largest = np.maximum(x.max(axis=1, keepdims=True), -x.min(axis=1, keepdims=True))
    unit: NDArray[np.float32] = np.divide(x, np.where(largest > 0, largest, 1).astype(np.float32))
    norm = np.sqrt(np.square(unit).sum(axis=1, keepdims=True))
    return np.divide(unit, np.where(norm > 0, norm, 1), out=unit)
