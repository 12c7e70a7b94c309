"""What may be read off a noisy symmetric matrix, so that a last bit of the matrix changes it by
about a last bit.

An eigenvector's sign is arbitrary, and of eigenvectors with close eigenvalues only their span is
determined; another processor's rounding gives others. Functions of the whole matrix, spans that end
at a gap, and bases that depend on their span alone are safe.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fedsim.device import to_device

GAP = 1e-3
"""Eigenvalues are told apart if they differ by more than this share of the larger one."""


def leading(symmetric: Tensor, most: int, floor: float) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues in descending order ``[k]`` and an orthonormal basis of their span
    ``[d, k]``, float64.

    At most ``most`` that are above ``floor``; of eigenvalues that cannot be told apart all or none
    are taken.
    """
    values, vectors = descending(symmetric)
    known = values.cpu()
    kept = min(int((known > floor).sum()), most)
    apart = _apart(known)
    while 0 < kept < len(values) and not apart[kept - 1]:
        kept -= 1
    return values[:kept], vectors[:, :kept]


def descending(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues in descending order ``[d]`` and eigenvectors ``[d, d]``, float64."""
    values, vectors = torch.linalg.eigh(symmetric.double())
    return values.flip(0), vectors.flip(1)


def ties(values: Tensor) -> Tensor:
    """For descending eigenvalues ``[d]``: the number of the group ``[d]`` that each shares with
    those it cannot be told apart from.
    """
    return torch.nn.functional.pad(_apart(values).long().cumsum(0), (1, 0))


def _apart(values: Tensor) -> Tensor:
    """Whether each of descending eigenvalues ``[d]`` can be told from the next, ``[d - 1]``."""
    return values[:-1] - values[1:] > GAP * values[:-1].abs()


def group_means(values: Tensor, group: Tensor) -> Tensor:
    """Every value ``[d]`` replaced by the mean over its group, numbered ``[d]`` as by
    :func:`ties`.
    """
    sums = torch.zeros_like(values).index_add(0, group, values)
    means: Tensor = (sums / group.bincount(minlength=len(group)).clamp_min(1))[group]
    return means


def steady(basis: Tensor) -> Tensor:
    """The orthonormal basis of the span of ``basis`` ``[d, k]`` that is nearest to a fixed one; it
    depends on the span alone.

    The orthogonal Procrustes problem (Schoenemann 1966); the fixed basis are the first vectors of
    the discrete cosine transform IV.
    """
    if (
        len(basis) == basis.shape[1]
    ):  # all singular values are 1, on which a decomposition may not converge
        return to_device(cosines(*basis.shape), basis.device)
    return basis.double() @ polar(basis.T.double() @ to_device(cosines(*basis.shape), basis.device))


def polar(matrix: Tensor) -> Tensor:
    """The matrix with orthonormal columns that is nearest to ``matrix`` ``[d, k]``, d at least
    k.
    """
    if not matrix.shape[1]:  # not every device decomposes nothing
        return matrix
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    nearest: Tensor = left @ right
    return nearest


def cosines(size: int, count: int) -> Tensor:
    """The first ``count`` orthonormal vectors of the discrete cosine transform IV, ``[size,
    count]``, float64.
    """
    rows = torch.arange(size).double() + 0.5
    columns = torch.arange(count).double() + 0.5
    angles: Tensor = math.pi / size * rows[:, None] * columns
    basis: Tensor = math.sqrt(2 / size) * angles.cos()
    return basis


def spectral_function(symmetric: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """``V f(values) V^T`` of symmetric matrices ``[..., d, d]``, in their dtype."""
    values, vectors = torch.linalg.eigh(symmetric.double())
    made: Tensor = (vectors * function(values).unsqueeze(-2)) @ vectors.transpose(-2, -1)
    return made.to(symmetric.dtype)


def square_root(symmetric: Tensor) -> Tensor:
    """The symmetric square root of the nearest positive semidefinite matrices ``[..., d, d]``."""
    return spectral_function(symmetric, lambda values: values.clamp_min(0).sqrt())
