"""DP-CVAE: a CVAE by DP-SGD at each client; decoders are averaged.

Di Salvo, Nguyen and Ledig, MICCAI 2025 (arXiv 2507.02671); architecture and protocol as published. Different here, because what was
published pays for less than it does: the noise is solved for the local steps that run, the KL divergence is each example's own and not a
sum over the batch, rows are scaled to unit norm by themselves in place of the data's private minimum and maximum (so the last layer
is linear), and labels are sampled uniformly in place of their private counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from pydantic import Field
from torch import Tensor, nn

from fedsim.methods import CVAE, Batch, CVAEGenerator, LocalDPSGD, LocalDPSGDParams, Server, register


class DPCVAEParams(LocalDPSGDParams):
    """Parameters of DP-CVAE.

    Attributes:
        local_steps: 25 steps at sample rate 0.2 are the 5 local epochs; 256 rows are a batch where a client has about 1,280.
        latent: dimension of z.
        hidden: widths of the hidden layers of encoder and decoder.
        beta: weight of the KL divergence against the squared error in units of one entry's mean square.
    """

    rounds: int = Field(50, ge=1)
    local_steps: int = Field(25, ge=1)
    batch_size: int = Field(256, ge=1)
    expected_batch: float = Field(256, gt=0)
    learning_rate: float = Field(1e-3, gt=0)
    clip: float = Field(1.5, gt=0)
    latent: int = Field(100, ge=1)
    hidden: tuple[int, ...] = (256, 256, 256)
    beta: float = Field(0.1, ge=0)


@register("dp-cvae")
class DPCVAE(LocalDPSGD):
    """CVAE with a N(0, I) prior under local DP-SGD; encoders stay local, decoders are averaged."""

    source = "Di Salvo, Nguyen and Ledig, MICCAI 2025, arXiv 2507.02671"
    Params = DPCVAEParams
    for_reproduction = True
    local = ("encoder.",)

    def build(self, clients: int) -> nn.Module:
        """One client's CVAE."""
        p = self.params
        return CVAE(self.task.dim, self.task.classes, p.latent, p.hidden, p.hidden)

    def draws(self) -> Mapping[str, tuple[int, ...]]:
        """One draw of z."""
        return {"posterior": (self.params.latent,)}

    def loss(self, model: Any, batch: Batch) -> Mapping[str, Tensor]:
        """Squared error of the unit-norm row, which is the mean over the entries of x sqrt(d), plus beta KL."""
        decoded, kl = model(batch.x, batch.y, batch.draws["posterior"])
        return {"reconstruction": (batch.x - decoded).square().sum(-1), "kl": self.params.beta * kl}

    def generator(self, server: Server) -> CVAEGenerator:
        """Decode z ~ N(0, I)."""
        return CVAEGenerator(cast(CVAE, server.model))
