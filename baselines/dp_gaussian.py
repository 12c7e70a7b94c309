"""DP-Gaussian: noisy class means and a shared covariance; Gaussian mechanisms in released coordinates, then samples of Gaussians."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedsim.methods import (
    Coordinates,
    Generator,
    OneShot,
    OneShotParams,
    OuterProduct,
    Rows,
    Server,
    Statistic,
    Tensors,
    coordinate_statistics,
    moments,
    normal,
    register,
    square_root,
    stretched,
    to_device,
)


class DPGaussianParams(OneShotParams):
    """Parameters of DP-Gaussian.

    Attributes:
        coordinates_share: share of the budget (in 1 / sigma^2) that the released coordinates take (:mod:`fedsim.methods.coordinates`).
        radius: of the ball to which rows are clipped, in units of their typical distance from the mean.
        rank: most directions of the shared covariance that are kept.
    """

    coordinates_share: float = Field(0.16, gt=0, lt=1)
    radius: float = Field(0.8, gt=0)
    rank: int = Field(2048, ge=1)


@register("dp-gaussian")
class DPGaussian(OneShot):
    """Coordinates first, then one Gaussian mechanism on class sums, counts and a second moment of the clipped rows in them."""

    source = "Gaussian mechanism: Balle and Wang 2018, arXiv 1805.06530; moments as in parametric feature transfer, arXiv 2402.01862"
    Params: ClassVar[type[DPGaussianParams]] = DPGaussianParams

    def statistics(self) -> tuple[Statistic, ...]:
        """Coordinates; then moments of the rows in them."""
        share = self.params.coordinates_share
        return (*coordinate_statistics(share), self.moment_statistic(1 - share))

    def moment_statistic(self, share: float) -> Statistic:
        """Class sums and counts, and one second moment, of the clipped rows."""
        return Statistic("moments", share, moments.MOMENT_WEIGHTS, self.moment_products, self.receive_moments)

    def moment_products(self, rows: Rows, broadcast: Tensors) -> Mapping[str, OuterProduct]:
        """Of the clipped rows."""
        return moments.moment_products(self.clipped(rows, broadcast), rows.y, self.task.classes)

    def clipped(self, rows: Rows, broadcast: Tensors) -> Tensor:
        """Rows in released coordinates ``[N, d]``, clipped to the radius, in units of it."""
        return Coordinates(broadcast).in_ball(rows.x, self.params.radius)

    def receive_moments(self, server: Server, sums: Tensors, std: Mapping[str, float]) -> None:
        """What the moments say, in units of the radius."""
        found = moments.gaussians(sums, std)
        noise = to_device(torch.tensor(found.noise, dtype=torch.double), server.device)
        server.tensors |= {"class_means": found.means, "class_counts": found.counts, "within": found.covariance, "noise": noise}

    def class_rows(self, server: Server) -> Tensor:
        """Those of the moments."""
        return server.tensors["class_counts"]

    def generator(self, server: Server) -> Generator:
        """Class means, the covariance's leading directions, white noise for the rest."""
        found = server.tensors
        basis, covariance, rest = moments.principal(found["within"], float(found["noise"]), self.params.rank)
        return self.taken_back(GaussianGenerator(found["class_means"], basis, covariance, rest**0.5), server)

    def taken_back(self, generator: Generator, server: Server) -> Generator:
        """A generator of clipped rows as one of embeddings."""
        return stretched(generator, Coordinates(server.tensors), self.params.radius)


class GaussianGenerator:
    """Samples from N(mean of the class, basis covariance basis^T + std^2 I), by the symmetric root of that covariance."""

    def __init__(self, means: Tensor, basis: Tensor, covariance: Tensor, std: float) -> None:
        self.means, self.basis, self.covariance, self.std = means, basis, covariance, std
        one = torch.eye(len(covariance), device=covariance.device)
        self.gain = square_root(covariance + std**2 * one) - std * one

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Synthetic embeddings ``[n, d]``."""
        white = normal((len(labels), len(self.basis)), stream, labels)
        return self.means[labels] + self.std * white + (white @ self.basis) @ self.gain @ self.basis.T
