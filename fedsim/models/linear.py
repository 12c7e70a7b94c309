"""Defines linear classifiers, mixtures of classifiers, and conversions of the linear probe.

The probe (:mod:`fedsim.models.probe`) is a logistic regression on standardised embeddings. Here it
becomes tensors, a classifier, or a linear classifier whose weights contain its standardisation.
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
"""The weights of the local classifier that :func:`best_weight` tries."""
ABSENT = -1e4
"""The logit of a class without a training example; it makes the class's probability 0."""


class LinearHead(nn.Module):
    """A trainable softmax regression on embeddings times sqrt(d).

    Embeddings have unit norm, so the scaled ones have entries of order one.
    """

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.head = ZeroLinear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[N, C]`` of embeddings ``[N, d]``."""
        logits: Tensor = self.head(x * math.sqrt(x.shape[-1]))
        return logits

    def classifier(self) -> LinearClassifier:
        """Return the trained classifier, which reads embeddings without the factor sqrt(d)."""
        weight = self.head.weight * math.sqrt(self.head.in_features)
        return LinearClassifier(weight, self.head.bias)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return -log softmax(logits)[y] of every example, ``[N]``."""
    return torch.nn.functional.cross_entropy(
        logits,
        y,
        reduction="none",
    )


class LinearClassifier:
    """A classifier with probabilities softmax(W x + b), where W is ``[C, d]`` and b is ``[C]``."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight = weight.detach()
        self.bias = bias.detach()

    def probabilities(self, x: Tensor) -> Tensor:
        """Return class probabilities ``[n, C]`` of embeddings ``[n, d]``."""
        logits = x @ self.weight.T + self.bias
        return torch.softmax(logits, -1)


class Interpolated:
    """A classifier whose probabilities are a weighted mean of a local and a shared classifier's.

    Args:
        local: the local classifier.
        shared: the shared classifier.
        weight: the weight of the local one, in [0, 1].
    """

    def __init__(
        self,
        local: LinearClassifier | ProbeClassifier,
        shared: LinearClassifier,
        weight: float,
    ) -> None:
        self.local = local
        self.shared = shared
        self.weight = weight

    def probabilities(self, x: Tensor) -> Tensor:
        """Return class probabilities ``[n, C]`` of embeddings ``[n, d]``."""
        return _mixture(
            self.local.probabilities(x),
            self.shared.probabilities(x),
            self.weight,
        )


def _mixture(
    local: Tensor,
    shared: Tensor,
    weight: float,
) -> Tensor:
    """Return the probabilities ``[n, C]`` with ``weight`` on the local ones."""
    return weight * local + (1 - weight) * shared


class ProbeClassifier:
    """The linear probe as a classifier: it predicts what the evaluation's probe predicts."""

    def __init__(self, probe: Probe, classes: int) -> None:
        self.probe = probe
        self.classes = classes

    def probabilities(self, x: Tensor) -> Tensor:
        """Return class probabilities ``[n, C]`` of embeddings ``[n, d]``.

        The probability of a label that training did not see is 0.
        """
        probabilities = self.probe.probabilities(
            x.cpu().numpy(),
            self.classes,
        )
        return to_device(torch.from_numpy(probabilities).float(), x.device)


def probe_tensors(probe: Probe) -> dict[str, Tensor]:
    """Return the arrays of a probe by name, as tensors that can be sent and stored."""
    return {name: torch.from_numpy(value) for name, value in vars(probe).items()}


def probe_of(tensors: Mapping[str, Tensor]) -> Probe:
    """Undo :func:`probe_tensors`: returns the probe that the tensors describe."""
    arrays = {name: value.cpu().numpy() for name, value in tensors.items()}
    return Probe(**arrays)


class LocalClassifiers:
    """One classifier per client; together they predict the mean of their probabilities."""

    def __init__(
        self, classifiers: Sequence[ProbeClassifier | Interpolated | LinearClassifier]
    ) -> None:
        self.classifiers = classifiers

    def of_client(self, client: int) -> ProbeClassifier | Interpolated | LinearClassifier:
        """Return the classifier of one client."""
        return self.classifiers[client]

    def probabilities(self, x: Tensor) -> Tensor:
        """Return the mean class probabilities ``[n, C]`` of embeddings ``[n, d]``."""
        by_client = [classifier.probabilities(x) for classifier in self.classifiers]
        return torch.stack(by_client).mean(0)


def fit_linear(
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    classes: int,
    probe_c: float,
) -> LinearClassifier:
    """Return the linear probe (:func:`fedsim.models.probe.fit_probe`) as a linear classifier.

    It never predicts a class that is absent from ``y``.

    Args:
        x: embeddings ``[n, d]``.
        y: labels ``[n]``.
        classes: the number of classes C.
        probe_c: the inverse strength of the probe's penalty.

    Raises:
        ValueError: there is no example, or one is not finite.
    """
    return folded(fit_probe(x, y, probe_c), classes)


def folded(probe: Probe, classes: int) -> LinearClassifier:
    """Return a probe as a linear classifier of embeddings that are not standardised.

    Weights and biases of the result contain the probe's standardisation.

    Args:
        probe: the probe; it may lack classes that its training did not have.
        classes: the number of classes C of the result.
    """
    weight = np.zeros((classes, len(probe.mean)))
    bias = np.full(classes, ABSENT)
    bias[probe.classes] = 0.0
    if len(probe.classes) > 1:
        labels = probe.classes
        if len(labels) == 2:
            labels = labels[1:]  # the only coefficients are those of the second class
        weight[labels] = probe.weight.T / probe.scale
        bias[labels] = probe.bias - weight[labels] @ probe.mean
    return LinearClassifier(
        torch.from_numpy(weight).float(),
        torch.from_numpy(bias).float(),
    )


def best_weight(
    local: Tensor,
    shared: Tensor,
    y: Tensor,
    importance: Tensor,
) -> float:
    """Return the weight of ``local`` at which its mixture with ``shared`` is most accurate.

    The weight is one of :data:`TRIED_WEIGHTS`. Among equally good weights it is the smallest.

    Args:
        local: probabilities by the local classifier ``[n, C]``.
        shared: probabilities by the shared classifier ``[n, C]``.
        y: labels ``[n]``.
        importance: the weight of each example in the accuracy ``[n]``.
    """
    best = 0.0
    best_score = -math.inf
    for weight in TRIED_WEIGHTS:
        correct = _mixture(local, shared, weight).argmax(1) == y
        score = float((correct * importance).sum())
        # A score that is higher only by rounding is not better.
        if score > best_score + 1e-9:
            best = weight
            best_score = score
    return best
