"""How good embeddings are to learn from: predictions become scores; and what real data reach, the
ceiling and each client by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.data.embeddings import Embeddings
from fedsim.device import CPU, to_device
from fedsim.evaluation.measures import (
    MEASURES,
    Predictions,
    accuracy,
    balanced_accuracy,
    balanced_accuracy_of,
    recalls,
)
from fedsim.methods.products import Classifier
from fedsim.models.linear import ProbeClassifier
from fedsim.models.probe import Probe, fit_probes, predict_each, strengths
from fedsim.partition import Partition, PartitionSpec, own_rows


class Scores(dict[str, float]):
    """Numbers by the name of their measure (:data:`fedsim.evaluation.measures.MEASURES`)."""

    @property
    def balanced_accuracy(self) -> float:
        """The one that curves are drawn of."""
        return self["balanced_accuracy"]


def scores_of(predictions: Predictions, of: Literal["all", "personal"] = "all") -> Scores:
    """Every measure of one kind of predictions that they have."""
    scored = {
        name: measure.score(predictions)
        for name, measure in MEASURES.items()
        if measure.of == of and measure.score
    }
    return Scores({name: score for name, score in scored.items() if score is not None})


def at_shares(predictions: Predictions, shares: NDArray[np.float64] | None) -> Predictions:
    """What is predicted where labels are as frequent as ``shares`` ``[C]`` say, by a classifier
    that was trained on uniform ones.

    Its probabilities times the shares, as Bayes' rule has it (Saerens, Latinne and Decaestecker
    2002, equation 4): no second fit.
    """
    if shares is None:
        return predictions
    return replace(predictions, predicted=(predictions.probabilities * shares).argmax(1))


def scores_with(predictions: Predictions, shares: NDArray[np.float64] | None) -> Scores:
    """Every measure of one predictor on uniform labels, but plain accuracy with labels as frequent
    as ``shares``.
    """
    return Scores(scores_of(predictions), accuracy=accuracy(at_shares(predictions, shares)))


def mean_scores(of: Sequence[Scores]) -> Scores:
    """The mean of every score; empty where there are none."""
    if not of:
        return Scores()
    return Scores({name: float(np.mean([scores[name] for scores in of])) for name in of[0]})


def recall_per_class(predicted: Sequence[Predictions], classes: int) -> tuple[float | None, ...]:
    """The recall of every class, the mean over the predictors; None for a class without a test
    row.
    """
    by_class: list[float | None] = [None] * classes
    for label, recall in zip(
        predicted[0].held.tolist(),
        np.mean([recalls(predictions) for predictions in predicted], axis=0),
        strict=True,
    ):
        by_class[label] = float(recall)
    return tuple(by_class)


def scores_of_clients(own: Sequence[Scores | None], shared: Sequence[Scores | None]) -> Scores:
    """Mean over clients, the worst client and the spread (largest less smallest) of the balanced
    accuracy by what is their own.

    None for a client without a test row, and by what is ``shared`` also where nothing is.
    """
    owned, alike = (
        [scores.balanced_accuracy for scores in part if scores is not None]
        for part in (own, shared)
    )
    if not owned:
        return Scores()
    summary = Scores(
        client_balanced_accuracy=float(np.mean(owned)),
        client_worst_balanced_accuracy=min(owned),
        client_spread=max(owned) - min(owned),
    )
    if alike:
        return Scores(summary, client_shared_balanced_accuracy=float(np.mean(alike)))
    return summary


def personal_scores(clients: Sequence[Predictions]) -> Scores:
    """Means over clients of how well every one predicts rows as it sees them, its labels as
    frequent as with it.

    A client that holds no class of its test rows has no score.
    """
    return mean_scores(
        [scores_of(predictions, "personal") for predictions in clients if len(predictions.held)]
    )


def probe_predictions(
    probe: Probe, x_test: NDArray[np.float32], y_test: NDArray[np.int64], classes: int
) -> Predictions:
    """What a probe predicts of real test rows ``[m, d]`` with labels ``[m]``."""
    return Predictions(y_test, probe.predict(x_test), probe.probabilities(x_test, classes))


def predictions_of(
    probabilities: Tensor, y: NDArray[np.int64], shares: NDArray[np.float64] | None = None
) -> Predictions:
    """A classifier's predictions of rows with labels ``y`` [m], from its probabilities ``[m, C]``;
    ``shares`` are its client's.
    """
    known = probabilities.cpu()
    return Predictions(y, known.argmax(1).numpy(), known.numpy(), shares)


def score_classifier(
    made: Classifier,
    x_test: NDArray[np.float32],
    y_test: NDArray[np.int64],
    device: torch.device = CPU,
    shares: NDArray[np.float64] | None = None,
) -> Scores:
    """The scores of a classifier on ``device`` over real test rows ``[m, d]`` with labels ``[m]``;
    ``shares`` as in :func:`at_shares`.
    """
    return scores_with(
        predictions_of(made.probabilities(to_device(torch.from_numpy(x_test), device)), y_test),
        shares,
    )


@dataclass(frozen=True)
class Ceiling:
    """The most that a linear read-out of the pooled real training rows reaches; the same for every
    partition.

    Each score is of the probe that is the best for it, classes weighed as they are or as if they
    were equally frequent.
    """

    balanced_accuracy: float
    accuracy: float


def ceiling(data: Embeddings, probe_c: float | None) -> Ceiling:
    """The best of the probes at all :func:`strengths` and ``probe_c``; on natural shares alone,
    none bounds a set of uniform labels.
    """
    predicted = [
        predictions_of(
            ProbeClassifier(probe, data.classes).probabilities(torch.from_numpy(data.x_test)),
            data.y_test,
        )
        for balanced in (False, True)
        for probe in fit_probes(
            data.x_train, data.y_train, _tried(data.dim, probe_c), balanced=balanced
        )
    ]
    return Ceiling(max(map(balanced_accuracy, predicted)), max(map(accuracy, predicted)))


@dataclass(frozen=True)
class LocalOnly:
    """Balanced accuracy of probes that are trained on a client's own real rows each, its classes
    weighed as if they were equally frequent.

    The mean over clients is over all test rows; each client's is over its own ones, None where it
    has none.
    """

    mean: float
    clients: tuple[float | None, ...]


def local_only(
    data: Embeddings, partition: Partition, spec: PartitionSpec, probe_c: float | None
) -> LocalOnly:
    """What every client has by itself, at that of all :func:`strengths` and ``probe_c`` which is
    the best for their mean.
    """
    own = own_rows(data, partition, spec).rows
    tried = _tried(data.dim, probe_c)
    by_client = [
        _by_itself(data, rows, test, tried) for rows, test in zip(partition.rows, own, strict=True)
    ]
    by_strength = [tuple(zip(*scores, strict=True)) for scores in zip(*by_client, strict=True)]
    return LocalOnly(
        max(float(np.mean(everywhere)) for everywhere, _ in by_strength),
        max(
            (clients for _, clients in by_strength),
            key=lambda scores: sum(score or 0.0 for score in scores),
        ),
    )


def _by_itself(
    data: Embeddings, rows: NDArray[np.int64], own: NDArray[np.int64], tried: Sequence[float]
) -> list[tuple[float, float | None]]:
    """Balanced accuracy over all test rows and over a client's own, at each strength, of a probe of
    the client's rows.
    """
    probes = list(fit_probes(data.x_train[rows], data.y_train[rows], tried, balanced=True))
    y = data.y_test
    return [
        (
            balanced_accuracy_of(y, predicted),
            balanced_accuracy_of(y[own], predicted[own]) if len(own) else None,
        )
        for predicted in predict_each(probes, data.x_test)
    ]


def _tried(dim: int, probe_c: float | None) -> list[float]:
    return sorted({*strengths(dim), probe_c or strengths(dim)[0]})
