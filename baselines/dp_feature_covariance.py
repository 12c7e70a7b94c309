"""DP-FC: softmax regression by noisy full-batch gradients, each solved against the second moment of the rows, released once; no generator.

The paper's: release the second moment of the rows, then take gradient steps on a logistic loss; clipped, noised gradients are multiplied by
its inverse, a ridge added: Newton steps whose Hessian is that of least squares, the same in all of them. Different here: rows are
centred by a mean released before; classes share a softmax, where the paper has a sigmoid each; the ridge follows the noise that is known,
in place of a constant; rates fall, and the later iterates are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from baselines.dp_linear import DPLinear, DPLinearParams
from fedsim.methods.messages import Round, Server, Tensors, Values
from fedsim.methods.one_shot import Rows, Statistic, statistic_phase
from fedsim.methods.optimise import average_step
from fedsim.methods.parameters import shared_tensors
from fedsim.methods.phase import Phase
from fedsim.models.layers import ZeroLinear
from fedsim.models.linear import LinearClassifier
from fedsim.plugins.registry import register
from fedsim.privacy.plan import Unit
from fedsim.privacy.statistics import moments
from fedsim.privacy.statistics.outer_products import OuterProduct
from fedsim.privacy.statistics.spectral import spectral_function

LEAST_RIDGE = 0.01
"""The ridge without noise, as a share of the mean eigenvalue."""


class DPFeatureCovarianceParams(DPLinearParams):
    """Parameters of DP-FC.

    Attributes:
        mean_share, second_share: shares of the budget (in 1 / sigma^2) that the mean and the second moment take.
        radius: of the ball to which centred rows are clipped; rows have unit norm.
        ridge: added to the second moment, in units of the largest eigenvalue that noise alone would have.
        clip: C. A gradient's norm is below 1.5, so that few are clipped.
        learning_rate: of the preconditioned step; a logistic loss is flatter than the squares that the second moment stands for.
    """

    second_share: float = Field(0.2, gt=0, lt=1)
    radius: float = Field(0.5, gt=0)
    ridge: float = Field(1.0, gt=0)
    rounds: int = Field(20, ge=1)
    learning_rate: float = Field(6.0, gt=0)


class BallHead(nn.Module):
    """Softmax regression on rows about ``mean``, clipped to a ball of ``radius``, in units of it; the mean is told and not trained."""

    def __init__(self, dim: int, classes: int, radius: float) -> None:
        super().__init__()
        self.head = ZeroLinear(dim, classes, bias=False)
        self.mean, self.radius = nn.Parameter(torch.zeros(dim), requires_grad=False), radius

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, C]`` of embeddings ``[N, d]``."""
        logits: Tensor = self.head(moments.centred(x, self.mean, self.radius))
        return logits

    def classifier(self) -> LinearClassifier:
        """What it has become, for plain embeddings."""
        weight = self.head.weight / self.radius
        return LinearClassifier(weight, -weight @ self.mean)


@register("dp-feature-covariance")
class DPFeatureCovariance(DPLinear):
    """The mean, the second moment about it, then full-batch DP-SGD that is preconditioned by it."""

    source = "DP-FC: Mehta et al. 2022, arXiv 2211.13403"
    units: ClassVar[tuple[Unit, ...]] = ("example",)
    Params = DPFeatureCovarianceParams

    def build(self, clients: int) -> nn.Module:
        """The classifier."""
        return BallHead(self.task.dim, self.task.classes, self.params.radius)

    def phases(self) -> tuple[Phase, ...]:
        """DP-linear's, and the second moment between them."""
        (mean, sgd), share = super().phases(), self.params.second_share
        second = Statistic("second moment", share, {"second": 1.0}, self.second_products, self.receive_second)
        return (mean, statistic_phase(second, self.clip(), self.task, self.broadcast), sgd.taking(1 - self.params.mean_share - share))

    def second_products(self, rows: Rows, told: Tensors) -> Mapping[str, OuterProduct]:
        """Of rows about the mean, of norm at most 1."""
        centred = moments.centred(rows.x, told["mean"], self.params.radius)
        return {"second": OuterProduct(centred, centred)}

    def receive_second(self, server: Server, sums: Tensors, std: Mapping[str, float]) -> None:
        """The preconditioner: the inverse of the noisy second moment, its negative part left out, with a ridge."""
        second = (sums["second"] + sums["second"].T) / 2
        edge = math.sqrt(2 * self.task.dim) * std["second"]
        ridge = self.params.ridge * edge + LEAST_RIDGE * float(second.trace().clamp_min(1.0)) / self.task.dim
        server.tensors["preconditioner"] = spectral_function(second, lambda values: (values.clamp_min(0) + ridge).reciprocal())

    def server_step(self, server: Server, round_: Round, total: Tensors) -> Values:
        """A step along the preconditioned sum, then the running average."""
        weight, step = server.model.get_parameter("head.weight"), total["head.weight"] @ server.tensors["preconditioner"]
        with torch.no_grad():
            weight.sub_(step, alpha=self.params.learning_rate * self._decay(round_))
        if round_.step >= self.params.average_from * self.params.rounds:
            average_step(shared_tensors(server.model), server.tensors)
        return {"parameter_norm": weight.detach().norm()}
