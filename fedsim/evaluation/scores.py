"""Turns predictions into scores, and computes the scores of real data as references.

The references are the ceiling and local-only. The ceiling is the best score of a linear probe of
the real training rows. Local-only is the score of probes that each client trains on its own rows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.data.embeddings import Embeddings
from fedsim.data.split import Integers
from fedsim.device import CPU, to_device
from fedsim.evaluation.measures import (
    MEASURES,
    Predictions,
    accuracy,
    balanced_accuracy,
    balanced_accuracy_of,
    recalls,
)
from fedsim.evaluation.subset import (
    MOST_TEST_ROWS,
    MOST_TRAIN_ROWS,
    balanced_rows,
    client_rows,
    is_large,
    most_per_client,
    own_rows_among,
    probed_clients,
)
from fedsim.methods.products import Classifier
from fedsim.models.linear import ProbeClassifier, folded
from fedsim.models.probe import Probe, fit_path, fit_probes, predict_each, strengths
from fedsim.partition import Partition, PartitionSpec


class Scores(dict[str, float]):
    """Scores by the name of their measure (:data:`fedsim.evaluation.measures.MEASURES`)."""

    @property
    def balanced_accuracy(self) -> float:
        """The balanced accuracy, which the curves show."""
        return self["balanced_accuracy"]


def scores_of(
    predictions: Predictions,
    of: Literal["all", "personal"] = "all",
) -> Scores:
    """Return every measure that is computed from predictions of one kind.

    Args:
        predictions: the predictions.
        of: the kind (:attr:`fedsim.evaluation.measures.Measure.of`).

    Returns:
        The scores, without those that are not defined for these predictions.
    """
    scores = Scores()
    for name, measure in MEASURES.items():
        if measure.of == of and measure.score:
            score = measure.score(predictions)
            if score is not None:
                scores[name] = score
    return scores


def at_shares(
    predictions: Predictions,
    shares: NDArray[np.float64] | None,
) -> Predictions:
    """Return predictions whose labels are adapted to label frequencies.

    The classifier was trained on uniform labels. By Bayes' rule (Saerens, Latinne and Decaestecker
    2002, equation 4), the adapted label has the largest product of probability and frequency. So
    the classifier need not be trained again. The probabilities of the result are not adapted.

    Args:
        predictions: the predictions for uniform labels.
        shares: the frequency of every class, ``[C]``; None changes nothing.
    """
    if shares is None:
        return predictions
    return replace(
        predictions,
        predicted=(predictions.probabilities * shares).argmax(1),
    )


def scores_with(
    predictions: Predictions,
    shares: NDArray[np.float64] | None,
) -> Scores:
    """Return every measure of predictions for all test rows.

    Only plain accuracy uses the label frequencies ``shares``, see :func:`at_shares`.
    """
    return Scores(
        scores_of(predictions),
        accuracy=accuracy(at_shares(predictions, shares)),
    )


def mean_scores(of: Sequence[Scores]) -> Scores:
    """Return the mean of every score; empty if there are no scores."""
    if not of:
        return Scores()
    return Scores({name: float(np.mean([scores[name] for scores in of])) for name in of[0]})


def recall_per_class(
    predicted: Sequence[Predictions],
    classes: int,
) -> tuple[float | None, ...]:
    """Return the mean recall of every class over the predictors; None for a class without test row.

    Args:
        predicted: the predictions of one or more predictors for the same test rows.
        classes: the number of classes.
    """
    by_class: list[float | None] = [None] * classes
    means = np.mean([recalls(predictions) for predictions in predicted], axis=0)
    for label, recall in zip(predicted[0].held.tolist(), means, strict=True):
        by_class[label] = float(recall)
    return tuple(by_class)


def scores_of_clients(
    own: Sequence[Scores | None],
    shared: Sequence[Scores | None],
) -> Scores:
    """Return mean, worst and spread (best minus worst) of the clients' balanced accuracies.

    Args:
        own: every client's scores by its own generator or classifier; None for a client without a
            test row.
        shared: every client's scores by the generator or classifier that all clients share; None
            for a client without a test row, or if nothing is shared.

    Returns:
        The scores, with the mean of ``shared`` if something is shared. They are empty if no client
        has a test row.
    """
    own_accuracies = [scores.balanced_accuracy for scores in own if scores]
    shared_accuracies = [scores.balanced_accuracy for scores in shared if scores]
    if not own_accuracies:
        return Scores()
    worst = min(own_accuracies)
    summary = Scores(
        client_balanced_accuracy=float(np.mean(own_accuracies)),
        client_worst_balanced_accuracy=worst,
        client_spread=max(own_accuracies) - worst,
    )
    if shared_accuracies:
        summary["client_shared_balanced_accuracy"] = float(np.mean(shared_accuracies))
    return summary


def personal_scores(clients: Sequence[Predictions]) -> Scores:
    """Return the scores of the clients' personal predictors, as means over the clients.

    Each score counts only the classes that the client holds, and accuracy weighs them by the
    client's label frequencies. A client that holds no class of its test rows is left out.

    Args:
        clients: every client's predictions, with its label frequencies.
    """
    return mean_scores(
        [scores_of(predictions, "personal") for predictions in clients if len(predictions.held)]
    )


def probe_predictions(
    probe: Probe,
    x_test: NDArray[np.float32],
    y_test: Integers,
    classes: int,
) -> Predictions:
    """Return a probe's predictions for test rows.

    Args:
        probe: the probe.
        x_test: the test rows ``[m, d]``.
        y_test: their labels ``[m]``.
        classes: the number of classes.
    """
    return Predictions(
        y_test,
        probe.predict(x_test),
        probe.probabilities(x_test, classes),
    )


def predictions_of(
    probabilities: Tensor, y: Integers, shares: NDArray[np.float64] | None = None
) -> Predictions:
    """Return the predictions of a classifier from its probabilities.

    Args:
        probabilities: the probabilities of the classes ``[m, C]``, on any device.
        y: the true labels ``[m]``.
        shares: the label frequencies of the client that uses the classifier ``[C]``; None if it is
            not the classifier of a single client.
    """
    on_cpu = probabilities.cpu()
    return Predictions(y, on_cpu.argmax(1).numpy(), on_cpu.numpy(), shares)


def score_classifier(
    classifier: Classifier,
    x_test: NDArray[np.float32],
    y_test: Integers,
    device: torch.device = CPU,
    shares: NDArray[np.float64] | None = None,
) -> Scores:
    """Return accuracy and balanced accuracy of a classifier on test rows.

    Args:
        classifier: the classifier.
        x_test: the test rows ``[m, d]``.
        y_test: their labels ``[m]``.
        device: the device of the classifier.
        shares: the label frequencies of plain accuracy, see :func:`at_shares`.
    """
    x = to_device(torch.from_numpy(x_test), device)
    predictions = predictions_of(classifier.probabilities(x), y_test)
    return Scores(
        accuracy=accuracy(at_shares(predictions, shares)),
        balanced_accuracy=balanced_accuracy(predictions),
    )


@dataclass(frozen=True)
class Ceiling:
    """The best scores that a linear probe of the real training rows reaches.

    They are the same for every partition. Several probes are tried, with different penalties, and
    with the natural and with equal weights of the classes. Each score is the best one among all
    probes, so two scores may belong to different probes. The rows that are chosen of very many have
    classes as equal as possible, so natural weights are then almost equal.

    Attributes:
        balanced_accuracy: the best balanced accuracy.
        accuracy: the best accuracy.
        reference_rows: the number of training rows, which is bounded
            (:mod:`fedsim.evaluation.subset`).
        seconds: the wall time in seconds.
    """

    balanced_accuracy: float
    accuracy: float
    reference_rows: int
    seconds: float = field(compare=False)


def ceiling(data: Embeddings, probe_c: float | None) -> Ceiling:
    """Return the scores of the best probes on the real training rows.

    Probes with equal class frequencies are tried as well, because a probe at natural frequencies is
    no upper bound for one that is trained on uniform labels. For large data, weaker penalties are
    not tried once one is worse than the penalty before it.

    Args:
        data: the data set.
        probe_c: an inverse penalty that is tried beside all :func:`strengths`.
    """
    started = time.perf_counter()
    rows = balanced_rows(data.y_train, MOST_TRAIN_ROWS)
    test = balanced_rows(data.y_test, MOST_TEST_ROWS)
    x_train = data.x_train[rows]
    y_train = data.y_train[rows]
    x_test = torch.from_numpy(data.x_test[test])
    y_test = data.y_test[test]
    large = is_large(data)
    fit = fit_path if large else fit_probes
    weightings = [False, True]
    counts = np.unique(y_train, return_counts=True)[1]
    if (counts == counts[0]).all():
        weightings = [False]  # the classes are equally frequent already
    tried = _strengths_to_try(data.dim, probe_c)
    balanced_accuracies = []
    accuracies = []
    for balanced in weightings:
        last = 0.0
        for probe in fit(x_train, y_train, tried, balanced=balanced):
            probabilities = ProbeClassifier(probe, data.classes).probabilities(x_test)
            predicted = predictions_of(probabilities, y_test)
            balanced_accuracies.append(balanced_accuracy(predicted))
            accuracies.append(accuracy(predicted))
            total = balanced_accuracies[-1] + accuracies[-1]
            if large and total < last:
                break
            last = total
    return Ceiling(
        max(balanced_accuracies),
        max(accuracies),
        len(rows),
        time.perf_counter() - started,
    )


@dataclass(frozen=True)
class LocalOnly:
    """The balanced accuracy that clients reach by themselves.

    Each client's probe is trained on its own real rows, with equal frequencies of the classes.

    Attributes:
        mean: the mean over clients, each on all test rows. If there are very many clients, it is
            the mean over every k-th one (:func:`fedsim.evaluation.subset.probed_clients`).
        clients: the balanced accuracy of every client on its own test rows; None for a client
            without test rows or without a probe.
        reference_rows: the number of training rows of all probes, which is bounded
            (:func:`fedsim.evaluation.subset.client_rows`).
        seconds: the wall time in seconds.
    """

    mean: float
    clients: tuple[float | None, ...]
    reference_rows: int
    seconds: float = field(compare=False)


def local_only(
    data: Embeddings,
    partition: Partition,
    spec: PartitionSpec,
    probe_c: float | None,
) -> LocalOnly:
    """Return the balanced accuracy that the clients reach by themselves.

    All clients have the same penalty, the one with the best mean over clients. It is chosen twice:
    on all test rows for :attr:`LocalOnly.mean`, and on own test rows for :attr:`LocalOnly.clients`.

    Args:
        data: the data set.
        partition: the training rows of each client.
        spec: the scheme of the partition.
        probe_c: an inverse penalty that is tried beside all :func:`strengths`.
    """
    started = time.perf_counter()
    clients = len(partition.rows)
    rows = client_rows(data, partition)
    test = balanced_rows(data.y_test, most_per_client(clients, data.classes))
    own_test_rows = own_rows_among(test, data, partition, spec).rows
    y_test = data.y_test[test]
    tried = _strengths_to_try(data.dim, probe_c)
    on_all = np.zeros((len(tried), clients))
    on_own = np.full_like(on_all, np.nan)
    probed = probed_clients(partition)
    predictions = _predictions_of_clients(data, rows, data.x_test[test], tried)
    for penalty, position, predicted in predictions:
        client = probed[position]
        # Of large data, a new penalty begins with client 0.
        if is_large(data) and client == 0 and _is_past_best(penalty, on_all, on_own):
            break
        on_all[penalty, client] = balanced_accuracy_of(y_test, predicted)
        own = own_test_rows[client]
        if len(own) == len(test):
            on_own[penalty, client] = on_all[penalty, client]
        elif len(own):
            on_own[penalty, client] = balanced_accuracy_of(y_test[own], predicted[own])
    # NaN stands for a client without own test rows or without a probe, and counts as 0.
    totals = [sum(scores) for scores in np.nan_to_num(on_own)]
    best = on_own[int(np.argmax(totals))].tolist()
    return LocalOnly(
        max(float(np.mean(scores)) for scores in on_all[:, :: probed.step]),
        tuple(None if math.isnan(score) else score for score in best),
        sum(map(len, rows)),
        time.perf_counter() - started,
    )


def _is_past_best(number: int, *tables: NDArray[np.float64]) -> bool:
    """Return whether penalty ``number - 1`` was no better than ``number - 2`` in every table.

    Args:
        number: the number of the penalty that would be next; the answer is False for the first two.
        tables: scores ``[penalties, clients]``, which are added up over the clients.
    """
    sums = np.nansum(tables, axis=2)
    return number > 1 and bool((sums[:, number - 1] <= sums[:, number - 2]).all())


def _predictions_of_clients(
    data: Embeddings,
    rows: Sequence[Integers],
    x_test: NDArray[np.float32],
    tried: Sequence[float],
) -> Iterator[tuple[int, int, Integers]]:
    """Yield the predictions of each client's probe at each penalty.

    Each item is the number of the penalty, the position of the client in ``rows``, and the
    predicted labels ``[m]``. For small data, all penalties of one client come together. For large
    data, all clients of one penalty come together, so that the caller may stop before the weak
    penalties, which take longest.

    Args:
        data: the data set.
        rows: the training rows of each client's probe.
        x_test: the test rows ``[m, d]``.
        tried: the inverse penalties.
    """
    fit = fit_path if is_large(data) else fit_probes
    fits = [
        fit(data.x_train[of_client], data.y_train[of_client], tried, balanced=True)
        for of_client in rows
    ]
    if not is_large(data):
        for client, probes in enumerate(fits):
            for number, predicted in enumerate(predict_each(list(probes), x_test)):
                yield number, client, predicted
        return
    x = torch.from_numpy(x_test)
    for number in range(len(tried)):
        for client, probes in enumerate(fits):
            classifier = folded(next(probes), data.classes)
            logits = x @ classifier.weight.T + classifier.bias
            yield number, client, logits.argmax(1).numpy()


def _strengths_to_try(dim: int, probe_c: float | None) -> list[float]:
    """Return the inverse penalties to try, ascending.

    They are all :func:`strengths` for embeddings of ``dim`` dimensions, and ``probe_c`` if given.
    """
    tried = set(strengths(dim))
    if probe_c:
        tried.add(probe_c)
    return sorted(tried)
