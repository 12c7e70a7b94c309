"""Clipped sums of statistics, and products that do not depend on other rows.

A statistic is a sum over rows (examples), to which each row adds the outer product of two vectors.
All statistics of a release are clipped jointly.
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
"""The number of rows that are computed with together in float64.

In weighted sums this holds on the CPU only, where so many rows fit the cache; another device takes
all rows at once. In the norms of groups it holds on every device: it keeps Gram matrices small.
"""
BLOCK = 32_768
"""The number of rows whose products are in memory together.

So memory does not grow with the number of rows.
"""


@dataclass(frozen=True)
class OuterProduct:
    """One statistic: a sum of outer products of two vectors per row, in one or several cells.

    A cell is a class, a client, or a class of a client. Cell c has the sum over its rows n,
    ``sum_n left_n right_n^T``. A row adds to a single cell, so its norm does not depend on the
    number of cells.

    Attributes:
        left: the left vector of every row ``[N, p]``.
        right: the right vector of every row ``[N, q]``.
        cell: the cell of every row, int64 ``[N]``; None if there is only one cell.
        cells: the number of cells M. The statistic is ``[M p, q]``.
        symmetric: whether every row's product is symmetric, so that :func:`upper_triangle` of each
            cell's sum is enough. The statistic is then ``[M, p (p + 1) / 2]``.
    """

    left: Tensor
    right: Tensor
    cell: Tensor | None = None
    cells: int = 1
    symmetric: bool = False

    @classmethod
    def sums(
        cls,
        right: Tensor,
        cell: Tensor,
        cells: int,
    ) -> OuterProduct:
        """Return the statistic ``[M, q]`` that sums the rows ``right`` of every cell."""
        ones = right.new_ones(len(right), 1)
        return cls(ones, right, cell, cells)

    @property
    def cell_of_rows(self) -> Tensor:
        """The cell of every row ``[N]``; 0 if there is only one cell."""
        if self.cell is None:
            return torch.zeros_like(self.left[:, 0]).long()
        return self.cell

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the statistic, ``[M p, q]`` or ``[M, p (p + 1) / 2]``."""
        if self.symmetric:
            size = self.left.shape[1]
            return (self.cells, size * (size + 1) // 2)
        return (self.cells * self.left.shape[1], self.right.shape[1])


Products = dict[str, OuterProduct]
"""The statistics of one release, by name."""


def unit_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """Return the weights scaled so that statistics of norm at most 1 have a joint norm <= 1."""
    norm = math.sqrt(sum(weight**2 for weight in weights.values()))
    return {name: weight / norm for name, weight in weights.items()}


def clipped_statistics(
    products: Products,
    norms: Norms,
    groups: Layout | None = None,
    totals: dict[str, Tensor] | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the jointly clipped sum of every statistic, and the joint norms of the units.

    In every cell the sum is

        sum_n c_n w left_n right_n^T    with    c_n = min(1, C / joint norm of the unit of row n).

    For class sums, left_n is 1, right_n is x_n and the cell is the label. For a second moment, both
    left_n and right_n are x_n. Removing one unit changes all sums together by at most C in L2 norm.
    A unit that is not finite counts as 0.

    Args:
        products: the statistics by name.
        norms: the clip norm C and the weights w by name.
        groups: the unit of each row; None if every row is a unit.
        totals: the sums over the units of earlier blocks, by name. The sums of these rows are added
            to them in place. It is empty, or None, if these are the first rows.

    Returns:
        The weighted sums by name ``[M p, q]``, and the joint norms of these rows' units before
        clipping, which are private and for diagnostics only. The sums are float64, so the order of
        the rows and the processor change them in their last bits at most. Round them only after
        their noise is added. Sums of many rows are large, and one unit could change their rounding
        by more than it changes the sums.
    """
    unit_squared = _joint_squared_norms(products, norms, groups)
    factor = norms.factors(unit_squared)
    row_squared = unit_squared
    if groups is not None:
        factor = factor[groups.client]
        row_squared = unit_squared[groups.client]
    is_broken = ~row_squared.isfinite()[:, None]
    if totals is None:
        totals = {}
    for name, product in products.items():
        if name not in totals:
            totals[name] = product.left.new_zeros(*product.shape, dtype=torch.double)
        _add_weighted_sum(totals[name], product, factor, is_broken, norms.weight(name))
    return totals, unit_squared.sqrt()


def _joint_squared_norms(
    products: Products,
    norms: Norms,
    groups: Layout | None,
) -> Tensor:
    """Return the squared joint norm of every unit, ``[units]``."""
    any_left = next(iter(products.values())).left
    units = len(any_left) if groups is None else groups.clients
    joint = any_left.new_zeros(units)
    for name, product in products.items():
        squared = product.left.square().sum(1) * product.right.square().sum(1)
        if groups is not None:
            squared = _squared_norms_of_groups(product, squared, groups)
        joint += norms.weight(name) ** 2 * squared
    return joint


def _add_weighted_sum(
    total: Tensor,
    product: OuterProduct,
    factor: Tensor,
    is_broken: Tensor,
    weight: float,
) -> None:
    """Add ``weight * sum_n factor_n left_n right_n^T`` of every cell to ``total``, in float64.

    Args:
        total: the sums so far, in the shape of the statistic, float64.
        product: the statistic of N rows.
        factor: the factor of every row ``[N]``.
        is_broken: whether a row is left out, ``[N, 1]``.
        weight: the weight of the statistic.
    """
    # 0 times a nan is a nan. So a row of a broken unit is filled with 0, not multiplied by it.
    left = product.left.masked_fill(is_broken, 0)
    right = product.right.masked_fill(is_broken, 0)
    if product.cell is None and not product.symmetric:
        _add_products(total, left, right, factor, weight)
        return
    if not len(left):
        return  # The clients of a cohort may have no rows, and segment_reduce needs one.
    cell_of_rows = product.cell_of_rows
    order = torch.argsort(cell_of_rows, stable=True)
    left = left[order]
    right = right[order]
    factor = factor[order]
    cells, sizes = torch.unique_consecutive(cell_of_rows[order], return_counts=True)
    width = left.shape[1]
    if width == 1:
        values = left.double() * factor[:, None] * right.double()
        total[cells] += weight * torch.segment_reduce(values, "sum", lengths=sizes)
        return
    start = 0
    for cell, size in zip(cells.tolist(), sizes.tolist(), strict=True):
        rows = slice(start, start + size)
        start += size
        of_rows = (left[rows], right[rows], factor[rows], weight)
        if product.symmetric:
            matrix = total.new_zeros(width, width)
            _add_products(matrix, *of_rows)
            total[cell] += upper_triangle(matrix)
        else:
            _add_products(total[cell * width : (cell + 1) * width], *of_rows)


def upper_triangle(matrix: Tensor) -> Tensor:
    """Return the upper triangle of a symmetric matrix ``[p, p]``, ``[p (p + 1) / 2]``.

    Entries off the diagonal are multiplied by sqrt(2), so the norm is that of the matrix.
    """
    row, column = torch.triu_indices(*matrix.shape, device=matrix.device)
    scale = torch.where(row == column, 1.0, math.sqrt(2))
    return matrix[row, column] * scale


def _add_products(
    total: Tensor,
    left: Tensor,
    right: Tensor,
    factor: Tensor,
    weight: float,
) -> None:
    """Add ``weight * sum_n factor_n left_n right_n^T`` to ``total`` ``[p, q]``, in float64."""
    count = len(left)
    step = ROWS if left.device == CPU else max(1, count)
    for start in range(0, count, step):
        rows = slice(start, start + step)
        weighted = left[rows].double() * factor[rows, None]
        total.addmm_(weighted.T, right[rows].double(), alpha=weight)


def _squared_norms_of_groups(
    product: OuterProduct,
    of_rows: Tensor,
    groups: Layout,
) -> Tensor:
    """Return the squared norm of every group's sum ``[G]``.

    Over the pairs of a group's rows it is

        sum_nm <left_n, left_m> <right_n, right_m>.

    Args:
        product: the statistic of N rows.
        of_rows: the squared norm of each row ``[N]``. A group of one row takes the value of its
            row, so that it is clipped exactly like a single example.
        groups: the group of each row. The rows of a group follow each other.
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
            cell = product.cell_of_rows[rows]
            of_sums = _squared_norms_of_sums(left, right, cell)
            squared[to_device(some_groups, device)] = of_sums.to(squared.dtype)
    return squared


def _squared_norms_of_sums(left: Tensor, right: Tensor, cell: Tensor) -> Tensor:
    """Return the squared norms ``[B]`` of the sums of B units with n rows each.

    Args:
        left: ``[B, n, p]``.
        right: ``[B, n, q]``.
        cell: the cell of every row ``[B, n]``.
    """
    if left.shape[1] > ROWS:
        # The Gram matrices of so many rows would be too large. The size of the sums themselves does
        # not depend on the number of rows.
        return torch.stack(list(map(_squared_norm_of_long_sum, left, right, cell)))
    same_cell = cell[:, :, None] == cell[:, None, :]
    terms = (left @ left.transpose(1, 2)) * (right @ right.transpose(1, 2)) * same_cell
    return terms.sum((1, 2)).clamp_min(0)


def _squared_norm_of_long_sum(left: Tensor, right: Tensor, cell: Tensor) -> Tensor:
    """Return the squared norm of one unit's sum in all cells, a scalar.

    Args:
        left: ``[n, p]``.
        right: ``[n, q]``.
        cell: the cell of every row ``[n]``.
    """
    order = torch.argsort(cell, stable=True)
    sizes = torch.unique_consecutive(cell[order], return_counts=True)[1].tolist()
    squared = left.new_zeros(())
    lefts = torch.split(left[order], sizes)
    rights = torch.split(right[order], sizes)
    for left_of_cell, right_of_cell in zip(lefts, rights, strict=True):
        squared += (left_of_cell.T @ right_of_cell).square().sum()
    return squared


def _to_integers(
    x: Tensor,
    largest: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return finite ``x`` ``[..., d]`` as integers in float64, and the unit that they count.

    The rounding of an ordinary product depends on how many rows it has, so one private row could
    change what other rows add to a histogram. These integers have so few bits that every partial
    sum of their products is below 2^53 and therefore exact in float64.

    Args:
        x: the values.
        largest: a bound on their absolute values.
    """
    # A product of two integers is at most 2^(2 bits), so d of them add up to less than
    # 2^(2 bits + d.bit_length()).
    bits = (53 - x.shape[-1].bit_length()) // 2
    unit = largest.double().clamp_min(1e-300) * 2.0**-bits
    return (x.double() / unit).round(), unit


def exact_products(x: Tensor, fixed: Tensor) -> Tensor:
    """Return ``x fixed^T`` ``[N, K]`` in float64, each row independent of all other rows.

    All entries are rounded to integers first, so that the product of the integers is exact.

    Args:
        x: rows ``[N, d]``, each of which is rounded by itself.
        fixed: rows that are public or released ``[K, d]``, which are rounded together.
    """
    integers, unit = _to_integers(x, x.abs().amax(1, keepdim=True))
    fixed_integers, fixed_unit = _to_integers(fixed, fixed.abs().max())
    return integers @ fixed_integers.T * (unit * fixed_unit)


def exact_squares(x: Tensor) -> Tensor:
    """Return the squared norms ``[N, 1]`` of rows ``[N, d]`` in float64.

    Each is independent of all other rows: the rows are rounded to integers first.
    """
    integers, unit = _to_integers(x, x.abs().amax(1, keepdim=True))
    return integers.square().sum(1, keepdim=True) * unit.square()
