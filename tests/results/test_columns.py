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

from fedsim.evaluation.judge import Judgement
from fedsim.evaluation.scores import Ceiling, LocalOnly
from fedsim.results.columns import COLUMNS, Row, frame_of
from fedsim.results.join import claim_of, read_results
from fedsim.results.lines import RowError, judgement_line, reference_line, training_line
from fedsim.results.store import ResultStore
from fedsim.runs.manifest import write_manifest
from fedsim.training.trial import Outcome, Trial

CONTRACT = [
    *(
        "cell_id",
        "source",
        "judged",
        "status",
        "error",
        "algorithm",
        "label",
        "params",
        "yields",
        "dataset",
        "dataset_hash",
        "public",
    ),
    *(
        "public_hash",
        "public_licence",
        "scheme",
        "alpha",
        "clients",
        "partition_hash",
        "train_rows",
        "train_groups",
        "seed",
    ),
    *(
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
    ),
    *(
        "mechanisms",
        "tuning",
        "selection",
        "noise_at",
        "counted_by",
        "audit_epsilon_lower",
        "audit_pairs",
        "audit_canary_ratio",
    ),
    *(
        "audit_params",
        "evaluation",
        "unseen",
        "tested",
        "label_shares",
        "accuracy",
        "balanced_accuracy",
        "share_of_ceiling",
        "macro_f1",
    ),
    *(
        "auroc",
        "calibration_error",
        "worst_class_recall",
        "knn_balanced_accuracy",
        "mlp_balanced_accuracy",
        "frechet_distance",
    ),
    *(
        "squared_mmd",
        "density",
        "coverage",
        "synthetic_norm",
        "real_or_synthetic",
        "client_balanced_accuracy",
    ),
    *(
        "client_worst_balanced_accuracy",
        "client_spread",
        "client_shared_balanced_accuracy",
        "client_local_only_balanced_accuracy",
    ),
    *(
        "personal_accuracy",
        "personal_balanced_accuracy",
        "personal_alone_accuracy",
        "personal_alone_balanced_accuracy",
        "personal_weight",
    ),
    *(
        "recall_per_class",
        "ceiling_balanced_accuracy",
        "ceiling_accuracy",
        "local_only_balanced_accuracy",
        "chance",
        "uplink_bytes",
    ),
    *(
        "downlink_bytes",
        "parameters",
        "seconds",
        "train_seconds",
        "judge_seconds",
        "versions",
        "generator",
    ),
]
FAILED = RowError(**ERROR)
JUDGEMENT = Judgement({"balanced_accuracy": 0.5, "accuracy": 0.6}, (0.5,) * 10, (), None, "uniform")  # type: ignore[arg-type]
BOUNDS = {"epsilon_lower": 1.0, "pairs": 100, "canary_ratio": 1.0, "params": {}}


def a_trial(name: str = "dp-gaussian", **keys: Any) -> Trial:
    (trial,) = small_cells(name, **{"epsilon": 4.0, **keys}).trials
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
    """The row of a cell by its training and judgement, and by other lines."""
    row = replace(lines_of(trial, *ended), **lines).row(entry_of(trial))
    assert row is not None
    return row


def audits(trial: Trial, **fields: Any) -> list[Mapping[str, Any]]:
    claim = claim_of(trial.cell.model_dump(mode="json"))
    return [{**BOUNDS, "claim": claim, "refuted": False, **fields}]


def test_a_row_has_the_columns_of_the_contract_and_no_other(tmp_path: Path) -> None:
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
            "judge_seconds",
            "generator",
        }


def test_a_row_is_ok_while_no_line_says_otherwise() -> None:
    trial = a_trial()
    row = row_of(trial, as_planned(trial), JUDGEMENT, audits=audits(trial))
    assert (row.status, row.claim, row.audit_epsilon_lower, row.audit_pairs) == (
        "ok",
        "proved",
        1.0,
        100,
    )
    assert (row.train_seconds, row.judge_seconds, row.seconds) == (3.0, 1.0, 4.0)
    (open_,) = small_cells("fedavg-cvae").trials
    row = row_of(open_, Outcome(None, None, None, None, "", 1000, 2000, 30, 3.0, {}), JUDGEMENT)
    assert (row.status, row.claim, row.epsilon_target, row.noise) == ("ok", "none", None, None)


def test_an_audit_refutes_every_row_of_its_claim_and_no_other() -> None:
    trial = a_trial()
    row = row_of(
        trial, as_planned(trial), JUDGEMENT, audits=audits(trial, epsilon_lower=9.0, refuted=True)
    )
    assert (row.status, row.error, row.audit_epsilon_lower, row.balanced_accuracy) == (
        "refuted",
        None,
        9.0,
        0.5,
    )
    other = row_of(
        trial, as_planned(trial), JUDGEMENT, audits=audits(a_trial(epsilon=8.0), refuted=True)
    )
    assert (other.status, other.audit_pairs) == ("ok", None)


STRONG = {"epsilon_lower": 11.2, "pairs": 30, "refuted": True}
WEAK = {"epsilon_lower": 0.4, "pairs": 6}
EXCEEDED = {"epsilon_lower": 0.1, "canary_ratio": 1.5, "refuted": True}


@pytest.mark.parametrize("order", [(STRONG, WEAK), (WEAK, STRONG)])
def test_a_refutation_stands_after_a_weaker_audit(order: tuple[dict[str, Any], ...]) -> None:
    trial = a_trial()
    lines = [line for fields in order for line in audits(trial, **fields)]
    row = row_of(trial, as_planned(trial), JUDGEMENT, audits=lines)
    assert row.status == "refuted"
    assert row.audit_epsilon_lower == 11.2
    assert row.audit_pairs == 30


def test_the_largest_bound_of_all_audits_is_shown() -> None:
    trial = a_trial()
    lines = audits(trial, **EXCEEDED) + audits(trial, **WEAK)
    row = row_of(trial, as_planned(trial), JUDGEMENT, audits=lines)
    assert row.status == "refuted"
    assert row.audit_epsilon_lower == 0.4
    assert "a canary adds 1.5 of the claimed sensitivity" in row.outcome


def test_more_than_the_target_is_overspent_and_the_last_digits_are_not() -> None:
    trial = a_trial()
    free = a_trial(epsilon=float("inf"))
    row = row_of(trial, as_planned(trial, epsilon_spent=4.01), JUDGEMENT)
    assert (row.status, row.epsilon_spent, row.epsilon_target, row.error) == (
        "overspent",
        4.01,
        4.0,
        None,
    )
    assert (
        row_of(trial, as_planned(trial, epsilon_spent=4.0 * (1 + 1e-7)), JUDGEMENT).status == "ok"
    )
    assert row_of(free, as_planned(free, epsilon_spent=float("inf")), JUDGEMENT).status == "ok"


def test_of_what_does_not_follow_the_plan_no_epsilon_is_known() -> None:
    trial = a_trial()
    row = row_of(
        trial,
        as_planned(trial, unaccounted="client 0 has 1 of 2 steps"),
        JUDGEMENT,
        audits=audits(trial, refuted=True),
    )
    assert (row.status, row.epsilon_spent, row.mechanisms) == ("unaccounted", None, None)
    assert row.error == {
        "type": "Unaccounted",
        "message": "client 0 has 1 of 2 steps",
        "traceback": "",
    }


def test_a_training_or_judgement_that_failed_is_a_failed_row_whose_plan_is_known() -> None:
    trial = a_trial()
    row = row_of(trial, FAILED)
    assert (row.status, row.error, row.scores, row.seconds, row.epsilon_spent) == (
        "failed",
        ERROR,
        {},
        None,
        None,
    )
    assert (row.epsilon_target, row.plan["sigma"], row.claim) == (
        4.0,
        trial.plan and trial.plan.sigma,
        "proved",
    )
    row = row_of(trial, as_planned(trial), FAILED)
    assert (row.status, row.error, row.scores, row.judge_seconds) == ("failed", ERROR, {}, None)
    assert row.epsilon_spent == (trial.plan and trial.plan.epsilon_reached)


def test_what_checks_of_its_code_found_stands_beside_a_claim() -> None:
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
        row = row_of(trial, as_planned(trial), JUDGEMENT, checks=[line | change])
        assert (row.claim, row.check) == ("stated", check)


def test_columns_of_references_are_empty_until_their_lines_are_there(tmp_path: Path) -> None:
    prepared = small_cells("dp-gaussian", epsilon=4.0)
    (trial,) = prepared.trials
    store = ResultStore(tmp_path)
    with store.lock():
        write_manifest(store.folder, prepared, [entry_of(trial)])
    store.append("trainings", [training_line(trial, as_planned(trial), {})])
    store.append("judgements", [judgement_line(trial, JUDGEMENT, 1.0)])
    (before,) = read_results(tmp_path).rows
    assert (
        before.ceiling_balanced_accuracy,
        before.ceiling_accuracy,
        before.local_only_balanced_accuracy,
    ) == (None, None, None)
    store.append(
        "references",
        [
            reference_line("ceiling", Ceiling(0.9, 0.95)),
            reference_line("another ceiling", Ceiling(0.1, 0.1)),
        ],
    )
    store.append(
        "references", [reference_line("local-only", LocalOnly(0.4, (0.5, None, 0.3, 0.4)))]
    )
    (after,) = read_results(tmp_path).rows
    found = {name for name in COLUMNS if before.values[name] != after.values[name]}
    assert found == {
        "ceiling_balanced_accuracy",
        "ceiling_accuracy",
        "local_only_balanced_accuracy",
        "share_of_ceiling",
    }
    assert after.share_of_ceiling == after.balanced_accuracy / 0.9


def test_of_one_training_every_judgement_has_a_row_by_its_last_line(tmp_path: Path) -> None:
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
        "judgements", [judgement_line(one, FAILED, 0.0), judgement_line(one, JUDGEMENT, 1.0)]
    )
    store.append(
        "judgements",
        [judgement_line(other, replace(JUDGEMENT, scores={"balanced_accuracy": 0.7}), 2.0)],
    )  # type: ignore[arg-type]
    results = read_results(tmp_path)
    found = results.rows_of([entry_of(other), entry_of(one)])
    assert [(row.status, row.balanced_accuracy, row.seconds) for row in found] == [
        ("ok", 0.7, 5.0),
        ("ok", 0.5, 4.0),
    ]
    assert len(results.every_row()) == 1


def test_a_score_is_a_number(tmp_path: Path) -> None:
    add_rows(tmp_path, make_row(balanced_accuracy=float("nan")))
    with pytest.raises(ValueError, match="cell a: balanced_accuracy is not a number"):
        assert read_results(tmp_path).rows


def dtypes(frame: Any, *names: str) -> list[str]:
    return [str(frame[name].dtype) for name in names]


def test_a_frame_has_a_column_for_every_field_and_parameter_whole_numbers_whole() -> None:
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
