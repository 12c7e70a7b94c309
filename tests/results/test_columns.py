"""Results as they are joined from the lines of a cell, and as data frames."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cells import small_cells
from rows import ERROR, add_rows, as_planned, entry_of, lines_of, make_failed, make_row

from fedsim.evaluation.evaluate import EvaluationResult
from fedsim.evaluation.scores import Ceiling, LocalOnly
from fedsim.results.columns import COLUMNS, Row, frame_of
from fedsim.results.join import claim_of, read_results
from fedsim.results.lines import RowError, evaluation_line, reference_line, training_line
from fedsim.results.store import ResultStore
from fedsim.runs.manifest import write_manifest
from fedsim.training.trial import Outcome, Trial

FAILED = RowError(**ERROR)
SCORES: Any = {"balanced_accuracy": 0.5, "accuracy": 0.6}
EVALUATED = EvaluationResult(
    SCORES,
    (0.5,) * 10,
    (),
    None,
    "uniform",
)
BOUNDS = {
    "epsilon_lower": 1.0,
    "pairs": 100,
    "canary_ratio": 1.0,
    "params": {},
}


def make_trial(name: str = "dp-gaussian", epsilon: float = 4.0) -> Trial:
    """Return a small cell."""
    (trial,) = small_cells(name, epsilon=epsilon).trials
    return trial


def row_of(trial: Trial, *ended: Any, **lines: Any) -> Row:
    """Return the result of a cell, from its training and evaluation, and from other lines."""
    row = replace(lines_of(trial, *ended), **lines).row(entry_of(trial))
    assert row is not None
    return row


def planned_row(trial: Trial, *references: Any, **lines: Any) -> Row:
    """Return the result of a cell whose training did what was planned."""
    return row_of(trial, as_planned(trial), EVALUATED, *references, **lines)


def audits(trial: Trial, **fields: Any) -> list[Mapping[str, Any]]:
    """Return the line of an audit of a cell's claim."""
    claim = claim_of(trial.cell.model_dump(mode="json"))
    return [
        {
            **BOUNDS,
            "claim": claim,
            "refuted": False,
            **fields,
        }
    ]


def test_unknown_column_is_named() -> None:
    with pytest.raises(AttributeError, match="a row has no column 'acuracy'"):
        _ = make_row().acuracy


@pytest.mark.parametrize(
    "row",
    [
        make_row(
            alpha=math.inf,
            label='{"a": "\u2028"}',
            params={"beta": [math.inf, None, 0.5]},
        ),
        make_row(
            epsilon_target=math.inf,
            epsilon_spent=math.inf,
            train_groups=3,
            audit_pairs=5,
        ),
        make_failed(),
        make_row(epsilon_target=None),
    ],
)
def test_result_has_what_its_lines_say(tmp_path: Path, row: Row) -> None:
    add_rows(tmp_path, row)
    (read,) = read_results(tmp_path).rows
    different = {name for name in COLUMNS if row.values[name] != read.values[name]}
    assert different <= {"evaluation_seconds"}


def test_row_is_ok_unless_a_line_says_otherwise() -> None:
    trial = make_trial()
    row = planned_row(trial, audits=audits(trial))
    assert row.status == "ok"
    assert row.claim == "proved"
    assert row.audit_epsilon_lower == 1.0
    assert row.audit_pairs == 100
    assert row.train_seconds == 1.0
    assert row.evaluation_seconds == 1.0
    assert row.seconds == 2.0


def test_row_without_a_plan_has_no_budget() -> None:
    (trial,) = small_cells("fedavg-cvae").trials
    outcome = Outcome(
        None,
        None,
        None,
        None,
        "",
        1000,
        2000,
        30,
        3.0,
        {},
    )
    row = row_of(trial, outcome, EVALUATED)
    assert row.status == "ok"
    assert row.claim == "none"
    assert row.epsilon_target is None
    assert row.noise is None


def test_audit_refutes_the_results_of_its_claim() -> None:
    trial = make_trial()
    lines = audits(trial, epsilon_lower=9.0, refuted=True)
    row = planned_row(trial, audits=lines)
    assert row.status == "refuted"
    assert row.error is None
    assert row.audit_epsilon_lower == 9.0
    assert row.balanced_accuracy == 0.5


def test_audit_does_not_refute_another_claim() -> None:
    trial = make_trial()
    lines = audits(make_trial(epsilon=8.0), refuted=True)
    row = planned_row(trial, audits=lines)
    assert row.status == "ok"
    assert row.audit_pairs is None


STRONG = {"epsilon_lower": 11.2, "pairs": 30, "refuted": True}
WEAK = {"epsilon_lower": 0.4, "pairs": 6}
EXCEEDED = {"epsilon_lower": 0.1, "canary_ratio": 1.5, "refuted": True}


@pytest.mark.parametrize("order", [(STRONG, WEAK), (WEAK, STRONG)])
def test_refutation_stands_whatever_weaker_audits_follow(order: tuple[dict[str, Any], ...]) -> None:
    trial = make_trial()
    lines = [line for fields in order for line in audits(trial, **fields)]
    row = planned_row(trial, audits=lines)
    assert row.status == "refuted"
    assert row.audit_epsilon_lower == 11.2
    assert row.audit_pairs == 30


def test_largest_bound_of_all_audits_is_shown() -> None:
    trial = make_trial()
    lines = audits(trial, **EXCEEDED) + audits(trial, **WEAK)
    row = planned_row(trial, audits=lines)
    assert row.status == "refuted"
    assert row.audit_epsilon_lower == 0.4
    assert "a canary adds 1.5 of the claimed sensitivity" in row.outcome


def test_row_is_overspent_above_its_target_but_for_rounding() -> None:
    trial = make_trial()
    row = row_of(
        trial,
        as_planned(trial, epsilon_spent=4.01),
        EVALUATED,
    )
    assert row.status == "overspent"
    assert row.epsilon_spent == 4.01
    assert row.epsilon_target == 4.0
    assert row.error is None
    rounded = as_planned(trial, epsilon_spent=4.0 * (1 + 1e-7))
    assert row_of(trial, rounded, EVALUATED).status == "ok"


def test_infinite_target_is_never_overspent() -> None:
    trial = make_trial(epsilon=math.inf)
    row = row_of(
        trial,
        as_planned(trial, epsilon_spent=math.inf),
        EVALUATED,
    )
    assert row.status == "ok"


def test_training_that_left_its_plan_has_no_epsilon() -> None:
    trial = make_trial()
    outcome = as_planned(trial, unaccounted="client 0 has 1 of 2 steps")
    row = row_of(
        trial,
        outcome,
        EVALUATED,
        audits=audits(trial, refuted=True),
    )
    assert row.status == "unaccounted"
    assert row.refuted
    assert row.epsilon_spent is None
    assert row.mechanisms is None
    assert row.error["type"] == "Unaccounted"
    assert row.error["message"] == "client 0 has 1 of 2 steps"


def test_failed_training_makes_a_failed_row_with_its_plan() -> None:
    trial = make_trial()
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
    trial = make_trial()
    assert trial.plan is not None
    row = row_of(trial, as_planned(trial), FAILED)
    assert row.status == "failed"
    assert row.error == ERROR
    assert row.scores == {}
    assert row.evaluation_seconds is None
    assert row.epsilon_spent == trial.plan.epsilon_reached


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({}, "passed"),
        ({"ended": "failed"}, "failed"),
        ({"full": False}, None),
        ({"source": "of other code", "ended": "failed"}, None),
        ({"algorithm": "other/tiny:Tiny"}, "passed"),
        ({"algorithm": "broken.tiny:Other"}, None),
    ],
)
def test_row_shows_how_checks_of_its_code_ended(change: dict[str, Any], check: str | None) -> None:
    trial = make_trial("broken.tiny:Tiny")
    line = {
        "algorithm": trial.cell.algorithm,
        "unit": "example",
        "trust": "aggregate",
        "full": True,
        "ended": "passed",
        "source": trial.cell.source,
        "params": trial.cell.params,
        "tried": trial.cell.params,
    }
    row = planned_row(trial, checks=[line | change])
    assert row.claim == "stated"
    assert row.check == check


def test_references_add_their_columns() -> None:
    trial = make_trial()
    before = planned_row(trial)
    references = (Ceiling(0.9, 0.95, 100, 1.0), LocalOnly(0.4, (0.5, None, 0.3, 0.4), 100, 1.0))
    after = planned_row(trial, *references)
    changed = {
        name: after.values[name] for name in COLUMNS if before.values[name] != after.values[name]
    }
    assert changed == {
        "ceiling_balanced_accuracy": 0.9,
        "ceiling_accuracy": 0.95,
        "reference_rows": 100,
        "local_only_balanced_accuracy": 0.4,
        "share_of_ceiling": 0.5 / 0.9,
    }


def test_cell_without_references_in_its_run_has_a_result(tmp_path: Path) -> None:
    prepared = small_cells("dp-gaussian", epsilon=4.0)
    (trial,) = prepared.trials
    store = ResultStore(tmp_path)
    with store.lock():
        write_manifest(store.folder, prepared, [entry_of(trial)])
    store.append(
        "trainings",
        [
            training_line(
                trial,
                as_planned(trial),
                {},
            )
        ],
    )
    store.append(
        "evaluations",
        [
            evaluation_line(
                trial,
                EVALUATED,
                1.0,
            )
        ],
    )
    store.append("references", [reference_line("of another cell", Ceiling(0.1, 0.1, 100, 1.0))])
    (row,) = read_results(tmp_path).rows
    assert row.ceiling_balanced_accuracy is None
    assert row.local_only_balanced_accuracy is None


def test_every_evaluation_of_one_training_has_a_row(tmp_path: Path) -> None:
    (one,) = small_cells(
        "dp-gaussian",
        epsilon=4.0,
        evaluation={"per_class": 5},
    ).trials
    (other,) = small_cells(
        "dp-gaussian",
        epsilon=4.0,
        evaluation={"per_class": 10},
    ).trials
    assert one.cell.training_id == other.cell.training_id
    store = ResultStore(tmp_path)
    for outcome in (FAILED, as_planned(one), FAILED):
        store.append(
            "trainings",
            [
                training_line(
                    one,
                    outcome,
                    {},
                )
            ],
        )
    better = replace(EVALUATED, scores=SCORES | {"balanced_accuracy": 0.7})
    for trial, evaluation in ((one, FAILED), (one, EVALUATED), (other, better)):
        store.append(
            "evaluations",
            [
                evaluation_line(
                    trial,
                    evaluation,
                    1.0,
                )
            ],
        )
    results = read_results(tmp_path)
    first, second = results.rows_of([entry_of(other), entry_of(one)])
    assert first.status == "ok"
    assert first.balanced_accuracy == 0.7
    assert second.status == "ok"
    assert second.balanced_accuracy == 0.5
    assert len(results.every_row()) == 1


def test_score_that_is_not_a_number_is_refused(tmp_path: Path) -> None:
    add_rows(tmp_path, make_row(balanced_accuracy=float("nan")))
    with pytest.raises(ValueError, match="cell a: balanced_accuracy is not a number"):
        assert read_results(tmp_path).rows


def test_frame_has_a_column_per_field_and_parameter() -> None:
    frame = frame_of(
        [
            make_row(params={"rounds": 3}, evaluation={"per_class": 10}),
            make_row(cell_id="b", params={"hidden": (8, 4), "warm": True}),
        ]
    )
    names = list(frame.columns)
    params = names.index("params.rounds")
    assert names[params : params + 3] == ["params.rounds", "params.hidden", "params.warm"]
    assert {*names} - {*COLUMNS} == {*names[params : params + 3], "evaluation.per_class"}
    assert {*COLUMNS} - {*names} == {"params", "evaluation"}


@pytest.mark.parametrize(
    ("name", "values", "dtype"),
    [
        ("seed", [1, 2], "int64"),
        ("train_groups", [4, None], "Int64"),
        ("train_groups", [None, None], "Int64"),
        ("epsilon_target", [math.inf, None], "float64"),
        ("accuracy", [0.5, None], "float64"),
        ("personal_weight", [None, None], "float64"),
    ],
)
def test_column_of_a_frame_has_a_type(name: str, values: list[Any], dtype: str) -> None:
    frame = frame_of([Row({name: value}) for value in values])
    assert str(frame[name].dtype) == dtype
    assert frame[name].isna().tolist() == [value is None for value in values]


def test_empty_frame_has_typed_columns() -> None:
    frame = frame_of([])
    assert str(frame["seed"].dtype) == "Int64"
    assert str(frame["accuracy"].dtype) == "float64"
