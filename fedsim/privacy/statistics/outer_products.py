"""Clipped sums of statistics, and products that do not depend on other rows.

A statistic is a sum of outer products of two vectors per row (example or embedding). All statistics
of a release are clipped jointly.
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
"""The number of rows that are converted to float64 at a time on the CPU, to stay within its cache.

Another device converts all at once.
"""


@dataclass(frozen=True)
class OuterProduct:
    """One statistic ``sum_n left_n right_n^T``: ``left`` is ``[N, p]``, ``right`` is ``[N, q]``."""

    left: Tensor
    right: Tensor


def unit_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """Returns the weights scaled so that statistics of norm at most 1 have a joint norm <= 1."""
    norm = math.sqrt(sum(weight**2 for weight in weights.values()))
    return {name: weight / norm for name, weight in weights.items()}


def clipped_statistics(
    products: Mapping[str, OuterProduct],
    norms: Norms,
    groups: Layout | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Returns the jointly clipped sum of every statistic.

    It is

        sum_n c_n w left_n right_n^T    with    c_n = min(1, C / joint norm of the unit of row n).

    Class sums are (one-hot label, x), counts (one-hot label, 1), second moments (x, x). Removing
    one unit changes all sums together by at most C in L2 norm. A unit that is not finite counts as
    0.

    Args:
        products: the statistics by name.
        norms: the clip norm C and the weights w by name.
        groups: the unit of each row; None if every row is a unit.

    Returns:
        The weighted sums by name ``[p, q]``, float64, so that they depend neither on the order of
        the rows nor on a processor's products; and the units' joint norms before clipping, private
        and for diagnostics only. Round the sums only after their noise is added: before, a unit
        could change the rounding of sums of many rows by more than it changes the sums.
    """
    unit_squared = _joint_squared_norms(products, norms, groups)
    factor = norms.factors(unit_squared)
    row_squared = unit_squared
    if groups is not None:
        factor = factor[groups.client]
        row_squared = unit_squared[groups.client]
    is_broken = ~row_squared.isfinite()[:, None]
    sums = {
        name: _weighted_sum(product, factor, is_broken, norms.weight(name))
        for name, product in products.items()
    }
    return sums, unit_squared.sqrt()


def _joint_squared_norms(
    products: Mapping[str, OuterProduct],
    norms: Norms,
    groups: Layout | None,
) -> Tensor:
    """Returns the squared joint norm of every unit, ``[units]``."""
    any_left = next(iter(products.values())).left
    units = len(any_left) if groups is None else groups.clients
    joint = any_left.new_zeros(units)
    for name, product in products.items():
        squared = product.left.square().sum(1) * product.right.square().sum(1)
        if groups is not None:
            squared = _squared_norms_of_groups(product, squared, groups)
        joint += norms.weight(name) ** 2 * squared
    return joint


def _weighted_sum(
    product: OuterProduct,
    factor: Tensor,
    is_broken: Tensor,
    weight: float,
) -> Tensor:
    """Returns ``weight * sum_n factor_n left_n right_n^T`` ``[p, q]`` in float64.

    Args:
        product: the statistic of N rows.
        factor: the factor of every row ``[N]``.
        is_broken: whether a row is left out, ``[N, 1]``.
        weight: the weight of the statistic.
    """
    shape = (product.left.shape[1], product.right.shape[1])
    total = product.left.new_zeros(*shape, dtype=torch.double)
    count = len(product.left)
    step = ROWS if product.left.device == CPU else max(1, count)
    for start in range(0, count, step):
        rows = slice(start, start + step)
        # 0 times a nan is a nan: a broken row is filled with 0, not multiplied by it.
        left = product.left[rows].masked_fill(is_broken[rows], 0).double()
        right = product.right[rows].masked_fill(is_broken[rows], 0).double()
        weighted = left * factor[rows, None]
        total.addmm_(weighted.T, right, alpha=weight)
    return total


def _squared_norms_of_groups(
    product: OuterProduct,
    of_rows: Tensor,
    groups: Layout,
) -> Tensor:
    """Returns the squared norm of every group's sum ``[G]``.

    Over the pairs of a group's rows it is

        sum_nm <left_n, left_m> <right_n, right_m>.

    Args:
        product: the statistic of N rows.
        of_rows: the squared norm of each row ``[N]``. A group of one row takes its row's: rounded
            in another way it would be clipped a little differently.
        groups: the group of each row.
    """
    device = of_rows.device
    sizes = torch.bincount(groups.positions, minlength=groups.clients)
    first_rows = sizes.cumsum(0) - sizes
    squared = of_rows.new_zeros(groups.clients)
    single = (sizes == 1).nonzero()[:, 0]
    squared[to_device(single, device)] = of_rows[to_device(first_rows[single], device)]
    larger_sizes = sorted(set(sizes.tolist()) - {0, 1})
    for size in larger_sizes:
        groups_of_size = (sizes == size).nonzero()[:, 0]
        for some_groups in torch.split(groups_of_size, max(1, ROWS // size)):
            row_numbers = first_rows[some_groups, None] + torch.arange(size)
            rows = to_device(row_numbers, device)
            left = product.left[rows].double()
            right = product.right[rows].double()
            norms = _squared_norms_of_sums(left, right).to(squared.dtype)
            squared[to_device(some_groups, device)] = norms
    return squared


def _squared_norms_of_sums(left: Tensor, right: Tensor) -> Tensor:
    """Returns ``|sum_n left_n right_n^T|^2`` ``[B]`` for ``[B, n, p]`` and ``[B, n, q]``."""
    if left.shape[1] > ROWS:
        # The sums themselves have fewer entries than the Gram matrices of so many rows.
        terms = (left.transpose(1, 2) @ right).square()
    else:
        terms = (left @ left.transpose(1, 2)) * (right @ right.transpose(1, 2))
    return terms.sum((1, 2)).clamp_min(0)


def _to_integers(
    x: Tensor,
    largest: Tensor,
) -> tuple[Tensor, Tensor]:
    """Returns finite ``x`` ``[..., d]`` as integers in float64, and the unit that they count.

    The rounding of an ordinary product depends on how many rows it has, so one private row could
    change what other rows add to a histogram. These integers have so few bits that every partial
    sum of their products is below 2^53 and therefore exact in float64.

    Args:
        x: the values.
        largest: a bound on their absolute values.
    """
    bits = (53 - x.shape[-1].bit_length()) // 2
    unit = largest.double().clamp_min(1e-300) * 2.0**-bits
    return (x.double() / unit).round(), unit


def exact_products(x: Tensor, fixed: Tensor) -> Tensor:
    """Returns ``x fixed^T`` ``[N, K]`` in float64, each row independent of all other rows.

    Both are rounded to integers first.

    Args:
        x: rows ``[N, d]``.
        fixed: fixed rows ``[K, d]``.
    """
    integers, unit = _to_integers(x, x.abs().amax(1, keepdim=True))
    fixed_integers, fixed_unit = _to_integers(fixed, fixed.abs().max())
    return integers @ fixed_integers.T * (unit * fixed_unit)


def exact_squares(x: Tensor) -> Tensor:
    """Returns the squared norms ``[N, 1]`` of rows ``[N, d]`` in float64.

    Each is independent of all other rows: the rows are rounded to integers first.
    """
    integers, unit = _to_integers(x, x.abs().amax(1, keepdim=True))
    return integers.square().sum(1, keepdim=True) * unit.square()
