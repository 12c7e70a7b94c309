"""The kernel behind the MMD alignment, and its per-example form.

The kernel is the mean of inverse multiquadrics ``h / (h + |a - b|^2)`` whose bandwidths are public
constants fit for rows of unit norm (squared distances in [0, 4]); no private data sets them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BANDWIDTHS = (0.1, 0.3, 1.0)


def kernel(squared_distance: Tensor) -> Tensor:
    """K as a function of the squared distance, elementwise; 1 at distance 0."""
    return torch.stack([h / (h + squared_distance) for h in BANDWIDTHS]).mean(0)


def kernel_score(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """k(x', x'') - k(x, x') - k(x, x'') per example ``[N]``, for x' and x'' drawn from the
    generator with x's own label and code.

    Its expectation over x', x'' is MMD^2 between the generator and a point mass at x up to a
    constant, so its gradient, averaged over x, is that of MMD^2 between generator and data
    (Gneiting and Raftery 2007, kernel score), while each term depends on one example.
    """
    pairs = torch.stack([first - second, x - first, x - second]).square().sum(-1)
    value = kernel(pairs)
    return value[0] - value[1] - value[2]


def batch_mmd(x: Tensor, generated: Tensor) -> Tensor:
    """Squared MMD between two batches of rows ``[N, d]`` and ``[M, d]``, a scalar; every pair of
    different rows once (unbiased).

    It depends on all rows at once, so that no example's share of it has a bound of its own (Gretton
    et al. 2012, JMLR 13). It knows no labels: it compares the mixtures of all classes.
    """

    def within(rows: Tensor) -> Tensor:
        count = len(rows)
        return (_cross(rows, rows).sum() - count) / max(count * (count - 1), 1)

    return within(x) + within(generated) - 2 * _cross(x, generated).mean()


def _cross(a: Tensor, b: Tensor) -> Tensor:
    """The kernel of every pair, ``[N, M]``."""
    squared = a.square().sum(-1)[:, None] + b.square().sum(-1)[None] - 2 * a @ b.T
    return kernel(squared.clamp_min(0))


def kernel_frequencies(dim: int, count: int, stream: torch.Generator) -> Tensor:
    """Frequencies ``[d, count]`` of :func:`kernel_features`, columns of independent directions.

    ``h / (h + r^2)`` is the mean of ``exp(-t r^2 / h)`` over t ~ Exp(1), a mixture of Gaussian
    kernels, so frequencies are normal with variance 2 t / h (Rahimi and Recht 2007). The bandwidths
    take turns.
    """
    mixture = -torch.rand(count, generator=stream).clamp_min(1e-12).log()
    bandwidths = torch.tensor(BANDWIDTHS).repeat(-(-count // len(BANDWIDTHS)))[:count]
    return torch.randn(dim, count, generator=stream) * (2 * mixture / bandwidths).sqrt()


def kernel_features(x: Tensor, frequencies: Tensor) -> Tensor:
    """Random features whose inner products estimate the kernel, ``[..., d]`` to ``[..., 2 count]``;
    of norm 1 for every row.

    A cosine and a sine for each of ``frequencies`` ``[d, count]`` (Rahimi and Recht 2007): their
    squares sum to one, whatever the row is. The squared distance of two samples' mean features
    estimates their squared MMD.
    """
    angles = x @ frequencies
    return torch.cat([angles.cos(), angles.sin()], -1) / math.sqrt(frequencies.shape[1])
