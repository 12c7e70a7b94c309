"""Moments in released coordinates, by Gaussian mechanisms: Gaussians and their mixtures to sample
from, and two classifiers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedsim.methods import (
    COORDINATE_NAMES,
    Classifier,
    Coordinates,
    Generator,
    LinearClassifier,
    OneShot,
    OneShotParams,
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
    spectral_function,
    square_root,
    stretched,
    to_device,
)


class InCoordinatesParams(OneShotParams):
    """Parameters of statistics in released coordinates.

    Attributes:
        coordinates_share: share of the budget (in 1 / sigma^2) that the released coordinates take
            (:mod:`fedsim.methods.coordinates`).
        radius: of the ball to which rows are clipped, in units of their typical distance from the
            mean.
    """

    coordinates_share: float = Field(0.16, gt=0, lt=1)
    radius: float = Field(0.7, gt=0)


class DPGaussianParams(InCoordinatesParams):
    """Parameters of DP-Gaussian.

    Attributes:
        rank: most directions of the shared covariance that are kept.
    """

    radius: float = Field(0.8, gt=0)
    rank: int = Field(2048, ge=1)


@register("dp-gaussian")
class DPGaussian(OneShot):
    """DP-Gaussian: noisy class means and a shared covariance; Gaussian mechanisms in released
    coordinates, then samples of Gaussians.
    """

    source = (
        "Gaussian mechanism: Balle and Wang 2018, arXiv 1805.06530; moments as in parametric "
        "feature transfer, arXiv 2402.01862"
    )
    Params: ClassVar[type[DPGaussianParams]] = DPGaussianParams

    def statistics(self) -> tuple[Statistic, ...]:
        """Coordinates; then moments of the rows in them."""
        share = self.params.coordinates_share
        return (*coordinate_statistics(share), self.moment_statistic(1 - share))

    def moment_statistic(self, share: float) -> Statistic:
        """Class sums and counts, and one second moment, of the clipped rows."""
        return Statistic(
            "moments", share, moments.MOMENT_WEIGHTS, self.moment_products, self.receive_moments
        )

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
        server.tensors |= {
            "class_means": found.means,
            "class_counts": found.counts,
            "within": found.covariance,
            "noise": noise,
        }

    def class_rows(self, server: Server) -> Tensor:
        """Those of the moments."""
        return server.tensors["class_counts"]

    def generator(self, server: Server) -> Generator:
        """Class means, the covariance's leading directions, white noise for the rest."""
        found = server.tensors
        basis, covariance, rest = moments.principal(
            found["within"], float(found["noise"]), self.params.rank
        )
        return self.taken_back(
            GaussianGenerator(found["class_means"], basis, covariance, rest**0.5), server
        )

    def taken_back(self, generator: Generator, server: Server) -> Generator:
        """A generator of clipped rows as one of embeddings."""
        return stretched(generator, Coordinates(server.tensors), self.params.radius)


class GaussianGenerator:
    """Samples from N(mean of the class, basis covariance basis^T + std^2 I), by the symmetric root
    of that covariance.
    """

    def __init__(self, means: Tensor, basis: Tensor, covariance: Tensor, std: float) -> None:
        self.means = means
        self.basis = basis
        self.covariance = covariance
        self.std = std
        one = torch.eye(len(covariance), device=covariance.device)
        self.gain = square_root(covariance + std**2 * one) - std * one

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Synthetic embeddings ``[n, d]``."""
        white = normal((len(labels), len(self.basis)), stream, labels)
        return (
            self.means[labels] + self.std * white + (white @ self.basis) @ self.gain @ self.basis.T
        )


class DPLeastSquaresParams(InCoordinatesParams):
    """Parameters of DP-LS.

    Attributes:
        ridge: eigenvalues of the covariance within classes are raised to this share of the largest
            that noise alone would have.
    """

    ridge: float = Field(0.35, gt=0)


@register("dp-least-squares")
class DPLeastSquares(DPGaussian):
    """DP-LS: a linear classifier by least squares; in closed form, from DP-Gaussian's releases; no
    generator.

    The paper's: clip the rows, release their second moment and every class's sum, project to
    positive semidefinite, add a ridge, solve. Different here: rows are in released coordinates; one
    mechanism releases second moment, class sums and counts, and no second moments by class; the
    ridge follows the noise that is known; and classes are weighed alike, whatever their counts.
    Least squares then is Fisher's discriminant (Hastie, Tibshirani and Friedman 2009, section 4.3):
    means, and one covariance.
    """

    source = "DP-LS: Mehta et al. 2022, arXiv 2211.13403"
    Params: ClassVar[Any] = DPLeastSquaresParams

    def receive_moments(self, server: Server, sums: Tensors, std: Mapping[str, float]) -> None:
        """Weights and biases of centred rows: ``W^-1 m_c`` and ``-m_c^T W^-1 m_c / 2``, what noise
        adds to the square taken off again.
        """
        found = moments.gaussians(sums, std)
        edge = 2 * found.noise * math.sqrt(self.dim)
        floor = self.params.ridge * edge + float(
            found.covariance.trace().clamp_min(1e-6) / found.counts.sum()
        )
        inverse = spectral_function(
            found.covariance, lambda values: values.clamp_min(floor).reciprocal()
        )
        weight = found.means @ inverse
        squared = (found.means * weight).sum(1) - found.mean_noise * inverse.trace()
        server.tensors |= {"weight": weight, "bias": -squared / 2, "class_counts": found.counts}

    def classifier(self, server: Server) -> Classifier:
        """The discriminant, for plain rows."""
        weight = (
            Coordinates(server.tensors).of_centred(server.tensors["weight"]) / self.params.radius
        )
        return LinearClassifier(weight, server.tensors["bias"] - weight @ server.tensors["mean"])


LEAST_SIGNAL = 0.05
"""Share of a squared length that is taken for signal at least, however large the noise."""


@register("dp-prototypes")
class DPPrototypes(OneShot):
    """DP prototypes: one noisy mean a class; by a Gaussian mechanism in released coordinates; a row
    is of the nearest one's class.

    DPPL-Mean of the paper. Different here: rows are in released coordinates; counts are released
    with the sums, where the paper takes them for known; what noise adds to a prototype's length is
    taken off; and neighbouring features, the paper's option, are not averaged.
    """

    source = "DPPL-Mean: Wahdany et al. 2024, arXiv 2406.08039"
    Params = InCoordinatesParams

    def statistics(self) -> tuple[Statistic, ...]:
        """Coordinates; then every class's sum and count."""
        share = self.params.coordinates_share
        last = Statistic(
            "prototypes",
            1 - share,
            moments.CLASS_MEAN_WEIGHTS,
            self.class_products,
            self.receive_prototypes,
        )
        return (*coordinate_statistics(share), last)

    def class_products(self, rows: Rows, broadcast: Tensors) -> moments.Products:
        """Rows of norm at most 1, and a one, beside the class."""
        clipped = Coordinates(broadcast).in_ball(rows.x, self.params.radius)
        return moments.class_mean_products(clipped, rows.y, self.task.classes)

    def receive_prototypes(self, server: Server, sums: Tensors, std: Mapping[str, float]) -> None:
        """Class means at unit length; what noise adds to a length is taken off first, or a rare
        class would seem far from every row.
        """
        counts = moments.counts_above_noise(sums["class_counts"], std["class_counts"])
        means = sums["class_sums"] / counts
        squared = means.square().sum(1, keepdim=True)
        without_noise = squared - self.dim * (std["class_sums"] / counts).square()
        server.tensors["prototypes"] = means / without_noise.maximum(
            LEAST_SIGNAL * squared
        ).sqrt().clamp_min(1e-12)

    def classifier(self, server: Server) -> Classifier:
        """By the angle about the mean, which for a row is a matter of its product with each
        prototype.
        """
        # the product of two rows of coordinates is that of one of them with the other's embedding,
        # taken to coordinates once more
        weight = Coordinates(server.tensors).of_centred(server.tensors["prototypes"])
        return LinearClassifier(weight, -weight @ server.tensors["mean"])


SENT_TO_CLIENTS = (
    "mean",
    *COORDINATE_NAMES,
    "class_means",
    "class_counts",
    "basis",
    "covariance",
    "offsets",
    "shares",
)
"""What clients need of what was released."""


class DPGMMParams(DPGaussianParams):
    """Parameters of DP-GMM.

    Attributes:
        components: K, of every class.
        em_steps: noisy EM steps; each is a release.
        em_share: share of the budget (in 1 / sigma^2) that they take together.
        em_rank: components differ within so many leading directions of the covariance.
        spread: distance of the starting points from the class mean, in standard deviations.
    """

    components: int = Field(3, ge=2)
    em_steps: int = Field(3, ge=1)
    em_share: float = Field(0.1, gt=0, lt=0.9)
    em_rank: int = Field(32, ge=1)
    spread: float = Field(1.0, gt=0)


@register("dp-gmm")
class DPGMM(DPGaussian):
    """DP-GMM: a Gaussian mixture per class by noisy EM; one covariance for all components;
    DP-Gaussian's moments, then a few EM steps.

    Clients compute responsibilities, the server component means and shares. Different here: the
    clients' statistics are summed into one mixture a class, where FedPFT sends one from every
    client; the covariance is shared and fixed by its moments, so an EM step pays for component
    means and shares alone, in few directions.
    """

    source = (
        "FedPFT: Beitollahi et al. 2024, arXiv 2402.01862; DP-EM: Park et al. 2017, arXiv "
        "1605.06995"
    )
    Params = DPGMMParams

    def statistics(self) -> tuple[Statistic, ...]:
        """DP-Gaussian's, then the E steps."""
        p = self.params
        em = Statistic(
            "em",
            p.em_share,
            mixture.WEIGHTS,
            self.component_products,
            self.receive_components,
            p.em_steps,
        )
        return (
            *coordinate_statistics(p.coordinates_share),
            self.moment_statistic(1 - p.coordinates_share - p.em_share),
            em,
        )

    def broadcast(self, server: Server) -> Tensors:
        """What has been released, but for the moments, which clients do not need."""
        return {name: server.tensors[name] for name in SENT_TO_CLIENTS if name in server.tensors}

    def component_products(self, rows: Rows, broadcast: Tensors) -> Mapping[str, OuterProduct]:
        """The E step: component sums and counts of the rows' residuals."""
        u = mixture.residuals(
            self.clipped(rows, broadcast), rows.y, broadcast["class_means"], broadcast["basis"]
        )
        offsets = broadcast["offsets"]
        shares = broadcast["shares"]
        whitening = mixture.whitening(
            broadcast["covariance"], mixture.scatter(offsets, shares, broadcast["class_counts"])
        )
        belongs = mixture.responsibilities(u, rows.y, offsets, shares, whitening)
        return mixture.component_products(u, rows.y, belongs, self.task.classes)

    def receive_moments(self, server: Server, sums: Tensors, std: Mapping[str, float]) -> None:
        """DP-Gaussian's, and the components' starting points."""
        super().receive_moments(server, sums, std)
        tensors = server.tensors
        basis, covariance, _ = moments.principal(
            tensors["within"], float(tensors["noise"]), self.params.em_rank
        )
        draws = normal(
            (self.task.classes, self.params.components, len(covariance)),
            server.seeds.torch(Purpose.META),
            covariance,
        )
        tensors |= {
            "basis": basis,
            "covariance": covariance,
            **mixture.start(draws, covariance, self.params.spread),
        }

    def receive_components(self, server: Server, sums: Tensors, std: Mapping[str, float]) -> None:
        """The M step."""
        server.tensors |= mixture.maximise(
            sums["component_sums"], sums["component_counts"], server.tensors["shares"], std
        )

    def generator(self, server: Server) -> Generator:
        """The mixtures; their covariance is the classes' minus the scatter between components."""
        tensors = server.tensors
        basis, offsets, shares = (tensors[name] for name in ("basis", "offsets", "shares"))
        covariance = (
            tensors["within"]
            - basis @ mixture.scatter(offsets, shares, tensors["class_counts"]) @ basis.T
        )
        directions, within, rest = moments.principal(
            covariance, float(tensors["noise"]), self.params.rank
        )
        means = tensors["class_means"].unsqueeze(1) + offsets @ basis.T
        gaussian = GaussianGenerator(means.flatten(0, 1), directions, within, rest**0.5)
        return self.taken_back(MixtureGenerator(gaussian, shares), server)


class MixtureGenerator:
    """Draws a component of the class, then a row from its Gaussian; ``shares`` ``[C, K]``."""

    def __init__(self, components: GaussianGenerator, shares: Tensor) -> None:
        self.components = components
        self.shares = shares

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Synthetic embeddings ``[n, d]``."""
        drawn = to_device(
            torch.multinomial(self.shares[labels].cpu(), 1, generator=stream)[:, 0], labels.device
        )
        return self.components.sample(labels * self.shares.shape[1] + drawn, stream)
