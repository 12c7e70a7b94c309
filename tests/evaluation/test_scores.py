import numpy as np
import pytest
from cells import score_probe

from fedsim.evaluation.measures import Predictions
from fedsim.evaluation.scores import (
    Scores,
    at_shares,
    personal_scores,
    recall_per_class,
    scores_of,
    scores_of_clients,
    scores_with,
)


def test_balanced_accuracy_weighs_classes_equally_and_accuracy_rows():
    x = np.float32([[0.0], [1.0]])
    y = np.array([0, 1])
    x_test = np.float32([[0.0]] * 90 + [[0.0]] * 5 + [[1.0]] * 5)
    y_test = np.array([0] * 90 + [1] * 10)
    scores = score_probe(x, y, x_test, y_test, 1.0)
    assert scores["accuracy"] == pytest.approx(0.95)
    assert scores.balanced_accuracy == pytest.approx(0.75)
    assert scores["macro_f1"] == pytest.approx((2 * 90 / (95 + 90) + 2 * 5 / (5 + 10)) / 2)


def test_clients_are_told_by_their_mean_the_worst_and_the_spread():
    own = [Scores(balanced_accuracy=value) for value in (0.5, 0.9, 0.7)]
    shared = [Scores(balanced_accuracy=0.6)] * 3
    told = scores_of_clients([*own, None], [*shared, None])
    assert told == pytest.approx(
        {
            "client_balanced_accuracy": 0.7,
            "client_worst_balanced_accuracy": 0.5,
            "client_spread": 0.4,
            "client_shared_balanced_accuracy": 0.6,
        }
    )
    assert scores_of_clients([None], [None]) == {}
    assert "client_shared_balanced_accuracy" not in scores_of_clients(own, [None] * 3)


def predictions(y: np.ndarray, predicted: np.ndarray, shares: np.ndarray) -> Predictions:
    return Predictions(y, predicted, np.eye(len(shares))[predicted], shares)


def test_personal_scores_weigh_rows_by_what_a_client_holds():
    y = np.array([0, 0, 1, 1, 2])
    first = np.array([0, 0, 0, 0, 0])
    second = np.array([0, 1, 1, 1, 0])
    shares = [np.array([0.75, 0.25, 0.0]), np.array([0.0, 0.5, 0.5])]
    found = personal_scores(
        [predictions(y, guess, share) for guess, share in zip((first, second), shares, strict=True)]
    )
    assert dict(found) == pytest.approx(
        {
            "personal_accuracy": np.mean([0.75, 0.5]),
            "personal_balanced_accuracy": np.mean([0.5, 0.5]),
        }
    )


def test_recalls_are_told_of_every_class_and_of_none_that_no_test_row_has():
    y = np.array([0, 0, 2, 2])
    right = predictions(y, y, np.ones(4))
    half = predictions(y, np.array([0, 1, 2, 1]), np.ones(4))
    assert recall_per_class([right, half], 4) == (0.75, None, 0.75, None)
    assert (
        scores_of(predictions(y, np.array([0, 0, 2, 1]), np.ones(4)))["worst_class_recall"] == 0.5
    )
    assert scores_of(half)["macro_f1"] == pytest.approx(2 / 3)


def test_a_classifier_of_uniform_labels_predicts_with_other_shares_as_bayes_rule_has_it():
    told = Predictions(
        np.array([0, 0, 1]), np.array([1, 1, 1]), np.array([[0.4, 0.6], [0.2, 0.8], [0.1, 0.9]])
    )
    shares = np.array([0.7, 0.3])
    np.testing.assert_array_equal(at_shares(told, shares).predicted, [0, 1, 1])
    assert at_shares(told, None) is told
    found = scores_with(told, shares)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found.balanced_accuracy == scores_of(told).balanced_accuracy == 0.5
