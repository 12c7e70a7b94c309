"""DP-FedAvg-linear: a linear classifier on the embeddings, no generator, by local DP-SGD or, for unit client, by DP-FedAvg."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from fedsim.algorithm import Server, Tensors
from fedsim.batch import Batch
from fedsim.local_dp_sgd import LocalDPSGD, LocalDPSGDParams
from fedsim.models.linear import LinearClassifier, LinearHead, cross_entropy
from fedsim.registry import register
from fedsim.seeds import Seeds


class DPFedAvgLinearParams(LocalDPSGDParams):
    """Parameters of DP-FedAvg-linear; few steps, since every step pays."""

    rounds: int = Field(30, ge=1)
    local_steps: int = Field(5, ge=1)
    learning_rate: float = Field(0.02, gt=0)


@register("dp-fedavg-linear")
class DPFedAvgLinear(LocalDPSGD):
    """Softmax regression under local DP-SGD (unit example), or with clipped, noised updates (unit client)."""

    source = "McMahan et al. 2018, arXiv 1710.06963; Abadi et al. 2016, arXiv 1607.00133"
    Params = DPFedAvgLinearParams

    def build(self, clients: int) -> nn.Module:
        """The classifier."""
        return LinearHead(self.task.dim, self.task.classes)

    def loss(self, model: Any, batch: Batch) -> Mapping[str, Tensor]:
        """Cross-entropy."""
        return {"cross_entropy": cross_entropy(model(batch.x), batch.y)}

    def classifier(self, server: Server, codes: Tensors, seeds: Seeds) -> LinearClassifier:
        """The averaged classifier."""
        model: Any = server.model
        return model.classifier()
