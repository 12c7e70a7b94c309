"""The kernel behind the MMD alignment, and its per-example form.

The kernel is a sum of inverse multiquadrics ``h / (h + |a - b|^2)`` whose bandwidths are public constants fit for rows of unit norm
(squared distances in [0, 4]); no private data sets them.
"""

from __future__ import annotations

import torch
from torch import Tensor

BANDWIDTHS = (0.1, 0.3, 1.0)


def kernel(squared_distance: Tensor) -> Tensor:
    """K as a function of the squared distance, elementwise; 1 at distance 0."""
    return torch.stack([h / (h + squared_distance) for h in BANDWIDTHS]).mean(0)


def kernel_score(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """k(x', x'') - k(x, x') - k(x, x'') per example ``[N]``, for x' and x'' drawn from the generator with x's own label and code.

    Its expectation over x', x'' is MMD^2 between the generator and a point mass at x up to a constant, so its gradient, averaged over
    x, is that of MMD^2 between generator and data (Gneiting and Raftery 2007, kernel score), while each term depends on one example.
    """
    pairs = torch.stack([first - second, x - first, x - second]).square().sum(-1)
    value = kernel(pairs)
    return value[0] - value[1] - value[2]


def mmd2(a: Tensor, b: Tensor) -> Tensor:
    """Unbiased squared maximum mean discrepancy between samples ``[n, d]`` and ``[m, d]`` (Gretton et al. 2012, eq. 3).

    Raises:
        ValueError: a sample has fewer than two rows.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"an unbiased MMD needs two rows of each sample, not {len(a)} and {len(b)}")

    def within(s: Tensor) -> Tensor:
        n = len(s)
        return (kernel(torch.cdist(s, s).square()).sum() - n) / (n * (n - 1))

    return within(a) + within(b) - 2 * kernel(torch.cdist(a, b).square()).mean()
