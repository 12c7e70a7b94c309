"""Weight-noise CVAE: FedAvg-CVAE with noise on clipped updates.

The noise is therefore on the weights that a client sends.
"""

from __future__ import annotations

from pydantic import Field

from baselines.fedavg_cvae import FedAvgCVAE, FedAvgCVAEParams
from fedsim.methods import register


class WeightNoiseCVAEParams(FedAvgCVAEParams):
    """Parameters of the weight-noise CVAE: those of FedAvg-CVAE and the clip norm.

    There are fewer rounds, since every round is a release that costs its full price.
    benchmarks/results/choices.md says how the defaults were searched.

    Attributes:
        clip: C, the L2 norm to which each client's update is clipped.
    """

    rounds: int = Field(20, ge=1)
    local_steps: int = Field(50, ge=1)
    encoder_hidden: tuple[int, ...] = (128,)
    beta: float = Field(1.0, ge=0)
    clip: float = Field(30.0, gt=0)


@register("weight-noise")
class WeightNoiseCVAE(FedAvgCVAE):
    """The Gaussian mechanism on clipped updates, over all rounds, with equal client weights.

    One example may turn its client's clipped update into any other, so the sensitivity is 2C,
    without amplification by sampling; a client's presence changes the sum by C (McMahan et al.
    2018, arXiv 1710.06963). The guarantee is proved, whatever the local steps do.
    """

    source = "McMahan et al. 2018, arXiv 1710.06963"
    Params = WeightNoiseCVAEParams
    for_reproduction = True
    private = True
