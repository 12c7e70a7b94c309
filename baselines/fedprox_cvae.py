"""FedProx-CVAE: FedAvg-CVAE whose local steps are held near the broadcast decoder; not private."""

from __future__ import annotations

from pydantic import Field

from baselines.fedavg_cvae import FedAvgCVAE, FedAvgCVAEParams
from fedsim.plugins.registry import register


class FedProxCVAEParams(FedAvgCVAEParams):
    """As FedAvg-CVAE, with a proximal term."""

    proximal: float = Field(1e-4, ge=0)


@register("fedprox-cvae")
class FedProxCVAE(FedAvgCVAE):
    """FedAvg-CVAE with mu / 2 times the squared distance to the broadcast decoder in every local loss."""

    source = "Li et al. 2020, arXiv 1812.06127; Sohn et al. 2015"
    Params = FedProxCVAEParams
