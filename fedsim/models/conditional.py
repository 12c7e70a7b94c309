"""A conditional generator whose losses need samples alone: a decoder of normal noise and labels, plus learned observation noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedsim.device import normal
from fedsim.models.cvae import ObservationNoise
from fedsim.models.hypernetwork import ModulatedDecoder


class ConditionalGenerator(nn.Module):
    """x = decoder(z, y) + N(0, s^2 I) with z ~ N(0, I) and a learned s; rows come out with a norm of order one.

    Without the observation noise all rows of a class would lie in a plane, which no embeddings do.

    Args:
        latent: dimension of z.
        classes: number of labels.
        hidden: widths of the decoder's hidden layers; none means a prototype per class plus a linear map of z.
        dim: d, the embedding's dimension.
        initial_variance: of the observation noise times d, before it is learned.
    """

    def __init__(self, latent: int, classes: int, hidden: Sequence[int], dim: int, initial_variance: float) -> None:
        super().__init__()
        self.latent = latent
        self.decoder = ModulatedDecoder(latent, classes, hidden, dim, code=0)
        self.observation = ObservationNoise(initial_variance / dim)

    def forward(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Rows ``[n, d]`` for int64 labels ``[n]``."""
        z = normal((len(labels), self.latent), stream, labels)
        decoded: Tensor = self.decoder(z.unsqueeze(1), labels, z[:, :0])[:, 0]
        std: Tensor = (0.5 * self.observation(z)).exp()
        return decoded + std * normal(decoded.shape, stream, labels)


class ConditionalSampler:
    """Samples ``shift + scale * generator(y)``; both constants are public or released."""

    def __init__(self, generator: nn.Module, scale: float = 1.0, shift: Tensor | float = 0.0) -> None:
        self.generator, self.scale, self.shift = generator, scale, shift

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Synthetic embeddings ``[n, d]``."""
        with torch.no_grad():
            made: Tensor = self.shift + self.scale * self.generator(labels, stream)
            return made
