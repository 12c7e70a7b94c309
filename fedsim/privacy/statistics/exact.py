"""Products and norms of rows that are exact up to a factor of the row's own, so that each depends on its row alone.

The rounding of a matrix product depends on how many rows it has. Of a function that jumps (the nearest candidate, the bin of a histogram)
one private row could then change what others add. Here entries are integers, so few bits of them that every partial sum is an integer
below 2^53, which float64 holds: whatever the order of a sum, on every processor.
"""

from __future__ import annotations

from torch import Tensor


def whole(x: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
    """Integers in float64, and the unit of which finite ``x`` ``[..., d]`` has so many; ``largest`` bounds the entries.

    20 bits or more where d is below 2^13.
    """
    unit = largest.double().clamp_min(1e-300) * 2.0 ** -((53 - x.shape[-1].bit_length()) // 2)
    return (x.double() / unit).round(), unit


def products(x: Tensor, fixed: Tensor) -> Tensor:
    """``x fixed^T`` ``[N, K]``, float64, of rows ``[N, d]`` and ``fixed`` ones ``[K, d]``, both rounded to :func:`whole` numbers first."""
    rows, unit = whole(x, x.abs().amax(1, keepdim=True))
    matrix, other = whole(fixed, fixed.abs().max())
    return rows @ matrix.T * (unit * other)


def squares(x: Tensor) -> Tensor:
    """The squared norms of rows ``[N, 1]``, float64, the rows rounded to :func:`whole` numbers first."""
    rows, unit = whole(x, x.abs().amax(1, keepdim=True))
    return rows.square().sum(1, keepdim=True) * unit.square()
