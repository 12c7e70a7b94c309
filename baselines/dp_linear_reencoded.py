"""DP-linear, re-encoded: a classifier's weights written as synthetic rows; a control that shows what a measure cannot see."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from baselines.dp_linear import CentredSoftmaxRegression, DPLinearParams
from fedsim.device import normal
from fedsim.methods.messages import Server
from fedsim.methods.products import Generator
from fedsim.plugins.registry import register


class DPLinearReencodedParams(DPLinearParams):
    """Parameters of DP-linear, re-encoded.

    Attributes:
        between: share of the rows' variance about the mean that lies between class means; the rest is white.
    """

    between: float = Field(0.3, gt=0, lt=1)


@register("dp-linear-reencoded")
class DPLinearReencoded(CentredSoftmaxRegression):
    """Class means along DP-linear's weights, with white noise around them: a linear probe loves it, and it is no model of the data.

    It stands beside the generators so that everybody sees what a measure misses: where it scores high, the measure reads a classifier off
    the rows and says nothing of whether they are like real ones. Balanced accuracy is such a measure, by the linear probe and by nearest
    neighbours alike; coverage and the Fréchet distance are not.
    """

    Params: ClassVar[type[DPLinearReencodedParams]] = DPLinearReencodedParams

    def generator(self, server: Server) -> Generator:
        """From the mean of the later iterates; rows get the variance that unit norm leaves about the released mean."""
        model: Any = server.model
        mean, weight = model.mean.detach(), model.classifier().weight
        variance = (1 - mean.square().sum()).clamp_min(0.01)
        apart = weight - weight.mean(0)
        size = apart.square().sum(1).mean().sqrt().clamp_min(1e-12)
        between = self.params.between
        return WhiteGenerator(mean + (between * variance).sqrt() / size * apart, ((1 - between) * variance / len(mean)).sqrt())


class WhiteGenerator:
    """Samples from N(mean of the class, std^2 I)."""

    def __init__(self, means: Tensor, std: Tensor) -> None:
        self.means, self.std = means, std

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Synthetic embeddings ``[n, d]``."""
        return self.means[labels] + self.std * normal((len(labels), self.means.shape[1]), stream, labels)
