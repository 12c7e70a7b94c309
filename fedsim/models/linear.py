"""Linear classifiers as tensors: what the federated classifiers yield, and the probe's weights in
that form.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsim.device import to_device
from fedsim.models.layers import ZeroLinear
from fedsim.models.probe import Probe, fit_probe

TRIED_WEIGHTS = tuple(step / 10 for step in range(11))
"""The weights of the local classifier that are tried."""
ABSENT = -1e4
"""The logit of a class without a training row: no chance."""


class LinearHead(nn.Module):
    """Softmax regression in training: logits from unit-norm rows times sqrt(d), whose entries are
    of order one.
    """

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.head = ZeroLinear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, C]`` of embeddings ``[N, d]``."""
        logits: Tensor = self.head(x * math.sqrt(x.shape[-1]))
        return logits

    def classifier(self) -> LinearClassifier:
        """What it has become, for plain embeddings."""
        return LinearClassifier(self.head.weight * math.sqrt(self.head.in_features), self.head.bias)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-log softmax(logits)[y] per example, ``[N]``."""
    return torch.nn.functional.cross_entropy(logits, y, reduction="none")


class LinearClassifier:
    """Class probabilities softmax(W x + b), with W ``[C, d]`` and b ``[C]``."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight = weight.detach()
        self.bias = bias.detach()

    def probabilities(self, x: Tensor) -> Tensor:
        """``[n, C]`` for embeddings ``[n, d]``."""
        return torch.softmax(x @ self.weight.T + self.bias, -1)


class Interpolated:
    """``weight`` times one classifier's probabilities plus the rest times another's."""

    def __init__(
        self, local: LinearClassifier | ProbeClassifier, shared: LinearClassifier, weight: float
    ) -> None:
        self.local = local
        self.shared = shared
        self.weight = weight

    def probabilities(self, x: Tensor) -> Tensor:
        """``[n, C]`` for embeddings ``[n, d]``."""
        return self.weight * self.local.probabilities(x) + (
            1 - self.weight
        ) * self.shared.probabilities(x)


class ProbeClassifier:
    """The linear probe itself: it predicts what the evaluation's probe predicts, of C
    ``classes``.
    """

    def __init__(self, probe: Probe, classes: int) -> None:
        self.probe = probe
        self.classes = classes

    def probabilities(self, x: Tensor) -> Tensor:
        """``[n, C]`` for embeddings ``[n, d]``; 0 for labels not seen in training."""
        return to_device(
            torch.from_numpy(self.probe.probabilities(x.cpu().numpy(), self.classes)).float(),
            x.device,
        )


def probe_tensors(probe: Probe) -> dict[str, Tensor]:
    """A probe's numbers by name, as they travel and are kept."""
    return {name: torch.from_numpy(value) for name, value in vars(probe).items()}


def probe_of(tensors: Mapping[str, Tensor]) -> Probe:
    """The probe of :func:`probe_tensors`."""
    return Probe(**{name: value.cpu().numpy() for name, value in tensors.items()})


class LocalClassifiers:
    """A classifier for every client; as a whole, the mean of their probabilities."""

    def __init__(self, own: Sequence[ProbeClassifier | Interpolated | LinearClassifier]) -> None:
        self.own = own

    def of_client(self, client: int) -> ProbeClassifier | Interpolated | LinearClassifier:
        """The client's own."""
        return self.own[client]

    def probabilities(self, x: Tensor) -> Tensor:
        """``[n, C]`` for embeddings ``[n, d]``."""
        return torch.stack([each.probabilities(x) for each in self.own]).mean(0)


def fit_linear(
    x: NDArray[np.float32], y: NDArray[np.int64], classes: int, probe_c: float
) -> LinearClassifier:
    """The linear probe of rows ``[n, d]`` (:func:`fedsim.models.probe.fit_probe`), :func:`folded`;
    absent classes are never predicted.
    """
    return folded(fit_probe(x, y, probe_c), classes)


def folded(probe: Probe, classes: int) -> LinearClassifier:
    """A probe with its standardisation folded into weights and biases."""
    weight = np.zeros((classes, len(probe.mean)))
    bias = np.full(classes, ABSENT)
    bias[probe.classes] = 0.0
    if len(probe.classes) > 1:
        if len(probe.classes) > 2:
            of_classes = probe.classes
        else:
            of_classes = probe.classes[1:]  # two classes share one row of coefficients
        weight[of_classes] = probe.weight.T / probe.scale
        bias[of_classes] = probe.bias - weight[of_classes] @ probe.mean
    return LinearClassifier(torch.from_numpy(weight).float(), torch.from_numpy(bias).float())


def best_weight(local: Tensor, shared: Tensor, y: Tensor, importance: Tensor) -> float:
    """The weight of ``local`` among :data:`TRIED_WEIGHTS` whose mixture has the best weighted
    accuracy; the smallest of equals.

    Of probabilities ``[n, C]`` of both, labels y ``[n]``, and the importance of each row ``[n]``.
    """
    best = 0.0
    best_score = -math.inf
    for weight in TRIED_WEIGHTS:
        right = (weight * local + (1 - weight) * shared).argmax(1) == y
        score = float((right * importance).sum())
        if score > best_score + 1e-9:
            best = weight
            best_score = score
    return best
