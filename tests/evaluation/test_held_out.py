"""Personal scores with one weight for all clients, chosen on held-out validation examples."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from cells import one_cell, quick
from test_evaluate import Copies
from torch import Tensor

from fedsim.data.embeddings import Embeddings
from fedsim.evaluation import evaluate
from fedsim.evaluation.evaluate import CellEvaluator, evaluate_cell
from fedsim.evaluation.scores import Scores
from fedsim.models.linear import TRIED_WEIGHTS, Interpolated, LinearClassifier, fit_linear
from fedsim.training.trial import Outcome, run_trial

HELD_OUT = {"per_class": 20, "probe_c": 0.1, "personal": "held-out"}
WEIGHT = "personal_held_out_weight"
CLASSES = 10


def another(labels: Any) -> Any:
    """Another label for each label."""
    return (labels + 1) % CLASSES


class WrongCopies(Copies):
    """Synthetic data that is useless: real rows of another label."""

    def sample(
        self,
        labels: Tensor,
        stream: torch.Generator,
    ) -> Tensor:
        return super().sample(another(labels), stream)


def hesitant_fit(*args: Any) -> LinearClassifier:
    """The fitted classifier, nearly undecided: it predicts the same and mixes with little say."""
    sure = fit_linear(*args)
    return LinearClassifier(
        sure.weight / 100,
        sure.bias / 100,
    )


def evaluator() -> CellEvaluator:
    """The evaluator of a cell whose generator copies real rows."""
    trial, data, _ = one_cell(
        quick("dp-gaussian"),
        epsilon=4.0,
        evaluation=HELD_OUT,
    )
    return CellEvaluator(
        trial.cell,
        data,
        trial.partition,
        Copies(data),
    )


@pytest.fixture(scope="module")
def scores() -> Scores:
    return evaluator().personal()


def with_training_labels(cell_evaluator: CellEvaluator, labels: Any) -> CellEvaluator:
    """The evaluator with other labels of the training rows that are not for validation."""
    rows = np.concatenate(cell_evaluator.partition.rows)
    y = cell_evaluator.data.y_train.copy()
    y[rows] = labels(y[rows])
    return replace(
        cell_evaluator,
        data=replace(cell_evaluator.data, y_train=y),
    )


def validation_of(cell_evaluator: CellEvaluator) -> Any:
    return np.concatenate(cell_evaluator.partition.validation)


def test_weight_is_0_if_own_classifiers_are_useless() -> None:
    useless = with_training_labels(evaluator(), another)
    assert useless.personal()[WEIGHT] == 0


def test_weight_is_1_if_synthetic_data_are_useless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "fit_linear", hesitant_fit)
    useful = evaluator()
    useless = replace(useful, product=WrongCopies(useful.data))
    assert useless.personal()[WEIGHT] == 1


def test_of_equally_good_weights_the_smallest_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    cell_evaluator = evaluator()
    shared = cell_evaluator._shared_classifier
    monkeypatch.setattr(evaluate, "fit_linear", lambda *_: shared)
    assert cell_evaluator.personal()[WEIGHT] == 0


def mean_accuracy(cell_evaluator: CellEvaluator, weight: float) -> float:
    """The mean over clients of a mixture's accuracy on their validation rows."""
    data = cell_evaluator.data
    accuracies = []
    for train, validation in zip(
        cell_evaluator.partition.rows,
        cell_evaluator.partition.validation,
        strict=True,
    ):
        local = fit_linear(data.x_train[train], data.y_train[train], CLASSES, 0.1)
        both = Interpolated(local, cell_evaluator._shared_classifier, weight)
        predicted = both.probabilities(torch.from_numpy(data.x_train[validation])).argmax(1)
        accuracies.append(np.mean(predicted.numpy() == data.y_train[validation]))
    return float(np.mean(accuracies))


def test_the_weight_has_the_best_mean_accuracy_over_clients() -> None:
    cell_evaluator = evaluator()
    accuracies = [mean_accuracy(cell_evaluator, weight) for weight in TRIED_WEIGHTS]
    chosen = TRIED_WEIGHTS.index(pytest.approx(cell_evaluator.personal()[WEIGHT]))
    assert accuracies[chosen] == pytest.approx(max(accuracies))
    assert all(accuracy < max(accuracies) - 1e-9 for accuracy in accuracies[:chosen])


def with_other_test_rows(data: Embeddings) -> Embeddings:
    """The data with wrong labels of all test rows."""
    return replace(data, y_test=another(data.y_test))


def test_test_rows_have_no_say_in_the_weight(scores: Scores) -> None:
    before = evaluator()
    after = replace(before, data=with_other_test_rows(before.data))
    changed = after.personal()
    assert changed["personal_held_out_accuracy"] < scores["personal_held_out_accuracy"]
    assert changed[WEIGHT] == scores[WEIGHT]


def test_own_classifiers_do_not_see_validation_rows(scores: Scores) -> None:
    before = evaluator()
    x = before.data.x_train.copy()
    x[validation_of(before)] = 0
    after = replace(before, data=replace(before.data, x_train=x))
    alone = "personal_held_out_alone_accuracy"
    assert after.personal()[alone] == scores[alone]


def test_no_client_trains_on_validation_rows() -> None:
    trial, _, _ = one_cell(quick("dp-gaussian"), epsilon=4.0, evaluation=HELD_OUT)
    trained = [rows for cohort in trial.cohorts() for rows in cohort.rows]
    validation = np.concatenate(trial.partition.validation)
    assert len(validation) > 0
    assert not np.isin(np.concatenate(trained), validation).any()


def training_of(**evaluation: Any) -> tuple[str, str]:
    """The ids of a cell's training and of its partition."""
    trial, _, _ = one_cell(quick("dp-gaussian"), epsilon=4.0, evaluation=evaluation)
    return trial.cell.training_id, trial.partition.fingerprint


@pytest.mark.parametrize("personal", ["synthetic", 0.5])
def test_other_rules_need_no_training_of_their_own(personal: str | float) -> None:
    assert training_of(personal=personal) == training_of()


def test_held_out_examples_are_part_of_a_trainings_id() -> None:
    held_out, partition = training_of(personal="held-out")
    training, whole_partition = training_of()
    assert held_out != training
    assert partition != whole_partition


def test_validation_rows_count_among_a_clients_labels() -> None:
    cell_evaluator = evaluator()
    labels = cell_evaluator.data.y_train[cell_evaluator.partition.all_rows[0]]
    shares = np.bincount(labels, minlength=CLASSES) / len(labels)
    assert cell_evaluator._client_shares(0).tolist() == shares.tolist()


def test_scores_have_names_that_no_other_rule_uses(scores: Scores) -> None:
    assert all(name.startswith("personal_held_out") for name in scores)
    assert len(scores) == 5


METHODS = [
    "local-only",
    "fedavg-linear",
    "ditto",
    "dp-cvae",
    "dp-gaussian",
    "fedhypevae-warm",
    "fedhypevae",
]
CLASSIFIERS = METHODS[:3]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_held_out_scores(name: str) -> None:
    trial, data, _ = one_cell(quick(name), epsilon=float("inf"), evaluation=HELD_OUT)
    *_, outcome = run_trial(trial, data)
    assert isinstance(outcome, Outcome)
    found = evaluate_cell(trial, outcome.state, data).scores
    assert 0 < found["personal_held_out_accuracy"] <= 1
    assert (WEIGHT in found) == (name not in CLASSIFIERS)
    assert "personal_accuracy" not in found
