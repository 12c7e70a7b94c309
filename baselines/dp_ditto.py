"""DP-Ditto: Ditto by local DP-SGD; what is shared and what stays with a client are under noise.

An example's gradient by both classifiers is clipped jointly to C; its client adds noise to both, local noise for its own classifier.
Each step is one Poisson-subsampled Gaussian mechanism of both parts, so own classifiers, too, follow from noisy steps alone: proved.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from baselines.ditto import PersonalSoftmaxRegression
from fedsim.methods import LocalDPSGD, LocalDPSGDParams, Unit, register


class DPDittoParams(LocalDPSGDParams):
    """Parameters of DP-Ditto: those of dp-fedavg-linear, and Ditto's.

    Attributes:
        own_proximal: lambda, the weight of half the squared distance of a client's own classifier from the broadcast one.
    """

    rounds: int = Field(30, ge=1)
    local_steps: int = Field(5, ge=1)
    learning_rate: float = Field(0.02, gt=0)
    own_proximal: float = Field(0.1, ge=0)


@register("dp-ditto")
class DPDitto(PersonalSoftmaxRegression, LocalDPSGD):
    """DP-FedAvg's classifier, and one a client, under one clip."""

    source = "Li, Hu, Beirami and Smith 2021, arXiv 2012.04221; Abadi et al. 2016, arXiv 1607.00133"
    Params = DPDittoParams
    units: ClassVar[tuple[Unit, ...]] = ("example", "group")
