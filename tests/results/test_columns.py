"""A row is the join of its lines: nothing of it is written that another line could change; and rows
as frames.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cells import small_cells
from rows import ERROR, add_rows, entry_of, lines_of, make_failed, make_row

from fedsim.evaluation.evaluate import EvaluationResult
from fedsim.evaluation.scores import Ceiling, LocalOnly
from fedsim.results.columns import COLUMNS, Row, frame_of
from fedsim.results.join import claim_of, read_results
from fedsim.results.lines import RowError, evaluation_line, reference_line, training_line
from fedsim.results.store import ResultStore
from fedsim.runs.manifest import write_manifest
from fedsim.training.trial import Outcome, Trial

CONTRACT = [
    "cell_id",
    "source",
    "evaluation_source",
    "status",
    "error",
    "algorithm",
    "label",
    "params",
    "yields",
    "dataset",
    "dataset_hash",
    "public",
    "public_hash",
    "public_licence",
    "scheme",
    "alpha",
    "clients",
    "partition_hash",
    "train_rows",
    "train_groups",
    "seed",
    "epsilon_target",
    "epsilon_spent",
    "delta",
    "unit",
    "relation",
    "trust",
    "scope",
    "claim",
    "check",
    "accountant",
    "noise",
    "mechanisms",
    "tuning",
    "selection",
    "noise_at",
    "counted_by",
    "audit_epsilon_lower",
    "audit_pairs",
    "audit_canary_ratio",
    "audit_params",
    "evaluation",
    "unseen",
    "tested",
    "label_shares",
    "accuracy",
    "balanced_accuracy",
    "share_of_ceiling",
    "macro_f1",
    "auroc",
    "calibration_error",
    "worst_class_recall",
    "knn_balanced_accuracy",
    "mlp_balanced_accuracy",
    "frechet_distance",
    "squared_mmd",
    "density",
    "coverage",
    "synthetic_norm",
    "real_or_synthetic",
    "client_balanced_accuracy",
    "client_worst_balanced_accuracy",
    "client_spread",
    "client_shared_balanced_accuracy",
    "client_local_only_balanced_accuracy",
    "personal_accuracy",
    "personal_balanced_accuracy",
    "personal_alone_accuracy",
    "personal_alone_balanced_accuracy",
    "personal_weight",
    "recall_per_class",
    "ceiling_balanced_accuracy",
    "ceiling_accuracy",
    "reference_rows",
    "local_only_balanced_accuracy",
    "chance",
    "uplink_bytes",
    "downlink_bytes",
    "parameters",
    "seconds",
    "train_seconds",
    "evaluation_seconds",
    "versions",
    "generator",
]
FAILED = RowError(**ERROR)
EVALUATED = EvaluationResult(
    {"balanced_accuracy": 0.5, "accuracy": 0.6}, (0.5,) * 10, (), None, "uniform"
)  # type: ignore[arg-type]
BOUNDS = {"epsilon_lower": 1.0, "pairs": 100, "canary_ratio": 1.0, "params": {}}


def a_trial(name: str = "dp-gaussian", epsilon: float = 4.0) -> Trial:
    (trial,) = small_cells(name, epsilon=epsilon).trials
    return trial


def as_planned(trial: Trial, **fields: Any) -> Outcome:
    """A training that did what was planned, but for what is given."""
    plan = trial.plan
    assert plan is not None
    return replace(
        Outcome(
            plan.epsilon_reached,
            plan.accountant,
            plan.mechanisms,
            "sum",
            "",
            1000,
            2000,
            30,
            3.0,
            {},
        ),
        **fields,
    )


def row_of(trial: Trial, *ended: Any, **lines: Any) -> Row:
    """The row of a cell by its training and evaluation, and by other lines."""
    row = replace(lines_of(trial, *ended), **lines).row(entry_of(trial))
    assert row is not None
    return row


def audits(trial: Trial, **fields: Any) -> list[Mapping[str, Any]]:
    claim = claim_of(trial.cell.model_dump(mode="json"))
    return [{**BOUNDS, "claim": claim, "refuted": False, **fields}]


def test_row_has_exactly_the_columns_of_the_contract(tmp_path: Path) -> None:
    assert list(COLUMNS) == CONTRACT
    with pytest.raises(AttributeError, match="a row has no column 'acuracy'"):
        _ = make_row().acuracy
    rows = [
        make_row(alpha=math.inf, label='{"a": "\u2028"}', params={"beta": [math.inf, None, 0.5]}),
        make_row(
            cell_id="b",
            epsilon_target=math.inf,
            epsilon_spent=math.inf,
            train_groups=3,
            audit_pairs=5,
        ),
        make_failed(cell_id="c"),
        make_row(cell_id="d", epsilon_target=None),
    ]
    add_rows(tmp_path, *rows)
    for written, read in zip(rows, read_results(tmp_path).rows, strict=True):
        assert {name for name in COLUMNS if written.values[name] != read.values[name]} <= {
            "evaluation_seconds",
            "generator",
        }


def test_row_is_ok_unless_a_line_says_otherwise() -> None:
    trial = a_trial()
    row = row_of(trial, as_planned(trial), EVALUATED, audits=audits(trial))
    assert row.status == "ok"
    assert row.claim == "proved"
    assert row.audit_epsilon_lower == 1.0
    assert row.audit_pairs == 100
    assert row.train_seconds == 3.0
    assert row.evaluation_seconds == 1.0
    assert row.seconds == 4.0


def test_row_without_a_plan_has_no_budget() -> None:
    (trial,) = small_cells("fedavg-cvae").trials
    outcome = Outcome(None, None, None, None, "", 1000, 2000, 30, 3.0, {})
    row = row_of(trial, outcome, EVALUATED)
    assert row.status == "ok"
    assert row.claim == "none"
    assert row.epsilon_target is None
    assert row.noise is None


def test_audit_refutes_only_the_rows_of_its_claim() -> None:
    trial = a_trial()
    row = row_of(
        trial, as_planned(trial), EVALUATED, audits=audits(trial, epsilon_lower=9.0, refuted=True)
    )
    assert row.status == "refuted"
    assert row.error is None
    assert row.audit_epsilon_lower == 9.0
    assert row.balanced_accuracy == 0.5
    other = row_of(
        trial, as_planned(trial), EVALUATED, audits=audits(a_trial(epsilon=8.0), refuted=True)
    )
    assert (other.status, other.audit_pairs) == ("ok", None)


STRONG = {"epsilon_lower": 11.2, "pairs": 30, "refuted": True}
WEAK = {"epsilon_lower": 0.4, "pairs": 6}
EXCEEDED = {"epsilon_lower": 0.1, "canary_ratio": 1.5, "refuted": True}


@pytest.mark.parametrize("order", [(STRONG, WEAK), (WEAK, STRONG)])
def test_refutation_stands_whatever_weaker_audits_follow(order: tuple[dict[str, Any], ...]) -> None:
    trial = a_trial()
    lines = [line for fields in order for line in audits(trial, **fields)]
    row = row_of(trial, as_planned(trial), EVALUATED, audits=lines)
    assert row.status == "refuted"
    assert row.audit_epsilon_lower == 11.2
    assert row.audit_pairs == 30


def test_largest_bound_of_all_audits_is_shown() -> None:
    trial = a_trial()
    lines = audits(trial, **EXCEEDED) + audits(trial, **WEAK)
    row = row_of(trial, as_planned(trial), EVALUATED, audits=lines)
    assert row.status == "refuted"
    assert row.audit_epsilon_lower == 0.4
    assert "a canary adds 1.5 of the claimed sensitivity" in row.outcome


def test_row_is_overspent_above_its_target_but_for_rounding() -> None:
    trial = a_trial()
    row = row_of(trial, as_planned(trial, epsilon_spent=4.01), EVALUATED)
    assert row.status == "overspent"
    assert row.epsilon_spent == 4.01
    assert row.epsilon_target == 4.0
    assert row.error is None
    rounded = as_planned(trial, epsilon_spent=4.0 * (1 + 1e-7))
    assert row_of(trial, rounded, EVALUATED).status == "ok"


def test_infinite_target_is_never_overspent() -> None:
    trial = a_trial(epsilon=math.inf)
    row = row_of(trial, as_planned(trial, epsilon_spent=math.inf), EVALUATED)
    assert row.status == "ok"


def test_training_that_left_its_plan_has_no_epsilon() -> None:
    trial = a_trial()
    row = row_of(
        trial,
        as_planned(trial, unaccounted="client 0 has 1 of 2 steps"),
        EVALUATED,
        audits=audits(trial, refuted=True),
    )
    assert row.status == "unaccounted"
    assert row.epsilon_spent is None
    assert row.mechanisms is None
    assert row.error == {
        "type": "Unaccounted",
        "message": "client 0 has 1 of 2 steps",
        "traceback": "",
    }


def test_failed_training_makes_a_failed_row_with_its_plan() -> None:
    trial = a_trial()
    assert trial.plan is not None
    row = row_of(trial, FAILED)
    assert row.status == "failed"
    assert row.error == ERROR
    assert row.scores == {}
    assert row.seconds is None
    assert row.epsilon_spent is None
    assert row.epsilon_target == 4.0
    assert row.plan["sigma"] == trial.plan.sigma
    assert row.claim == "proved"


def test_failed_evaluation_makes_a_failed_row() -> None:
    trial = a_trial()
    assert trial.plan is not None
    row = row_of(trial, as_planned(trial), FAILED)
    assert row.status == "failed"
    assert row.error == ERROR
    assert row.scores == {}
    assert row.evaluation_seconds is None
    assert row.epsilon_spent == trial.plan.epsilon_reached


def test_row_shows_how_checks_of_its_code_ended() -> None:
    trial = a_trial("broken.tiny:Tiny")
    line = {
        "unit": "example",
        "trust": "aggregate",
        "full": True,
        "ended": "passed",
        "source": trial.cell.source,
        "params": trial.cell.params,
        "tried": trial.cell.params,
    }
    other = {"source": "of other code", "ended": "failed"}
    for change, check in (
        ({}, "passed"),
        ({"ended": "failed"}, "failed"),
        ({"full": False}, None),
        (other, None),
    ):
        row = row_of(trial, as_planned(trial), EVALUATED, checks=[line | change])
        assert (row.claim, row.check) == ("stated", check)


def test_reference_columns_are_empty_without_their_lines(tmp_path: Path) -> None:
    prepared = small_cells("dp-gaussian", epsilon=4.0)
    (trial,) = prepared.trials
    store = ResultStore(tmp_path)
    with store.lock():
        write_manifest(store.folder, prepared, [entry_of(trial)])
    store.append("trainings", [training_line(trial, as_planned(trial), {})])
    store.append("evaluations", [evaluation_line(trial, EVALUATED, 1.0)])
    (before,) = read_results(tmp_path).rows
    assert (
        before.ceiling_balanced_accuracy,
        before.ceiling_accuracy,
        before.local_only_balanced_accuracy,
    ) == (None, None, None)
    store.append(
        "references",
        [
            reference_line("ceiling", Ceiling(0.9, 0.95, 100, 1.0)),
            reference_line("another ceiling", Ceiling(0.1, 0.1, 100, 1.0)),
        ],
    )
    store.append(
        "references",
        [reference_line("local-only", LocalOnly(0.4, (0.5, None, 0.3, 0.4), 100, 1.0))],
    )
    (after,) = read_results(tmp_path).rows
    found = {name for name in COLUMNS if before.values[name] != after.values[name]}
    assert found == {
        "ceiling_balanced_accuracy",
        "ceiling_accuracy",
        "reference_rows",
        "local_only_balanced_accuracy",
        "share_of_ceiling",
    }
    assert after.share_of_ceiling == after.balanced_accuracy / 0.9


def test_every_evaluation_of_one_training_has_a_row(tmp_path: Path) -> None:
    one, other = (
        small_cells("dp-gaussian", epsilon=4.0, evaluation={"per_class": n}).trials[0]
        for n in (5, 10)
    )
    assert one.cell.training_id == other.cell.training_id
    store = ResultStore(tmp_path)
    store.append(
        "trainings", [training_line(one, end, {}) for end in (FAILED, as_planned(one), FAILED)]
    )
    store.append(
        "evaluations", [evaluation_line(one, FAILED, 0.0), evaluation_line(one, EVALUATED, 1.0)]
    )
    store.append(
        "evaluations",
        [evaluation_line(other, replace(EVALUATED, scores={"balanced_accuracy": 0.7}), 2.0)],
    )  # type: ignore[arg-type]
    results = read_results(tmp_path)
    found = results.rows_of([entry_of(other), entry_of(one)])
    assert [(row.status, row.balanced_accuracy, row.seconds) for row in found] == [
        ("ok", 0.7, 5.0),
        ("ok", 0.5, 4.0),
    ]
    assert len(results.every_row()) == 1


def test_score_that_is_not_a_number_is_refused(tmp_path: Path) -> None:
    add_rows(tmp_path, make_row(balanced_accuracy=float("nan")))
    with pytest.raises(ValueError, match="cell a: balanced_accuracy is not a number"):
        assert read_results(tmp_path).rows


def dtypes(frame: Any, *names: str) -> list[str]:
    return [str(frame[name].dtype) for name in names]


def test_frame_has_a_typed_column_per_field_and_parameter() -> None:
    keys: dict[str, Any] = {"evaluation": {"per_class": 10}}
    rows = [
        make_row(params={"rounds": 3}, train_groups=4, **keys),
        make_row(cell_id="b", params={"hidden": (8, 4), "warm": True}, **keys),
    ]
    frame = frame_of(rows)
    params = ["params.rounds", "params.hidden", "params.warm"]
    expected = [
        column
        for name in COLUMNS
        for column in {"params": params, "evaluation": ["evaluation.per_class"]}.get(name, [name])
    ]
    assert list(frame.columns) == expected
    assert dtypes(frame, "seed", "train_groups", "params.rounds") == ["int64", "Int64", "Int64"]
    frame = frame_of(
        [make_row(epsilon_target=math.inf), make_failed(), make_row(epsilon_target=None)]
    )
    assert dtypes(
        frame, "epsilon_target", "accuracy", "alpha", "personal_weight", "train_groups"
    ) == ["float64"] * 4 + ["Int64"]
    assert frame["epsilon_target"].tolist()[:2] == [math.inf, 1.0]
    assert np.isnan(frame["epsilon_target"][2])
    assert dtypes(frame_of([]), "seed", "accuracy") == ["Int64", "float64"]
