"""Protocols of the evaluation beyond the probe on all test rows."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from cells import quick, small_cells
from rows import joined

from fedsim.evaluation.evaluate import CellEvaluator, evaluate_cell, synthesise
from fedsim.evaluation.scores import score_classifier
from fedsim.models.linear import ProbeClassifier
from fedsim.models.probe import fit_probe
from fedsim.seeds import SERVER, Seeds
from fedsim.training.trial import Outcome, run_trial


class Copies:
    """A generator that yields real rows of the label: synthetic data as good as it gets."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def sample(self, labels: torch.Tensor, stream: torch.Generator) -> torch.Tensor:
        rows = [np.flatnonzero(self.data.y_train == label) for label in range(self.data.classes)]
        picked = [
            rows[label][int(torch.randint(len(rows[label]), (), generator=stream))]
            for label in labels.tolist()
        ]
        return torch.from_numpy(self.data.x_train[picked])


def evaluate(personal: Any, alpha: float = 0.1, **keys: Any) -> tuple[CellEvaluator, Any]:
    prepared = small_cells(
        quick("dp-gaussian"),
        epsilon=4.0,
        alpha=alpha,
        evaluation={"per_class": 20, "probe_c": 0.1, "personal": personal},
        **keys,
    )
    (trial,), (data,) = prepared.trials, list(prepared.data.values())[-1:]
    return CellEvaluator(trial.cell, data, trial.partition, Copies(data)), data


def test_at_a_weight_of_1_a_client_predicts_by_its_own_classifier_alone() -> None:
    (by, _), (shared, _) = evaluate(1.0), evaluate(0.0)
    found = by.personal()
    other = shared.personal()
    for score in ("accuracy", "balanced_accuracy"):
        assert (
            found[f"personal_{score}"]
            == found[f"personal_alone_{score}"]
            == other[f"personal_alone_{score}"]
        )
        assert other[f"personal_{score}"] != other[f"personal_alone_{score}"]


class Everyones(Copies):
    """Copies that each client has a version of, all alike."""

    def of_client(self, client: int) -> Copies:
        return Copies(self.data)


def test_a_clients_own_generator_is_read_from_a_draw_of_the_clients_own() -> None:
    by, data = evaluate(None)
    found = replace(by, product=Everyones(data)).of_clients()[2]
    evaluation = by.cell.evaluation
    drawn = [
        synthesise(Copies(data), data.classes, evaluation.per_class, Seeds(by.cell.seed), client)
        for client in (2, SERVER)
    ]
    probes = [ProbeClassifier(fit_probe(x, y, evaluation.probe_c), data.classes) for x, y in drawn]
    rows = by.own_rows.rows[2]
    own, shared = (
        score_classifier(probe, data.x_test[rows], data.y_test[rows]) for probe in probes
    )
    assert (found.own, found.shared) == (own, shared)
    assert own != shared


def unequal(data: Any) -> np.ndarray:
    """The test rows without most rows of all classes but the first two."""
    return np.flatnonzero((data.y_test < 2) | (np.arange(len(data.y_test)) % 12 == 0))


def test_plain_accuracy_is_with_labels_as_frequent_as_they_were_released_and_nothing_else_is() -> (
    None
):
    by, data = evaluate(None)
    kept = unequal(data)
    x_test = data.x_test[kept] + BLUR * np.random.default_rng(0).standard_normal(
        (len(kept), data.dim), dtype=np.float32
    )
    data = replace(data, x_test=x_test, y_test=data.y_test[kept])
    shares = np.bincount(data.y_test, minlength=data.classes) / len(kept)
    cell = by.cell.model_copy(
        update={
            "evaluation": by.cell.evaluation.model_copy(
                update={"per_client": True, "per_class": 200}
            )
        }
    )
    by = replace(by, cell=cell, data=data, made=Noisy(data))
    uniform = by.result()
    released = replace(by, shares=shares).result()
    assert (uniform.label_shares, released.label_shares) == ("uniform", "released")
    assert released.scores.pop("accuracy") > uniform.scores.pop("accuracy") + 0.02
    assert released.scores == uniform.scores
    assert released.recalls == uniform.recalls
    for one, other in zip(uniform.clients, released.clients, strict=True):
        assert one.own is not None
        assert other.own is not None
        assert other.own["accuracy"] > one.own["accuracy"]
        assert other.own.balanced_accuracy == one.own.balanced_accuracy


BLUR = 0.2


class Noisy(Copies):
    """Real rows, blurred, so that labels matter."""

    def sample(self, labels: torch.Tensor, stream: torch.Generator) -> torch.Tensor:
        real = super().sample(labels, stream)
        return real + BLUR * torch.randn(real.shape, generator=stream)


@pytest.mark.parametrize(
    ("name", "told"),
    [("dp-gaussian", "released"), ("weight-noise", "uniform"), ("local-only", None)],
)
def test_label_shares_are_released_or_uniform_for_generators_and_absent_for_classifiers(
    name: str, told: str | None
) -> None:
    prepared = small_cells(
        quick(name), epsilon=float("inf"), evaluation={"per_class": 10, "evaluators": []}
    )
    (trial,), (data,) = prepared.trials, prepared.data.values()
    *_, outcome = run_trial(trial, data)
    assert isinstance(outcome, Outcome)
    evaluation = evaluate_cell(trial, outcome.state, data)
    assert evaluation.label_shares == told
    assert joined(trial, outcome, evaluation).label_shares == told
