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
    x_test = np.float32([[0.0]] * 95 + [[1.0]] * 5)
    y_test = np.repeat([0, 1], [90, 10])
    scores = score_probe(x, y, x_test, y_test, 1.0)
    assert scores["accuracy"] == pytest.approx(0.95)
    assert scores.balanced_accuracy == pytest.approx(0.75)
    assert scores["macro_f1"] == pytest.approx((2 * 90 / (95 + 90) + 2 * 5 / (5 + 10)) / 2)


OWN = [Scores(balanced_accuracy=value) for value in (0.5, 0.9, 0.7)]
SHARED = [Scores(balanced_accuracy=0.6)] * 3


def test_clients_are_summarised_by_mean_worst_and_spread():
    assert scores_of_clients([*OWN, None], [*SHARED, None]) == pytest.approx(
        {
            "client_balanced_accuracy": 0.7,
            "client_worst_balanced_accuracy": 0.5,
            "client_spread": 0.4,
            "client_shared_balanced_accuracy": 0.6,
        }
    )


def test_clients_without_test_rows_have_no_summary():
    assert scores_of_clients([None], [None]) == {}


def test_without_a_shared_product_there_is_no_shared_score():
    assert "client_shared_balanced_accuracy" not in scores_of_clients(OWN, [None] * 3)


def predictions(y, predicted, shares=(1, 1, 1, 1)):
    probabilities = np.eye(len(shares))[predicted]
    return Predictions(
        np.array(y),
        np.array(predicted),
        probabilities,
        np.array(shares),
    )


def test_personal_scores_weigh_rows_by_what_a_client_holds():
    y = [0, 0, 1, 1, 2]
    first = predictions(y, [0, 0, 0, 0, 0], (0.75, 0.25, 0.0))
    second = predictions(y, [0, 1, 1, 1, 0], (0.0, 0.5, 0.5))
    scores = personal_scores([first, second])
    assert scores["personal_accuracy"] == pytest.approx((0.75 + 0.5) / 2)
    assert scores["personal_balanced_accuracy"] == pytest.approx(0.5)


def test_recalls_are_means_over_predictors():
    right = predictions([0, 0, 2, 2], [0, 0, 2, 2])
    half = predictions([0, 0, 2, 2], [0, 1, 2, 1])
    assert recall_per_class([right, half], 4) == (0.75, None, 0.75, None)


def test_a_class_that_nobody_holds_counts_in_no_mean():
    scores = scores_of(predictions([0, 0, 2, 2], [0, 0, 2, 1]))
    assert scores["worst_class_recall"] == 0.5
    half = scores_of(predictions([0, 0, 2, 2], [0, 1, 2, 1]))
    assert half["macro_f1"] == pytest.approx(2 / 3)


PROBABILITIES = np.array([[0.4, 0.6], [0.2, 0.8], [0.1, 0.9]])
UNIFORM = Predictions(
    np.array([0, 0, 1]),
    np.array([1, 1, 1]),
    PROBABILITIES,
)
SHARES = np.array([0.7, 0.3])


def test_predictions_follow_label_frequencies_by_bayes_rule():
    np.testing.assert_array_equal(
        at_shares(UNIFORM, SHARES).predicted,
        [0, 1, 1],
    )
    assert at_shares(UNIFORM, None) is UNIFORM


def test_label_frequencies_change_plain_accuracy_alone():
    scores = scores_with(UNIFORM, SHARES)
    assert scores["accuracy"] == pytest.approx(2 / 3)
    assert scores.balanced_accuracy == scores_of(UNIFORM).balanced_accuracy
