"""A row is the join of its lines: nothing of it is written that another line could change."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cells import small_cells
from rows import ERROR, lines_of

from fedsim.evaluation.judge import Judgement
from fedsim.evaluation.references import Ceiling, LocalOnly
from fedsim.results.columns import COLUMNS, Row
from fedsim.results.result_lines import RowError, judgement_line, reference_line, training_line
from fedsim.results.run import Entry, Lines, claim_of, every_row, grid_rows
from fedsim.results.store import ResultStore
from fedsim.runs.manifest import write_manifest
from fedsim.training.trial import Outcome, Trial

FAILED = RowError(**ERROR)
JUDGEMENT = Judgement({"balanced_accuracy": 0.5, "accuracy": 0.6}, (0.5,) * 10, (), None, "uniform")  # type: ignore[arg-type]
CHECK = {"unit": "example", "trust": "aggregate", "full": True, "ended": "passed"}
AUDIT = {
    "audit": "audited",
    "claim": "",
    "epsilon_lower": 1.0,
    "pairs": 100,
    "canary_ratio": 1.0,
    "params": {},
}


def a_trial(name: str = "dp-gaussian", **keys: Any) -> Trial:
    (trial,) = small_cells(name, **{"epsilon": 4.0, **keys}).trials
    return trial


def as_planned(trial: Trial, **fields: Any) -> Outcome:
    """A training that did what was planned, but for what is given."""
    plan = trial.plan
    assert plan is not None
    return replace(Outcome(plan.epsilon_reached, plan.accountant, plan.mechanisms, "sum", "", 1000, 2000, 30, 3.0, {}), **fields)


def entry_of(trial: Trial) -> Entry:
    cell = trial.cell
    return Entry(cell.cell_id, cell.training_id, cell.label, "ceiling", "local-only", "audited")


def row_of(trial: Trial, *ended: Any, **lines: Any) -> Row:
    """The row of a cell by its training, its judgement and its references, and by other lines."""
    row = replace(lines_of(trial, *ended), **lines).row(entry_of(trial))
    assert row is not None
    return row


def audits(**fields: Any) -> Mapping[str, Any]:
    return {"audited": AUDIT | {"refuted": False} | fields}


def test_an_audit_refutes_its_claim_in_a_later_grid_that_asks_for_none() -> None:
    trial = a_trial()
    lines = lines_of(trial, as_planned(trial), JUDGEMENT)
    of = claim_of(lines.trainings[trial.cell.training_id]["cell"])
    entry = replace(entry_of(trial), audit=None)
    row = replace(lines, audits=audits(refuted=True, claim=of)).row(entry)
    assert row is not None
    assert (row.status, row.audit_pairs) == ("refuted", 100)
    other = replace(lines, audits=audits(refuted=True, claim=of.replace("4.0", "8.0"))).row(entry)
    assert other is not None
    assert (other.status, other.audit_pairs) == ("ok", None)


def test_a_row_is_ok_while_no_line_says_otherwise() -> None:
    trial = a_trial()
    assert row_of(trial, as_planned(trial), JUDGEMENT).status == "ok"
    row = row_of(trial, as_planned(trial), JUDGEMENT, audits=audits())
    assert (row.status, row.claim, row.audit_epsilon_lower, row.audit_pairs) == ("ok", "proved", 1.0, 100)


def test_an_audit_s_line_refutes_a_row_that_was_ok() -> None:
    trial = a_trial()
    lines = audits(epsilon_lower=9.0, refuted=True)
    row = row_of(trial, as_planned(trial), JUDGEMENT, audits=lines)
    assert (row.status, row.error, row.audit_epsilon_lower, row.balanced_accuracy) == ("refuted", None, 9.0, 0.5)
    # an audit of a theorem's sensitivity refutes without a bound above the target
    assert row_of(trial, as_planned(trial), JUDGEMENT, audits=audits(refuted=True)).status == "refuted"
    other = replace(lines_of(trial, as_planned(trial), JUDGEMENT), audits=lines).row(replace(entry_of(trial), audit="another"))
    assert other is not None
    assert (other.status, other.audit_epsilon_lower) == ("ok", None)


def test_more_than_the_target_is_overspent_and_the_last_digits_are_not() -> None:
    trial = a_trial()
    row = row_of(trial, as_planned(trial, epsilon_spent=4.01), JUDGEMENT)
    assert (row.status, row.epsilon_spent, row.epsilon_target, row.error) == ("overspent", 4.01, 4.0, None)
    assert row_of(trial, as_planned(trial, epsilon_spent=4.0 * (1 + 1e-7)), JUDGEMENT).status == "ok"
    # without noise nothing is spent too much
    free = a_trial(epsilon=float("inf"))
    assert row_of(free, as_planned(free, epsilon_spent=float("inf")), JUDGEMENT).status == "ok"


def test_of_what_does_not_follow_the_plan_no_epsilon_is_known() -> None:
    trial = a_trial()
    row = row_of(trial, as_planned(trial, unaccounted="client 0 has 1 of 2 steps"), JUDGEMENT, audits=audits(refuted=True))
    assert (row.status, row.epsilon_spent, row.mechanisms) == ("unaccounted", None, None)
    assert row.error == {"type": "Unaccounted", "message": "client 0 has 1 of 2 steps", "traceback": ""}


def test_a_training_that_failed_is_a_row_without_scores_or_seconds_whose_plan_is_known() -> None:
    trial = a_trial()
    row = row_of(trial, FAILED)
    assert (row.status, row.error, row.scores, row.seconds, row.epsilon_spent) == ("failed", ERROR, {}, None, None)
    assert (row.epsilon_target, row.plan["sigma"], row.claim) == (4.0, trial.plan and trial.plan.sigma, "proved")


def test_a_judgement_that_failed_is_a_failed_row_that_tells_what_was_spent() -> None:
    trial = a_trial()
    row = row_of(trial, as_planned(trial), FAILED)
    assert (row.status, row.error, row.scores) == ("failed", ERROR, {})
    assert row.epsilon_spent == (trial.plan and trial.plan.epsilon_reached)
    assert (row.train_seconds, row.judge_seconds) == (3.0, None)


def test_there_is_no_row_before_the_judgement_and_a_status_as_soon_as_it_is_trained() -> None:
    trial = a_trial()
    entry, nothing = entry_of(trial), Lines({}, {}, {})
    trained, failed = (lines_of(trial, end) for end in (as_planned(trial, epsilon_spent=5.0), FAILED))
    assert (nothing.row(entry), trained.row(entry)) == (None, None)
    assert [lines.standing_of(entry) for lines in (nothing, trained, failed)] == ["", "overspent", "failed"]
    assert trained.trained_row(entry).scores == {}
    assert trained.rows([entry]) == []


def test_seconds_are_those_of_training_and_judging() -> None:
    trial = a_trial()
    row = row_of(trial, as_planned(trial, seconds=3.0), JUDGEMENT)
    assert (row.train_seconds, row.judge_seconds, row.seconds) == (3.0, 1.0, 4.0)


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({}, "passed"),
        ({"ended": "failed"}, "failed"),
        ({"full": False}, None),
        ({"source": "of other code"}, None),
        ({"source": "of other code", "ended": "failed"}, None),
    ],
)
def test_what_checks_of_its_code_found_stands_beside_a_claim(change: dict[str, Any], check: str | None) -> None:
    trial = a_trial("broken.tiny:Tiny")
    line = {**CHECK, "source": trial.cell.source, "params": trial.cell.params}
    assert row_of(trial, as_planned(trial), JUDGEMENT).claim == "stated"
    assert row_of(trial, as_planned(trial), JUDGEMENT, checks=[line | change]).check == check


def test_a_method_without_a_budget_claims_nothing() -> None:
    (trial,) = small_cells("fedavg-cvae").trials
    row = row_of(trial, Outcome(None, None, None, None, "", 1000, 2000, 30, 3.0, {}), JUDGEMENT)
    assert (row.status, row.claim, row.epsilon_target, row.noise) == ("ok", "none", None, None)


def test_columns_of_references_are_empty_until_their_lines_are_there(tmp_path: Path) -> None:
    prepared = small_cells("dp-gaussian", epsilon=4.0)
    (trial,) = prepared.trials
    store = ResultStore(tmp_path)
    with store.lock():
        write_manifest(store.folder, prepared, [entry_of(trial)])
    store.append("trainings", [training_line(trial, as_planned(trial), {})])
    store.append("judgements", [judgement_line(trial, JUDGEMENT, 1.0)])
    (before,) = grid_rows(tmp_path)
    assert (before.ceiling_balanced_accuracy, before.ceiling_accuracy, before.local_only_balanced_accuracy) == (None, None, None)
    store.append("references", [reference_line("ceiling", Ceiling(0.9, 0.95)), reference_line("another ceiling", Ceiling(0.1, 0.1))])
    store.append("references", [reference_line("local-only", LocalOnly(0.4, (0.5, None, 0.3, 0.4)))])
    (after,) = grid_rows(tmp_path)
    found = {name for name in COLUMNS if before.values[name] != after.values[name]}
    assert found == {"ceiling_balanced_accuracy", "ceiling_accuracy", "local_only_balanced_accuracy", "share_of_ceiling"}
    assert after.share_of_ceiling == after.balanced_accuracy / 0.9
    assert (after.ceiling_balanced_accuracy, after.ceiling_accuracy, after.local_only_balanced_accuracy) == (0.9, 0.95, 0.4)


def test_a_training_is_in_every_row_that_judges_it_and_of_every_row_the_last_judgement_counts(tmp_path: Path) -> None:
    one, other = (small_cells("dp-gaussian", epsilon=4.0, evaluation={"per_class": n}).trials[0] for n in (5, 10))
    assert one.cell.training_id == other.cell.training_id
    store = ResultStore(tmp_path)
    store.append("trainings", [training_line(one, as_planned(one), {})])
    store.append("judgements", [judgement_line(one, FAILED, 0.0), judgement_line(one, JUDGEMENT, 1.0)])
    store.append("judgements", [judgement_line(other, replace(JUDGEMENT, scores={"balanced_accuracy": 0.7}), 2.0)])  # type: ignore[arg-type]
    lines = Lines.read(tmp_path)
    found = lines.rows([entry_of(one), entry_of(other)])
    assert [(row.status, row.balanced_accuracy, row.seconds) for row in found] == [("ok", 0.5, 4.0), ("ok", 0.7, 5.0)]
    assert [row.epsilon_spent for row in found] == [one.plan and one.plan.epsilon_reached] * 2
    assert len(every_row(tmp_path)) == 1


def test_a_training_that_succeeded_stands_before_a_later_one_that_failed(tmp_path: Path) -> None:
    trial = a_trial()
    store = ResultStore(tmp_path)
    store.append("trainings", [training_line(trial, end, {}) for end in (FAILED, as_planned(trial), FAILED)])
    store.append("judgements", [judgement_line(trial, JUDGEMENT, 1.0)])
    assert [row.status for row in grid_rows(tmp_path)] == ["ok"]


def test_rows_are_in_the_order_of_the_grid_whatever_the_order_of_the_lines() -> None:
    trials = small_cells("dp-gaussian", "fedhypevae", epsilon=4.0, seeds=[0, 1]).trials
    joined = [lines_of(trial, as_planned(trial), JUDGEMENT) for trial in reversed(trials)]
    trainings = {name: line for each in joined for name, line in each.trainings.items()}
    judgements = {name: line for each in joined for name, line in each.judgements.items()}
    lines = Lines(trainings, judgements, {})
    assert [row.cell_id for row in lines.rows([entry_of(trial) for trial in trials])] == [trial.cell.cell_id for trial in trials]
