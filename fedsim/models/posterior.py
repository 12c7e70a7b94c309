"""The exact posterior of a linear-Gaussian decoder: an encoder with nothing to train, so nothing that private data could leak into."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_posterior(
    residual: Tensor,
    group: Tensor,
    maps: Tensor,
    scales: Tensor,
    prior_mean: Tensor,
    prior_log_var: Tensor,
    variance: Tensor,
    noise: Tensor,
) -> tuple[Tensor, Tensor]:
    """A draw of z from the posterior ``[N, k]``, and its log density ``[N]``.

    The model is ``x = scale_i * (maps_c z) + offset + N(0, variance I)`` with ``z ~ N(prior of client i and class c)``.

    Bishop 2006, eq. 2.116: covariance ``S = (diag(1 / prior_var) + A^T A / variance)^-1``, mean ``S (A^T r / variance + m / prior_var)``.

    Args:
        residual: x minus the offset, ``[N, d]``.
        group: client and class of every row, int64 ``[2, N]``.
        maps: ``[C, d, k]``.
        scales: row scales of every client, ``[K, d]``.
        prior_mean: ``[K, C, k]``.
        prior_log_var: ``[K, C, k]``.
        variance: of the observation noise, a scalar.
        noise: standard normal draws ``[N, k]``.

    The log density lacks ``-k/2 log 2 pi``, as :func:`fedsim.models.cvae.gaussian_nll_diagonal` does.
    """
    client, label = group
    classes, dim, size = maps.shape
    flat = maps.transpose(0, 1).reshape(dim, classes * size)
    projected = ((scales[client] * residual) @ flat).view(-1, classes, size)
    projected = projected.gather(1, label[:, None, None].expand(-1, 1, size))[:, 0]
    # A^T A of every client and class at once: [K, C, k, k]
    gram = torch.stack([(maps * scale[:, None].square()).transpose(1, 2) @ maps for scale in scales])
    precision = gram / variance + torch.diag_embed((-prior_log_var).exp())
    covariance = torch.cholesky_inverse(torch.linalg.cholesky(precision))
    root = torch.linalg.cholesky(covariance)
    natural = projected / variance + (prior_mean * (-prior_log_var).exp())[client, label]
    cell = client * classes + label
    moved = torch.stack([natural, noise], 2)
    mean = torch.bmm(covariance.flatten(0, 1)[cell], moved[..., :1])
    spread = torch.bmm(root.flatten(0, 1)[cell], moved[..., 1:])
    log_root = torch.diagonal(root, dim1=-2, dim2=-1).log().sum(-1)
    density = -0.5 * noise.square().sum(1) - log_root.flatten()[cell]
    return (mean + spread)[..., 0], density
