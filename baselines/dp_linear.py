"""DP-linear: a linear classifier by federated DP-SGD, on rows about a released mean; no generator.

With ``reencoded`` the weights of the classifier are written as synthetic rows: the mean of a class
lies along its weights, and rows have white noise around it. These rows are no model of the data.
They show what a metric misses: balanced accuracy takes them for good rows, by the linear probe and
by nearest neighbours. Coverage and the Fréchet distance do not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from baselines.fedavg_linear import SoftmaxRegression
from fedsim.methods import (
    DPSGD,
    Deviations,
    DPSGDParams,
    Generator,
    LinearClassifier,
    Phase,
    Server,
    Tensors,
    ZeroLinear,
    load_parameters,
    moments,
    normal,
    overall_mean,
    register,
    statistic_phase,
)

SCALE = 25.0
"""The factor on a row minus the mean.

The scaled row is about ten times as long as 1, the input of the bias. So a clipped gradient has
nearly the direction of the row, whatever the dimension d.
"""


class DPLinearParams(DPSGDParams):
    """Parameters of DP-linear; the defaults were chosen on digits and bloodmnist.

    Attributes:
        mean_share: the share of the budget (in 1 / sigma^2) for the mean. It has no effect with
            ``precondition``, which releases the mean too.
        sample_rate: q, the probability with which each example, or each group with all its
            examples, enters a step. ``most_sampled`` lowers it on large data sets.
        most_sampled: a limit for the expected number of examples, or groups, in a step. The rate
            that is used is ``min(sample_rate, most_sampled / public size)``. The limit is higher
            than in other methods by DP-SGD, because a step of a linear model is fast and steps with
            all rows differ by their noise alone. It has no effect for ``unit: client``.
        clip: C, the clip norm. Nearly every gradient is longer, so all examples count alike.
        reencoded: the share of the synthetic rows' variance about the mean that lies between class
            means. At 0 there are no synthetic rows, and the method yields the classifier.
    """

    mean_share: float = Field(0.1, gt=0, lt=1)
    rounds: int = Field(60, ge=1)
    sample_rate: float = Field(1.0, gt=0, le=1)
    most_sampled: int = Field(65_536, ge=1)
    clip: float = Field(1.0, gt=0, allow_inf_nan=False)
    learning_rate: float = Field(0.03, gt=0)
    reencoded: float = Field(0.0, ge=0, lt=1)


class CentredHead(nn.Module):
    """Softmax regression on :data:`SCALE` times rows minus ``mean``, a constant."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.head = ZeroLinear(dim, classes)
        self.mean = nn.Parameter(torch.zeros(dim), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[N, C]`` of embeddings ``[N, d]``."""
        logits: Tensor = self.head(SCALE * (x - self.mean))
        return logits

    def classifier(self) -> LinearClassifier:
        """Return the trained classifier, for embeddings."""
        weight = SCALE * self.head.weight
        return LinearClassifier(weight, self.head.bias - weight @ self.mean)


@register("dp-linear")
class DPLinear(SoftmaxRegression, DPSGD):
    """DP-linear: releases the mean, then trains a softmax layer on the rows about it.

    It spends the whole budget on one task, so it shows what a generator of the same budget has to
    beat there. Rows of unit norm share a large mean, which says nothing about the class. Without it
    a larger part of a clipped gradient separates classes.
    """

    source = "Abadi et al. 2016, arXiv 1607.00133"
    Params: ClassVar[type[DPLinearParams]] = DPLinearParams

    def build(self, clients: int) -> nn.Module:
        """Return the model of the classifier."""
        return CentredHead(self.task.dim, self.task.classes)

    def phases(self) -> tuple[Phase, ...]:
        """Return the phase of the mean, then DP-SGD.

        With ``precondition`` the phases of the coordinates take the place of the mean.
        """
        *coordinates, sgd = super().phases()
        if coordinates:
            return (*coordinates, sgd)
        share = self.params.mean_share
        statistic = replace(overall_mean(share), receive=receive_mean)
        mean = statistic_phase(statistic, self.clip(), self.task, self.broadcast)
        return (mean, sgd.taking(1 - share))

    @classmethod
    def generates(cls, params: Any = None) -> bool:
        """Return whether the classifier is re-encoded as rows."""
        return bool(params and params.reencoded)

    def generator(self, server: Server) -> Generator:
        """Return a generator of rows that encode the classifier.

        Rows of unit norm have the variance 1 - |mean|^2 about their mean, and so have these rows.
        """
        model: Any = server.model
        mean = model.mean.detach()
        weight = model.classifier().weight
        share = self.params.reencoded
        variance = (1 - mean.square().sum()).clamp_min(0.01)
        centred = weight - weight.mean(0)
        length = centred.square().sum(1).mean().sqrt().clamp_min(1e-12)
        class_means = mean + (share * variance).sqrt() / length * centred
        std = ((1 - share) * variance / len(mean)).sqrt()
        return WhiteGenerator(class_means, std)


def receive_mean(
    server: Server,
    sums: Tensors,
    std: Deviations,
) -> None:
    """Store the released mean in the model, whose parameters are in every later broadcast."""
    load_parameters(server.model, {"mean": moments.released_mean(sums, std).mean})


@dataclass(frozen=True, eq=False)
class WhiteGenerator:
    """A generator of N(mean of the class, std^2 I).

    Attributes:
        means: class means ``[C, d]``.
        std: the standard deviation, a scalar.
    """

    means: Tensor
    std: Tensor

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Return synthetic embeddings ``[n, d]`` for labels ``[n]``."""
        white = normal((len(labels), self.means.shape[1]), stream, labels)
        return self.means[labels] + self.std * white
