"""DP-CGAN: a conditional GAN whose discriminator is trained by DP-SGD.

The generator is trained against the discriminator alone (Torkzadehmahani, Kairouz and Paten 2019,
arXiv 2001.09700; Xie et al. 2018, arXiv 1802.06739). Di Salvo, Nguyen and Ledig 2025 (arXiv
2507.02671) use DP-CGAN as a baseline. Different here: noise is added in each round as in all
methods by DP-SGD, once to the sum over clients or, under ``trust: silo``, by every client. The
discriminator's loss on generated rows reads shared parameters alone, so the server adds its
gradient exactly, without clip or noise. Hidden layers are far narrower than the published 512/1024
and 1024/512. A penalty on the discriminator's gradient at generated rows (arXiv 1801.04406)
replaces the clipped weights of Xie et al.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.methods import (
    DPSGD,
    Batch,
    ConditionalGenerator,
    ConditionalSampler,
    DPSGDParams,
    Purpose,
    Round,
    Server,
    Tensors,
    Values,
    adam_step,
    one_hot,
    register,
)


class DPCGANParams(DPSGDParams):
    """Parameters of DP-CGAN.

    Attributes:
        learning_rate: the learning rate of the discriminator's noisy steps.
        generator_rate: the learning rate of the generator's Adam; it falls like the
            discriminator's.
        generator_steps: the number of steps of the generator in a round.
        latent: the dimension of z.
        generator_hidden: the widths of the generator's hidden layers. Without hidden layers a
            generated row is a prototype of its class plus a linear map of z.
        discriminator_hidden: the widths of the discriminator's hidden layers.
        initial_variance: the variance of a generated row's observation noise before training,
            summed over its entries.
        fakes: the number of generated rows in every step. Their labels run through the classes in
            turn, so with fewer rows than classes the last classes get none.
        gradient_penalty: the weight of the squared norm of the discriminator's gradient at
            generated rows.
    """

    learning_rate: float = Field(3e-3, gt=0)
    generator_rate: float = Field(1e-2, gt=0)
    generator_steps: int = Field(1, ge=1)
    latent: int = Field(16, ge=1)
    generator_hidden: tuple[int, ...] = ()
    discriminator_hidden: tuple[int, ...] = (64,)
    initial_variance: float = Field(0.3, gt=0)
    fakes: int = Field(256, ge=1)
    gradient_penalty: float = Field(0.1, ge=0)


class Discriminator(nn.Module):
    """An MLP on sqrt(d) [x, one-hot y] whose output is the logit that the row x of class y is real.

    A row of unit norm and its one-hot label are equally long.
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        hidden: Sequence[int],
    ) -> None:
        super().__init__()
        self.classes = classes
        widths = [dim + classes, *hidden, 1]
        self.layers = nn.ModuleList(
            nn.Linear(inputs, outputs) for inputs, outputs in pairwise(widths)
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the logits ``[N]`` of rows ``[N, d]`` with labels ``[N]``."""
        h = math.sqrt(x.shape[1]) * torch.cat([x, one_hot(y, self.classes)], 1)
        for index, layer in enumerate(self.layers):
            if index > 0:
                h = F.leaky_relu(h, 0.2)
            h = layer(h)
        return h[:, 0]


class GAN(nn.Module):
    """The discriminator and, at the server (``clients`` is 0), the generator."""

    def __init__(
        self,
        params: DPCGANParams,
        dim: int,
        classes: int,
        clients: int,
    ) -> None:
        super().__init__()
        self.discriminator = Discriminator(dim, classes, params.discriminator_hidden)
        if not clients:
            self.generator = ConditionalGenerator(
                params.latent, classes, params.generator_hidden, dim, params.initial_variance
            )


@register("dp-cgan")
class DPCGAN(DPSGD):
    """The non-saturating conditional GAN under federated DP-SGD.

    The loss is that of Goodfellow et al. 2014, and the labels enter as in Mirza and Osindero 2014.
    """

    source = (
        "Torkzadehmahani, Kairouz and Paten 2019, arXiv 2001.09700; Xie et al. 2018, arXiv "
        "1802.06739"
    )
    Params = DPCGANParams
    for_reproduction = True
    server_only = ("generator.",)

    def build(self, clients: int) -> nn.Module:
        """Return the model; clients have only the discriminator."""
        return GAN(self.params, self.task.dim, self.task.classes, clients)

    def loss(self, model: Any, batch: Batch) -> Mapping[str, Tensor]:
        """Return the discriminator's loss on each real row, ``[N]``.

        It is -log D(x, y), where D is the sigmoid of the discriminator's logit.
        """
        return {"real": F.softplus(-model.discriminator(batch.x, batch.y))}

    def public_terms(self, model: Any, stream: torch.Generator) -> Mapping[str, Tensor]:
        """Return the discriminator's loss on generated rows and the penalty on its gradient.

        The loss is -log(1 - D(G(z, y), y)).
        """
        labels = self._labels(next(model.parameters()).device)
        generated = model.generator(labels, stream).detach().requires_grad_()
        logits = model.discriminator(generated, labels)
        (slope,) = torch.autograd.grad(logits.sum(), generated, create_graph=True)
        penalty = self.params.gradient_penalty * slope.square().sum(1).mean()
        return {"fake": F.softplus(logits).mean(), "gradient_penalty": penalty}

    def server_step(
        self,
        server: Server,
        round_: Round,
        total: Tensors,
    ) -> Values:
        """Take the discriminator's noisy step, then the generator's steps on -log D(G(z, y), y).

        The generator's steps read no private data, so they are post-processing.
        """
        values = super().server_step(server, round_, total)
        p = self.params
        model = cast(Any, server.model)
        of_generator = {
            name: parameter
            for name, parameter in model.named_parameters()
            if name.startswith(self.server_only)
        }
        of_discriminator = {
            name: parameter.detach() for name, parameter in model.discriminator.named_parameters()
        }
        labels = self._labels(server.device)
        stream = server.seeds.torch(Purpose.META, round_.stream)
        rate = p.generator_rate * self._decay(round_)
        for _ in range(p.generator_steps):
            generated = model.generator(labels, stream)
            logits = functional_call(model.discriminator, of_discriminator, (generated, labels))
            loss = F.softplus(-logits).mean()
            gradients = torch.autograd.grad(loss, list(of_generator.values()))
            by_name = dict(zip(of_generator, gradients, strict=True))
            adam_step(of_generator, by_name, server.tensors, rate, (0.5, 0.99))
        return {**values, "loss_generator": loss.detach()}

    def _labels(self, device: torch.device) -> Tensor:
        """Return the labels of a step's generated rows, all classes in turn.

        There are as many as the parameter ``fakes`` says, or one of each class if that is more.
        """
        count = max(self.params.fakes, self.task.classes)
        return torch.arange(count, device=device) % self.task.classes

    def generator(self, server: Server) -> ConditionalSampler:
        """Return the generator with the parameters that the model now has.

        The harness has set them to their mean over late rounds.
        """
        model: Any = server.model
        return ConditionalSampler(model.generator)
