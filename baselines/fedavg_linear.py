"""Linear classifiers on the embeddings by FedAvg; no generator.

FedAvg-linear is not private. DP-FedAvg-linear trains by local DP-SGD. For ``unit: client`` it
trains by DP-FedAvg, which clips each client's update and adds noise.
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

    rounds: int = Field(200, ge=1)
    local_steps: int = Field(10, ge=1)
    learning_rate: float = Field(0.001, gt=0)


class SoftmaxRegression:
    """The model, the loss and the classifier that federated linear classifiers share.

    The training comes from a second base class of each method. A subclass may build another model;
    it must have a method ``classifier``.
    """

    task: Task

    def build(self, clients: int) -> nn.Module:
        """Return the model of the classifier."""
        return LinearHead(self.task.dim, self.task.classes)

    def loss(self, model: Any, batch: Batch) -> Mapping[str, Tensor]:
        """Return the cross-entropy of each example, ``[N]``."""
        return {"cross_entropy": cross_entropy(model(batch.x), batch.y)}

    def classifier(self, server: Server) -> Classifier:
        """Return the trained classifier."""
        return cast(LinearHead, server.model).classifier()


@register("fedavg-linear")
class FedAvgLinear(SoftmaxRegression, LocalTraining):
    """FedAvg-linear: a linear classifier by FedAvg; not private.

    Clients take local steps and the server averages their updates.
    """

    source = "McMahan et al. 2017, arXiv 1602.05629"
    Params: ClassVar[type[FedAvgLinearParams]] = FedAvgLinearParams
    private = False


class DPFedAvgLinearParams(LocalDPSGDParams):
    """Parameters of DP-FedAvg-linear, with few steps, since every step costs privacy."""

    rounds: int = Field(60, ge=1)
    local_steps: int = Field(10, ge=1)
    learning_rate: float = Field(0.02, gt=0)
    clip: float = Field(0.3, gt=0)


@register("dp-fedavg-linear")
class DPFedAvgLinear(SoftmaxRegression, LocalDPSGD):
    """DP-FedAvg-linear: a linear classifier by local DP-SGD.

    For ``unit: client`` it clips each client's update and adds noise to the sum of updates instead.
    """

    source = "McMahan et al. 2018, arXiv 1710.06963; Abadi et al. 2016, arXiv 1607.00133"
    Params = DPFedAvgLinearParams
