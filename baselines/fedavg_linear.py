"""A linear classifier on the embeddings, no generator: by FedAvg, not private, and by local DP-SGD
or, for unit client, DP-FedAvg.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

from pydantic import Field
from torch import Tensor, nn

from fedsim.methods import (
    Batch,
    Classifier,
    LinearHead,
    LocalDPSGD,
    LocalDPSGDParams,
    LocalTraining,
    LocalTrainingParams,
    Server,
    Task,
    cross_entropy,
    register,
)


class FedAvgLinearParams(LocalTrainingParams):
    """Parameters of FedAvg-linear."""

    rounds: int = Field(100, ge=1)
    local_steps: int = Field(10, ge=1)
    learning_rate: float = Field(0.002, gt=0)


class SoftmaxRegression:
    """The model, the loss and the outcome that federated linear classifiers share; how they train
    is their base class's.
    """

    task: Task

    def build(self, clients: int) -> nn.Module:
        """The classifier."""
        return LinearHead(self.task.dim, self.task.classes)

    def loss(self, model: Any, batch: Batch) -> Mapping[str, Tensor]:
        """Cross-entropy."""
        return {"cross_entropy": cross_entropy(model(batch.x), batch.y)}

    def classifier(self, server: Server) -> Classifier:
        """The averaged classifier."""
        return cast(LinearHead, server.model).classifier()


@register("fedavg-linear")
class FedAvgLinear(SoftmaxRegression, LocalTraining):
    """FedAvg-linear: a linear classifier by FedAvg; local steps and an average of the updates; not
    private.
    """

    source = "McMahan et al. 2017, arXiv 1602.05629"
    Params: ClassVar[type[FedAvgLinearParams]] = FedAvgLinearParams
    private = False


class DPFedAvgLinearParams(LocalDPSGDParams):
    """Parameters of DP-FedAvg-linear; few steps, since every step pays."""

    rounds: int = Field(30, ge=1)
    local_steps: int = Field(5, ge=1)
    learning_rate: float = Field(0.02, gt=0)


@register("dp-fedavg-linear")
class DPFedAvgLinear(SoftmaxRegression, LocalDPSGD):
    """DP-FedAvg-linear: a linear classifier by local DP-SGD; for unit client with clipped, noised
    updates.
    """

    source = "McMahan et al. 2018, arXiv 1710.06963; Abadi et al. 2016, arXiv 1607.00133"
    Params = DPFedAvgLinearParams
