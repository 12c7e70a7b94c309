"""A loss of 0: nothing that is released depends on any row, so no pair of neighbours measures anything."""

from collections.abc import Mapping
from typing import Any

from broken.tiny import Tiny
from torch import Tensor

from fedsim.batch import Batch


class LearnsNothing(Tiny):
    def loss(self, model: Any, batch: Batch) -> Mapping[str, Tensor]:
        return {"distance": 0 * super().loss(model, batch)["distance"]}


class LearnsOnlyThatAClientIsThere(Tiny):
    """Every row adds the same, whatever it is."""

    units = ("client",)

    def loss(self, model: Any, batch: Batch) -> Mapping[str, Tensor]:
        return {"distance": (1 + self.decoded(model, 0 * batch.y)).square().sum(1)}
