"""DP-linear: a linear classifier by federated DP-SGD; over rows about a released mean; no
generator.

With ``reencoded`` its weights are written as synthetic rows: class means along them, with white
noise around. They are no model of the data, and show what a measure misses: balanced accuracy, by
the linear probe and by nearest neighbours, takes them for good rows; coverage and the Fréchet
distance do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from fedsim.methods import (
    DPSGD,
    Batch,
    Classifier,
    DPSGDParams,
    Generator,
    LinearClassifier,
    Phase,
    Server,
    Tensors,
    ZeroLinear,
    cross_entropy,
    load_parameters,
    moments,
    normal,
    overall_mean,
    register,
    statistic_phase,
)

SCALE = 25.0
"""Makes a row about the mean some ten times as long as the bias's input, so that a clipped gradient
is a row's direction for any d.
"""


class DPLinearParams(DPSGDParams):
    """Parameters of DP-linear; the defaults were chosen on digits and bloodmnist.

    Attributes:
        mean_share: share of the budget (in 1 / sigma^2) that the mean takes.
        sample_rate: q; with all rows in every step, noise is all that makes steps differ.
        clip: C. Nearly every gradient is longer, so that all examples count alike.
        reencoded: share of synthetic rows' variance about the mean that lies between class means;
            0: no rows, the classifier itself.
    """

    mean_share: float = Field(0.1, gt=0, lt=1)
    rounds: int = Field(60, ge=1)
    sample_rate: float = Field(1.0, gt=0, le=1)
    clip: float = Field(1.0, gt=0, allow_inf_nan=False)
    learning_rate: float = Field(0.03, gt=0)
    reencoded: float = Field(0.0, ge=0, lt=1)


class CentredHead(nn.Module):
    """Softmax regression on :data:`SCALE` times rows about ``mean``, which is set and not
    trained.
    """

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.head = ZeroLinear(dim, classes)
        self.mean = nn.Parameter(torch.zeros(dim), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, C]`` of embeddings ``[N, d]``."""
        logits: Tensor = self.head(SCALE * (x - self.mean))
        return logits

    def classifier(self) -> LinearClassifier:
        """What it has become, for plain embeddings."""
        weight = SCALE * self.head.weight
        return LinearClassifier(weight, self.head.bias - weight @ self.mean)


@register("dp-linear")
class DPLinear(DPSGD):
    """Releases the mean, then trains a softmax layer on the rows about it: what a generator of the
    same budget has to beat for one task.

    Rows of unit norm share a large mean. About it they are short, so that of a clipped gradient
    more tells classes apart.
    """

    source = "Abadi et al. 2016, arXiv 1607.00133"
    Params: ClassVar[type[DPLinearParams]] = DPLinearParams

    def build(self, clients: int) -> nn.Module:
        """The classifier."""
        return CentredHead(self.task.dim, self.task.classes)

    def loss(self, model: Any, batch: Batch) -> Mapping[str, Tensor]:
        """Cross-entropy."""
        return {"cross_entropy": cross_entropy(model(batch.x), batch.y)}

    def phases(self) -> tuple[Phase, ...]:
        """The mean, or with ``precondition`` coordinates; then DP-SGD."""
        *coordinates, sgd = super().phases()
        if coordinates:
            return (*coordinates, sgd)
        share = self.params.mean_share
        mean = statistic_phase(
            replace(overall_mean(share), receive=receive_mean),
            self.clip(),
            self.task,
            self.broadcast,
        )
        return (mean, sgd.taking(1 - share))

    @classmethod
    def generates(cls, params: Any = None) -> bool:
        """Where it is re-encoded."""
        return bool(params and params.reencoded)

    def classifier(self, server: Server) -> Classifier:
        """The mean of the later iterates."""
        return cast(CentredHead, server.model).classifier()

    def generator(self, server: Server) -> Generator:
        """The same as rows, which get the variance that unit norm leaves about the released
        mean.
        """
        model: Any = server.model
        mean = model.mean.detach()
        weight = model.classifier().weight
        between = self.params.reencoded
        variance = (1 - mean.square().sum()).clamp_min(0.01)
        apart = weight - weight.mean(0)
        size = apart.square().sum(1).mean().sqrt().clamp_min(1e-12)
        return WhiteGenerator(
            mean + (between * variance).sqrt() / size * apart,
            ((1 - between) * variance / len(mean)).sqrt(),
        )


def receive_mean(server: Server, sums: Tensors, std: Mapping[str, float]) -> None:
    """Put the released mean into the model, whose parameters every later broadcast carries."""
    load_parameters(server.model, {"mean": moments.released_mean(sums, std).mean})


class WhiteGenerator:
    """Samples from N(mean of the class, std^2 I)."""

    def __init__(self, means: Tensor, std: Tensor) -> None:
        self.means = means
        self.std = std

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Synthetic embeddings ``[n, d]``."""
        return self.means[labels] + self.std * normal(
            (len(labels), self.means.shape[1]), stream, labels
        )
