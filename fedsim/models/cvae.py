"""The parts of a conditional variational autoencoder (CVAE) on embeddings.

They are an encoder, the exact posterior of a linear decoder, a Gaussian likelihood, and the KL
divergence (Kingma and Welling 2014, arXiv 1312.6114; Sohn et al. 2015). The file also has two
models, :class:`CVAE` and :class:`ConditionalGenerator`, and what draws embeddings from them. Every
loss is per example and a sum over the dimensions of the embedding.
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
    """An MLP that gives the posterior q(z | x, y) = N(mean, diag exp(log_var)).

    Its input is [x * sqrt(d), one-hot y]: embeddings have unit norm, so x * sqrt(d) has entries of
    order one.

    Args:
        dim: the dimension d of an embedding.
        classes: the number of classes C.
        hidden: the widths of the hidden layers.
        latent: the dimension of z.
        clients: the number of clients in the cohort, each of which gets its own weights; None for
            one set of weights.
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        hidden: Sequence[int],
        latent: int,
        clients: int | None = None,
    ) -> None:
        super().__init__()
        self.classes = classes
        self.latent = latent
        widths = [dim + classes, *hidden]

        def make_layer(inputs: int, outputs: int) -> nn.Module:
            if clients is None:
                return nn.Linear(inputs, outputs)
            return ClientLinear(clients, inputs, outputs)

        self.hidden = nn.ModuleList(
            make_layer(inputs, outputs) for inputs, outputs in pairwise(widths)
        )
        self.head = make_layer(widths[-1], 2 * latent)

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        layout: Layout | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the mean and log variance of q, ``[N, latent]`` each.

        Args:
            x: embeddings ``[N, d]``.
            y: labels ``[N]``.
            layout: the client of each example; needed where every client has its own weights.
        """
        # Only layers with weights for every client take a layout.
        extra = () if layout is None else (layout,)
        scaled = x * math.sqrt(x.shape[-1])
        activation = torch.cat(
            [scaled, one_hot(y, self.classes)],
            -1,
        )
        for layer in self.hidden:
            activation = F.relu(layer(activation, *extra))
        mean, log_var = self.head(activation, *extra).chunk(2, -1)
        return mean, log_var.clamp(-8, 8)


class ObservationNoise(nn.Module):
    """The learned variance of the likelihood p(x | z) = N(decoded, exp(log_var) I), one number."""

    def __init__(self, initial_variance: float) -> None:
        super().__init__()
        self.initial = math.log(initial_variance)
        self.shift = Shift(1)

    def forward(self, rows: Tensor) -> Tensor:
        """Return the same log variance for each of N ``rows``, ``[N, 1]``.

        The values of ``rows`` are not read.
        """
        initial = rows.new_full((len(rows), 1), self.initial)
        log_var: Tensor = self.shift(initial)
        return log_var.clamp(-12, 4)

    def variance(self) -> Tensor:
        """Return the variance as a scalar without gradient."""
        log_var = self.shift.weight.detach()[0] + self.initial
        return log_var.clamp(-12, 4).exp()


class CVAE(nn.Module):
    """The CVAE of one client.

    The decoder is that of FedHypeVAE without a client code. If both have the same sizes and at
    least one hidden layer, they start from the same weights. Without hidden layers a decoder is a
    prototype per class plus a linear map of z.

    Args:
        dim: the dimension d of an embedding.
        classes: the number of classes C.
        latent: the dimension of z.
        encoder_hidden: the widths of the encoder's hidden layers.
        decoder_hidden: the widths of the decoder's hidden layers.
        initial_variance: the first variance of the likelihood; None if it is not modelled.
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
        self.encoder = Encoder(
            dim,
            classes,
            encoder_hidden,
            latent,
        )
        self.decoder = ModulatedDecoder(
            latent,
            classes,
            decoder_hidden,
            dim,
            code=0,
        )
        self.observation: ObservationNoise | None = None
        if initial_variance is not None:
            self.observation = ObservationNoise(initial_variance)

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        noise: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the reconstruction ``[N, d]`` and KL(q(z | x, y) || N(0, I)) ``[N]``.

        Args:
            x: embeddings ``[N, d]``.
            y: labels ``[N]``.
            noise: standard normal draws ``[N, latent]``, one posterior draw per example.
        """
        mean, log_var = self.encoder(x, y)
        z = sample_posterior(mean, log_var, noise)
        prior_mean = torch.zeros_like(mean)
        prior_root = torch.eye(mean.shape[1], device=mean.device)
        divergence = kl_normal(mean, log_var, prior_mean, prior_root)
        return self.decode(z, y), divergence

    def decode(self, z: Tensor, y: Tensor) -> Tensor:
        """Return the decoder's mean ``[N, d]`` at z ``[N, latent]``."""
        return decode_without_code(self.decoder, z, y)


def decode_without_code(
    decoder: nn.Module,
    z: Tensor,
    y: Tensor,
) -> Tensor:
    """Return the mean ``[N, d]`` of a decoder without a client code, at z ``[N, latent]``."""
    decoded: Tensor = decoder(z.unsqueeze(1), y, z[:, :0])
    return decoded[:, 0]


class CVAEGenerator:
    """A generator that draws x ~ p(x | z, y) with z ~ N(0, I).

    If the model has no variance of the likelihood, x is the decoder's mean.
    """

    def __init__(self, model: CVAE) -> None:
        self.model = model

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Return synthetic embeddings ``[n, d]`` for labels ``[n]``."""
        with torch.no_grad():
            z = normal(
                (len(labels), self.model.encoder.latent),
                stream,
                labels,
            )
            decoded = self.model.decode(z, labels)
            if self.model.observation is None:
                return decoded
            std = (0.5 * self.model.observation(decoded)).exp()
            noisy: Tensor = decoded + std * normal(decoded.shape, stream, labels)
            return noisy


class ConditionalGenerator(nn.Module):
    """A generator x = decoder(z, y) + N(0, s^2 I) with z ~ N(0, I) and a learned s.

    Its embeddings have a norm of order one. Without the observation noise, all embeddings of a
    class would lie on a surface of as few dimensions as z has. Real embeddings do not.

    Args:
        latent: the dimension of z.
        classes: the number of classes C.
        hidden: the widths of the decoder's hidden layers; none for a prototype per class plus a
            linear map of z.
        dim: the dimension d of an embedding.
        initial_variance: d times the value of s^2 before it is learned.
    """

    def __init__(
        self,
        latent: int,
        classes: int,
        hidden: Sequence[int],
        dim: int,
        initial_variance: float,
    ) -> None:
        super().__init__()
        self.latent = latent
        self.decoder = ModulatedDecoder(
            latent,
            classes,
            hidden,
            dim,
            code=0,
        )
        self.observation = ObservationNoise(initial_variance / dim)

    def forward(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Return embeddings ``[n, d]`` for int64 labels ``[n]``."""
        z = normal((len(labels), self.latent), stream, labels)
        decoded = decode_without_code(self.decoder, z, labels)
        std: Tensor = (0.5 * self.observation(z)).exp()
        return decoded + std * normal(decoded.shape, stream, labels)


class ConditionalSampler:
    """A generator of ``shift + scale * generator(y)``; both constants are public or released."""

    def __init__(
        self,
        generator: nn.Module,
        scale: float = 1.0,
        shift: Tensor | float = 0.0,
    ) -> None:
        self.generator = generator
        self.scale = scale
        self.shift = shift

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Return synthetic embeddings ``[n, d]`` for labels ``[n]``."""
        with torch.no_grad():
            generated: Tensor = self.generator(labels, stream)
            return self.shift + self.scale * generated


def sample_posterior(
    mean: Tensor,
    log_var: Tensor,
    noise: Tensor,
) -> Tensor:
    """Return the reparametrised draw z = mean + exp(log_var / 2) * noise."""
    return mean + (0.5 * log_var).exp() * noise


def gaussian_nll(
    x: Tensor,
    decoded: Tensor,
    log_var: Tensor,
) -> Tensor:
    """Return -log N(x; decoded, exp(log_var) I) of every example, ``[N]``.

    The constant d/2 log 2 pi is left out.

    Args:
        x: embeddings ``[N, d]``.
        decoded: their means ``[N, d]``.
        log_var: the log variance of each example, ``[N, 1]``.
    """
    log_var = log_var.squeeze(-1)
    squared_distance = (x - decoded).square().sum(-1)
    log_determinant = x.shape[-1] * log_var
    return 0.5 * (squared_distance * (-log_var).exp() + log_determinant)


def kl_normal(
    mean: Tensor,
    log_var: Tensor,
    prior_mean: Tensor,
    root: Tensor,
) -> Tensor:
    """Return KL(N(mean, diag exp(log_var)) || N(prior_mean, (T^T T)^-1)), ``[N]``.

    Args:
        mean: the means ``[N, k]`` of the first normal.
        log_var: its log variances ``[N, k]``.
        prior_mean: the means ``[N, k]`` of the second normal.
        root: T, lower triangular, ``[N, k, k]`` or ``[k, k]``.
    """
    variance_ratio = root.square().sum(-2) * log_var.exp()
    spread_term = 0.5 * (variance_ratio - 1 - log_var).sum(-1)
    return spread_term + gaussian_nll_root(mean, prior_mean, root)


def gaussian_nll_root(
    z: Tensor,
    mean: Tensor,
    root: Tensor,
) -> Tensor:
    """Return -log N(z; mean, (T^T T)^-1) of every example, ``[N]``.

    The constant k/2 log 2 pi is left out.

    Args:
        z: points ``[N, k]``.
        mean: their means ``[N, k]``.
        root: T, lower triangular, ``[N, k, k]`` or ``[k, k]``.
    """
    deviation = (z - mean).unsqueeze(-1)
    whitened = (root @ deviation).squeeze(-1)
    return 0.5 * whitened.square().sum(-1) - _log_determinant(root)


def _log_determinant(triangular: Tensor) -> Tensor:
    """Return the log determinants ``[...]`` of triangular matrices ``[..., k, k]``.

    Their diagonals must be positive.
    """
    return torch.diagonal(triangular, dim1=-2, dim2=-1).log().sum(-1)


class SpreadCache:
    """A cache of the result of :func:`posterior_spread`, the spread of a model.

    The spread depends on the model's parameters alone, so all chunks of a batch share it. It is
    kept until a parameter is written or replaced.
    """

    _spread: Tensor

    def __init__(self) -> None:
        self._parameters: Sequence[Tensor] = ()
        self._versions: list[tuple[int, int]] | None = None

    def get(
        self,
        model: nn.Module,
        compute: Callable[[], Tensor],
    ) -> Tensor:
        """Return the spread; call ``compute`` first if a parameter of ``model`` has changed."""
        parameters = list(model.parameters())
        versions = [(id(parameter), parameter._version) for parameter in parameters]
        if versions != self._versions:
            self._spread = compute()
            self._versions = versions
            # While the parameters are kept, Python gives their ids to no other tensor.
            self._parameters = parameters
        return self._spread


def posterior_spread(
    linear: Tensor,
    scales: Tensor,
    prior_root: Tensor,
    variance: Tensor,
) -> Tensor:
    """Return the upper triangular root R of the covariance S of z given x, ``[K, C, k, k]``.

    R satisfies ``R R^T = S``. S depends on the client i and the class alone:

        S = (T^T T + A^T A / variance)^-1    with    A = diag(scale_i) linear

    (Bishop 2006, eq. 2.117).

    Args:
        linear: the decoder's map of z ``[d, k]``.
        scales: the scales of its output dimensions for every client ``[K, d]``.
        prior_root: the root T of the prior's precision ``[K, C, k, k]``.
        variance: the variance of the observation noise, a scalar.
    """
    latent = linear.shape[1]
    products = (linear.unsqueeze(2) * linear.unsqueeze(1)).flatten(1)  # [d, k * k]
    gram = (scales.square() @ products).view(len(scales), 1, latent, latent)  # A^T A
    return inverse_root(gram / variance + prior_root.mT @ prior_root)


def inverse_root(precision: Tensor) -> Tensor:
    """Return R with ``R R^T = precision^-1`` of positive definite matrices ``[..., k, k]``.

    R is the inverse of the Cholesky factor, transposed. On a device other than the CPU a matrix
    that is not positive definite gives nan, because a check would have to wait for the device.

    Raises:
        ValueError: a matrix on the CPU is not positive definite.
    """
    if precision.device.type not in FUSED:
        # A lazy device, which computes later, has `torch.cholesky` but not `cholesky_ex`. Newer
        # versions of torch have no type declaration of `torch.cholesky`.
        lazy_factor = torch.cholesky(precision)  # type: ignore[attr-defined, unused-ignore]
        return lower_inverse(lazy_factor).mT
    factor, info = torch.linalg.cholesky_ex(precision)
    failed = info != 0
    if precision.device == CPU and bool(failed.any()):
        raise ValueError(
            "the precision of z given x is not positive definite: the model has numbers that "
            "are not finite, or too large"
        )
    factor = factor.masked_fill(failed[..., None, None], float("nan"))
    return lower_inverse(factor).mT


def lower_inverse(factor: Tensor) -> Tensor:
    """Return the inverse of lower triangular matrices ``[..., k, k]``."""
    if factor.device.type not in FUSED:
        inverse: Tensor = torch.linalg.inv_ex(factor)[0]
        return inverse
    identity = torch.eye(
        factor.shape[-1],
        dtype=factor.dtype,
        device=factor.device,
    )
    solved: Tensor = torch.linalg.solve_triangular(
        factor,
        identity,
        upper=False,
    )
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
    """Return mean, deviation and log density of a draw from a linear decoder's exact posterior.

    The posterior serves as an encoder. It has nothing to train, so private data cannot leak into
    it. For z from the prior of client i and class c, the model is

        x = scale_i * (linear z) + offset + N(0, variance I),

    and the posterior's mean is

        S (A^T r / variance + T^T T m)

    (Bishop 2006, eq. 2.116; see :func:`posterior_spread` for S, A and T).

    Args:
        residual: r, the embeddings minus the offset, ``[N, d]``.
        group: the client and the class of every example, ``[2, N]``.
        linear: the decoder's map of z, ``[d, k]``.
        scales: the scales of its output dimensions for every client, ``[K, d]``.
        prior: its means m ``[K, C, k]`` and roots T of its precision ``[K, C, k, k]``.
        variance: the variance of the observation noise, a scalar.
        root: the result of :func:`posterior_spread`, ``[K, C, k, k]``.
        noise: standard normal draws ``[N, k]``.

    Returns:
        The posterior's mean ``[N, k]``, the draw minus that mean ``[N, k]``, and the draw's log
        density ``[N]``, which lacks ``-k/2 log 2 pi`` as :func:`gaussian_nll_root` does.
    """
    client, label = group
    prior_mean, prior_root = prior
    whitened_mean = prior_root @ prior_mean.unsqueeze(-1)  # T m
    prior_pull = (prior_root.mT @ whitened_mean).squeeze(-1)  # T^T T m, [K, C, k]
    data_pull = (scales[client] * residual) @ linear / variance  # A^T r / variance, [N, k]
    natural = data_pull + prior_pull[client, label]  # S^-1 times the mean, [N, k]
    group_number = client * root.shape[1] + label
    example_root = root.flatten(0, 1)[group_number]  # [N, k, k]
    # The mean is S natural, where S = R R^T.
    mean = torch.bmm(
        example_root,
        torch.bmm(example_root.mT, natural.unsqueeze(2)),
    )
    deviation = torch.bmm(example_root, noise.unsqueeze(2))
    log_determinant = _log_determinant(root).flatten()[group_number]
    density = -0.5 * noise.square().sum(1) - log_determinant
    return mean[..., 0], deviation[..., 0], density
