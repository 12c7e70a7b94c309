"""A hypernetwork makes one weight set for the whole batch, from the mean of its rows' codes."""

from collections.abc import Mapping
from typing import Any

from broken.tiny import Tiny
from torch import Tensor, nn

from fedsim.batch import Batch
from fedsim.models.layers import ClientCode, one_hot

CODE = 2


class HypernetworkOverBatch(Tiny):
    def build(self, clients: int) -> nn.Module:
        model: Any = super().build(clients)
        model["code"] = ClientCode(clients, CODE)
        model["hyper"] = nn.Linear(CODE, self.task.classes * self.task.dim)
        return model

    def loss(self, model: Any, batch: Batch) -> Mapping[str, Tensor]:
        weights = model["hyper"](model["code"](batch.layout).mean(0, keepdim=True)).view(self.task.classes, self.task.dim)
        decoded = self.decoded(model, batch.y) + one_hot(batch.y, self.task.classes) @ weights
        return {"distance": (batch.x - decoded).square().sum(1)}
