"""DP-LS: a linear classifier by least squares; in closed form, from the mean and the moments of the rows, each released once; no generator.

The paper's: clip the rows, release their second moment and every class's sum by Gaussian mechanisms, project to positive semidefinite, add
a ridge, solve for the weights. Different here: rows are taken in released coordinates; one mechanism releases second moment, class
sums and class counts together, and no second moments by class; the ridge follows the noise, in place of a constant; and classes are weighed
alike: least squares then is Fisher's discriminant (Hastie, Tibshirani and Friedman 2009, section 4.3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from baselines.dp_gaussian import DPGaussian
from fedsim.methods import Classifier, Coordinates, LinearClassifier, OneShotParams, Server, Tensors, moments, register, spectral_function


class DPLeastSquaresParams(OneShotParams):
    """Parameters of DP-LS.

    Attributes:
        coordinates_share: share of the budget (in 1 / sigma^2) that the released coordinates take (:mod:`fedsim.methods.coordinates`).
        radius: of the ball to which rows are clipped, in units of their typical distance from the mean.
        ridge: eigenvalues of the covariance within classes are raised to this share of the largest that noise alone would have.
    """

    coordinates_share: float = Field(0.16, gt=0, lt=1)
    radius: float = Field(0.7, gt=0)
    ridge: float = Field(0.35, gt=0)


@register("dp-least-squares")
class DPLeastSquares(DPGaussian):
    """DP-Gaussian's coordinates and moments; the weights are post-processing, in place of a generator."""

    source = "DP-LS: Mehta et al. 2022, arXiv 2211.13403"
    Params: ClassVar[Any] = DPLeastSquaresParams

    def receive_moments(self, server: Server, sums: Tensors, std: Mapping[str, float]) -> None:
        """Weights and biases of centred rows: ``W^-1 m_c`` and ``-m_c^T W^-1 m_c / 2``, what noise adds to the square taken off again."""
        found = moments.gaussians(sums, std)
        edge = 2 * found.noise * math.sqrt(self.dim)
        floor = self.params.ridge * edge + float(found.covariance.trace().clamp_min(1e-6) / found.counts.sum())
        inverse = spectral_function(found.covariance, lambda values: values.clamp_min(floor).reciprocal())
        weight = found.means @ inverse
        squared = (found.means * weight).sum(1) - found.mean_noise * inverse.trace()
        server.tensors |= {"weight": weight, "bias": -squared / 2, "class_counts": found.counts}

    def classifier(self, server: Server) -> Classifier:
        """The discriminant, for plain rows."""
        weight = Coordinates(server.tensors).of_centred(server.tensors["weight"]) / self.params.radius
        return LinearClassifier(weight, server.tensors["bias"] - weight @ server.tensors["mean"])
