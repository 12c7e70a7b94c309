"""FedAvg-CVAE: one decoder averaged over clients; encoders that stay local, a N(0, I) prior; not private."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

from pydantic import Field
from torch import Tensor, nn

from fedsim.methods import CVAE, Batch, CVAEGenerator, LocalTraining, LocalTrainingParams, Server, gaussian_nll, register


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


@register("fedavg-cvae")
class FedAvgCVAE(LocalTraining):
    """CVAE (Sohn et al. 2015) with local steps and FedAvg of the decoder (McMahan et al. 2017)."""

    source = "McMahan et al. 2017, arXiv 1602.05629; Sohn et al. 2015"
    Params: ClassVar[type[FedAvgCVAEParams]] = FedAvgCVAEParams
    private = False
    local = ("encoder.",)

    def build(self, clients: int) -> nn.Module:
        """One client's CVAE."""
        p = self.params
        return CVAE(self.task.dim, self.task.classes, p.latent, p.encoder_hidden, p.decoder_hidden, p.initial_variance)

    def draws(self) -> Mapping[str, tuple[int, ...]]:
        """One draw of z."""
        return {"posterior": (self.params.latent,)}

    def loss(self, model: Any, batch: Batch) -> Mapping[str, Tensor]:
        """Negative ELBO in units of the observation variance (its scale then does not grow as the variance falls)."""
        decoded, kl = model(batch.x, batch.y, batch.draws["posterior"])
        observation = model.observation(batch.x)
        unit = observation.detach().exp().squeeze(-1)
        return {"reconstruction": unit * gaussian_nll(batch.x, decoded, observation), "kl": self.params.beta * unit * kl}

    def generator(self, server: Server) -> CVAEGenerator:
        """Decode z ~ N(0, I), add the learned observation noise."""
        return CVAEGenerator(cast(CVAE, server.model))
