"""What real data reach: the ceiling of pooled rows, and what a client has by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedsim.evaluation.measures import balanced_accuracy_of
from fedsim.evaluation.scores import score_classifier
from fedsim.models.linear import ProbeClassifier
from fedsim.models.probe import fit_probes, predict_each, strengths
from fedsim.partition.seen import own_rows

if TYPE_CHECKING:
    from fedsim.data.embeddings import Embeddings
    from fedsim.partition import Partition, PartitionSpec


@dataclass(frozen=True)
class Ceiling:
    """The most that a linear read-out of the pooled real training rows reaches; the same for every partition.

    Each score is of the probe that is the best for it, classes weighed as they are or as if they were equally frequent.
    """

    balanced_accuracy: float
    accuracy: float


def ceiling(data: Embeddings, probe_c: float | None) -> Ceiling:
    """The best of the probes at all :func:`strengths` and ``probe_c``; on natural shares alone, none bounds a set of uniform labels."""
    scores = [
        score_classifier(ProbeClassifier(probe, data.classes), data.x_test, data.y_test)
        for balanced in (False, True)
        for probe in fit_probes(data.x_train, data.y_train, _tried(data.dim, probe_c), balanced=balanced)
    ]
    return Ceiling(max(scored.balanced_accuracy for scored in scores), max(scored["accuracy"] for scored in scores))


@dataclass(frozen=True)
class LocalOnly:
    """Balanced accuracy of probes that are trained on a client's own real rows each, its classes weighed as if they were equally frequent.

    The mean over clients is over all test rows; each client's is over its own ones, None where it has none.
    """

    mean: float
    clients: tuple[float | None, ...]


def local_only(data: Embeddings, partition: Partition, spec: PartitionSpec, probe_c: float | None) -> LocalOnly:
    """What every client has by itself, at that of all :func:`strengths` and ``probe_c`` which is the best for their mean."""
    own, tried = own_rows(data, partition, spec).rows, _tried(data.dim, probe_c)
    by_client = [_by_itself(data, rows, test, tried) for rows, test in zip(partition.rows, own, strict=True)]
    by_strength = [tuple(zip(*scores, strict=True)) for scores in zip(*by_client, strict=True)]
    return LocalOnly(
        max(float(np.mean(everywhere)) for everywhere, _ in by_strength),
        max((clients for _, clients in by_strength), key=lambda scores: sum(score or 0.0 for score in scores)),
    )


def _by_itself(
    data: Embeddings, rows: NDArray[np.int64], own: NDArray[np.int64], tried: Sequence[float]
) -> list[tuple[float, float | None]]:
    """Balanced accuracy over all test rows and over a client's own, at each strength, of a probe of the client's rows."""
    probes, y = list(fit_probes(data.x_train[rows], data.y_train[rows], tried, balanced=True)), data.y_test
    return [
        (balanced_accuracy_of(y, predicted), balanced_accuracy_of(y[own], predicted[own]) if len(own) else None)
        for predicted in predict_each(probes, data.x_test)
    ]


def _tried(dim: int, probe_c: float | None) -> list[float]:
    return sorted({*strengths(dim), probe_c or strengths(dim)[0]})
