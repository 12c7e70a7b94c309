"""Four one-shot methods that release noisy moments of examples in released coordinates.

DP-Gaussian and DP-GMM are generators: they sample from one Gaussian or one mixture per class. DP-LS
and DP prototypes are classifiers. Gaussian mechanisms make all releases.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fedsim.methods import (
    COORDINATE_NAMES,
    Classifier,
    Coordinates,
    Deviations,
    Generator,
    LinearClassifier,
    OneShot,
    OneShotParams,
    Products,
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
        coordinates_share: the share of the budget (in 1 / sigma^2) for the released coordinates
            (:mod:`fedsim.methods.coordinates`).
        radius: the radius of the ball to which rows are clipped, in units of their typical distance
            from the mean.
    """

    coordinates_share: float = Field(0.16, gt=0, lt=1)
    radius: float = Field(0.7, gt=0)


class DPGaussianParams(InCoordinatesParams):
    """Parameters of DP-Gaussian.

    Attributes:
        rank: the largest number of directions of the shared covariance that are kept.
    """

    radius: float = Field(0.8, gt=0)
    rank: int = Field(2048, ge=1)


@register("dp-gaussian")
class DPGaussian(OneShot):
    """DP-Gaussian: noisy class means and a shared covariance.

    Gaussian mechanisms release them in released coordinates. A row of class c is then sampled from

        N(m_c, S)

    with the mean m_c of its class and the covariance S, which all classes share.
    """

    source = (
        "Gaussian mechanism: Balle and Wang 2018, arXiv 1805.06530; moments as in parametric "
        "feature transfer, arXiv 2402.01862"
    )
    Params: ClassVar[type[DPGaussianParams]] = DPGaussianParams

    def statistics(self) -> tuple[Statistic, ...]:
        """Return the statistics of the coordinates, then the moments of rows in them."""
        share = self.params.coordinates_share
        return (*coordinate_statistics(share), self.moment_statistic(1 - share))

    def moment_statistic(self, share: float) -> Statistic:
        """Return the statistic of class sums, class counts and one second moment."""
        return Statistic(
            "moments", share, moments.MOMENT_WEIGHTS, self.moment_products, self.receive_moments
        )

    def moment_products(
        self,
        rows: Rows,
        broadcast: Tensors,
    ) -> Products:
        """Return the moments of the clipped rows."""
        return moments.moment_products(
            self.clipped(rows, broadcast),
            rows.y,
            self.task.classes,
        )

    def clipped(self, rows: Rows, broadcast: Tensors) -> Tensor:
        """Return rows in released coordinates ``[N, d]``, clipped to and divided by the radius."""
        return Coordinates(broadcast).in_ball(rows.x, self.params.radius)

    def receive_moments(
        self,
        server: Server,
        sums: Tensors,
        std: Deviations,
    ) -> None:
        """Store class means, class counts, the covariance within classes and its noise.

        Means and covariance are in units of the radius. The noise is the standard deviation on an
        off-diagonal entry of the second moment.
        """
        released = moments.gaussians(sums, std)
        noise = to_device(
            torch.tensor(released.noise, dtype=torch.double),
            server.device,
        )
        server.tensors |= {
            "class_means": released.means,
            "class_counts": released.counts,
            "within": released.covariance,
            "noise": noise,
        }

    def class_rows(self, server: Server) -> Tensor:
        """Return the released class counts ``[C]``."""
        return server.tensors["class_counts"]

    def generator(self, server: Server) -> Generator:
        """Return a generator from class means and the covariance's leading directions.

        White noise in all directions stands for the rest of the covariance.
        """
        tensors = server.tensors
        basis, covariance, rest = moments.principal(
            tensors["within"], float(tensors["noise"]), self.params.rank
        )
        gaussian = GaussianGenerator(
            tensors["class_means"],
            basis,
            covariance,
            rest**0.5,
        )
        return self.taken_back(gaussian, server)

    def taken_back(self, generator: Generator, server: Server) -> Generator:
        """Return a generator of embeddings, made from a generator of clipped rows."""
        return stretched(generator, Coordinates(server.tensors), self.params.radius)


class GaussianGenerator:
    """A generator of N(mean of the class, basis covariance basis^T + std^2 I).

    It multiplies white noise by the symmetric root of that covariance.

    Args:
        means: class means ``[C, d]``.
        basis: orthonormal columns ``[d, k]``.
        covariance: the covariance in the basis, without the white noise, ``[k, k]``.
        std: the standard deviation of the white noise, which all directions have.
    """

    def __init__(
        self,
        means: Tensor,
        basis: Tensor,
        covariance: Tensor,
        std: float,
    ) -> None:
        self.means = means
        self.basis = basis
        self.covariance = covariance
        self.std = std
        identity = torch.eye(len(covariance), device=covariance.device)
        self.gain = square_root(covariance + std**2 * identity) - std * identity

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Return synthetic embeddings ``[n, d]`` for labels ``[n]``."""
        white = normal((len(labels), len(self.basis)), stream, labels)
        in_basis = (white @ self.basis) @ self.gain @ self.basis.T
        return self.means[labels] + self.std * white + in_basis


class DPLeastSquaresParams(InCoordinatesParams):
    """Parameters of DP-LS.

    Attributes:
        ridge: the floor of the eigenvalues of the covariance within classes, as a share of the
            largest eigenvalue that noise alone would have. The sampling error is added to it.
    """

    ridge: float = Field(0.35, gt=0)


@register("dp-least-squares")
class DPLeastSquares(DPGaussian):
    """DP-LS: a linear classifier by least squares, in closed form; no generator.

    It uses the releases of DP-Gaussian. A row r gets the class with the largest

        m_c^T W^-1 r - m_c^T W^-1 m_c / 2

    with the class means m_c and the covariance W within classes, whose small eigenvalues are raised
    to a floor. This is Fisher's discriminant. Least squares gives it if all classes have equal
    weights (Hastie, Tibshirani and Friedman 2009, section 4.3).

    Mehta et al. clip the rows, and release their second moment and the sum of every class. They
    project the noisy second moment to a positive semidefinite matrix, add a ridge, and solve.
    Different here: rows are in released coordinates. One mechanism releases the second moment,
    class sums and counts, and no second moments by class. A floor that follows the known noise
    takes the place of the ridge. Classes have equal weights, whatever their counts.
    """

    source = "DP-LS: Mehta et al. 2022, arXiv 2211.13403"
    Params: ClassVar[Any] = DPLeastSquaresParams

    def receive_moments(
        self,
        server: Server,
        sums: Tensors,
        std: Deviations,
    ) -> None:
        """Store weights ``W^-1 m_c`` and biases ``-m_c^T W^-1 m_c / 2`` for clipped rows.

        Noise in m_c makes ``m_c^T W^-1 m_c`` larger. What it adds is subtracted.
        """
        released = moments.gaussians(sums, std)
        means = released.means
        largest_of_noise = 2 * released.noise * math.sqrt(self.dim)
        sampling_error = released.covariance.trace().clamp_min(1e-6) / released.counts.sum()
        floor = self.params.ridge * largest_of_noise + float(sampling_error)
        inverse = spectral_function(
            released.covariance, lambda values: values.clamp_min(floor).reciprocal()
        )
        weight = means @ inverse
        squared = (means * weight).sum(1) - released.mean_noise * inverse.trace()
        server.tensors |= {
            "weight": weight,
            "bias": -squared / 2,
            "class_counts": released.counts,
        }

    def classifier(self, server: Server) -> Classifier:
        """Return the discriminant, for embeddings."""
        tensors = server.tensors
        weight = Coordinates(tensors).of_centred(tensors["weight"]) / self.params.radius
        return LinearClassifier(weight, tensors["bias"] - weight @ tensors["mean"])


LEAST_SIGNAL = 0.05
"""The least share of a squared length that is taken for signal, however large the noise."""


@register("dp-prototypes")
class DPPrototypes(OneShot):
    """DP prototypes: one noisy mean per class; no generator.

    A Gaussian mechanism releases class sums and counts in released coordinates. A row is assigned
    to the class whose mean has the smallest angle to it. This is DPPL-Mean of Wahdany et al.
    Different here: rows are in released coordinates. Counts are released with the sums, where the
    paper assumes that they are known. What noise adds to a prototype's length is subtracted. The
    paper's option to average neighbouring features is left out.
    """

    source = "DPPL-Mean: Wahdany et al. 2024, arXiv 2406.08039"
    Params = InCoordinatesParams

    def statistics(self) -> tuple[Statistic, ...]:
        """Return the statistics of the coordinates, then every class's sum and count."""
        share = self.params.coordinates_share
        last = Statistic(
            "prototypes",
            1 - share,
            moments.CLASS_MEAN_WEIGHTS,
            self.class_products,
            self.receive_prototypes,
        )
        return (*coordinate_statistics(share), last)

    def class_products(self, rows: Rows, broadcast: Tensors) -> Products:
        """Return class sums and counts of the clipped rows."""
        clipped = Coordinates(broadcast).in_ball(rows.x, self.params.radius)
        return moments.class_mean_products(clipped, rows.y, self.task.classes)

    def receive_prototypes(
        self,
        server: Server,
        sums: Tensors,
        std: Deviations,
    ) -> None:
        """Store every class mean, divided by the length that it would have without noise.

        Noise makes the mean of a rare class long. Divided by its full length, such a mean would
        seem far from every row.
        """
        counts = moments.counts_above_noise(sums["class_counts"], std["class_counts"])
        means = sums["class_sums"] / counts
        squared = means.square().sum(1, keepdim=True)
        without_noise = squared - self.dim * (std["class_sums"] / counts).square()
        length = without_noise.maximum(LEAST_SIGNAL * squared).sqrt()
        server.tensors["prototypes"] = means / length.clamp_min(1e-12)

    def classifier(self, server: Server) -> Classifier:
        """Return a classifier by the angle between a row and every prototype, about the mean.

        The length of a row is the same for all prototypes, so their products with the row order the
        classes as the angles do.
        """
        # The map T to coordinates is symmetric: for a prototype p and an embedding x,
        # <p, T (x - mean)> = <T p, x - mean>.
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
"""The names of the released tensors that clients need."""


class DPGMMParams(DPGaussianParams):
    """Parameters of DP-GMM.

    Attributes:
        components: K, the number of components of every class.
        em_steps: the number of noisy EM steps, each of which is a release.
        em_share: the share of the budget (in 1 / sigma^2) for all EM steps together.
        em_rank: the number of leading directions of the covariance in which components differ.
        spread: the distance of the starting points from the class mean, in standard deviations.
    """

    components: int = Field(3, ge=2)
    em_steps: int = Field(3, ge=1)
    em_share: float = Field(0.1, gt=0, lt=0.9)
    em_rank: int = Field(32, ge=1)
    spread: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _leaves_budget_for_moments(self) -> Self:
        return self.with_budget_left("coordinates_share", "em_share", rest="the moments")


@register("dp-gmm")
class DPGMM(DPGaussian):
    """DP-GMM: a Gaussian mixture per class by noisy EM.

    It releases DP-Gaussian's moments, then a few EM steps. Clients compute responsibilities, and
    the server computes the means m_ck and the shares p_ck of the components. A row of class c is
    then sampled from

        sum_k p_ck N(m_ck, S)

    with one covariance S for all components. Different here: the clients' statistics are summed
    into one mixture per class, where FedPFT sends one from every client. The covariance is fixed by
    its moments, so an EM step pays only for component means and shares, in few directions.
    """

    source = (
        "FedPFT: Beitollahi et al. 2024, arXiv 2402.01862; DP-EM: Park et al. 2017, arXiv "
        "1605.06995"
    )
    Params = DPGMMParams

    def statistics(self) -> tuple[Statistic, ...]:
        """Return the statistics of DP-Gaussian, then the E steps."""
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
        """Return the released tensors that clients need, without the covariance ``[d, d]``."""
        return {name: server.tensors[name] for name in SENT_TO_CLIENTS if name in server.tensors}

    def component_products(
        self,
        rows: Rows,
        broadcast: Tensors,
    ) -> Products:
        """Return the E step: component sums and counts of the rows' residuals."""
        clipped = self.clipped(rows, broadcast)
        residuals = mixture.residuals(
            clipped,
            rows.y,
            broadcast["class_means"],
            broadcast["basis"],
        )
        offsets = broadcast["offsets"]
        shares = broadcast["shares"]
        scatter = mixture.scatter(offsets, shares, broadcast["class_counts"])
        whitening = mixture.whitening(broadcast["covariance"], scatter)
        responsibilities = mixture.responsibilities(residuals, rows.y, offsets, shares, whitening)
        return mixture.component_products(residuals, rows.y, responsibilities, self.task.classes)

    def receive_moments(
        self,
        server: Server,
        sums: Tensors,
        std: Deviations,
    ) -> None:
        """Store DP-Gaussian's tensors, and the starting points of the components."""
        super().receive_moments(server, sums, std)
        tensors = server.tensors
        basis, covariance, _ = moments.principal(
            tensors["within"], float(tensors["noise"]), self.params.em_rank
        )
        shape = (self.task.classes, self.params.components, len(covariance))
        draws = normal(shape, server.seeds.torch(Purpose.META), covariance)
        tensors |= {
            "basis": basis,
            "covariance": covariance,
            **mixture.start(draws, covariance, self.params.spread),
        }

    def receive_components(
        self,
        server: Server,
        sums: Tensors,
        std: Deviations,
    ) -> None:
        """Store the result of the M step."""
        server.tensors |= mixture.maximise(
            sums["component_sums"], sums["component_counts"], self.params.components, std
        )

    def generator(self, server: Server) -> Generator:
        """Return a generator of the mixtures.

        All components have one covariance: that within classes minus the scatter between
        components.
        """
        tensors = server.tensors
        basis = tensors["basis"]
        offsets = tensors["offsets"]
        shares = tensors["shares"]
        scatter = mixture.scatter(offsets, shares, tensors["class_counts"])
        covariance = tensors["within"] - basis @ scatter @ basis.T
        directions, within, rest = moments.principal(
            covariance, float(tensors["noise"]), self.params.rank
        )
        means = tensors["class_means"].unsqueeze(1) + offsets @ basis.T
        gaussian = GaussianGenerator(means.flatten(0, 1), directions, within, rest**0.5)
        return self.taken_back(MixtureGenerator(gaussian, shares), server)


@dataclass(frozen=True, eq=False)
class MixtureGenerator:
    """A generator that draws a component by its share, then a row of its Gaussian.

    Attributes:
        components: the Gaussians of all components, class by class.
        shares: the shares of the components of every class ``[C, K]``.
    """

    components: GaussianGenerator
    shares: Tensor

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Return synthetic embeddings ``[n, d]`` for labels ``[n]``."""
        drawn = torch.multinomial(self.shares[labels].cpu(), 1, generator=stream)[:, 0]
        component = to_device(drawn, labels.device)
        return self.components.sample(labels * self.shares.shape[1] + component, stream)
