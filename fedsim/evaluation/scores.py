"""How good an embedding set is to learn from: a linear probe trained on it, tested on real rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedsim.methods.products import Classifier
from fedsim.models.probe import fit_probe
from fedsim.partition.schemes.scheme import own_test_rows
from fedsim.results.measures import MEASURES, Predictions


class Scores(dict[str, float]):
    """Numbers by the name of their measure (:data:`fedsim.results.measures.MEASURES`)."""

    @property
    def balanced_accuracy(self) -> float:
        """The one that curves are drawn of."""
        return self["balanced_accuracy"]


def scores_of(predictions: Predictions, of: Literal["all", "own", "personal"] = "all") -> Scores:
    """Every measure of one kind of predictions."""
    return Scores({name: measure.score(predictions) for name, measure in MEASURES.items() if measure.of == of and measure.score})


def mean_scores(each: Sequence[Scores]) -> Scores:
    """The mean of every score."""
    return Scores({name: float(np.mean([scores[name] for scores in each])) for name in each[0]})


def personal_scores(each: Sequence[Predictions]) -> Scores:
    """Means over clients of how well each predicts rows as it sees them, its labels as frequent as with it.

    A client that holds no class of its test rows has no score.

    Args:
        each: every client's predictions, with its label shares.
    """
    return mean_scores([scores_of(predictions, "personal") for predictions in each if len(predictions.held)])


def probe_predictions(
    x_train: NDArray[np.float32],
    y_train: NDArray[np.int64],
    x_test: NDArray[np.float32],
    y_test: NDArray[np.int64],
    probe_c: float,
) -> Predictions:
    """What the linear probe trained on (``x_train`` [n, d], ``y_train`` [n]) predicts of (``x_test`` [m, d], ``y_test`` [m]).

    Args:
        x_train: real or synthetic training rows.
        y_train: their labels; classes may be missing, a single class is always predicted.
        x_test: real test rows.
        y_test: their labels.
        probe_c: inverse strength of the probe's L2 penalty.

    Raises:
        ValueError: a training row holds NaN or an infinite value, or there is none.
    """
    probe = fit_probe(x_train, y_train, probe_c)
    classes = 1 + int(max(y_train.max(), y_test.max(initial=0)))
    return Predictions(y_test, probe.predict(x_test), probe.probabilities(x_test, classes))


def score_probe(
    x_train: NDArray[np.float32],
    y_train: NDArray[np.int64],
    x_test: NDArray[np.float32],
    y_test: NDArray[np.int64],
    probe_c: float,
) -> Scores:
    """The scores of :func:`probe_predictions`."""
    return scores_of(probe_predictions(x_train, y_train, x_test, y_test, probe_c))


def predictions_of(probabilities: Tensor, y: NDArray[np.int64], shares: NDArray[np.float64] | None = None) -> Predictions:
    """A classifier's predictions of rows with labels ``y`` [m], from its probabilities ``[m, C]``; ``shares`` are its client's."""
    known = probabilities.cpu()
    return Predictions(y, known.argmax(1).numpy(), known.numpy(), shares)


def score_classifier(made: Classifier, x_test: Tensor, y_test: NDArray[np.int64]) -> Scores:
    """The scores of a classifier over real test rows ``[m, d]``, on its device, with labels ``[m]``."""
    return scores_of(predictions_of(made.probabilities(x_test), y_test))


def score_clients(
    made: Sequence[tuple[NDArray[np.float32], NDArray[np.int64]]], x_test: NDArray[np.float32], y_test: NDArray[np.int64], probe_c: float
) -> Scores:
    """Scores over all test rows where row i is predicted by the probe of client ``i mod K``.

    Under feature shift that row went through this client's map (:func:`fedsim.partition.shifted`), so each client's probe is tested on rows
    as that client sees them.

    Args:
        made: what each of the K clients' probes is trained on: rows ``[n, d]`` and labels ``[n]``.
        x_test: real test rows ``[m, d]``.
        y_test: their labels ``[m]``.
        probe_c: inverse strength of the probe's L2 penalty.
    """
    classes = 1 + int(max(y_test.max(), *(y.max() for _, y in made)))
    predicted, probabilities = np.empty_like(y_test), np.zeros((len(y_test), classes))
    for client, (x, y) in enumerate(made[: len(y_test)]):
        seen, probe = own_test_rows(client, len(made)), fit_probe(x, y, probe_c)
        predicted[seen] = probe.predict(x_test[seen])
        probabilities[seen] = probe.probabilities(x_test[seen], classes)
    return scores_of(Predictions(y_test, predicted, probabilities), "own")
