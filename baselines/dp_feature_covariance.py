"""DP-FC: softmax regression by full-batch DP-SGD; each gradient is solved against the released
second moment; no generator.

The paper's: release the second moment of the rows, then take gradient steps on a logistic loss;
clipped, noised gradients are multiplied by its inverse, a ridge added. Different here: rows are
taken in released coordinates; classes share a softmax, where the paper has a sigmoid each; the
ridge follows the noise, in place of a constant; rates fall, and the later iterates are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from fedsim.methods import (
    DPSGD,
    Batch,
    Classifier,
    Coordinates,
    DPSGDParams,
    LinearClassifier,
    OuterProduct,
    Phase,
    Round,
    Rows,
    Server,
    Statistic,
    Tensors,
    Values,
    ZeroLinear,
    average_step,
    cross_entropy,
    moments,
    register,
    shared_tensors,
    spectral_function,
    statistic_phase,
)

LEAST_RIDGE = 0.01
"""The ridge without noise, as a share of the mean eigenvalue."""


class DPFeatureCovarianceParams(DPSGDParams):
    """Parameters of DP-FC.

    Attributes:
        precondition, second_share: shares of the budget (in 1 / sigma^2) that coordinates and the
            second moment in them take.
        radius: of the ball to which rows are clipped, in units of their typical distance from the
            mean.
        ridge: added to the second moment, in units of the largest eigenvalue that noise alone would
            have.
        sample_rate: q; with all rows in every step, noise is all that makes steps differ.
        clip: C. A gradient's norm is below 1.5, so that few are clipped.
        learning_rate: of the preconditioned step; a logistic loss is flatter than the squares that
            the second moment stands for.
    """

    precondition: float = Field(0.16, gt=0, lt=1)
    second_share: float = Field(0.2, gt=0, lt=1)
    radius: float = Field(0.7, gt=0)
    ridge: float = Field(1.0, gt=0)
    rounds: int = Field(20, ge=1)
    sample_rate: float = Field(1.0, gt=0, le=1)
    clip: float = Field(1.0, gt=0, allow_inf_nan=False)
    learning_rate: float = Field(6.0, gt=0)


class BallHead(nn.Module):
    """Softmax regression on rows in released coordinates, clipped to a ball of ``radius``, in units
    of it.
    """

    def __init__(self, dim: int, classes: int, radius: float) -> None:
        super().__init__()
        self.head = ZeroLinear(dim, classes, bias=False)
        self.radius = radius

    def forward(self, r: Tensor) -> Tensor:
        """Logits ``[N, C]`` of coordinates ``[N, d]``."""
        logits: Tensor = self.head(moments.in_unit_ball(r / self.radius))
        return logits

    def classifier(self) -> LinearClassifier:
        """What it has become, without the clip."""
        weight = self.head.weight / self.radius
        return LinearClassifier(weight, weight.new_zeros(len(weight)))


@register("dp-feature-covariance")
class DPFeatureCovariance(DPSGD):
    """Coordinates, the second moment in them, then full-batch DP-SGD that is preconditioned by
    it.
    """

    source = "DP-FC: Mehta et al. 2022, arXiv 2211.13403"
    Params: ClassVar[type[DPFeatureCovarianceParams]] = DPFeatureCovarianceParams

    def build(self, clients: int) -> nn.Module:
        """The classifier."""
        return BallHead(self.task.dim, self.task.classes, self.params.radius)

    def loss(self, model: Any, batch: Batch) -> Mapping[str, Tensor]:
        """Cross-entropy."""
        return {"cross_entropy": cross_entropy(model(batch.x), batch.y)}

    def phases(self) -> tuple[Phase, ...]:
        """The statistics, then DP-SGD."""
        (*coordinates, sgd), p = super().phases(), self.params
        second = Statistic(
            "second moment",
            p.second_share,
            {"second": 1.0},
            self.second_products,
            self.receive_second,
        )
        phase = statistic_phase(second, self.clip(), self.task, lambda server: dict(server.tensors))
        return (*coordinates, phase, sgd.taking(1 - p.precondition - p.second_share))

    def second_products(self, rows: Rows, released: Tensors) -> Mapping[str, OuterProduct]:
        """Of rows in released coordinates, of norm at most 1."""
        clipped = Coordinates(released).in_ball(rows.x, self.params.radius)
        return {"second": OuterProduct(clipped, clipped)}

    def receive_second(self, server: Server, sums: Tensors, std: Mapping[str, float]) -> None:
        """The preconditioner: the inverse of the noisy second moment, its negative part left out,
        with a ridge.
        """
        second = (sums["second"] + sums["second"].T) / 2
        edge = math.sqrt(2 * self.task.dim) * std["second"]
        ridge = (
            self.params.ridge * edge
            + LEAST_RIDGE * float(second.trace().clamp_min(1.0)) / self.task.dim
        )
        server.tensors["preconditioner"] = spectral_function(
            second, lambda values: (values.clamp_min(0) + ridge).reciprocal()
        )

    def server_step(self, server: Server, round_: Round, total: Tensors) -> Values:
        """A step along the preconditioned sum, then the running average."""
        weight = server.model.get_parameter("head.weight")
        step = total["head.weight"] @ server.tensors["preconditioner"]
        with torch.no_grad():
            weight.sub_(step, alpha=self.params.learning_rate * self._decay(round_))
        if round_.step >= self.average_from * self.params.rounds:
            average_step(shared_tensors(server.model), server.tensors)
        return {"parameter_norm": weight.detach().norm()}

    def classifier(self, server: Server) -> Classifier:
        """The mean of the later iterates."""
        return cast(BallHead, server.model).classifier()
