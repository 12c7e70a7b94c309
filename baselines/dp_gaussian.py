"""DP-Gaussian: one shot; class means, counts and a shared low-rank covariance by Gaussian mechanisms, then sampling from the Gaussians."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedsim.device import normal, to_device
from fedsim.methods.algorithm import Params
from fedsim.methods.messages import Server, Tensors
from fedsim.methods.one_shot import OneShot, Rows, Statistic, overall_mean
from fedsim.methods.products import Generator
from fedsim.plugins.registry import register
from fedsim.privacy.statistics import moments
from fedsim.privacy.statistics.outer_products import OuterProduct
from fedsim.privacy.statistics.spectral import square_root


class DPGaussianParams(Params):
    """Parameters of DP-Gaussian.

    Attributes:
        mean_share: share of the budget (in 1 / sigma^2) that the overall mean takes.
        radius: of the ball to which centred rows are clipped; rows have unit norm.
        rank: most directions of the shared covariance that are kept.
    """

    mean_share: float = Field(0.1, gt=0, lt=1)
    radius: float = Field(0.6, gt=0)
    rank: int = Field(128, ge=1)


@register("dp-gaussian")
class DPGaussian(OneShot):
    """The mean first, then one Gaussian mechanism on class sums, counts and a second moment of the centred, clipped rows."""

    source = "Gaussian mechanism: Balle and Wang 2018, arXiv 1805.06530; moments as in parametric feature transfer, arXiv 2402.01862"
    Params: ClassVar[type[DPGaussianParams]] = DPGaussianParams

    def statistics(self) -> tuple[Statistic, ...]:
        """The mean; then moments of the centred rows."""
        share = self.params.mean_share
        return (overall_mean(share), self.moment_statistic(1 - share))

    def moment_statistic(self, share: float) -> Statistic:
        """Class sums and counts, and one second moment, of the centred rows."""
        return Statistic("moments", share, moments.MOMENT_WEIGHTS, self.moment_products, self.receive_moments)

    def moment_products(self, rows: Rows, told: Tensors) -> Mapping[str, OuterProduct]:
        """Of rows centred by the released mean."""
        return moments.moment_products(moments.centred(rows.x, told["mean"], self.params.radius), rows.y, self.task.classes)

    def receive_moments(self, server: Server, sums: Tensors, std: Mapping[str, float]) -> None:
        """What the moments say, in units of the radius."""
        found = moments.gaussians(sums, std)
        noise = to_device(torch.tensor(found.noise, dtype=torch.double), server.device)
        server.tensors |= {"class_means": found.means, "class_counts": found.counts, "within": found.covariance, "noise": noise}

    def label_counts(self, server: Server) -> Tensor:
        """Those of the moments."""
        return server.tensors["class_counts"]

    def generator(self, server: Server) -> Generator:
        """Class means, the covariance's leading directions, white noise for the rest."""
        found, radius = server.tensors, self.params.radius
        basis, covariance, rest = moments.principal(found["within"], float(found["noise"]), self.params.rank)
        return GaussianGenerator(found["mean"] + radius * found["class_means"], basis, radius**2 * covariance, radius * math.sqrt(rest))


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
