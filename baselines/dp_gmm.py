"""DP-GMM: a Gaussian mixture per class with one covariance for all components, fitted by a few EM steps on noisy statistics.

Parametric feature transfer (FedPFT: Beitollahi et al. 2024, arXiv 2402.01862) by private EM (DP-EM: Park, Foulds, Choudhary and Welling
2017, arXiv 1605.06995). Different here: the clients' statistics are summed into one mixture a class where FedPFT sends a mixture from every
client; the covariance is shared and fixed by its moments, so an EM step pays for component means and shares alone, in few directions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from baselines.dp_gaussian import DPGaussian, DPGaussianParams, GaussianGenerator
from fedsim.methods.messages import Server, Tensors
from fedsim.methods.products import Generator
from fedsim.methods.registry import register
from fedsim.privacy.plan import Release
from fedsim.privacy.statistics import mixture, moments
from fedsim.privacy.statistics.outer_products import OuterProduct
from fedsim.seeds import Purpose

TOLD = ("mean", "class_means", "counts", "basis", "covariance", "offsets", "shares")
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

    def releases(self) -> tuple[Release, ...]:
        """DP-Gaussian's two releases, then one for every EM step."""
        p = self.params
        if p.components == 1:
            return super().releases()
        rest = 1 - p.mean_share - p.em_share
        return (
            Release("mean", 1.0, 1, p.mean_share**-0.5),
            Release("moments", 1.0, 1, rest**-0.5),
            Release("em", 1.0, p.em_steps, (p.em_share / p.em_steps) ** -0.5),
        )

    def broadcast(self, server: Server) -> Tensors:
        """What has been released, but for the moments, which clients do not need."""
        return {name: server.tensors[name] for name in TOLD if name in server.tensors}

    def statistics(self, release: str, x: Tensor, y: Tensor, broadcast: Tensors) -> tuple[Mapping[str, OuterProduct], Mapping[str, float]]:
        """DP-Gaussian's, or the E step: component sums and counts of the rows' residuals."""
        if release != "em":
            return super().statistics(release, x, y, broadcast)
        rows = moments.centred(x, broadcast["mean"], self.params.radius)
        u = mixture.residuals(rows, y, broadcast["class_means"], broadcast["basis"])
        offsets, shares = broadcast["offsets"], broadcast["shares"]
        whitening = mixture.whitening(broadcast["covariance"], mixture.scatter(offsets, shares, broadcast["counts"]))
        belongs = mixture.responsibilities(u, y, offsets, shares, whitening)
        return mixture.component_products(u, y, belongs, self.task.classes), moments.unit_weights(mixture.WEIGHTS)

    def receive(self, server: Server, release: str, sums: Tensors) -> None:
        """Starting points after the moments; after an E step the M step."""
        if release != "em":
            super().receive(server, release, sums)
        if release == "mean" or self.params.components == 1:
            return
        tensors = server.tensors
        if release == "moments":
            found = self.found(server)
            basis, covariance, _ = moments.principal(found.covariance, found.noise, self.params.em_rank)
            tensors |= {"class_means": found.means, "counts": found.counts, "basis": basis, "covariance": covariance}
            draws = torch.randn(self.task.classes, self.params.components, len(covariance), generator=server.seeds.torch(Purpose.META))
            tensors |= mixture.start(draws, covariance, self.params.spread)
        else:
            std = server.noise_std("em", self.task.clients)
            tensors |= mixture.maximise(sums["component_sums"], sums["component_counts"], tensors["shares"], std)

    def generator(self, server: Server) -> Generator:
        """The mixtures; their covariance is the classes' minus the scatter between components."""
        if self.params.components == 1:
            return super().generator(server)
        found, tensors, radius = self.found(server), server.tensors, self.params.radius
        basis, offsets, shares = (tensors[name] for name in ("basis", "offsets", "shares"))
        covariance = found.covariance - basis @ mixture.scatter(offsets, shares, tensors["counts"]) @ basis.T
        directions, within, rest = moments.principal(covariance, found.noise, self.params.rank)
        means = tensors["mean"] + radius * (found.means.unsqueeze(1) + offsets @ basis.T)
        gaussian = GaussianGenerator(means.flatten(0, 1), directions, radius**2 * within, radius * math.sqrt(rest))
        return MixtureGenerator(gaussian, shares)


class MixtureGenerator:
    """Draws a component of the class, then a row from its Gaussian; ``shares`` ``[C, K]``."""

    def __init__(self, components: GaussianGenerator, shares: Tensor) -> None:
        self.components, self.shares = components, shares

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Synthetic embeddings ``[n, d]``."""
        drawn = torch.multinomial(self.shares[labels], 1, generator=stream)[:, 0]
        return self.components.sample(labels * self.shares.shape[1] + drawn, stream)
