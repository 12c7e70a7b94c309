"""Computes the kernel of the maximum mean discrepancy (MMD), which aligns a generator with data.

The file has a score per example, the MMD of two batches, and random features of the kernel. The
kernel is the mean of inverse multiquadrics ``h / (h + |a - b|^2)``. Its bandwidths h are public
constants that fit rows of unit norm (squared distances in [0, 4]); no private data sets them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BANDWIDTHS = (0.1, 0.3, 1.0)
"""The bandwidths h of the kernel, in units of squared distance."""


def kernel(squared_distance: Tensor) -> Tensor:
    """Return the kernel at every squared distance, in the same shape; at distance 0 it is 1."""
    by_bandwidth = [h / (h + squared_distance) for h in BANDWIDTHS]
    return torch.stack(by_bandwidth).mean(0)


def kernel_score(
    x: Tensor,
    first: Tensor,
    second: Tensor,
) -> Tensor:
    """Return the kernel score of every example, ``[N]``.

    It is

        k(x', x'') - k(x, x') - k(x, x'').

    The expectation over x' and x'' is, up to a constant, MMD^2 between the generator and a point
    mass at x. So the gradient of the score, averaged over x, is the gradient of MMD^2 between
    generator and data (Gneiting and Raftery 2007). Each score depends on one example only.

    Args:
        x: embeddings ``[N, d]``.
        first: x' ``[N, d]``, generated for the label and code of x.
        second: x'' ``[N, d]``, generated independently for the same label and code.
    """
    differences = torch.stack(
        [
            first - second,
            x - first,
            x - second,
        ]
    )
    squared_distances = differences.square().sum(-1)
    between_generated, to_first, to_second = kernel(squared_distances)
    score: Tensor = between_generated - to_first - to_second
    return score


def batch_mmd(x: Tensor, generated: Tensor) -> Tensor:
    """Return the unbiased squared MMD between two batches ``[N, d]`` and ``[M, d]``, a scalar.

    It is no sum of terms that depend on one example each, so it cannot be clipped per example
    (Gretton et al. 2012, JMLR 13). It ignores labels.
    """
    cross_term = 2 * _pairwise_kernel(x, generated).mean()
    return _mean_over_pairs(x) + _mean_over_pairs(generated) - cross_term


def _mean_over_pairs(rows: Tensor) -> Tensor:
    """Return the mean kernel over all pairs of different rows of one batch."""
    count = len(rows)
    # The kernel of a row with itself is 1.
    total = _pairwise_kernel(rows, rows).sum() - count
    return total / max(count * (count - 1), 1)


def _pairwise_kernel(a: Tensor, b: Tensor) -> Tensor:
    """Return the kernel of every pair of rows of ``[N, d]`` and ``[M, d]``, ``[N, M]``."""
    norms_of_a = a.square().sum(-1)
    norms_of_b = b.square().sum(-1)
    squared_norms = norms_of_a[:, None] + norms_of_b[None]
    squared_distances = squared_norms - 2 * a @ b.T
    return kernel(squared_distances.clamp_min(0))


def kernel_frequencies(
    dim: int,
    count: int,
    stream: torch.Generator,
) -> Tensor:
    """Draw frequencies ``[d, count]`` for :func:`kernel_features`, with independent directions.

    The kernel of a bandwidth h is a mean of Gaussian kernels,

        h / (h + r^2) = E exp(-t r^2 / h)    over    t ~ Exp(1),

    so the frequencies are normal with variance 2 t / h (Rahimi and Recht 2007). One frequency after
    the other takes the next of the :data:`BANDWIDTHS`, in turn.

    Args:
        dim: d, the dimension of embeddings.
        count: the number of frequencies.
        stream: the random numbers.
    """
    uniform = torch.rand(count, generator=stream).clamp_min(1e-12)
    exponential = -uniform.log()  # t ~ Exp(1)
    repeats = -(-count // len(BANDWIDTHS))
    bandwidths = torch.tensor(BANDWIDTHS).repeat(repeats)[:count]
    directions = torch.randn(dim, count, generator=stream)
    return directions * (2 * exponential / bandwidths).sqrt()


def kernel_features(x: Tensor, frequencies: Tensor) -> Tensor:
    """Return random features ``[..., 2 count]`` whose inner products estimate the kernel.

    Each frequency gives a cosine and a sine (Rahimi and Recht 2007), whose squares sum to one, so
    every row of features has norm 1. The squared distance between the mean features of two samples
    estimates their squared MMD.

    Args:
        x: embeddings ``[..., d]``.
        frequencies: the result of :func:`kernel_frequencies`, ``[d, count]``.
    """
    angles = x @ frequencies
    count = frequencies.shape[1]
    features = torch.cat(
        [angles.cos(), angles.sin()],
        -1,
    )
    return features / math.sqrt(count)
