"""Functions of a noisy symmetric matrix that are stable under rounding.

The sign of an eigenvector is arbitrary, and if eigenvalues are close, only the span of their
eigenvectors is determined: another processor's rounding gives other eigenvectors. Safe are
functions of the whole matrix, spans that end at a gap, and bases that depend on their span alone:
they change by about a last bit if the matrix does.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fedsim.device import to_device

NUMBERS_AT_ONCE = 2**22
"""How many numbers of several matrices are computed with together.

Temporary copies are then small beside the matrices of a thousand classes.
"""
GAP = 1e-3
"""The share of the larger of two eigenvalues by which they must differ to be told apart."""


def leading(
    symmetric: Tensor,
    most: int,
    floor: float,
) -> tuple[Tensor, Tensor]:
    """Returns the largest eigenvalues and an orthonormal basis of their span, float64.

    Of eigenvalues that cannot be told apart all or none are taken.

    Args:
        symmetric: a symmetric matrix ``[d, d]``.
        most: the largest number of eigenvalues.
        floor: the value that each of them exceeds.

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
    """Returns eigenvalues in descending order ``[d]`` and eigenvectors ``[d, d]``, float64."""
    values, vectors = torch.linalg.eigh(symmetric.double())
    return values.flip(0), vectors.flip(1)


def ties(values: Tensor) -> Tensor:
    """Returns the group number ``[d]`` of each of descending eigenvalues ``[d]``.

    Eigenvalues that cannot be told apart share a group.
    """
    group_of_later = _differ_from_next(values).long().cumsum(0)
    return torch.nn.functional.pad(group_of_later, (1, 0))


def _differ_from_next(values: Tensor) -> Tensor:
    """Returns whether each of descending eigenvalues ``[d]`` differs from the next, ``[d - 1]``."""
    larger = values[:-1]
    gaps = larger - values[1:]
    return gaps > GAP * larger.abs()


def group_means(values: Tensor, group: Tensor) -> Tensor:
    """Replaces every value ``[d]`` by the mean of its group, numbered ``[d]`` by :func:`ties`."""
    zeros = torch.zeros_like(values)
    sums = zeros.index_add(0, group, values)
    sizes = group.bincount(minlength=len(group))
    means: Tensor = sums / sizes.clamp_min(1)
    return means[group]


def steady(basis: Tensor) -> Tensor:
    """Returns an orthonormal basis ``[d, k]`` of the span of ``basis`` that depends on it alone.

    It is the basis of the span that is nearest to a fixed one, the first vectors of the discrete
    cosine transform IV (orthogonal Procrustes problem, Schoenemann 1966).
    """
    size, count = basis.shape
    fixed = to_device(cosines(size, count), basis.device)
    if size == count:
        # All singular values are 1, and a decomposition may not converge.
        return fixed
    in_basis = basis.T.double() @ fixed
    return basis.double() @ polar(in_basis)


def polar(matrix: Tensor) -> Tensor:
    """Returns the matrix with orthonormal columns that is nearest to ``matrix``.

    Args:
        matrix: ``[d, k]`` with d >= k.
    """
    if not matrix.shape[1]:
        return matrix  # not every device decomposes an empty matrix
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    nearest: Tensor = left @ right
    return nearest


def cosines(size: int, count: int) -> Tensor:
    """Returns the first ``count`` vectors of the discrete cosine transform IV, ``[size, count]``.

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
    """Returns ``V function(values) V^T`` of symmetric matrices ``[..., d, d]``, in their dtype.

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
    """Returns views of the matrices ``[G, k, k]``, in order, at least one matrix in each.

    One with several matrices has at most :data:`NUMBERS_AT_ONCE` numbers.
    """
    return torch.split(matrices, max(1, NUMBERS_AT_ONCE // matrices.shape[1] ** 2))


def square_root(symmetric: Tensor) -> Tensor:
    """Returns the symmetric square root of the nearest positive semidefinite ``[..., d, d]``."""
    return spectral_function(
        symmetric,
        lambda values: values.clamp_min(0).sqrt(),
    )
