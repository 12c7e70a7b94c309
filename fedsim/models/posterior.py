"""The exact posterior of a linear-Gaussian decoder: an encoder with nothing to train, so nothing that private data could leak into."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fedsim.device import CPU, FUSED


class SpreadCache:
    """What :func:`posterior_spread` made for a model, the same for all chunks of a batch: kept until a parameter is written."""

    def __init__(self) -> None:
        self._written: list[tuple[Tensor, int]] = []
        self._spread: Tensor | None = None

    def of(self, model: nn.Module, make: Callable[[], Tensor]) -> Tensor:
        """The spread of ``model``, made if one of its parameters has changed."""
        written: list[tuple[Tensor, int]] = [(parameter, parameter._version) for parameter in model.parameters()]
        same = len(written) == len(self._written) and all(a is b and m == n for (a, m), (b, n) in zip(self._written, written, strict=True))
        if self._spread is None or not same:
            self._written, self._spread = written, make()
        return self._spread


def posterior_spread(linear: Tensor, scales: Tensor, prior_root: Tensor, variance: Tensor) -> Tensor:
    """R with ``R R^T = S``, the covariance of z given x, which depends on client and class alone; upper triangular, ``[K, C, k, k]``.

    Bishop 2006, eq. 2.117: ``S = (T^T T + A^T A / variance)^-1`` with ``A = diag(scale_i) linear``: the map ``linear`` ``[d, k]``, row
    scales of every client ``[K, d]``, the root T ``[K, C, k, k]`` of the prior's precision, and the scalar variance of the observation
    noise.
    """
    size, square = linear.shape[1], (linear.unsqueeze(2) * linear.unsqueeze(1)).flatten(1)
    gram = (scales.square() @ square).view(len(scales), 1, size, size)
    return inverse_root(gram / variance + prior_root.mT @ prior_root)


def inverse_root(precision: Tensor) -> Tensor:
    """R with ``R R^T = precision^-1`` of positive definite matrices ``[..., k, k]``: the inverse of the Cholesky factor, transposed.

    No device is waited for: what is not positive definite gives nan elsewhere than on the CPU.
    """
    if precision.device.type not in FUSED:  # a lazy device has these, and not those below
        return lower_inverse(torch.cholesky(precision)).mT  # type: ignore[attr-defined, unused-ignore]  # of newer torch
    factor, failed = torch.linalg.cholesky_ex(precision)
    if precision.device == CPU and bool(failed.any()):
        raise ValueError("the precision of z given x is not positive definite: the model has numbers that are not finite, or too large")
    return lower_inverse(factor.masked_fill((failed != 0)[..., None, None], float("nan"))).mT


def lower_inverse(factor: Tensor) -> Tensor:
    """The inverse of lower triangular matrices ``[..., k, k]``."""
    if factor.device.type not in FUSED:
        inverse: Tensor = torch.linalg.inv_ex(factor)[0]
        return inverse
    one = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    solved: Tensor = torch.linalg.solve_triangular(factor, one, upper=False)
    return solved


def linear_posterior(
    residual: Tensor,
    group: Tensor,
    linear: Tensor,
    scales: Tensor,
    prior: tuple[Tensor, Tensor],
    variance: Tensor,
    root: Tensor,
    noise: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The posterior's mean and a draw's deviation from it, ``[N, k]`` each, and the draw's log density ``[N]``.

    The model is ``x = scale_i * (linear z) + offset + N(0, variance I)`` with ``z ~ N(prior of client i and class c)``; the posterior's
    mean is ``S (A^T r / variance + T^T T m)`` (Bishop 2006, eq. 2.116). The log density lacks ``-k/2 log 2 pi``, as
    :func:`fedsim.models.cvae.gaussian_nll_root` does. ``residual`` r ``[N, d]`` is x minus the offset, ``group`` ``[2, N]`` client and
    class of every row, ``prior`` m ``[K, C, k]`` and T ``[K, C, k, k]``, ``root`` from :func:`posterior_spread`, ``noise`` standard normal
    draws ``[N, k]``.
    """
    (client, label), (prior_mean, prior_root) = group, prior
    pull = (prior_root.mT @ (prior_root @ prior_mean.unsqueeze(-1))).squeeze(-1)
    natural = (scales[client] * residual) @ linear / variance + pull[client, label]
    cell = client * root.shape[1] + label
    own = root.flatten(0, 1)[cell]
    mean = torch.bmm(own, torch.bmm(own.mT, natural.unsqueeze(2)))
    moved = torch.bmm(own, noise.unsqueeze(2))
    log_root = torch.diagonal(root, dim1=-2, dim2=-1).log().sum(-1)
    density = -0.5 * noise.square().sum(1) - log_root.flatten()[cell]
    return mean[..., 0], moved[..., 0], density
