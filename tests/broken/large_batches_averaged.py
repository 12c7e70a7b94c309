"""A batch of more than 64 rows counts as 64."""

from collections.abc import Mapping
from typing import Any

from broken.tiny import Tiny
from torch import Tensor

from fedsim.batch import Batch

MANY = 64


class LargeBatchesAveraged(Tiny):
    def loss(self, model: Any, batch: Batch) -> Mapping[str, Tensor]:
        return {"distance": super().loss(model, batch)["distance"] * min(1.0, MANY / max(len(batch), 1))}
