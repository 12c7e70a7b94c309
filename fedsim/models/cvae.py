"""Parts of a conditional variational autoencoder on embeddings: encoder, exact posterior, Gaussian
likelihood, KL divergence.

Kingma and Welling 2014 (arXiv 1312.6114), Sohn et al. 2015; per example throughout, sums over the
embedding's dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.batch import Layout
from fedsim.device import CPU, FUSED, normal
from fedsim.models.hypernetwork import ModulatedDecoder
from fedsim.models.layers import ClientLinear, Shift, one_hot


class Encoder(nn.Module):
    """Amortised posterior q(z | x, y) = N(mean, diag exp(log_var)): an MLP on [x * sqrt(d), one-hot
    y].

    Rows have unit norm, so x * sqrt(d) has entries of order one. With ``clients``, a cohort's
    number, there is one weight set a client.
    """

    def __init__(
        self, dim: int, classes: int, hidden: Sequence[int], latent: int, clients: int | None = None
    ) -> None:
        super().__init__()
        self.classes = classes
        self.latent = latent
        widths = [dim + classes, *hidden]

        def layer(inputs: int, outputs: int) -> nn.Module:
            if clients is None:
                return nn.Linear(inputs, outputs)
            return ClientLinear(clients, inputs, outputs)

        self.hidden = nn.ModuleList(layer(a, b) for a, b in pairwise(widths))
        self.head = layer(widths[-1], 2 * latent)

    def forward(self, x: Tensor, y: Tensor, layout: Layout | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log variance, each ``[N, latent]``; ``layout`` where weights differ per
        client.
        """
        where = () if layout is None else (layout,)
        h = torch.cat([x * math.sqrt(x.shape[-1]), one_hot(y, self.classes)], -1)
        for layer in self.hidden:
            h = F.relu(layer(h, *where))
        mean, log_var = self.head(h, *where).chunk(2, -1)
        return mean, log_var.clamp(-8, 8)


class ObservationNoise(nn.Module):
    """The likelihood's learned variance, one number: p(x | z) = N(decoded, exp(log_var) I)."""

    def __init__(self, initial_variance: float) -> None:
        super().__init__()
        self.initial = math.log(initial_variance)
        self.shift = Shift(1)

    def forward(self, rows: Tensor) -> Tensor:
        """Log variance per example, ``[N, 1]``."""
        log_var: Tensor = self.shift(rows.new_full((len(rows), 1), self.initial))
        return log_var.clamp(-12, 4)

    def variance(self) -> Tensor:
        """The variance as a constant, a scalar."""
        return (self.shift.weight.detach()[0] + self.initial).clamp(-12, 4).exp()


class CVAE(nn.Module):
    """One client's CVAE; the decoder is FedHypeVAE's without a code: with hidden layers of one
    shape both start from the same weights.

    No decoder layer means a prototype per class plus a linear map of z; without
    ``initial_variance`` the likelihood's is not modelled.
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        latent: int,
        encoder_hidden: Sequence[int],
        decoder_hidden: Sequence[int],
        initial_variance: float | None = None,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(dim, classes, encoder_hidden, latent)
        self.decoder = ModulatedDecoder(latent, classes, decoder_hidden, dim, code=0)
        if initial_variance is None:
            self.observation = None
        else:
            self.observation = ObservationNoise(initial_variance)

    def forward(self, x: Tensor, y: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction ``[N, d]`` by one posterior draw, and KL(q(z | x, y) || N(0, I))
        ``[N]``.
        """
        mean, log_var = self.encoder(x, y)
        decoded = self.decode(sample_posterior(mean, log_var, noise), y)
        return decoded, kl_normal(
            mean, log_var, torch.zeros_like(mean), torch.eye(mean.shape[1], device=mean.device)
        )

    def decode(self, z: Tensor, y: Tensor) -> Tensor:
        """The decoder's mean ``[N, d]`` at z ``[N, latent]``."""
        decoded: Tensor = self.decoder(z[:, None], y, z[:, :0])[:, 0]
        return decoded


class CVAEGenerator:
    """Samples x ~ p(x | z, y) with z ~ N(0, I); the decoder's mean alone where the likelihood's
    variance is not modelled.
    """

    def __init__(self, model: CVAE) -> None:
        self.model = model

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Synthetic embeddings ``[n, d]``."""
        with torch.no_grad():
            decoded: Tensor = self.model.decode(
                normal((len(labels), self.model.encoder.latent), stream, labels), labels
            )
            if self.model.observation is None:
                return decoded
            std = (0.5 * self.model.observation(decoded)).exp()
            noisy: Tensor = decoded + std * normal(decoded.shape, stream, labels)
            return noisy


class ConditionalGenerator(nn.Module):
    """x = decoder(z, y) + N(0, s^2 I) with z ~ N(0, I) and a learned s; rows come out with a norm
    of order one.

    Without the observation noise all rows of a class would lie in a plane, which no embeddings do.
    No ``hidden`` layer means a prototype per class plus a linear map of z; ``initial_variance`` is
    that of the noise times the dimension d, before it is learned.
    """

    def __init__(
        self, latent: int, classes: int, hidden: Sequence[int], dim: int, initial_variance: float
    ) -> None:
        super().__init__()
        self.latent = latent
        self.decoder = ModulatedDecoder(latent, classes, hidden, dim, code=0)
        self.observation = ObservationNoise(initial_variance / dim)

    def forward(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Rows ``[n, d]`` for int64 labels ``[n]``."""
        z = normal((len(labels), self.latent), stream, labels)
        decoded: Tensor = self.decoder(z.unsqueeze(1), labels, z[:, :0])[:, 0]
        std: Tensor = (0.5 * self.observation(z)).exp()
        return decoded + std * normal(decoded.shape, stream, labels)


class ConditionalSampler:
    """Samples ``shift + scale * generator(y)``; both constants are public or released."""

    def __init__(
        self, generator: nn.Module, scale: float = 1.0, shift: Tensor | float = 0.0
    ) -> None:
        self.generator = generator
        self.scale = scale
        self.shift = shift

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Synthetic embeddings ``[n, d]``."""
        with torch.no_grad():
            made: Tensor = self.shift + self.scale * self.generator(labels, stream)
            return made


def sample_posterior(mean: Tensor, log_var: Tensor, noise: Tensor) -> Tensor:
    """Reparametrised z = mean + exp(log_var / 2) * noise."""
    return mean + (0.5 * log_var).exp() * noise


def gaussian_nll(x: Tensor, decoded: Tensor, log_var: Tensor) -> Tensor:
    """-log N(x; decoded, exp(log_var) I) up to the constant d/2 log 2 pi, per example: ``[N]``."""
    log_var = log_var.squeeze(-1)
    return 0.5 * ((x - decoded).square().sum(-1) * (-log_var).exp() + x.shape[-1] * log_var)


def kl_normal(mean: Tensor, log_var: Tensor, prior_mean: Tensor, root: Tensor) -> Tensor:
    """KL(N(mean, diag exp(log_var)) || N(prior_mean, (T^T T)^-1)), T = ``root`` lower triangular
    ``[N, k, k]``, per example: ``[N]``.
    """
    ratio = root.square().sum(-2) * log_var.exp()
    return 0.5 * (ratio - 1 - log_var).sum(-1) + gaussian_nll_root(mean, prior_mean, root)


def gaussian_nll_root(z: Tensor, mean: Tensor, root: Tensor) -> Tensor:
    """-log N(z; mean, (T^T T)^-1) up to its constant, T = ``root`` lower triangular ``[N, k, k]``,
    per example: ``[N]``.
    """
    white = (root @ (z - mean).unsqueeze(-1)).squeeze(-1)
    return 0.5 * white.square().sum(-1) - torch.diagonal(root, dim1=-2, dim2=-1).log().sum(-1)


class SpreadCache:
    """What :func:`posterior_spread` made for a model, the same for all chunks of a batch: kept
    until a parameter is written.
    """

    def __init__(self) -> None:
        self._written: list[tuple[Tensor, int]] = []
        self._spread: Tensor | None = None

    def of(self, model: nn.Module, make: Callable[[], Tensor]) -> Tensor:
        """The spread of ``model``, made if one of its parameters has changed."""
        written: list[tuple[Tensor, int]] = [
            (parameter, parameter._version) for parameter in model.parameters()
        ]
        same = len(written) == len(self._written) and all(
            a is b and m == n for (a, m), (b, n) in zip(self._written, written, strict=True)
        )
        if self._spread is None or not same:
            self._written = written
            self._spread = make()
        return self._spread


def posterior_spread(
    linear: Tensor, scales: Tensor, prior_root: Tensor, variance: Tensor
) -> Tensor:
    """R with ``R R^T = S``, the covariance of z given x, which depends on client and class alone;
    upper triangular, ``[K, C, k, k]``.

    Bishop 2006, eq. 2.117: ``S = (T^T T + A^T A / variance)^-1`` with ``A = diag(scale_i) linear``:
    the map ``linear`` ``[d, k]``, row scales of every client ``[K, d]``, the root T ``[K, C, k,
    k]`` of the prior's precision, and the scalar variance of the observation noise.
    """
    size = linear.shape[1]
    square = (linear.unsqueeze(2) * linear.unsqueeze(1)).flatten(1)
    gram = (scales.square() @ square).view(len(scales), 1, size, size)
    return inverse_root(gram / variance + prior_root.mT @ prior_root)


def inverse_root(precision: Tensor) -> Tensor:
    """R with ``R R^T = precision^-1`` of positive definite matrices ``[..., k, k]``: the inverse of
    the Cholesky factor, transposed.

    No device is waited for: what is not positive definite gives nan elsewhere than on the CPU.
    """
    if precision.device.type not in FUSED:  # a lazy device has these, and not those below
        return lower_inverse(torch.cholesky(precision)).mT  # type: ignore[attr-defined, unused-ignore]  # of newer torch
    factor, failed = torch.linalg.cholesky_ex(precision)
    if precision.device == CPU and bool(failed.any()):
        raise ValueError(
            "the precision of z given x is not positive definite: the model has numbers that "
            "are not finite, or too large"
        )
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
    """The exact posterior of a linear-Gaussian decoder: an encoder with nothing to train, so
    nothing that private data could leak into.

    Returns its mean and a draw's deviation from it, ``[N, k]`` each, and the draw's log density
    ``[N]``, which lacks ``-k/2 log 2 pi`` as
    :func:`gaussian_nll_root` does. The model is ``x = scale_i * (linear z) + offset + N(0, variance
    I)`` with ``z ~ N(prior of client i and class c)``; the mean is ``S (A^T r / variance + T^T T
    m)`` (Bishop 2006, eq. 2.116). ``residual`` r ``[N, d]`` is x minus the offset, ``group`` ``[2,
    N]`` client and class of every row, ``prior`` m ``[K, C, k]`` and T ``[K, C, k, k]``, ``root``
    from
    :func:`posterior_spread`, ``noise`` standard normal draws ``[N, k]``.
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
