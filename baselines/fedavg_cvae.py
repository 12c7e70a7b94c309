"""FedAvg-CVAE: one global decoder averaged over clients, encoders that stay local, a N(0, I) prior; not private."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from fedsim.algorithm import Server, Tensors
from fedsim.batch import Batch
from fedsim.local_training import LocalTraining, LocalTrainingParams
from fedsim.models.cvae import Encoder, ObservationNoise, gaussian_nll, kl_normal, sample_posterior
from fedsim.models.hypernetwork import ModulatedDecoder
from fedsim.registry import register
from fedsim.seeds import Seeds


class FedAvgCVAEParams(LocalTrainingParams):
    """Parameters of FedAvg-CVAE.

    Attributes:
        latent: dimension of z.
        encoder_hidden, decoder_hidden: widths of the hidden layers; no decoder layer means a prototype per class plus a linear map.
        beta: weight of the KL divergence.
        initial_variance: of the likelihood, before it is learned.
    """

    latent: int = Field(8, ge=1)
    encoder_hidden: tuple[int, ...] = (64,)
    decoder_hidden: tuple[int, ...] = ()
    beta: float = Field(1.0, ge=0)
    initial_variance: float = Field(0.01, gt=0)


class CVAE(nn.Module):
    """One client's CVAE; the decoder is FedHypeVAE's without a code, so both start from the same weights."""

    def __init__(self, params: FedAvgCVAEParams, dim: int, classes: int) -> None:
        super().__init__()
        self.encoder = Encoder(dim, classes, params.encoder_hidden, params.latent)
        self.decoder = ModulatedDecoder(params.latent, classes, params.decoder_hidden, dim, code=0)
        self.observation = ObservationNoise(params.initial_variance)


@register("fedavg-cvae")
class FedAvgCVAE(LocalTraining):
    """CVAE (Sohn et al. 2015) with local steps and FedAvg of the decoder (McMahan et al. 2017)."""

    source = "McMahan et al. 2017, arXiv 1602.05629; Sohn et al. 2015"
    Params = FedAvgCVAEParams
    private = False
    local = ("encoder.",)

    def build(self, clients: int) -> nn.Module:
        """One client's CVAE."""
        return CVAE(self.params, self.task.dim, self.task.classes)

    def noise(self) -> Mapping[str, tuple[int, ...]]:
        """One draw of z."""
        return {"posterior": (self.params.latent,)}

    def loss(self, model: Any, batch: Batch) -> Mapping[str, Tensor]:
        """Negative ELBO in units of the observation variance (its scale then does not grow as the variance falls)."""
        mean, log_var = model.encoder(batch.x, batch.y)
        z = sample_posterior(mean, log_var, batch.noise["posterior"])
        decoded = model.decoder(z[:, None], batch.y, batch.x[:, :0])[:, 0]
        noise = model.observation(batch.x)
        unit = noise.detach().exp().squeeze(-1)
        kl = kl_normal(mean, log_var, torch.zeros_like(mean), torch.zeros_like(mean))
        return {"reconstruction": unit * gaussian_nll(batch.x, decoded, noise), "kl": self.params.beta * unit * kl}

    def generator(self, server: Server, codes: Tensors, seeds: Seeds) -> CVAEGenerator:
        """Decode z ~ N(0, I), add the learned observation noise."""
        return CVAEGenerator(server.model)


class CVAEGenerator:
    """Samples x ~ p(x | z, y) with z ~ N(0, I)."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Synthetic embeddings ``[n, d]``."""
        with torch.no_grad():
            z = torch.randn(len(labels), 1, self.model.encoder.latent, generator=stream)
            decoded: Tensor = self.model.decoder(z, labels, z[:, 0, :0])[:, 0]
            std = (0.5 * self.model.observation(decoded)).exp()
            return decoded + std * torch.randn(decoded.shape, generator=stream)
