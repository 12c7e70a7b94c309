"""Large entries of all clients' rows, as they are joined for a statistic, are cut in place."""

from collections.abc import Mapping

from baselines.dp_gaussian import DPGaussian
from fedsim.methods.messages import Tensors
from fedsim.methods.one_shot import Rows
from fedsim.privacy.statistics.outer_products import OuterProduct


class JoinedRowsChanged(DPGaussian):
    units = ("example",)

    def moment_products(self, rows: Rows, told: Tensors) -> Mapping[str, OuterProduct]:
        rows.x.clamp_(max=0.2)
        return super().moment_products(rows, told)
