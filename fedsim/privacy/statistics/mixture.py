"""Gaussian mixtures per class from noisy statistics: starting points, E step and M step.

All components share one covariance. Everything happens on residuals u ``[N, k]``: rows minus their
class mean, in the leading directions of the covariance within classes, so that what gets noise is
small. Component j of class c is N(offset_cj, S) there; S is the covariance within classes minus the
scatter between components.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedsim.privacy.statistics.moments import Products, counts_above_noise, in_unit_ball
from fedsim.privacy.statistics.outer_products import OuterProduct
from fedsim.privacy.statistics.spectral import spectral_function, square_root

WEIGHTS = {"component_sums": 1.0, "component_counts": 0.15}
"""Weights of :func:`component_products` in a row's joint norm."""
MOST_EXPLAINED = 0.9
"""The largest share of the variance of a direction that lies between components.

It keeps the covariance within components positive.
"""


def residuals(
    rows: Tensor,
    y: Tensor,
    class_means: Tensor,
    basis: Tensor,
) -> Tensor:
    """Returns rows minus their class means in ``basis``, clipped to norm 1, ``[N, k]``.

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
    """Returns the E step: the probability of each component of the row's class, ``[N, K]``.

    Args:
        u: residuals ``[N, k]``.
        y: labels ``[N]``.
        offsets: the means of the components ``[C, K, k]``.
        shares: the positive shares of the components in their classes ``[C, K]``.
        whitening: W ``[k, k]`` with ``W W^T = S^-1``.
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
    """Returns component sums ``[C K, k]`` and counts ``[C K, 1]``.

    The left factor of a row has entries that sum to one, so its norm is at most 1.

    Args:
        u: residuals ``[N, k]``.
        y: labels ``[N]``.
        belongs: the result of :func:`responsibilities` ``[N, K]``.
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
    """Returns starting points: random directions of the released covariance, and equal shares.

    They cost no privacy.

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
    shares: Tensor,
    std: Mapping[str, float],
) -> dict[str, Tensor]:
    """Returns the M step: offsets ``[C, K, k]`` and shares ``[C, K]``.

    Offsets are shrunk towards 0, direction by direction, by the noise's share of their mean square
    (Wiener filter). Then they are moved so that every class keeps its mean, which the released
    moments know better.

    Args:
        sums: noisy component sums ``[C K, k]``.
        counts: noisy component counts ``[C K, 1]``.
        shares: the shares of the step before ``[C, K]``, for their shape.
        std: the standard deviations of the noise, by the names of :func:`component_products`.
    """
    rows = counts_above_noise(
        counts.view(*shares.shape, 1),
        std["component_counts"],
    )
    offsets = sums.view(*shares.shape, sums.shape[1]) / rows
    noise = (std["component_sums"] / rows).square()
    shares = rows[..., 0] / rows.sum(1)
    signal = (offsets.square() - noise).mean((0, 1)).clamp_min(0)  # of each direction, [k]
    offsets = offsets * signal / (signal + noise).clamp_min(1e-12)
    class_shift = (shares.unsqueeze(2) * offsets).sum(1, keepdim=True)
    return {"offsets": offsets - class_shift, "shares": shares}


def scatter(
    offsets: Tensor,
    shares: Tensor,
    counts: Tensor,
) -> Tensor:
    """Returns the covariance of the components' means within their classes, ``[k, k]``.

    It is pooled over classes.

    Args:
        offsets: the means of the components ``[C, K, k]``.
        shares: their shares ``[C, K]``.
        counts: the number of rows per class ``[C]``.
    """
    class_shares = counts / counts.sum()
    weights = shares * class_shares.unsqueeze(1)
    return torch.einsum("cj,cja,cjb->ab", weights, offsets, offsets)


def whitening(covariance: Tensor, between: Tensor) -> Tensor:
    """Returns W with ``W W^T = S^-1`` for ``S = covariance - between``, ``[k, k]``.

    In no direction does ``between`` take more than :data:`MOST_EXPLAINED` of the covariance.
    """
    inverse_root = spectral_function(
        covariance,
        lambda values: values.clamp_min(1e-12).rsqrt(),
    )
    explained = inverse_root @ between @ inverse_root
    correction = spectral_function(
        explained, lambda shares: (1 - shares.clamp(0, MOST_EXPLAINED)).rsqrt()
    )
    return inverse_root @ correction
