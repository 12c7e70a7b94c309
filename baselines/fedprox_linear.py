"""FedProx-linear: FedAvg-linear whose local steps are held near the broadcast classifier; not private."""

from __future__ import annotations

from pydantic import Field

from baselines.fedavg_linear import FedAvgLinear, FedAvgLinearParams
from fedsim.plugins.registry import register


class FedProxLinearParams(FedAvgLinearParams):
    """As FedAvg-linear, with a proximal term."""

    proximal: float = Field(1.0, ge=0)


@register("fedprox-linear")
class FedProxLinear(FedAvgLinear):
    """Softmax regression with mu / 2 times the squared distance to the broadcast classifier in every local loss."""

    source = "Li et al. 2020, arXiv 1812.06127"
    Params = FedProxLinearParams
