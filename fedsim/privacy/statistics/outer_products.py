"""Clipped sums of statistics: outer products of two vectors per example, clipped jointly; and
products that are exact row by row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.batch import Layout
from fedsim.device import CPU, to_device
from fedsim.privacy.clipping.norms import Norms

ROWS = 1024
"""Examples that are taken to float64 at a time on the CPU, to stay within its cache; another device
takes all at once.
"""


@dataclass(frozen=True)
class OuterProduct:
    """One statistic ``sum_n left_n right_n^T``: ``left`` is ``[N, p]``, ``right`` is ``[N, q]``."""

    left: Tensor
    right: Tensor


def unit_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """Weights scaled so that statistics of norm at most 1 have a joint norm of at most 1."""
    norm = math.sqrt(sum(weight**2 for weight in weights.values()))
    return {name: weight / norm for name, weight in weights.items()}


def clipped_statistics(
    products: Mapping[str, OuterProduct], norms: Norms, groups: Layout | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """``sum_n c_n w left_n right_n^T`` by name, ``[p, q]`` each, with ``c_n = min(1, C / joint norm
    of the unit of row n)``.

    Class sums are (one-hot label, x), counts (one-hot label, 1), second moments (x, x). Removing
    one unit, a row or one of ``groups``, changes all sums together by at most C in L2 norm. A unit
    that is not finite counts as 0.

    The sums, weighted by ``norms.weight(name)``, are float64, so that they depend neither on the
    order of the rows nor on a processor's products. They are rounded after their noise is added:
    before, a unit could change the rounding of sums of many rows by more than it changes the sums.
    With them come the units' joint norms before clipping, private and for diagnostics only.
    """
    first = next(iter(products.values())).left
    unit_squared = first.new_zeros(len(first) if groups is None else groups.clients)
    for name, product in products.items():
        rows = product.left.square().sum(1) * product.right.square().sum(1)
        unit_squared += norms.weight(name) ** 2 * (
            rows if groups is None else _of_groups(product, rows, groups)
        )
    factor = norms.factors(unit_squared)
    squared = unit_squared
    if groups is not None:
        factor = factor[groups.client]
        squared = unit_squared[groups.client]
    broken = ~squared.isfinite()[:, None]
    sums = {}
    for name, product in products.items():
        total = first.new_zeros(product.left.shape[1], product.right.shape[1], dtype=torch.double)
        if first.device == CPU:
            at_once = ROWS
        else:
            at_once = max(1, len(squared))
        for start in range(0, len(squared), at_once):
            part = slice(start, start + at_once)
            # 0 times a nan is a nan: a broken row is left out, not weighed with 0.
            left, right = (
                side[part].masked_fill(broken[part], 0).double()
                for side in (product.left, product.right)
            )
            total.addmm_((left * factor[part, None]).T, right, alpha=norms.weight(name))
        sums[name] = total
    return sums, unit_squared.sqrt()


def _of_groups(product: OuterProduct, alone: Tensor, groups: Layout) -> Tensor:
    """Squared norms ``[G]`` of the groups' sums: ``sum_nm <left_n, left_m> <right_n, right_m>``
    over the pairs of a group's rows.
    """
    # a group of one row has the row's, `alone` [N]: rounded in another way it would be clipped a
    # little differently
    sizes = torch.bincount(groups.positions, minlength=groups.clients)
    first = sizes.cumsum(0) - sizes
    squared = alone.new_zeros(groups.clients)
    single = (sizes == 1).nonzero()[:, 0]
    squared[to_device(single, squared.device)] = alone[to_device(first[single], squared.device)]
    for size in sorted(set(sizes.tolist()) - {0, 1}):
        for some in torch.split((sizes == size).nonzero()[:, 0], max(1, ROWS // size)):
            rows = to_device(first[some, None] + torch.arange(size), squared.device)
            left, right = (side[rows].double() for side in (product.left, product.right))
            if size > ROWS:  # so many pairs are more numbers than the sum has
                pairs = (left.transpose(1, 2) @ right).square()
            else:
                pairs = (left @ left.transpose(1, 2)) * (right @ right.transpose(1, 2))
            squared[to_device(some, squared.device)] = (
                pairs.sum((1, 2)).clamp_min(0).to(squared.dtype)
            )
    return squared


def _whole(x: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
    """Integers in float64, and the unit of which finite ``x`` ``[..., d]`` has so many; ``largest``
    bounds the entries.
    """
    # the rounding of a product depends on how many rows it has, so one private row could change
    # what others add to a histogram; of
    # integers of so few bits every partial sum is below 2^53, which float64 holds
    unit = largest.double().clamp_min(1e-300) * 2.0 ** -((53 - x.shape[-1].bit_length()) // 2)
    return (x.double() / unit).round(), unit


def exact_products(x: Tensor, fixed: Tensor) -> Tensor:
    """``x fixed^T`` ``[N, K]``, float64, of rows ``[N, d]`` and ``fixed`` ones ``[K, d]``, both
    rounded to whole numbers first.
    """
    rows, unit = _whole(x, x.abs().amax(1, keepdim=True))
    matrix, other = _whole(fixed, fixed.abs().max())
    return rows @ matrix.T * (unit * other)


def exact_squares(x: Tensor) -> Tensor:
    """The squared norms of rows ``[N, 1]``, float64, the rows rounded to whole numbers first."""
    rows, unit = _whole(x, x.abs().amax(1, keepdim=True))
    return rows.square().sum(1, keepdim=True) * unit.square()
