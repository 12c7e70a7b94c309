"""How good an embedding set is to learn from: a linear probe trained on it, tested on real rows, and the references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score, recall_score

from fedsim.models.probe import fit_probe

if TYPE_CHECKING:
    from fedsim.data.embeddings import Embeddings
    from fedsim.partition import Partition


@dataclass(frozen=True)
class Scores:
    """A probe's test scores, each in [0, 1].

    ``balanced_accuracy`` is the mean recall and ``macro_f1`` the mean F1 over the classes that the test rows hold; a class
    that the probe never predicts counts as 0.
    """

    accuracy: float
    balanced_accuracy: float
    macro_f1: float


@dataclass(frozen=True)
class References:
    """What to read a score against, each a balanced accuracy in [0, 1].

    ``ceiling_balanced_accuracy``: the probe on all real training rows pooled; ``local_only_balanced_accuracy``: the mean
    over clients of probes on each client's own real rows; ``chance``: 1 / classes.
    """

    ceiling_balanced_accuracy: float
    local_only_balanced_accuracy: float
    chance: float


def score_probe(
    x_train: NDArray[np.float32],
    y_train: NDArray[np.int64],
    x_test: NDArray[np.float32],
    y_test: NDArray[np.int64],
    probe_c: float,
) -> Scores:
    """Train the linear probe on (``x_train`` [n, d], ``y_train`` [n]) and score it on (``x_test`` [m, d], ``y_test`` [m]).

    Args:
        x_train: real or synthetic training rows.
        y_train: their labels; classes may be missing, a single class is always predicted.
        x_test: real test rows.
        y_test: their labels.
        probe_c: inverse strength of the probe's L2 penalty.

    Raises:
        ValueError: a training row holds NaN or an infinite value, or there is none.
    """
    predicted = fit_probe(x_train, y_train, probe_c).predict(x_test)
    classes = np.unique(y_test)
    return Scores(
        accuracy=float(np.mean(predicted == y_test)),
        balanced_accuracy=float(recall_score(y_test, predicted, labels=classes, average="macro", zero_division=0)),
        macro_f1=float(f1_score(y_test, predicted, labels=classes, average="macro", zero_division=0)),
    )


def score_clients(
    made: Sequence[tuple[NDArray[np.float32], NDArray[np.int64]]], x_test: NDArray[np.float32], y_test: NDArray[np.int64], probe_c: float
) -> float:
    """Balanced accuracy over all test rows where row i is predicted by the probe of client ``i mod K``.

    Under feature shift that row went through this client's map (:func:`fedsim.partition.shifted`), so each client's probe is tested on rows
    as that client sees them.

    Args:
        made: what each of the K clients' probes is trained on: rows ``[n, d]`` and labels ``[n]``.
        x_test: real test rows ``[m, d]``.
        y_test: their labels ``[m]``.
        probe_c: inverse strength of the probe's L2 penalty.
    """
    predicted = np.empty_like(y_test)
    for client, (x, y) in enumerate(made[: len(y_test)]):
        predicted[client :: len(made)] = fit_probe(x, y, probe_c).predict(x_test[client :: len(made)])
    return float(recall_score(y_test, predicted, labels=np.unique(y_test), average="macro", zero_division=0))


def ceiling(data: Embeddings, probe_c: float) -> float:
    """Balanced accuracy of the probe trained on the pooled real training rows; the same for every partition."""
    return score_probe(data.x_train, data.y_train, data.x_test, data.y_test, probe_c).balanced_accuracy


def local_only(data: Embeddings, partition: Partition, probe_c: float) -> float:
    """Mean over clients of the balanced accuracy of a probe trained on the client's own real rows."""
    return float(
        np.mean(
            [
                score_probe(data.x_train[rows], data.y_train[rows], data.x_test, data.y_test, probe_c).balanced_accuracy
                for rows in partition.rows
                if len(rows)
            ]
        )
    )


def references(data: Embeddings, partition: Partition, probe_c: float) -> References:
    """The references of one partition: ceiling, local-only and chance."""
    return References(ceiling(data, probe_c), local_only(data, partition, probe_c), chance=1 / data.classes)
