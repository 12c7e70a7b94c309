"""Rows are told in units of the spread of the first batch that the process saw, as ActNorm starts; a public scale has no such trait."""

from collections.abc import Mapping

import torch
from broken.tiny import Tiny
from torch import Tensor

from fedsim.batch import Batch

START: list[Tensor] = []


class ScaledByAConstant(Tiny):
    """The sound twin."""

    def scale(self, x: Tensor) -> Tensor:
        return torch.full((self.task.dim,), 4.0)

    def loss(self, model, batch: Batch) -> Mapping[str, Tensor]:
        told = batch.x * self.scale(batch.x)
        return {"distance": (told - self.decoded(model, batch.y)).square().sum(1)}


class ScaledByTheFirstBatch(ScaledByAConstant):
    def scale(self, x: Tensor) -> Tensor:
        if not START and len(x) > 1:
            START.append(1 / (x.detach().std(0) + 0.1))
        return START[0] if START else super().scale(x)
