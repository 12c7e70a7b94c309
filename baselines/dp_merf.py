"""DP-MERF: the classes' mean random Fourier features; released once, and a generator that is
trained to have the same ones.

Harder, Adamczewski and Park 2021 (arXiv 2002.11603), the variant that balances classes by released
counts. Different here: the kernel is a mixture of Gaussian kernels (:mod:`fedsim.models.kernel`)
with public bandwidths in place of one whose width is set by private data; the coordinates are
released first, so that the generator starts where the rows are; and the generator is a prototype
per class plus a linear map of z and learned observation noise in place of an MLP.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from baselines.dp_gaussian import InCoordinatesParams
from fedsim.methods import (
    ConditionalGenerator,
    ConditionalSampler,
    Coordinates,
    Generator,
    OneShot,
    Purpose,
    Rows,
    Seeds,
    Server,
    Statistic,
    Tensors,
    adam_step,
    coordinate_statistics,
    kernel_features,
    kernel_frequencies,
    moments,
    register,
    stretched,
)


class DPMERFParams(InCoordinatesParams):
    """Parameters of DP-MERF.

    Attributes:
        radius: unit of the rows that the generator makes, in units of their typical distance from
            the mean; nothing is clipped to it.
        frequencies: random ones; each gives two features.
        scale: factor on the frequencies: the kernel's bandwidths are ``(radius / scale)^2`` times
            those in :mod:`fedsim.models.kernel`.
        latent: dimension of z.
        initial_variance: of a generated row's observation noise, before it is learned, in units of
            ``radius`` squared.
        generator_steps: Adam steps of the generator's training.
        per_class: generated rows of every class in a step.
        learning_rate: Adam's; it falls linearly to 0.
    """

    frequencies: int = Field(1000, ge=1)
    scale: float = Field(0.5, gt=0)
    latent: int = Field(32, ge=1)
    initial_variance: float = Field(0.3, gt=0)
    generator_steps: int = Field(300, ge=1)
    per_class: int = Field(16, ge=2)
    learning_rate: float = Field(0.01, gt=0)


@register("dp-merf")
class DPMERF(OneShot):
    """Coordinates, then one Gaussian mechanism on every class's sum of features and its count; the
    rest is post-processing.
    """

    source = "Harder, Adamczewski and Park 2021, arXiv 2002.11603"
    Params = DPMERFParams

    def statistics(self) -> tuple[Statistic, ...]:
        """Coordinates; then every class's features, of norm 1 whatever the row is, and its
        count.
        """
        share = self.params.coordinates_share
        last = Statistic(
            "embedding",
            1 - share,
            moments.CLASS_MEAN_WEIGHTS,
            self.embedding_products,
            self.receive_embedding,
        )
        return (*coordinate_statistics(share), last)

    def build(self, clients: int) -> nn.Module:
        """The generator, at the server alone."""
        p = self.params
        if clients:
            return nn.Module()
        return ConditionalGenerator(p.latent, self.task.classes, (), self.dim, p.initial_variance)

    def initial_server(self, seeds: Seeds) -> Server:
        """The frequencies are drawn before any data are seen."""
        server = super().initial_server(seeds)
        drawn = kernel_frequencies(self.dim, self.params.frequencies, seeds.torch(Purpose.INIT))
        server.tensors["frequencies"] = self.params.scale * drawn
        return server

    def embedding_products(self, rows: Rows, broadcast: Tensors) -> moments.Products:
        """Features of the rows and a one, beside the class."""
        features = kernel_features(
            Coordinates(broadcast).of_rows(rows.x) / self.params.radius, broadcast["frequencies"]
        )
        return moments.class_mean_products(features, rows.y, self.task.classes)

    def receive_embedding(self, server: Server, sums: Tensors, std: Mapping[str, float]) -> None:
        """The classes' mean features, to which the generator is trained."""
        counts = moments.counts_above_noise(sums["class_counts"], std["class_counts"])
        self.train_generator(server, sums["class_sums"] / counts)
        server.tensors["class_counts"] = counts[:, 0]
        del server.tensors["frequencies"]  # a saved generator does not need them

    def train_generator(self, server: Server, targets: Tensor) -> None:
        """Minimise the sum over classes of ``|target - mean features of generated rows|^2``,
        ``targets`` ``[C, 2 frequencies]``.

        The square of the generated rows' mean is estimated without the terms of a row with itself,
        which are 1: unbiased for any number.
        """
        p = self.params
        classes = self.task.classes
        labels = torch.arange(classes, device=server.device).repeat_interleave(p.per_class)
        stream = server.seeds.torch(Purpose.PENALTY)
        parameters = dict(server.model.named_parameters())
        state = Tensors()
        for step in range(p.generator_steps):
            features = kernel_features(server.model(labels, stream), server.tensors["frequencies"])
            made = features.view(classes, p.per_class, -1).mean(1)
            loss = (made * (p.per_class / (p.per_class - 1) * made - 2 * targets)).sum()
            gradients = torch.autograd.grad(loss, list(parameters.values()))
            rate = p.learning_rate * (1 - step / p.generator_steps)
            adam_step(parameters, dict(zip(parameters, gradients, strict=True)), state, rate)

    def class_rows(self, server: Server) -> Tensor:
        """Those that came with the features."""
        return server.tensors["class_counts"]

    def generator(self, server: Server) -> Generator:
        """What was trained, taken back to where the rows are."""
        return stretched(
            ConditionalSampler(server.model), Coordinates(server.tensors), self.params.radius
        )
