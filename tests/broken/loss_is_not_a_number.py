"""A part of the loss is the logarithm of a negative number."""

from collections.abc import Mapping
from typing import Any

from broken.tiny import Tiny
from torch import Tensor

from fedsim.batch import Batch


class LossIsNotANumber(Tiny):
    def loss(self, model: Any, batch: Batch) -> Mapping[str, Tensor]:
        return {"likelihood": (-1 - super().loss(model, batch)["distance"]).log()}
