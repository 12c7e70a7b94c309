"""How good an embedding set is to learn from: a linear probe trained on it, tested on real rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score, recall_score

from fedsim.models.probe import fit_probe
from fedsim.partition.schemes.scheme import own_test_rows


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
class PersonalScores:
    """How well each client predicts rows as it sees them, its labels as frequent as with it: means over clients, each in [0, 1].

    ``balanced_accuracy`` is over the classes that a client holds; ``weight`` is the mean weight of the clients' own classifiers, None where
    nothing was interpolated.
    """

    accuracy: float
    balanced_accuracy: float
    weight: float | None


def scores_of(predicted: NDArray[np.int64], y_test: NDArray[np.int64]) -> Scores:
    """The scores of predicted labels ``[m]``."""
    classes = np.unique(y_test)
    return Scores(
        accuracy=float(np.mean(predicted == y_test)),
        balanced_accuracy=float(recall_score(y_test, predicted, labels=classes, average="macro", zero_division=0)),
        macro_f1=float(f1_score(y_test, predicted, labels=classes, average="macro", zero_division=0)),
    )


def mean_scores(each: Sequence[Scores]) -> Scores:
    """The mean of every score."""
    return Scores(*(float(np.mean([getattr(s, field.name) for s in each])) for field in fields(Scores)))


def personal_scores(
    predicted: Sequence[NDArray[np.int64]], y_test: Sequence[NDArray[np.int64]], shares: Sequence[NDArray[np.float64]], weight: float | None
) -> PersonalScores:
    """Scores of every client's predictions, with test rows weighed by its label shares.

    Args:
        predicted: labels that each client predicts for its test rows.
        y_test: their true labels.
        shares: how frequent every class is at each client, ``[C]``.
        weight: see :class:`PersonalScores`.
    """
    accuracy, balanced = [], []
    for guess, y, share in zip(predicted, y_test, shares, strict=True):
        held = np.unique(y)[share[np.unique(y)] > 0]
        if len(held):
            recall = recall_score(y, guess, labels=held, average=None, zero_division=0)
            accuracy.append(float(np.average(recall, weights=share[held])))
            balanced.append(float(recall.mean()))
    return PersonalScores(float(np.mean(accuracy)), float(np.mean(balanced)), weight)


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
    return scores_of(fit_probe(x_train, y_train, probe_c).predict(x_test), y_test)


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
        own = own_test_rows(client, len(made))
        predicted[own] = fit_probe(x, y, probe_c).predict(x_test[own])
    return float(recall_score(y_test, predicted, labels=np.unique(y_test), average="macro", zero_division=0))
