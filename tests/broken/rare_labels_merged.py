"""Rows of a label of which a client holds few count for label 0: one more row takes all of them away from it."""

import torch

from baselines.dp_gaussian import DPGaussian
from fedsim.methods.messages import Tensors
from fedsim.methods.one_shot import Rows
from fedsim.privacy.statistics.outer_products import OuterProduct

FEW = 5


class RareLabelsMerged(DPGaussian):
    units = ("example",)

    def moment_products(self, rows: Rows, told: Tensors) -> dict[str, OuterProduct]:
        cell = rows.client * self.task.classes + rows.y
        few = torch.bincount(cell, minlength=self.task.clients * self.task.classes)[cell] < FEW
        return dict(super().moment_products(Rows(rows.x, rows.y.masked_fill(few, 0), rows.client), told))
