"""Of a client's rows those after the first 150 count for nothing: one more row at the front pushes out another."""

import torch

from baselines.dp_gaussian import DPGaussian
from fedsim.methods.messages import Tensors
from fedsim.methods.one_shot import Rows
from fedsim.privacy.statistics.outer_products import OuterProduct

MOST = 150


class ClientsCapped(DPGaussian):
    units = ("example",)

    def moment_products(self, rows: Rows, told: Tensors) -> dict[str, OuterProduct]:
        starts = torch.searchsorted(rows.client, rows.client)
        kept = (torch.arange(len(rows.y)) - starts < MOST)[:, None]
        return {name: OuterProduct(product.left * kept, product.right) for name, product in super().moment_products(rows, told).items()}
