"""FedAvg-linear: a linear classifier by FedAvg; no generator; not private."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

from pydantic import Field
from torch import Tensor, nn

from fedsim.methods import Batch, Classifier, LinearHead, LocalTraining, LocalTrainingParams, Server, Task, cross_entropy, register


class FedAvgLinearParams(LocalTrainingParams):
    """Parameters of FedAvg-linear."""

    rounds: int = Field(100, ge=1)
    local_steps: int = Field(10, ge=1)
    learning_rate: float = Field(0.002, gt=0)


class SoftmaxRegression:
    """The model, the loss and the outcome that federated linear classifiers share; how they train is their base class's."""

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
    """Softmax regression with local steps and an average of the updates."""

    source = "McMahan et al. 2017, arXiv 1602.05629"
    Params: ClassVar[type[FedAvgLinearParams]] = FedAvgLinearParams
    private = False
