"""DP-FC: softmax regression by DP-SGD, preconditioned by the second moment; no generator.

The paper releases the second moment of the rows, then takes gradient steps on a logistic loss. In
each step, the noisy sum of clipped gradients is multiplied by the inverse of the second moment plus
a ridge. Four things differ from the paper:

- The rows are in released coordinates.
- The classes share a softmax; in the paper each has a sigmoid.
- The ridge follows the noise; in the paper it is a constant.
- The learning rate falls, and the later iterates are averaged.
"""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from baselines.fedavg_linear import SoftmaxRegression
from fedsim.methods import (
    DPSGD,
    Coordinates,
    Deviations,
    DPSGDParams,
    LinearClassifier,
    OuterProduct,
    Phase,
    Products,
    Round,
    Rows,
    Server,
    Statistic,
    Tensors,
    Values,
    ZeroLinear,
    average_step,
    moments,
    register,
    shared_tensors,
    spectral_function,
    statistic_phase,
)

LEAST_RIDGE = 0.01
"""The part of the ridge that does not depend on the noise, as a share of the mean eigenvalue."""


class DPFeatureCovarianceParams(DPSGDParams):
    """Parameters of DP-FC.

    Attributes:
        precondition: the share of the budget (in 1 / sigma^2) for coordinates.
        second_share: the share of the budget for the second moment in these coordinates.
        radius: the radius of the ball to which rows are clipped, in units of their typical distance
            from the mean.
        ridge: the multiple of the identity that is added to the second moment, in units of the
            largest eigenvalue that noise alone would have.
        sample_rate: q, the rate of the Poisson sample of a step. At 1 every step has all rows, so
            its noise is the only randomness.
        most_sampled: the largest expected number of examples, or groups, in a step, if the data set
            has its public size. It is larger than in other methods by DP-SGD: a step of a linear
            model is fast, and a step with all rows has no error of sampling.
        clip: C, the clip norm. The norm of a gradient is at most sqrt(2) and mostly below 1, so few
            gradients are clipped.
        learning_rate: the rate of the preconditioned step. It may exceed 1: the second moment is
            the Hessian of least squares, and a logistic loss is flatter.
    """

    precondition: float = Field(0.16, gt=0, lt=1)
    second_share: float = Field(0.2, gt=0, lt=1)
    radius: float = Field(0.7, gt=0)
    ridge: float = Field(1.0, gt=0)
    rounds: int = Field(20, ge=1)
    sample_rate: float = Field(1.0, gt=0, le=1)
    most_sampled: int = Field(65_536, ge=1)
    clip: float = Field(1.0, gt=0, allow_inf_nan=False)
    learning_rate: float = Field(6.0, gt=0)

    @model_validator(mode="after")
    def _leaves_budget_for_steps(self) -> Self:
        return self.with_budget_left("precondition", "second_share", rest="the steps")


class BallHead(nn.Module):
    """Softmax regression on rows in released coordinates, without a bias.

    Rows are divided by ``radius`` and then clipped to norm 1.
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        radius: float,
    ) -> None:
        super().__init__()
        self.head = ZeroLinear(dim, classes, bias=False)
        self.radius = radius

    def forward(self, r: Tensor) -> Tensor:
        """Return logits ``[N, C]`` of coordinates ``[N, d]``."""
        logits: Tensor = self.head(moments.in_unit_ball(r / self.radius))
        return logits

    def classifier(self) -> LinearClassifier:
        """Return the trained classifier of coordinates, which does not clip them."""
        weight = self.head.weight / self.radius
        return LinearClassifier(weight, weight.new_zeros(len(weight)))


@register("dp-feature-covariance")
class DPFeatureCovariance(SoftmaxRegression, DPSGD):
    """DP-FC: coordinates, the second moment in them, then preconditioned DP-SGD."""

    source = "DP-FC: Mehta et al. 2022, arXiv 2211.13403"
    Params: ClassVar[type[DPFeatureCovarianceParams]] = DPFeatureCovarianceParams

    def build(self, clients: int) -> nn.Module:
        """Return the model of the classifier."""
        return BallHead(self.task.dim, self.task.classes, self.params.radius)

    def phases(self) -> tuple[Phase, ...]:
        """Return the phases of the statistics, then DP-SGD."""
        p = self.params
        *coordinates, sgd = super().phases()
        second = Statistic(
            "second moment",
            p.second_share,
            {"second": 1.0},
            self.second_products,
            self.receive_second,
        )
        moment = statistic_phase(
            second, self.clip(), self.task, lambda server: dict(server.tensors)
        )
        return (*coordinates, moment, sgd.taking(1 - p.precondition - p.second_share))

    def second_products(
        self,
        rows: Rows,
        released: Tensors,
    ) -> Products:
        """Return the second moment of the clipped rows in released coordinates."""
        clipped = Coordinates(released).in_ball(rows.x, self.params.radius)
        return {"second": OuterProduct(clipped, clipped)}

    def receive_second(
        self,
        server: Server,
        sums: Tensors,
        std: Deviations,
    ) -> None:
        """Store the preconditioner ``[d, d]``: the inverse of the second moment plus a ridge.

        Negative eigenvalues, which noise can cause, are set to 0 first.
        """
        second = (sums["second"] + sums["second"].T) / 2
        # The largest eigenvalue that the noise of the symmetric matrix alone would have.
        edge = math.sqrt(2 * self.task.dim) * std["second"]
        least_ridge = LEAST_RIDGE * float(second.trace().clamp_min(1.0)) / self.task.dim
        ridge = self.params.ridge * edge + least_ridge
        server.tensors["preconditioner"] = spectral_function(
            second, lambda values: (values.clamp_min(0) + ridge).reciprocal()
        )

    def server_step(
        self,
        server: Server,
        round_: Round,
        total: Tensors,
    ) -> Values:
        """Take a step along the preconditioned sum, then update the running average."""
        weight = server.model.get_parameter("head.weight")
        step = total["head.weight"] @ server.tensors["preconditioner"]
        with torch.no_grad():
            weight.sub_(step, alpha=self.params.learning_rate * self._decay(round_))
        if self._averages(round_):
            average_step(shared_tensors(server.model), server.tensors)
        return {"parameter_norm": weight.detach().norm()}
