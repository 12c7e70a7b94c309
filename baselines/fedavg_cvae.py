"""FedAvg-CVAE and DP-CVAE: conditional VAEs whose decoder is averaged over clients.

Encoders stay at their clients, and the prior is N(0, I). FedAvg-CVAE is not private. DP-CVAE trains
by local DP-SGD.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

from pydantic import Field
from torch import Tensor, nn

from fedsim.methods import (
    CVAE,
    Batch,
    CVAEGenerator,
    LocalDPSGD,
    LocalDPSGDParams,
    LocalTraining,
    LocalTrainingParams,
    Server,
    gaussian_nll,
    register,
)


class FedAvgCVAEParams(LocalTrainingParams):
    """Parameters of FedAvg-CVAE; benchmarks/results/choices.md says how they were searched.

    Attributes:
        latent: the dimension of z.
        encoder_hidden, decoder_hidden: the widths of the hidden layers; without decoder layers the
            decoder is a prototype per class plus a linear map.
        beta: the weight of the KL divergence.
        initial_variance: the variance of the likelihood, before it is learned.
    """

    rounds: int = Field(40, ge=1)
    local_steps: int = Field(25, ge=1)
    learning_rate: float = Field(0.002, gt=0)
    latent: int = Field(24, ge=1)
    encoder_hidden: tuple[int, ...] = (64,)
    decoder_hidden: tuple[int, ...] = ()
    beta: float = Field(0.3, ge=0)
    initial_variance: float = Field(0.01, gt=0)


class PrivateEncoders(LocalTraining):
    """A CVAE whose encoder stays at its client; a subclass builds it and gives the loss."""

    local = ("encoder.",)

    def draws(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of the normal draw with which z is sampled from the posterior."""
        return {"posterior": (self.params.latent,)}

    def generator(self, server: Server) -> CVAEGenerator:
        """Return a generator that decodes z ~ N(0, I), with observation noise if it is learned."""
        return CVAEGenerator(cast(CVAE, server.model))


@register("fedavg-cvae")
class FedAvgCVAE(PrivateEncoders):
    """FedAvg-CVAE: one decoder averaged over clients; not private.

    A CVAE (Sohn et al. 2015) with local steps (McMahan et al. 2017).
    """

    source = "McMahan et al. 2017, arXiv 1602.05629; Sohn et al. 2015"
    Params: ClassVar[type[FedAvgCVAEParams]] = FedAvgCVAEParams
    private = False

    def build(self, clients: int) -> nn.Module:
        """Return the CVAE of one client."""
        p = self.params
        return CVAE(
            self.task.dim,
            self.task.classes,
            p.latent,
            p.encoder_hidden,
            p.decoder_hidden,
            p.initial_variance,
        )

    def loss(self, model: Any, batch: Batch) -> Mapping[str, Tensor]:
        """Return both parts of each example's negative ELBO, ``[N]`` each.

        They are multiplied by the observation variance, held constant. So the scale of the loss
        does not grow as the variance falls.
        """
        decoded, kl = model(batch.x, batch.y, batch.draws["posterior"])
        log_var = model.observation(batch.x)
        variance = log_var.detach().exp().squeeze(-1)
        return {
            "reconstruction": variance * gaussian_nll(batch.x, decoded, log_var),
            "kl": self.params.beta * variance * kl,
        }


class DPCVAEParams(LocalDPSGDParams):
    """Parameters of DP-CVAE.

    The search of ``benchmarks/search.yaml`` chose ``learning_rate``, ``clip``, ``latent`` and
    ``beta``.

    Attributes:
        local_steps: the number of local steps in a round. 25 steps at sample rate 0.2 are 5 local
            epochs, as published. The published batch of 256 rows is the expected one for a client
            of 1,280 rows.
        latent: the dimension of z; the published one is 100.
        hidden: the widths of the hidden layers of encoder and decoder.
        beta: the weight of an example's KL divergence against its squared error. The published
            weight is 0.1, for entries that each client scales to 0 .. 1. Rows here have norm 1. The
            equivalent weight for them depends on the embedding model: 0.0004 to 0.002 for
            DINOv2-small on four data sets, and below 0.0001 for EfficientNet-Lite0 on two. With 0.1
            the posterior collapses, and the generator draws class means (measured on OrganAMNIST).
    """

    rounds: int = Field(50, ge=1)
    local_steps: int = Field(25, ge=1)
    batch_size: int = Field(256, ge=1)
    expected_batch: float = Field(256, gt=0)
    learning_rate: float = Field(3e-3, gt=0)
    clip: float = Field(0.5, gt=0)
    latent: int = Field(16, ge=1)
    hidden: tuple[int, ...] = (256, 256, 256)
    beta: float = Field(0.0005, ge=0)


@register("dp-cvae")
class DPCVAE(PrivateEncoders, LocalDPSGD):
    """DP-CVAE: a CVAE by DP-SGD at each client, with averaged decoders.

    Architecture and protocol are as published, but our search chose the learning rate, the clip
    norm, the dimension of z and beta. The published epsilon does not cover everything that the
    published code does, so four more things differ here:

    - The noise is computed for the local steps that run.
    - The KL divergence is that of each example, not a sum over the batch.
    - Each row is scaled to norm 1, not by the private minimum and maximum of the data. So the last
      layer is linear.
    - Labels are sampled uniformly, not by their private counts.
    """

    source = "Di Salvo, Nguyen and Ledig, MICCAI 2025, arXiv 2507.02671"
    Params = DPCVAEParams
    for_reproduction = True

    def build(self, clients: int) -> nn.Module:
        """Return the CVAE of one client."""
        p = self.params
        return CVAE(self.task.dim, self.task.classes, p.latent, p.hidden, p.hidden)

    def loss(self, model: Any, batch: Batch) -> Mapping[str, Tensor]:
        """Return the squared error of each row and beta times its KL divergence, ``[N]`` each.

        The squared error is a sum over the d entries. It equals the mean over entries if x and its
        reconstruction are multiplied by sqrt(d).
        """
        decoded, kl = model(batch.x, batch.y, batch.draws["posterior"])
        squared_error = (batch.x - decoded).square().sum(-1)
        return {"reconstruction": squared_error, "kl": self.params.beta * kl}
