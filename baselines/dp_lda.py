"""DP-LDA: a classifier read off released moments; in closed form, with nothing sampled and no probe
trained; no generator.

The releases are those of ``fedhypevae-warm``, with the same noise at the same seed: the difference
of their scores is what sampling and a probe cost. In whitened coordinates classes differ in the
block u alone, so Bayes' rule needs u given the class, N(m_c, S_c), with equal priors (FedCGS, arXiv
2503.06962; GH-OFL, arXiv 2602.01186). Different here: both send exact moments of all dimensions.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from algorithms.fedhypevae_warm import FedHypeVAEWarm, FedHypeVAEWarmParams
from fedsim.methods import Classifier, LinearClassifier, Server, register, spectral_function

LEAST_CLASS_VARIANCE = 0.05
"""A variance of a class in the block is no smaller, in units of what classes share."""


class DPLDAParams(FedHypeVAEWarmParams):
    """Parameters of DP-LDA.

    Attributes:
        head: ``lda``: one covariance, the mean S of the classes'; ``qda``: every class's own;
            ``naive-bayes``: every class's own diagonal; ``ridge``: least squares on class
            indicators, ``W = M (S + M^T M / C + ridge I)^-1`` of means M ``[C, k]`` about their
            mean.
        ridge: the penalty, in units of the variance that classes share.
    """

    head: Literal["naive-bayes", "lda", "qda", "ridge"] = "lda"
    ridge: float = Field(0.1, gt=0)


@register("dp-lda")
class DPLDA(FedHypeVAEWarm):
    """The Bayes classifier of the normal laws that fedhypevae-warm believes in; all of it is
    post-processing of the same releases.
    """

    source = "GH-OFL: arXiv 2602.01186; FedCGS: arXiv 2503.06962; linear discriminants: Fisher 1936"
    Params = DPLDAParams

    def classifier(self, server: Server) -> Classifier:
        """The head, for embeddings."""
        t = server.tensors
        head = self.params.head
        means = t["prior_means"]
        covariances = t["prior_covariances"]
        basis = t["basis"] / t["radius"]
        shared = covariances.mean(0)
        if head == "ridge":
            apart = means - means.mean(0)
            total = (
                shared
                + apart.T @ apart / len(means)
                + self.params.ridge * torch.eye(len(shared), device=shared.device)
            )
            weight = torch.linalg.solve(total, apart.T).T
            of_rows = weight @ basis.T
            return LinearClassifier(of_rows, -weight @ means.mean(0) - of_rows @ t["mean"])
        if head == "naive-bayes":
            covariances = torch.diag_embed(covariances.diagonal(dim1=1, dim2=2))
        return Discriminant(
            means, shared.expand_as(covariances) if head == "lda" else covariances, basis, t["mean"]
        )


class Discriminant:
    """Bayes' rule for normal classes of equal priors: p(c | u) is proportional to N(u; m_c, S_c),
    with u = (x - centre) basis.
    """

    def __init__(self, means: Tensor, covariances: Tensor, basis: Tensor, centre: Tensor) -> None:
        self.means = means
        self.basis = basis
        self.centre = centre
        # |(u - m) root|^2 is the squared Mahalanobis distance
        self.roots = spectral_function(
            covariances, lambda values: values.clamp_min(LEAST_CLASS_VARIANCE).rsqrt()
        )
        self.log_scale = torch.linalg.slogdet(self.roots)[1]

    def probabilities(self, x: Tensor) -> Tensor:
        """``[n, C]`` for embeddings ``[n, d]``."""
        apart = ((x - self.centre) @ self.basis)[:, None] - self.means
        distance = torch.einsum("nck,ckl->ncl", apart, self.roots).square().sum(2)
        return torch.softmax(self.log_scale - distance / 2, 1)
