"""The model of a cohort of FedHypeVAE: private encoders and codes, a hypernetwork's decoder and prior."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algorithms.fedhypevae_params import FedHypeVAEParams
from fedsim.batch import Batch
from fedsim.models.cvae import Encoder, ObservationNoise, SpreadCache, linear_posterior, lower_inverse, posterior_spread
from fedsim.models.hypernetwork import ConditionalPrior, ModulatedDecoder
from fedsim.models.layers import ClientCode


class HyperCVAE(nn.Module):
    """A cohort's model: private encoders and codes (one per client), the shared hypernetwork, the likelihood's variance."""

    def __init__(self, params: FedHypeVAEParams, dim: int, classes: int, clients: int) -> None:
        super().__init__()
        self.params = params
        self.spread = SpreadCache()
        if params.encoder != "posterior":
            self.encoder = Encoder(dim, classes, params.encoder_hidden, params.latent, clients)
        if params.code:
            self.code = ClientCode(clients, params.code)
        self.hyper = nn.Linear(params.code, params.hyper_hidden) if params.code and params.hyper_hidden else None
        inputs = params.code if self.hyper is None else params.hyper_hidden
        scale = params.latent_share / math.sqrt(params.latent)
        self.decoder = ModulatedDecoder(params.latent, classes, params.decoder_hidden, dim, inputs, scale)
        self.prior = ConditionalPrior(params.latent, classes, inputs, full=params.prior == "full")
        self.prior.requires_grad_(params.prior != "standard")
        self.observation = ObservationNoise(params.initial_variance / dim)

    def codes(self, clients: int) -> Tensor:
        """The scaled codes of the cohort's ``clients``, constants ``[K, code]``."""
        if not self.params.code:
            return self.observation.shift.weight.new_zeros(clients, 0)
        return self.params.code_scale * self.code.weight.detach()

    def features(self, codes: Tensor) -> Tensor:
        """The hypernetwork's hidden layer at scaled codes ``[N, code]``, in which what it generates is linear; else the codes."""
        return codes if self.hyper is None else F.relu(self.hyper(codes))

    def lipschitz(self) -> Tensor:
        """Squared Frobenius norm of d(generated decoder and prior) / dv; with a hidden layer the product of the layers' norms, a bound."""
        inner = 1.0 if self.hyper is None else self.hyper.weight.square().sum()
        return inner * (self.decoder.lipschitz() + self.prior.lipschitz())

    def noise_scale(self, codes: Tensor) -> Tensor | None:
        """What every feature's observation noise is multiplied by, ``[N, d]``; None: nothing."""
        return self.decoder.row_scale(codes) if self.params.observation == "modulated" else None

    @torch.no_grad()
    def posterior(self, batch: Batch, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The exact posterior's mean, a draw's deviation from it ``[N, latent]`` each, its log density ``[N]``.

        Constants to the gradient (Fisher's identity, as in EM).
        """
        codes = self.features(self.codes(batch.layout.clients))
        linear, prototypes = self.decoder.linear_map()
        (layer,) = self.decoder.modulated()
        scales, shifts = layer.modulation(codes)
        client, prior, variance = batch.layout.client, self.prior.table(codes), self.observation.variance()
        noise_scale = self.noise_scale(codes)
        # noise that is scaled as its row leaves, in its own units, the plain maps
        rows = scales if noise_scale is None else scales / noise_scale
        root = self.spread.of(self, lambda: posterior_spread(linear, rows, prior[1], variance))
        offset = scales[client] * prototypes[batch.y] + shifts[client] / math.sqrt(self.decoder.dim)
        group, residual = torch.stack([client, batch.y]), batch.x - offset
        if noise_scale is not None:
            residual = residual / noise_scale[client]
        return linear_posterior(residual, group, linear, rows, prior, variance, root, noise)

    def generate(self, code: Tensor, y: Tensor, latent: Tensor, observation: Tensor) -> Tensor:
        """Rows x ~ p(x | z) p(z | y, v) from standard normal draws ``[N, T, latent]`` and ``[N, T, d]``; scaled codes ``[N, code]``."""
        code = self.features(code)
        mean, root = self.prior(y, code)
        z = mean.unsqueeze(1) + latent @ lower_inverse(root).mT
        decoded: Tensor = self.decoder(z, y, code)
        std, scale = (0.5 * self.observation(mean)).exp(), self.noise_scale(code)
        made: Tensor = decoded + (std if scale is None else std * scale).unsqueeze(1) * observation
        return made
