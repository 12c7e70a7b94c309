"""Functions of a noisy symmetric matrix that are stable under rounding.

The sign of an eigenvector is arbitrary. If eigenvalues are close, only the span of their
eigenvectors is determined, so another processor's rounding gives other eigenvectors. This module
therefore offers functions of the whole matrix, spans that end at a gap between eigenvalues, and
bases that depend on nothing but their span. If the last bit of the matrix changes, these change in
about the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fedsim.device import to_device

NUMBERS_AT_ONCE = 2**22
"""The largest number of entries of the matrices in one batch.

Then temporary copies take little memory compared with the matrices of a thousand classes.
"""
GAP = 1e-3
"""Two eigenvalues are distinct if they differ by more than this share of the larger one."""


def leading(
    symmetric: Tensor,
    most: int,
    floor: float,
) -> tuple[Tensor, Tensor]:
    """Return the largest eigenvalues and an orthonormal basis of their span, float64.

    A run of eigenvalues without a :data:`GAP` between neighbours is taken as a whole or not at all.

    Args:
        symmetric: a symmetric matrix ``[d, d]``.
        most: the largest number of eigenvalues.
        floor: the value that each eigenvalue must exceed.

    Returns:
        The eigenvalues in descending order ``[k]`` and the basis ``[d, k]``.
    """
    values, vectors = descending(symmetric)
    values_on_cpu = values.cpu()
    above_floor = int((values_on_cpu > floor).sum())
    count = min(above_floor, most)
    ends_at_gap = _differ_from_next(values_on_cpu)
    while 0 < count < len(values) and not ends_at_gap[count - 1]:
        count -= 1
    return values[:count], vectors[:, :count]


def descending(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues in descending order ``[d]`` and eigenvectors ``[d, d]``, float64."""
    values, vectors = torch.linalg.eigh(symmetric.double())
    return values.flip(0), vectors.flip(1)


def ties(values: Tensor) -> Tensor:
    """Return the group number ``[d]`` of each of descending eigenvalues ``[d]``.

    Neighbouring eigenvalues without a :data:`GAP` between them share a group.
    """
    group_of_later = _differ_from_next(values).long().cumsum(0)
    return torch.nn.functional.pad(group_of_later, (1, 0))


def _differ_from_next(values: Tensor) -> Tensor:
    """Return whether each of descending eigenvalues ``[d]`` differs from the next, ``[d - 1]``."""
    larger = values[:-1]
    gaps = larger - values[1:]
    return gaps > GAP * larger.abs()


def group_means(values: Tensor, group: Tensor) -> Tensor:
    """Return values ``[d]``, each replaced by the mean of its group.

    Args:
        values: the values ``[d]``.
        group: their group numbers ``[d]``, from :func:`ties`.
    """
    zeros = torch.zeros_like(values)
    sums = zeros.index_add(0, group, values)
    sizes = group.bincount(minlength=len(group))
    means: Tensor = sums / sizes.clamp_min(1)
    return means[group]


def steady(basis: Tensor) -> Tensor:
    """Return an orthonormal basis ``[d, k]`` that depends only on the span of ``basis``.

    Of all orthonormal bases of the span it is the nearest to a fixed one, the first k vectors of
    the discrete cosine transform IV (orthogonal Procrustes problem, Schoenemann 1966).
    """
    size, count = basis.shape
    fixed = to_device(cosines(size, count), basis.device)
    if size == count:
        # The span is the whole space, so the fixed basis is the answer. All singular values of a
        # decomposition would be 1, and it may not converge.
        return fixed
    in_basis = basis.T.double() @ fixed
    return basis.double() @ polar(in_basis)


def polar(matrix: Tensor) -> Tensor:
    """Return the matrix with orthonormal columns that is nearest to ``matrix``.

    Args:
        matrix: ``[d, k]`` with d >= k.
    """
    if not matrix.shape[1]:
        return matrix  # not every device decomposes an empty matrix
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    nearest: Tensor = left @ right
    return nearest


def cosines(size: int, count: int) -> Tensor:
    """Return the first ``count`` vectors of the discrete cosine transform IV, ``[size, count]``.

    They are orthonormal and float64. Entry (n, k) is

        sqrt(2 / size) cos(pi / size (n + 1/2) (k + 1/2)).
    """
    rows = torch.arange(size).double() + 0.5
    columns = torch.arange(count).double() + 0.5
    step = math.pi / size
    angles: Tensor = step * rows[:, None] * columns
    length = math.sqrt(2 / size)
    basis: Tensor = length * angles.cos()
    return basis


def spectral_function(
    symmetric: Tensor,
    function: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return ``V function(values) V^T`` of symmetric matrices ``[..., d, d]``, in their dtype.

    ``values`` are the eigenvalues of a matrix, and the columns of V are its eigenvectors.
    """
    if symmetric.dim() == 3 and len(parts := batches(symmetric)) > 1:
        return torch.cat([spectral_function(part, function) for part in parts])
    values, vectors = torch.linalg.eigh(symmetric.double())
    new_values = function(values)
    scaled_vectors = vectors * new_values.unsqueeze(-2)
    result: Tensor = scaled_vectors @ vectors.mT
    return result.to(symmetric.dtype)


def batches(matrices: Tensor) -> tuple[Tensor, ...]:
    """Return the matrices ``[G, k, k]`` as views in order, each of one or several matrices.

    A view of several matrices has at most :data:`NUMBERS_AT_ONCE` entries.
    """
    return torch.split(matrices, max(1, NUMBERS_AT_ONCE // matrices.shape[1] ** 2))


def square_root(symmetric: Tensor) -> Tensor:
    """Return the symmetric square root of matrices ``[..., d, d]``.

    A matrix with negative eigenvalues is replaced by the nearest positive semidefinite one.
    """
    return spectral_function(
        symmetric,
        lambda values: values.clamp_min(0).sqrt(),
    )


def inverse_square_root(symmetric: Tensor, least: float) -> Tensor:
    """Return the inverse of the symmetric square root of matrices ``[..., d, d]``.

    Eigenvalues below ``least`` are replaced by it.
    """
    return spectral_function(
        symmetric,
        lambda values: values.clamp_min(least).rsqrt(),
    )
