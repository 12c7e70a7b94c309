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


def posterior_spread(maps: Tensor, scales: Tensor, prior_log_var: Tensor, variance: Tensor) -> Tensor:
    """R with ``R R^T = S``, the covariance of z given x, which depends on client and class alone; upper triangular, ``[K, C, k, k]``.

    Bishop 2006, eq. 2.117: ``S = (diag(1 / prior_var) + A^T A / variance)^-1`` with ``A = diag(scale_i) maps_c``.

    Args:
        maps: one for every class ``[C, d, k]``, or one for all ``[1, d, k]``.
        scales: row scales of every client, ``[K, d]``.
        prior_log_var: ``[K, C, k]``.
        variance: of the observation noise, a scalar.
    """
    size, squares = maps.shape[2], [(each.unsqueeze(2) * each.unsqueeze(1)).flatten(1) for each in maps]
    gram = torch.stack([scales.square() @ square for square in squares], 1).view(len(scales), len(maps), size, size)
    return inverse_root(gram / variance + torch.diag_embed((-prior_log_var).exp()))


def inverse_root(precision: Tensor) -> Tensor:
    """R with ``R R^T = precision^-1`` of positive definite matrices ``[..., k, k]``: the inverse of the Cholesky factor, transposed.

    No device is waited for: what is not positive definite gives nan elsewhere than on the CPU.

    Raises:
        ValueError: a matrix on the CPU is not positive definite.
    """
    if precision.device.type not in FUSED:  # a lazy device has these, and not those below
        inverse: Tensor = torch.linalg.inv_ex(torch.cholesky(precision))[0]  # type: ignore[attr-defined, unused-ignore]  # of newer torch
        return inverse.mT
    factor, failed = torch.linalg.cholesky_ex(precision)
    if precision.device == CPU and bool(failed.any()):
        raise ValueError("the precision of z given x is not positive definite: the model has numbers that are not finite, or too large")
    one = torch.eye(precision.shape[-1], dtype=precision.dtype, device=precision.device)
    factor = factor.masked_fill((failed != 0)[..., None, None], float("nan"))
    inverse = torch.linalg.solve_triangular(factor, one, upper=False)
    return inverse.mT


def linear_posterior(
    residual: Tensor,
    group: Tensor,
    maps: Tensor,
    scales: Tensor,
    prior: tuple[Tensor, Tensor],
    variance: Tensor,
    root: Tensor,
    noise: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The posterior's mean and a draw's deviation from it, ``[N, k]`` each, and the draw's log density ``[N]``.

    The model is ``x = scale_i * (maps_c z) + offset + N(0, variance I)`` with ``z ~ N(prior of client i and class c)``; the posterior's
    mean is ``S (A^T r / variance + m / prior_var)`` (Bishop 2006, eq. 2.116). The log density lacks ``-k/2 log 2 pi``, as
    :func:`fedsim.models.cvae.gaussian_nll_diagonal` does.

    Args:
        residual: x minus the offset, ``[N, d]``.
        group: client and class of every row, int64 ``[2, N]``.
        maps: one for every class ``[C, d, k]``, or one for all ``[1, d, k]``.
        scales: row scales of every client, ``[K, d]``.
        prior: mean and log variance, ``[K, C, k]`` each.
        variance: of the observation noise, a scalar.
        root: of the covariance, from :func:`posterior_spread`.
        noise: standard normal draws ``[N, k]``.
    """
    (client, label), (prior_mean, prior_log_var) = group, prior
    count, dim, size = maps.shape
    projected = ((scales[client] * residual) @ maps.transpose(0, 1).reshape(dim, count * size)).view(-1, count, size)
    if count > 1:
        projected = projected.gather(1, label[:, None, None].expand(-1, 1, size))
    natural = projected[:, 0] / variance + (prior_mean * (-prior_log_var).exp())[client, label]
    cell = client * root.shape[1] + label
    own = root.flatten(0, 1)[cell]
    mean = torch.bmm(own, torch.bmm(own.mT, natural.unsqueeze(2)))
    moved = torch.bmm(own, noise.unsqueeze(2))
    log_root = torch.diagonal(root, dim1=-2, dim2=-1).log().sum(-1)
    density = -0.5 * noise.square().sum(1) - log_root.flatten()[cell]
    return mean[..., 0], moved[..., 0], density
