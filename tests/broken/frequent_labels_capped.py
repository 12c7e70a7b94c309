"""Rows of a label of which a client holds many share what a few would add: one more row makes all others less."""

import torch

from baselines.dp_gaussian import DPGaussian
from fedsim.methods.messages import Tensors
from fedsim.methods.one_shot import Rows
from fedsim.privacy.statistics.outer_products import OuterProduct

MANY = 10


class FrequentLabelsCapped(DPGaussian):
    units = ("example",)

    def moment_products(self, rows: Rows, told: Tensors) -> dict[str, OuterProduct]:
        cell = rows.client * self.task.classes + rows.y
        share = (MANY / torch.bincount(cell, minlength=self.task.clients * self.task.classes)[cell]).clamp_max(1)[:, None]
        return {name: OuterProduct(product.left * share, product.right) for name, product in super().moment_products(rows, told).items()}
