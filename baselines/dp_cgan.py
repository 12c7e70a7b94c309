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
from fedsim.models.cvae import ObservationNoise
from fedsim.optimise import adam_step
from fedsim.registry import register
from fedsim.seeds import Purpose, Seeds


class DPCGANParams(DPSGDParams):
    """Parameters of DP-CGAN."""

    learning_rate: float = Field(1e-3, gt=0)
    latent: int = Field(16, ge=1)
    generator_hidden: tuple[int, ...] = ()
    discriminator_hidden: tuple[int, ...] = (64,)
    fakes: int = Field(256, ge=1)
    fake_weight: float = 1.0
    r2: float = 0.0
    l2: float = 0.0
    generator_steps: int = 5
    generator_rate: float = 0.01
    beta1: float = 0.5
    initial_variance: float = 0.3


class Discriminator(nn.Module):
    def __init__(self, dim: int, classes: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.classes = classes
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise([dim + classes, *hidden, 1]))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = math.sqrt(x.shape[1]) * torch.cat([x, one_hot(y, self.classes)], 1)
        for index, layer in enumerate(self.layers):
            h = layer(h if index == 0 else F.leaky_relu(h, 0.2))
        return h[:, 0]


class GAN(nn.Module):
    def __init__(self, params: DPCGANParams, dim: int, classes: int, clients: int) -> None:
        super().__init__()
        self.latent = params.latent
        self.discriminator = Discriminator(dim, classes, params.discriminator_hidden)
        if not clients:
            self.generator = nn.ModuleDict({"decoder": ModulatedDecoder(params.latent, classes, params.generator_hidden, dim, code=0), "observation": ObservationNoise(params.initial_variance / dim)})

    def generate(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        z = torch.randn(len(labels), self.latent, generator=stream)
        decoded = self.generator["decoder"](z.unsqueeze(1), labels, z[:, :0])[:, 0]
        return decoded + (0.5 * self.generator["observation"](z)).exp() * torch.randn(decoded.shape, generator=stream)


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
        p = self.params
        labels = torch.arange(p.fakes) % self.task.classes
        with torch.no_grad():
            made = model.generate(labels, stream)
        made.requires_grad_(p.r2 > 0)
        logits = model.discriminator(made, labels)
        parts = {"fake": p.fake_weight * F.softplus(logits).mean()}
        if p.r2:
            (g,) = torch.autograd.grad(logits.sum(), made, create_graph=True)
            parts["r2"] = p.r2 * g.square().sum(1).mean()
        if p.l2:
            parts["l2"] = p.l2 * sum(q.square().sum() for n, q in model.discriminator.named_parameters() if "weight" in n)
        return parts

    def server_step(self, server, round_, release, total):
        values = super().server_step(server, round_, release, total)
        p, model = self.params, server.model
        own = {name: q for name, q in model.named_parameters() if name.startswith(self.server_only)}
        fixed = {name: q.detach() for name, q in model.discriminator.named_parameters()}
        labels = torch.arange(p.fakes) % self.task.classes
        stream = server.seeds.torch(Purpose.META, round_)
        for _ in range(p.generator_steps):
            loss = F.softplus(-functional_call(model.discriminator, fixed, (model.generate(labels, stream), labels))).mean()
            g = torch.autograd.grad(loss, list(own.values()))
            adam_step(own, dict(zip(own, g, strict=True)), server.tensors, p.generator_rate * self._decay(round_), betas=(p.beta1, 0.99))
        return {**values, "loss_generator": float(loss)}

    def generator(self, server: Server, codes: Tensors, seeds: Seeds) -> Any:
        return Gen(averaged_model(server))


class Gen:
    def __init__(self, m: Any) -> None:
        self.m = m

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        with torch.no_grad():
            return self.m.generate(labels, stream)
