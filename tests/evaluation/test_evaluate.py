"""Protocols of the evaluation beyond the probe on all test rows."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from cells import one_cell, quick
from rows import joined
from torch import Tensor

from fedsim.evaluation import evaluate, subset
from fedsim.evaluation.evaluate import CellEvaluator, evaluate_cell, synthesise
from fedsim.evaluation.scores import Scores, score_classifier
from fedsim.models.linear import ProbeClassifier
from fedsim.models.probe import fit_probe
from fedsim.seeds import SERVER, Seeds
from fedsim.training.trial import Outcome, run_trial

BLUR = 0.2


class Copies:
    """A generator that yields real rows of the label: synthetic data as good as it gets."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def sample(
        self,
        labels: Tensor,
        stream: torch.Generator,
    ) -> Tensor:
        picked = []
        for label in labels.tolist():
            rows = np.flatnonzero(self.data.y_train == label)
            picked.append(rows[int(torch.randint(len(rows), (), generator=stream))])
        return torch.from_numpy(self.data.x_train[picked])


class PersonalCopies(Copies):
    """Copies with a version for each client; all versions are alike."""

    def of_client(self, client: int) -> Copies:
        return Copies(self.data)


class BlurredCopies(Copies):
    """Real rows with noise, so that label frequencies matter."""

    def sample(
        self,
        labels: Tensor,
        stream: torch.Generator,
    ) -> Tensor:
        real = super().sample(labels, stream)
        return real + BLUR * torch.randn(real.shape, generator=stream)


def evaluator(**evaluation: Any) -> CellEvaluator:
    """The evaluator of a cell whose generator copies real rows."""
    keys = {"per_class": 20, "probe_c": 0.1} | evaluation
    trial, data, _ = one_cell(
        quick("dp-gaussian"),
        epsilon=4.0,
        alpha=0.1,
        evaluation=keys,
    )
    return CellEvaluator(
        trial.cell,
        data,
        trial.partition,
        Copies(data),
    )


@pytest.mark.parametrize("score", ["accuracy", "balanced_accuracy"])
def test_at_a_weight_of_1_a_client_predicts_with_its_own_classifier(score: str) -> None:
    own = evaluator(personal=1.0).personal()
    shared = evaluator(personal=0.0).personal()
    assert own[f"personal_{score}"] == own[f"personal_alone_{score}"]
    assert own[f"personal_alone_{score}"] == shared[f"personal_alone_{score}"]
    assert shared[f"personal_{score}"] != shared[f"personal_alone_{score}"]


def scores_of_draw(
    cell_evaluator: CellEvaluator,
    stream_of: int,
    client: int,
) -> Scores:
    """Scores, on a client's test rows, of a probe on the draw with the stream of ``stream_of``."""
    data = cell_evaluator.data
    evaluation = cell_evaluator.cell.evaluation
    seeds = Seeds(cell_evaluator.cell.seed)
    x, y = synthesise(
        Copies(data),
        data.classes,
        evaluation.per_class,
        seeds,
        stream_of,
    )
    probe = ProbeClassifier(
        fit_probe(x, y, evaluation.probe_c),
        data.classes,
    )
    rows = cell_evaluator.own_rows.rows[client]
    return score_classifier(
        probe,
        data.x_test[rows],
        data.y_test[rows],
    )


def test_a_clients_own_generator_draws_from_the_clients_stream() -> None:
    shared = evaluator()
    personal = replace(shared, product=PersonalCopies(shared.data))
    scores = personal.of_clients()[2]
    assert scores.own == scores_of_draw(shared, 2, 2)
    assert scores.shared == scores_of_draw(shared, SERVER, 2)
    assert scores.own != scores.shared


def with_unequal_classes(data: Any) -> Any:
    """The data without most test rows of all classes but the first two, and with blurred ones."""
    kept = np.flatnonzero((data.y_test < 2) | (np.arange(len(data.y_test)) % 12 == 0))
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(
        (len(kept), data.dim),
        dtype=np.float32,
    )
    return replace(
        data,
        x_test=data.x_test[kept] + BLUR * noise,
        y_test=data.y_test[kept],
    )


@pytest.fixture(scope="module")
def uniform() -> CellEvaluator:
    """The evaluator of a generator without released frequencies, on unequal classes."""
    with_clients = evaluator(per_client=True, per_class=200)
    data = with_unequal_classes(with_clients.data)
    return replace(
        with_clients,
        data=data,
        product=BlurredCopies(data),
    )


@pytest.fixture(scope="module")
def released(uniform: CellEvaluator) -> CellEvaluator:
    """The same evaluator with the true frequencies as released ones."""
    data = uniform.data
    counts = np.bincount(data.y_test, minlength=data.classes)
    return replace(uniform, shares=counts / counts.sum())


def test_released_label_frequencies_change_plain_accuracy_alone(
    uniform: CellEvaluator, released: CellEvaluator
) -> None:
    before = uniform.result()
    after = released.result()
    assert before.label_shares == "uniform"
    assert after.label_shares == "released"
    assert after.scores["accuracy"] > before.scores["accuracy"] + 0.02
    assert after.scores | {"accuracy": 0} == before.scores | {"accuracy": 0}
    assert after.recalls == before.recalls


def test_released_label_frequencies_change_accuracy_of_every_client(
    uniform: CellEvaluator, released: CellEvaluator
) -> None:
    for before, after in zip(uniform.of_clients(), released.of_clients(), strict=True):
        assert before.own is not None
        assert after.own is not None
        assert after.own["accuracy"] > before.own["accuracy"]
        assert after.own.balanced_accuracy == before.own.balanced_accuracy


@pytest.mark.parametrize(
    ("name", "label_shares"),
    [("dp-gaussian", "released"), ("weight-noise", "uniform"), ("local-only", None)],
)
def test_a_result_says_where_its_label_frequencies_are_from(
    name: str, label_shares: str | None
) -> None:
    trial, data, _ = one_cell(quick(name), epsilon=float("inf"))
    *_, outcome = run_trial(trial, data)
    assert isinstance(outcome, Outcome)
    evaluation = evaluate_cell(trial, outcome.state, data)
    assert evaluation.label_shares == label_shares
    assert joined(trial, outcome, evaluation).label_shares == label_shares


def test_large_data_are_evaluated_on_a_fixed_choice_of_test_rows(
    uniform: CellEvaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "MOST_TEST_ROWS", 40)
    monkeypatch.setattr(subset, "MOST_TEST_ROWS", 30)
    bounded = replace(uniform)
    (predictions,) = bounded.predictions()
    assert len(predictions.y) <= 40
    assert {client.test_rows for client in bounded.of_clients()} == {len(bounded.own_rows.rows[0])}
    assert len(bounded.own_rows.rows[0]) <= 30
    assert 0 < bounded.result().scores["balanced_accuracy"] <= 1


def test_clients_own_generators_give_fewer_rows_of_many_classes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared = evaluator(per_client=True, personal="synthetic", per_class=10)
    personal = replace(shared, product=PersonalCopies(shared.data))
    scores_of_one_row = shared.cell.clients * shared.data.classes**2
    monkeypatch.setattr(evaluate, "MOST_CLIENT_SCORES", 3 * scores_of_one_row)
    drawn = []
    synthesise = evaluate.synthesise

    def counted(*args: Any, **kwargs: Any) -> Any:
        x, y = synthesise(*args, **kwargs)
        drawn.append(len(y) // shared.data.classes)
        return x, y

    monkeypatch.setattr(evaluate, "synthesise", counted)
    personal.of_clients()
    assert drawn == [10] + [3] * shared.cell.clients
