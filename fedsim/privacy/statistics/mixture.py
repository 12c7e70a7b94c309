"""Gaussian mixtures per class from noisy statistics: starting points, E step and M step.

All functions work on residuals u ``[N, k]`` in place of rows (examples) ``[N, d]``. A residual is a
row minus its class mean, in the k leading directions of the covariance within classes. So a
release has only k numbers per component that need noise.

A class has K components. The residuals of component j of class c have the distribution
N(offset_cj, S). All components share S, the covariance within classes minus the scatter between
components.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedsim.privacy.noise import Deviations
from fedsim.privacy.statistics.moments import counts_above_noise, in_unit_ball
from fedsim.privacy.statistics.outer_products import OuterProduct, Products
from fedsim.privacy.statistics.spectral import (
    inverse_square_root,
    spectral_function,
    square_root,
)

WEIGHTS = {"component_sums": 1.0, "component_counts": 0.15}
"""The weights of the statistics of :func:`component_products` in the joint norm of a row."""
MOST_EXPLAINED = 0.9
"""The largest share of a direction's variance that may lie between components.

So the covariance within components stays positive definite.
"""


def residuals(
    rows: Tensor,
    y: Tensor,
    class_means: Tensor,
    basis: Tensor,
) -> Tensor:
    """Return rows minus their class means in ``basis``, clipped to norm 1, ``[N, k]``.

    Args:
        rows: ``[N, d]``.
        y: labels ``[N]``.
        class_means: ``[C, d]``.
        basis: orthonormal columns ``[d, k]``.
    """
    centred = rows - class_means[y]
    return in_unit_ball(centred @ basis)


def responsibilities(
    u: Tensor,
    y: Tensor,
    offsets: Tensor,
    shares: Tensor,
    whitening: Tensor,
) -> Tensor:
    """Return the E step: the probability of each component of the row's class, ``[N, K]``.

    Args:
        u: residuals ``[N, k]``.
        y: labels ``[N]``.
        offsets: the means of the components ``[C, K, k]``.
        shares: the positive shares of the components in their classes ``[C, K]``.
        whitening: the result of :func:`whitening`, W ``[k, k]`` with ``W W^T = S^-1``.
    """
    deviations = u.unsqueeze(1) - offsets[y]  # [N, K, k]
    squared_distances = (deviations @ whitening).square().sum(2)
    return torch.softmax(
        shares[y].log() - 0.5 * squared_distances,
        1,
    )


def component_products(
    u: Tensor,
    y: Tensor,
    belongs: Tensor,
    classes: int,
) -> Products:
    """Return component sums ``[C K, k]`` and counts ``[C K, 1]``, as sums of outer products.

    The responsibilities of a row are its left factor. They are not negative and sum to 1, so the
    norm of the left factor is at most 1.

    Args:
        u: residuals ``[N, k]``.
        y: labels ``[N]``.
        belongs: the responsibilities ``[N, K]``, see :func:`responsibilities`.
        classes: the number of classes C.
    """
    ones = u.new_ones(len(u), 1)
    return {
        "component_sums": OuterProduct(belongs, u, y, classes),
        "component_counts": OuterProduct(belongs, ones, y, classes),
    }


def start(
    draws: Tensor,
    covariance: Tensor,
    spread: float,
) -> dict[str, Tensor]:
    """Return starting points: offsets in random directions, and equal shares.

    They use only the covariance that is already released, so they cost no privacy.

    Args:
        draws: standard normal ``[C, K, k]``.
        covariance: the released covariance within classes ``[k, k]``.
        spread: the distance of the components from the class mean, in standard deviations.
    """
    draws = draws - draws.mean(1, keepdim=True)
    directions = draws / draws.norm(dim=2, keepdim=True).clamp_min(1e-12)
    components = draws.shape[1]
    return {
        "offsets": spread * directions @ square_root(covariance),
        "shares": draws.new_full(draws.shape[:2], 1 / components),
    }


def maximise(
    sums: Tensor,
    counts: Tensor,
    components: int,
    std: Deviations,
) -> dict[str, Tensor]:
    """Return the M step: ``offsets`` ``[C, K, k]`` and ``shares`` ``[C, K]``.

    The offsets are shrunk towards 0 in each direction, by the share of noise in their mean square
    (Wiener filter). Then the offsets of each class are shifted so that their weighted mean is 0,
    because the released class means are more accurate.

    Args:
        sums: noisy component sums ``[C K, k]``.
        counts: noisy component counts ``[C K, 1]``.
        components: K, the number of components of a class.
        std: the standard deviations of the noise, by the names of :func:`component_products`.
    """
    rows = counts_above_noise(
        counts.view(-1, components, 1),
        std["component_counts"],
    )
    offsets = sums.view(len(rows), components, sums.shape[1]) / rows
    noise = (std["component_sums"] / rows).square()
    shares = rows[..., 0] / rows.sum(1)
    signal = (offsets.square() - noise).mean((0, 1)).clamp_min(0)  # variance per direction, [k]
    offsets = offsets * signal / (signal + noise).clamp_min(1e-12)
    class_shift = (shares.unsqueeze(2) * offsets).sum(1, keepdim=True)
    return {"offsets": offsets - class_shift, "shares": shares}


def scatter(
    offsets: Tensor,
    shares: Tensor,
    counts: Tensor,
) -> Tensor:
    """Return the scatter between the components of a class, pooled over classes, ``[k, k]``.

    It is the second moment of the offsets, weighted by the shares of components and classes.

    Args:
        offsets: the means of the components ``[C, K, k]``.
        shares: their shares ``[C, K]``.
        counts: the number of rows per class ``[C]``.
    """
    class_shares = counts / counts.sum()
    weights = shares * class_shares.unsqueeze(1)
    return torch.einsum("cj,cja,cjb->ab", weights, offsets, offsets)


def whitening(covariance: Tensor, between: Tensor) -> Tensor:
    """Return W ``[k, k]`` with ``W W^T = S^-1`` for ``S = covariance - between``.

    In every direction ``between`` counts for at most :data:`MOST_EXPLAINED` of the covariance.

    Args:
        covariance: the released covariance within classes ``[k, k]``.
        between: the result of :func:`scatter` ``[k, k]``.
    """
    inverse_root = inverse_square_root(covariance, 1e-12)
    explained = inverse_root @ between @ inverse_root
    correction = spectral_function(
        explained, lambda shares: (1 - shares.clamp(0, MOST_EXPLAINED)).rsqrt()
    )
    return inverse_root @ correction
