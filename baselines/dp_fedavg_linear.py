"""DP-FedAvg-linear: a linear classifier by local DP-SGD; for unit client by DP-FedAvg."""

from __future__ import annotations

from pydantic import Field

from baselines.fedavg_linear import SoftmaxRegression
from fedsim.methods import LocalDPSGD, LocalDPSGDParams, register


class DPFedAvgLinearParams(LocalDPSGDParams):
    """Parameters of DP-FedAvg-linear; few steps, since every step pays."""

    rounds: int = Field(30, ge=1)
    local_steps: int = Field(5, ge=1)
    learning_rate: float = Field(0.02, gt=0)


@register("dp-fedavg-linear")
class DPFedAvgLinear(SoftmaxRegression, LocalDPSGD):
    """Softmax regression under local DP-SGD (unit example), or with clipped, noised updates (unit client)."""

    source = "McMahan et al. 2018, arXiv 1710.06963; Abadi et al. 2016, arXiv 1607.00133"
    Params = DPFedAvgLinearParams
