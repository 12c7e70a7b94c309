"""DP-GMM: a Gaussian mixture per class by noisy EM; one covariance for all components, a few steps on noisy statistics.

Parametric feature transfer (FedPFT: Beitollahi et al. 2024, arXiv 2402.01862) by private EM (DP-EM: Park, Foulds, Choudhary and Welling
2017, arXiv 1605.06995). Different here: the clients' statistics are summed into one mixture a class where FedPFT sends a mixture from every
client; the covariance is shared and fixed by its moments, so an EM step pays for component means and shares alone, in few directions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from baselines.dp_gaussian import DPGaussian, DPGaussianParams, GaussianGenerator
from fedsim.methods import (
    COORDINATE_NAMES,
    Generator,
    OuterProduct,
    Purpose,
    Rows,
    Server,
    Statistic,
    Tensors,
    coordinate_statistics,
    mixture,
    moments,
    normal,
    register,
    to_device,
)

SENT_TO_CLIENTS = ("mean", *COORDINATE_NAMES, "class_means", "class_counts", "basis", "covariance", "offsets", "shares")
"""What clients need of what was released."""


class DPGMMParams(DPGaussianParams):
    """Parameters of DP-GMM; with one component it is DP-Gaussian.

    Attributes:
        components: K, of every class.
        em_steps: noisy EM steps; each is a release.
        em_share: share of the budget (in 1 / sigma^2) that they take together.
        em_rank: components differ within so many leading directions of the covariance.
        spread: distance of the starting points from the class mean, in standard deviations.
    """

    components: int = Field(3, ge=1)
    em_steps: int = Field(3, ge=1)
    em_share: float = Field(0.1, gt=0, lt=0.9)
    em_rank: int = Field(32, ge=1)
    spread: float = Field(1.0, gt=0)


@register("dp-gmm")
class DPGMM(DPGaussian):
    """Moments as DP-Gaussian releases them, then EM: clients compute responsibilities, the server component means and shares."""

    source = "FedPFT: Beitollahi et al. 2024, arXiv 2402.01862; DP-EM: Park et al. 2017, arXiv 1605.06995"
    Params = DPGMMParams

    def statistics(self) -> tuple[Statistic, ...]:
        """DP-Gaussian's, then the E steps."""
        p = self.params
        if p.components == 1:
            return super().statistics()
        em = Statistic("em", p.em_share, mixture.WEIGHTS, self.component_products, self.receive_components, p.em_steps)
        return (*coordinate_statistics(p.coordinates_share), self.moment_statistic(1 - p.coordinates_share - p.em_share), em)

    def broadcast(self, server: Server) -> Tensors:
        """What has been released, but for the moments, which clients do not need."""
        return {name: server.tensors[name] for name in SENT_TO_CLIENTS if name in server.tensors}

    def component_products(self, rows: Rows, broadcast: Tensors) -> Mapping[str, OuterProduct]:
        """The E step: component sums and counts of the rows' residuals."""
        u = mixture.residuals(self.clipped(rows, broadcast), rows.y, broadcast["class_means"], broadcast["basis"])
        offsets, shares = broadcast["offsets"], broadcast["shares"]
        whitening = mixture.whitening(broadcast["covariance"], mixture.scatter(offsets, shares, broadcast["class_counts"]))
        belongs = mixture.responsibilities(u, rows.y, offsets, shares, whitening)
        return mixture.component_products(u, rows.y, belongs, self.task.classes)

    def receive_moments(self, server: Server, sums: Tensors, std: Mapping[str, float]) -> None:
        """DP-Gaussian's, and the components' starting points."""
        super().receive_moments(server, sums, std)
        if self.params.components == 1:
            return
        tensors = server.tensors
        basis, covariance, _ = moments.principal(tensors["within"], float(tensors["noise"]), self.params.em_rank)
        draws = normal((self.task.classes, self.params.components, len(covariance)), server.seeds.torch(Purpose.META), covariance)
        tensors |= {"basis": basis, "covariance": covariance, **mixture.start(draws, covariance, self.params.spread)}

    def receive_components(self, server: Server, sums: Tensors, std: Mapping[str, float]) -> None:
        """The M step."""
        server.tensors |= mixture.maximise(sums["component_sums"], sums["component_counts"], server.tensors["shares"], std)

    def generator(self, server: Server) -> Generator:
        """The mixtures; their covariance is the classes' minus the scatter between components."""
        if self.params.components == 1:
            return super().generator(server)
        tensors = server.tensors
        basis, offsets, shares = (tensors[name] for name in ("basis", "offsets", "shares"))
        covariance = tensors["within"] - basis @ mixture.scatter(offsets, shares, tensors["class_counts"]) @ basis.T
        directions, within, rest = moments.principal(covariance, float(tensors["noise"]), self.params.rank)
        means = tensors["class_means"].unsqueeze(1) + offsets @ basis.T
        gaussian = GaussianGenerator(means.flatten(0, 1), directions, within, rest**0.5)
        return self.taken_back(MixtureGenerator(gaussian, shares), server)


class MixtureGenerator:
    """Draws a component of the class, then a row from its Gaussian; ``shares`` ``[C, K]``."""

    def __init__(self, components: GaussianGenerator, shares: Tensor) -> None:
        self.components, self.shares = components, shares

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Synthetic embeddings ``[n, d]``."""
        drawn = to_device(torch.multinomial(self.shares[labels].cpu(), 1, generator=stream)[:, 0], labels.device)
        return self.components.sample(labels * self.shares.shape[1] + drawn, stream)
