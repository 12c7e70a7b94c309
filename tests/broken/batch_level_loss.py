"""The loss has a statistic of the whole batch: an MMD between the batch's rows and their prototypes."""

from collections.abc import Mapping
from typing import Any

from broken.tiny import Tiny
from torch import Tensor

from fedsim.batch import Batch


class BatchLevelLoss(Tiny):
    def loss(self, model: Any, batch: Batch) -> Mapping[str, Tensor]:
        mean_distance = (batch.x - self.decoded(model, batch.y)).mean(0).square().sum()
        return {**super().loss(model, batch), "mmd": mean_distance.expand(len(batch))}
