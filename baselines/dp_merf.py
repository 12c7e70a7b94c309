"""DP-MERF: the classes' mean random Fourier features, released once, and a generator that is trained to have the same ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from fedsim.algorithm import Params, Server, Tensors
from fedsim.models.cvae import ObservationNoise
from fedsim.models.hypernetwork import ModulatedDecoder
from fedsim.models.kernel import kernel_features, kernel_frequencies
from fedsim.models.layers import one_hot
from fedsim.models.moments import unit_weights
from fedsim.one_shot import OneShot
from fedsim.optimise import adam_step
from fedsim.privacy.clipping import OuterProduct
from fedsim.privacy.plan import Release
from fedsim.registry import register
from fedsim.seeds import Purpose, Seeds

WEIGHTS = {"features": 1.0, "counts": 0.15}


class DPMERFParams(Params):
    """Parameters of DP-MERF."""

    frequencies: int = Field(500, ge=1)
    scale: float = Field(1.0, gt=0)
    latent: int = Field(16, ge=1)
    hidden: tuple[int, ...] = ()
    initial_variance: float = Field(0.3, gt=0)
    steps: int = Field(300, ge=1)
    per_class: int = Field(16, ge=2)
    learning_rate: float = Field(0.01, gt=0)
    latent_scale: float = 1.0


class ConditionalGenerator(nn.Module):
    def __init__(self, params: DPMERFParams, dim: int, classes: int) -> None:
        super().__init__()
        self.latent, self.dim = params.latent, dim
        self.decoder = ModulatedDecoder(params.latent, classes, params.hidden, dim, 0, params.latent_scale)
        self.observation = ObservationNoise(params.initial_variance / dim)

    def forward(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        z = torch.randn(len(labels), self.latent, generator=stream)
        decoded = self.decoder(z.unsqueeze(1), labels, z[:, :0])[:, 0]
        return decoded + (0.5 * self.observation(z)).exp() * torch.randn(decoded.shape, generator=stream)


@register("dp-merf")
class DPMERF(OneShot):
    source = "Harder, Adamczewski and Park 2021, arXiv 2002.11603"
    Params = DPMERFParams

    def releases(self) -> tuple[Release, ...]:
        return (Release("embedding", 1.0, 1),)

    def build(self, clients: int) -> nn.Module:
        return nn.Module() if clients else ConditionalGenerator(self.params, self.task.dim, self.task.classes)

    def initial_server(self, seeds: Seeds) -> Server:
        server = super().initial_server(seeds)
        server.tensors["frequencies"] = self.params.scale * kernel_frequencies(self.task.dim, self.params.frequencies, seeds.torch(Purpose.META))
        return server

    def statistics(self, release: str, x: Tensor, y: Tensor, broadcast: Tensors) -> tuple[Mapping[str, OuterProduct], Mapping[str, float]]:
        onehot = one_hot(y, self.task.classes)
        products = {
            "features": OuterProduct(onehot, kernel_features(x, broadcast["frequencies"])),
            "counts": OuterProduct(onehot, torch.ones(len(x), 1)),
        }
        return products, unit_weights(WEIGHTS)

    def receive(self, server: Server, release: str, sums: Tensors) -> None:
        weights, std = unit_weights(WEIGHTS), server.noise_std("embedding", self.task.clients)
        counts = sums["counts"].clamp_min(max(1.0, 2 * std / weights["counts"]))
        self.train_generator(server, sums["features"] / counts)

    def train_generator(self, server: Server, targets: Tensor) -> None:
        p, model = self.params, server.model
        parameters = dict(model.named_parameters())
        state: Tensors = {}
        labels = torch.arange(self.task.classes).repeat_interleave(p.per_class)
        stream, frequencies = server.seeds.torch(Purpose.PENALTY), server.tensors["frequencies"]
        for step in range(p.steps):
            made = kernel_features(model(labels, stream), frequencies).view(self.task.classes, p.per_class, -1).mean(1)
            squared = p.per_class / (p.per_class - 1) * made.square().sum(1)
            loss = (squared - 2 * (made * targets).sum(1)).sum()
            if step % 50 == 0 or step == p.steps - 1: (step in (0, 50) or step == p.steps - 1) and print(step, float(loss + targets.square().sum()))
            gradients = torch.autograd.grad(loss, list(parameters.values()))
            adam_step(parameters, dict(zip(parameters, gradients, strict=True)), state, p.learning_rate * (1 - step / p.steps))

    def generator(self, server: Server, codes: Tensors, seeds: Seeds) -> Any:
        return Gen(server.model)


class Gen:
    def __init__(self, m: Any) -> None:
        self.m = m

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        with torch.no_grad():
            return self.m(labels, stream)
