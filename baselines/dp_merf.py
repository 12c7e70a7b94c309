"""DP-MERF: a generator that is trained to match released mean random Fourier features.

The mean features of the classes are released once. This is the variant that balances classes by
released counts (Harder, Adamczewski and Park 2021, arXiv 2002.11603). Three things differ from the
paper:

- The kernel is a mixture of Gaussian kernels with public bandwidths
  (:mod:`fedsim.models.kernel`). In the paper, private data set the width of one kernel.
- The coordinates are released first, so that the generator starts where the rows are.
- The generator is a prototype per class plus a linear map of z and learned observation noise. In
  the paper it is an MLP.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from baselines.dp_gaussian import InCoordinatesParams
from fedsim.methods import (
    BLOCK,
    ConditionalGenerator,
    ConditionalSampler,
    Coordinates,
    Deviations,
    Generator,
    OneShot,
    Products,
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

CLASSES_AT_ONCE = 128
"""The rows of at most this many classes are generated at once, which bounds the memory."""

MOST_FEATURES = 2**25
"""The largest number of features of examples that are in memory together."""


class DPMERFParams(InCoordinatesParams):
    """Parameters of DP-MERF.

    Attributes:
        radius: coordinates are divided by it before their features are computed, and generated rows
            are multiplied by it; nothing is clipped to it.
        frequencies: the number of random frequencies, each of which gives two features.
        scale: the factor on the frequencies: the kernel's bandwidths are ``(radius / scale)^2``
            times those in :mod:`fedsim.models.kernel`.
        latent: the dimension of z.
        initial_variance: the variance of a generated row's observation noise, before it is learned,
            in units of ``radius`` squared.
        generator_steps: the number of Adam steps of the generator's training.
        per_class: the number of generated rows of every class in a step.
        learning_rate: the learning rate of Adam, which falls linearly to 0.
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
    """DP-MERF: coordinates, then one Gaussian mechanism on class sums of features and counts.

    The rest is post-processing.
    """

    source = "Harder, Adamczewski and Park 2021, arXiv 2002.11603"
    Params = DPMERFParams

    def statistics(self) -> tuple[Statistic, ...]:
        """Return the statistics of the coordinates, then class sums of features and class counts.

        The features of every row have norm 1.
        """
        share = self.params.coordinates_share
        embedding = Statistic(
            "embedding",
            1 - share,
            moments.CLASS_MEAN_WEIGHTS,
            self.embedding_products,
            self.receive_embedding,
            block=min(BLOCK, MOST_FEATURES // (2 * self.params.frequencies)),
        )
        return (*coordinate_statistics(share), embedding)

    def statistic_numbers(self) -> int:
        """Return the number of entries of the coordinates' moment or of all class sums."""
        class_sums: int = self.task.classes * 2 * self.params.frequencies
        return max(super().statistic_numbers(), class_sums)

    def build(self, clients: int) -> nn.Module:
        """Return the generator for the server (``clients`` 0), and an empty model for clients."""
        p = self.params
        if clients:
            return nn.Module()
        return ConditionalGenerator(
            p.latent,
            self.task.classes,
            (),
            self.dim,
            p.initial_variance,
        )

    def initial_server(self, seeds: Seeds) -> Server:
        """Return the server's start, with frequencies drawn before any data are seen."""
        server = super().initial_server(seeds)
        stream = seeds.torch(Purpose.INIT)
        frequencies = kernel_frequencies(self.dim, self.params.frequencies, stream)
        server.tensors["frequencies"] = self.params.scale * frequencies
        return server

    def embedding_products(self, rows: Rows, broadcast: Tensors) -> Products:
        """Return class sums of features and class counts."""
        scaled = Coordinates(broadcast).of_rows(rows.x) / self.params.radius
        features = kernel_features(scaled, broadcast["frequencies"])
        return moments.class_mean_products(features, rows.y, self.task.classes)

    def receive_embedding(
        self,
        server: Server,
        sums: Tensors,
        std: Deviations,
    ) -> None:
        """Train the generator to match the classes' mean features, and store the class counts.

        Args:
            server: the server, whose model is the generator.
            sums: the noisy class sums of features ``[C, 2 frequencies]`` and counts ``[C, 1]``.
            std: the standard deviation of the noise of each sum.
        """
        counts = moments.counts_above_noise(sums["class_counts"], std["class_counts"])
        self.train_generator(server, sums["class_sums"] / counts)
        server.tensors["class_counts"] = counts[:, 0]
        # Only the training needs the frequencies.
        del server.tensors["frequencies"]

    def train_generator(self, server: Server, targets: Tensor) -> None:
        """Minimise the sum over classes of ``|target - mean features of generated rows|^2``.

        With n rows of features f_i and mean m, the mean of f_i . f_j over i != j estimates the
        squared norm of the expected features without bias. Because |f_i| = 1, it is
        n / (n - 1) |m|^2 - 1 / (n - 1). Constants are left out of the loss.

        Args:
            server: the server, whose model is the generator.
            targets: the classes' mean features ``[C, 2 frequencies]``.
        """
        p = self.params
        classes = torch.arange(self.task.classes, device=server.device)
        blocks = list(
            zip(
                torch.split(classes, CLASSES_AT_ONCE),
                torch.split(targets, CLASSES_AT_ONCE),
                strict=True,
            )
        )
        stream = server.seeds.torch(Purpose.PENALTY)
        parameters = dict(server.model.named_parameters())
        state = Tensors()
        for step in range(p.generator_steps):
            gradients = {name: torch.zeros_like(value) for name, value in parameters.items()}
            for some_classes, some_targets in blocks:
                loss = self.distance(server, some_classes, some_targets, stream)
                block_gradients = torch.autograd.grad(loss, list(parameters.values()))
                for name, gradient in zip(parameters, block_gradients, strict=True):
                    gradients[name] += gradient
            rate = p.learning_rate * (1 - step / p.generator_steps)
            adam_step(parameters, gradients, state, rate)

    def distance(
        self,
        server: Server,
        classes: Tensor,
        targets: Tensor,
        stream: torch.Generator,
    ) -> Tensor:
        """Return the loss of some classes on newly generated rows, a scalar.

        Args:
            server: the server, whose model is the generator.
            classes: the classes ``[k]``.
            targets: their mean features ``[k, 2 frequencies]``.
            stream: the source of the generator's random draws.
        """
        per_class = self.params.per_class
        generated = server.model(classes.repeat_interleave(per_class), stream)
        features = kernel_features(generated, server.tensors["frequencies"])
        mean = features.view(len(classes), per_class, -1).mean(1)
        loss: Tensor = (mean * (per_class / (per_class - 1) * mean - 2 * targets)).sum()
        return loss

    def class_rows(self, server: Server) -> Tensor:
        """Return the released class counts, at least the level of their noise, ``[C]``."""
        return server.tensors["class_counts"]

    def generator(self, server: Server) -> Generator:
        """Return the trained generator; its rows are mapped back to embeddings."""
        sampler = ConditionalSampler(server.model)
        return stretched(sampler, Coordinates(server.tensors), self.params.radius)
