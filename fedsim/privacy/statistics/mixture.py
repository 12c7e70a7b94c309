"""Gaussian mixtures per class with one covariance for all components, from noisy statistics: the E
step, the M step, the starting points.

Everything happens on residuals u ``[N, k]`` from the class mean in the leading directions of the
covariance within classes, so that what is noised is small. Component j of class c is N(offset_cj,
S) there; S is the covariance within classes minus the scatter between components.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedsim.models.layers import one_hot
from fedsim.privacy.statistics.moments import Products, counts_above_noise, in_unit_ball
from fedsim.privacy.statistics.outer_products import OuterProduct
from fedsim.privacy.statistics.spectral import spectral_function, square_root

WEIGHTS = {"component_sums": 1.0, "component_counts": 0.15}
MOST_EXPLAINED = 0.9
"""Largest share of the variance of a direction that lies between components: the covariance within
them stays positive.
"""


def residuals(rows: Tensor, y: Tensor, class_means: Tensor, basis: Tensor) -> Tensor:
    """Rows ``[N, d]`` minus their class means ``[C, d]`` in ``basis`` ``[d, k]``, clipped to norm
    1.
    """
    return in_unit_ball((rows - class_means[y]) @ basis)


def responsibilities(
    u: Tensor, y: Tensor, offsets: Tensor, shares: Tensor, whitening: Tensor
) -> Tensor:
    """The E step: probability of each component of the row's own class, ``[N, K]``; a row sums to
    one.

    Of residuals u ``[N, k]`` and labels y ``[N]``, by component means ``offsets`` ``[C, K, k]``,
    positive ``shares`` ``[C, K]`` and ``whitening`` W ``[k, k]`` with ``W W^T = S^-1``.
    """
    squared = ((u.unsqueeze(1) - offsets[y]) @ whitening).square().sum(2)
    return torch.softmax(shares[y].log() - 0.5 * squared, 1)


def component_products(u: Tensor, y: Tensor, belongs: Tensor, classes: int) -> Products:
    """Component sums ``[C K, k]`` and counts ``[C K, 1]``; the left factor's entries sum to one, so
    its norm is at most 1.
    """
    left = (one_hot(y, classes).unsqueeze(2) * belongs.unsqueeze(1)).flatten(1)
    return {
        "component_sums": OuterProduct(left, u),
        "component_counts": OuterProduct(left, u.new_ones(len(u), 1)),
    }


def start(draws: Tensor, covariance: Tensor, spread: float) -> dict[str, Tensor]:
    """Starting points: random directions of the released covariance, which cost nothing; equal
    shares.

    From standard normal ``draws`` ``[C, K, k]``, ``spread`` standard deviations of the covariance
    within classes ``[k, k]`` from the class mean.
    """
    draws = draws - draws.mean(1, keepdim=True)
    unit = draws / draws.norm(dim=2, keepdim=True).clamp_min(1e-12)
    return {
        "offsets": spread * unit @ square_root(covariance),
        "shares": draws.new_full(draws.shape[:2], 1 / draws.shape[1]),
    }


def maximise(
    sums: Tensor, counts: Tensor, shares: Tensor, std: Mapping[str, float]
) -> dict[str, Tensor]:
    """The M step: offsets ``[C, K, k]`` and shares ``[C, K]`` from noisy sums ``[C K, k]`` and
    counts ``[C K, 1]``.

    Offsets are shrunk towards 0, direction by direction, by the noise's share of their mean square
    (Wiener filter), and moved so that every class keeps its mean, which the moments know better.
    ``std`` is of the noise, by the names of :func:`component_products`.
    """
    n = counts_above_noise(counts.view(*shares.shape, 1), std["component_counts"])
    offsets = sums.view(*shares.shape, -1) / n
    noise = (std["component_sums"] / n).square()
    shares = n[..., 0] / n.sum(1)
    signal = (offsets.square() - noise).mean((0, 1)).clamp_min(0)
    offsets = offsets * signal / (signal + noise).clamp_min(1e-12)
    return {
        "offsets": offsets - (shares.unsqueeze(2) * offsets).sum(1, keepdim=True),
        "shares": shares,
    }


def scatter(offsets: Tensor, shares: Tensor, counts: Tensor) -> Tensor:
    """Covariance of the components' means within their classes, pooled over classes with ``counts``
    ``[C]`` rows: ``[k, k]``.
    """
    weights = shares * (counts / counts.sum()).unsqueeze(1)
    return torch.einsum("cj,cja,cjb->ab", weights, offsets, offsets)


def whitening(covariance: Tensor, between: Tensor) -> Tensor:
    """W with ``W W^T = S^-1`` for ``S = covariance - between``, ``[k, k]``; ``between`` takes at
    most its largest share.
    """
    whitened = spectral_function(covariance, lambda values: values.clamp_min(1e-12).rsqrt())
    inner = whitened @ between @ whitened
    return whitened @ spectral_function(
        inner, lambda shares: (1 - shares.clamp(0, MOST_EXPLAINED)).rsqrt()
    )
