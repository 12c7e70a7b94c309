"""DP-CGAN: a conditional GAN whose discriminator learns from the real rows by DP-SGD; the generator sees the discriminator alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.algorithm import Server, Tensors
from fedsim.batch import Batch
from fedsim.dp_sgd import DPSGD, DPSGDParams, averaged_model
from fedsim.models.hypernetwork import ModulatedDecoder
from fedsim.models.layers import one_hot
from fedsim.registry import register
from fedsim.seeds import Seeds


class DPCGANParams(DPSGDParams):
    """Parameters of DP-CGAN."""

    learning_rate: float = Field(1e-3, gt=0)
    latent: int = Field(16, ge=1)
    generator_hidden: tuple[int, ...] = ()
    discriminator_hidden: tuple[int, ...] = (64,)
    fakes: int = Field(256, ge=1)
    fake_weight: float = 1.0
    gw: float = 1.0


class Discriminator(nn.Module):
    def __init__(self, dim: int, classes: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.classes = classes
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise([dim + classes, *hidden, 1]))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = torch.cat([x * math.sqrt(x.shape[1]), one_hot(y, self.classes)], 1)
        for index, layer in enumerate(self.layers):
            h = layer(h if index == 0 else F.leaky_relu(h, 0.2))
        return h[:, 0]


class GAN(nn.Module):
    def __init__(self, params: DPCGANParams, dim: int, classes: int, clients: int) -> None:
        super().__init__()
        self.latent = params.latent
        self.discriminator = Discriminator(dim, classes, params.discriminator_hidden)
        if not clients:
            self.generator = ModulatedDecoder(params.latent, classes, params.generator_hidden, dim, code=0)

    def generate(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        z = torch.randn(len(labels), self.latent, generator=stream)
        return self.generator(z.unsqueeze(1), labels, z[:, :0])[:, 0]


@register("dp-cgan")
class DPCGAN(DPSGD):
    source = "Torkzadehmahani, Kairouz and Paten 2019, arXiv 2001.09700; Xie et al. 2018, arXiv 1802.06739"
    Params = DPCGANParams
    server_only = ("generator.",)

    def build(self, clients: int) -> nn.Module:
        return GAN(self.params, self.task.dim, self.task.classes, clients)

    def loss(self, model: Any, batch: Batch) -> Mapping[str, Tensor]:
        return {"real": F.softplus(-model.discriminator(batch.x, batch.y))}

    def penalties(self, model: Any, stream: torch.Generator) -> Mapping[str, Tensor]:
        labels = torch.arange(self.params.fakes) % self.task.classes
        made = model.generate(labels, stream)
        fixed = {name: p.detach() for name, p in model.discriminator.named_parameters()}
        judged = functional_call(model.discriminator, fixed, (made, labels))
        return {"fake": self.params.fake_weight * F.softplus(model.discriminator(made.detach(), labels)).mean(), "generator": F.softplus(-judged).mean()}

    def generator(self, server: Server, codes: Tensors, seeds: Seeds) -> Any:
        return Gen(averaged_model(server))


class Gen:
    def __init__(self, m: Any) -> None:
        self.m = m

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        with torch.no_grad():
            return self.m.generate(labels, stream)
