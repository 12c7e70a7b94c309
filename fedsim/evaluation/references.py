"""What real data reach: the ceiling of pooled rows, and what a client has by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedsim.evaluation.own_rows import own_rows
from fedsim.evaluation.scores import score_classifier
from fedsim.models.linear import ProbeClassifier
from fedsim.models.probe import fit_probe

if TYPE_CHECKING:
    from fedsim.data.embeddings import Embeddings
    from fedsim.partition import Partition, PartitionSpec


STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""Public inverse strengths of the L2 penalty, of which a reference takes the best."""


@dataclass(frozen=True)
class Ceiling:
    """The most that a linear read-out of the pooled real training rows reaches; the same for every partition.

    Attributes:
        balanced_accuracy: of the best of all probes, classes weighed as they are or as if they were equally frequent.
        accuracy: of the best of them for that score.
    """

    balanced_accuracy: float
    accuracy: float


def ceiling(data: Embeddings, probe_c: float) -> Ceiling:
    """The best of the probes at :data:`STRENGTHS` and ``probe_c``; on natural shares alone, none bounds a set of uniform labels."""
    scores = [
        score_classifier(_probe(data, data.x_train, data.y_train, strength, balanced=balanced), data.x_test, data.y_test)
        for strength in _strengths(probe_c)
        for balanced in (False, True)
    ]
    return Ceiling(max(each.balanced_accuracy for each in scores), max(each["accuracy"] for each in scores))


@dataclass(frozen=True)
class LocalOnly:
    """Balanced accuracy of probes that are trained on a client's own real rows each, its classes weighed as if they were equally frequent.

    Attributes:
        mean: over all test rows, the mean over clients.
        clients: each client's over its own test rows; None where it has none.
    """

    mean: float
    clients: tuple[float | None, ...]


def local_only(data: Embeddings, partition: Partition, spec: PartitionSpec, probe_c: float) -> LocalOnly:
    """What every client has by itself, at that of :data:`STRENGTHS` and ``probe_c`` which is the best for their mean."""
    own = own_rows(data, partition, spec).rows
    found = [_by_themselves(data, partition, own, strength) for strength in _strengths(probe_c)]
    return LocalOnly(
        max(each.mean for each in found),
        max((each.clients for each in found), key=lambda scores: sum(score or 0.0 for score in scores)),
    )


def _by_themselves(data: Embeddings, partition: Partition, own: Sequence[NDArray[np.int64]], strength: float) -> LocalOnly:
    everywhere, clients = [], []
    for rows, test in zip(partition.rows, own, strict=True):
        probe = _probe(data, data.x_train[rows], data.y_train[rows], strength, balanced=True)
        everywhere.append(score_classifier(probe, data.x_test, data.y_test).balanced_accuracy)
        clients.append(score_classifier(probe, data.x_test[test], data.y_test[test]).balanced_accuracy if len(test) else None)
    return LocalOnly(float(np.mean(everywhere)), tuple(clients))


def _strengths(probe_c: float) -> list[float]:
    return sorted({*STRENGTHS, probe_c})


def _probe(data: Embeddings, x: NDArray[np.float32], y: NDArray[np.int64], probe_c: float, *, balanced: bool = False) -> ProbeClassifier:
    return ProbeClassifier(fit_probe(x, y, probe_c, balanced=balanced), data.classes)
