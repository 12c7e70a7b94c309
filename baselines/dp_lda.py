"""DP-LDA: a classifier in closed form from released moments; no generator.

Nothing is sampled and no probe is trained. The releases are those of ``fedhypevae-warm``, with the
same noise at the same seed. So the difference between the scores of the two methods is the cost of
sampling and of a probe.

In whitened coordinates, classes differ only in the block, the few directions that separate them.
Bayes' rule with equal priors thus needs only the distribution N(m_c, S_c) of a row's coordinates u
in the block, for each class c. FedCGS (arXiv 2503.06962) and GH-OFL (arXiv 2602.01186) build such
classifiers from exact moments of all dimensions.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from algorithms.fedhypevae_warm import FedHypeVAEWarm, FedHypeVAEWarmParams
from fedsim.methods import Classifier, LinearClassifier, Server, inverse_square_root, register

LEAST_CLASS_VARIANCE = 0.05
"""The smallest variance of a class in the block, in units of the variance that classes share."""
MOST_NUMBERS = 2**26
"""The largest size of the array ``[n, C, k]`` of rows minus class means; it decides n."""


class DPLDAParams(FedHypeVAEWarmParams):
    """Parameters of DP-LDA.

    Attributes:
        head: the kind of classifier. ``lda`` uses one covariance S, the mean over classes. ``qda``
            uses the covariance of each class, and ``naive-bayes`` only its diagonal. ``ridge`` is
            least squares on class indicators: ``W = M (S + M^T M / C + ridge I)^-1``, where M
            ``[C, k]`` are the class means minus their mean.
        ridge: the penalty of ``ridge``, in units of the variance that classes share.
    """

    head: Literal["naive-bayes", "lda", "qda", "ridge"] = "lda"
    ridge: float = Field(0.1, gt=0)


@register("dp-lda")
class DPLDA(FedHypeVAEWarm):
    """The Bayes classifier of the normal distributions that fedhypevae-warm estimates.

    It is post-processing of the same releases.
    """

    source = "GH-OFL: arXiv 2602.01186; FedCGS: arXiv 2503.06962; linear discriminants: Fisher 1936"
    Params = DPLDAParams

    def classifier(self, server: Server) -> Classifier:
        """Return the classifier of embeddings that the parameter ``head`` names."""
        t = server.tensors
        covariances = t["prior_covariances"]
        # The released coordinates are those of rows that were divided by the radius.
        basis = t["basis"] / t["radius"]
        if self.params.head == "ridge":
            return self._ridge(t["prior_means"], covariances.mean(0), basis, t["mean"])
        if self.params.head == "lda":
            covariances = covariances.mean(0, keepdim=True)
        elif self.params.head == "naive-bayes":
            covariances = torch.diag_embed(covariances.diagonal(dim1=1, dim2=2))
        return Discriminant(t["prior_means"], covariances, basis, t["mean"])

    def _ridge(
        self,
        means: Tensor,
        covariance: Tensor,
        basis: Tensor,
        centre: Tensor,
    ) -> LinearClassifier:
        """Return the classifier by least squares on class indicators.

        Args:
            means: class means in the block ``[C, k]``.
            covariance: the covariance within classes ``[k, k]``.
            basis: the map from embeddings minus ``centre`` to the block ``[d, k]``.
            centre: the released mean of the embeddings ``[d]``.
        """
        centred = means - means.mean(0)
        between = centred.T @ centred / len(means)
        identity = torch.eye(len(covariance), device=covariance.device)
        total = covariance + between + self.params.ridge * identity
        weight = torch.linalg.solve(total, centred.T).T
        row_weight = weight @ basis.T
        return LinearClassifier(
            row_weight,
            -weight @ means.mean(0) - row_weight @ centre,
        )


class Discriminant:
    """Bayes' rule for normal classes: p(c | u) is proportional to N(u; m_c, S_c).

    Classes have equal priors, and u is (x - centre) basis.

    Args:
        means: m_c ``[C, k]``.
        covariances: S_c ``[C, k, k]``, or one that all classes share, ``[1, k, k]``.
        basis: the map from embeddings minus ``centre`` to the block ``[d, k]``.
        centre: the released mean of the embeddings ``[d]``.
    """

    def __init__(
        self,
        means: Tensor,
        covariances: Tensor,
        basis: Tensor,
        centre: Tensor,
    ) -> None:
        self.basis = basis
        self.centre = centre
        # |u root - m root|^2 is the squared Mahalanobis distance. If classes share a root, u root
        # is computed once for all of them.
        self.roots = inverse_square_root(covariances, LEAST_CLASS_VARIANCE)
        self.whitened_means = (means[:, None] @ self.roots)[:, 0]
        self.log_scale = torch.linalg.slogdet(self.roots)[1]

    def probabilities(self, x: Tensor) -> Tensor:
        """Return class probabilities ``[n, C]`` of embeddings ``[n, d]``."""
        u = (x - self.centre) @ self.basis
        size = max(1, MOST_NUMBERS // self.whitened_means.numel())
        return torch.cat([self._probabilities(rows) for rows in torch.split(u, size)])

    def _probabilities(self, u: Tensor) -> Tensor:
        """Return class probabilities ``[n, C]`` of rows in the block, ``[n, k]``."""
        whitened = torch.einsum("nk,ckl->ncl", u, self.roots)
        squared_distance = (whitened - self.whitened_means).square().sum(2)
        return torch.softmax(self.log_scale - squared_distance / 2, 1)
