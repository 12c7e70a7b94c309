import pytest
from cells import one_cell, quick, small_cells
from rows import clients, joined, ran
from sites import digits_of_sites, digits_of_writers

from fedsim.evaluation.judge import Judgement
from fedsim.evaluation.references import Ceiling, LocalOnly, local_only
from fedsim.results.result_lines import RowError
from fedsim.training.trial import packing

SHIFT = {"scheme": "feature-shift", "strength": 2.0}


def judgement(algorithm: dict, **keys) -> Judgement:
    prepared = small_cells(algorithm, epsilon=float("inf"), **keys)
    return ran(prepared, prepared.trials[0])[1]


def test_under_feature_shift_a_generator_for_every_client_beats_one_for_all():
    evaluation = {"per_class": 30, "per_client": True}
    personal = judgement(quick("fedhypevae-sites"), partition=SHIFT, evaluation=evaluation)
    assert personal.scores["client_balanced_accuracy"] > personal.scores.balanced_accuracy + 0.05


def test_a_shared_generator_serves_each_client_about_as_well_as_all_of_them():
    shared = judgement(quick("dp-gaussian"), evaluation={"per_class": 50, "per_client": True})
    assert abs(shared.scores["client_balanced_accuracy"] - shared.scores.balanced_accuracy) < 0.1


def test_clients_are_spread_as_evenly_as_can_be():
    assert packing(10, 4) == (4, 3, 3)
    assert packing(4, 4) == (4,)


def test_every_site_has_a_line_of_its_own_and_one_without_test_rows_says_so(tmp_path):
    data = {"npz": str(digits_of_sites(tmp_path, test_of=("north", "south"))), "overlap": "keep"}
    by_site, evaluation = {"scheme": "column", "column": "site"}, {"per_class": 30, "per_client": True}
    prepared = small_cells(quick("dp-gaussian"), dataset=data, partition=by_site, clients=3, epsilon=float("inf"), evaluation=evaluation)
    (trial,), (rows,) = prepared.trials, prepared.data.values()
    floor = local_only(rows, trial.partition, trial.cell.partition, 0.1)
    ended = (*ran(prepared, trial), Ceiling(0.9, 0.9), floor)
    lines, row = clients(trial, *ended), joined(trial, *ended)
    assert [line["name"] for line in lines] == ["north", "south", "west"]
    assert [line["test_rows"] > 0 for line in lines] == [True, True, False]
    assert lines[2]["own_balanced_accuracy"] is None
    assert lines[2]["reason"] == "it has no test row"
    scored = [line["own_balanced_accuracy"] for line in lines[:2]]
    assert row.scores["client_worst_balanced_accuracy"] == min(scored)
    assert row.scores["client_balanced_accuracy"] == pytest.approx(sum(scored) / 2)
    assert row.scores["client_spread"] == pytest.approx(max(scored) - min(scored))
    # one generator for all: every client uses the shared one
    assert row.scores["client_shared_balanced_accuracy"] == row.scores["client_balanced_accuracy"]
    assert row.scores["client_local_only_balanced_accuracy"] == pytest.approx(sum(floor.clients[:2]) / 2)
    assert row.tested == "the test rows with its site"


def test_a_budget_protects_as_many_units_as_there_are_rows_groups_or_clients(tmp_path):
    writers = {"dataset": {"npz": str(digits_of_writers(tmp_path)), "overlap": "keep"}, "unit": {"column": "writer"}}
    for unit, keys in {"example": {}, "client": {"unit": "client"}, "group": writers}.items():
        trial, data, _ = one_cell(quick("fedhypevae"), epsilon=4.0, **keys)
        groups = len(set(data.columns["writer"])) if unit == "group" else None
        assert trial.units == {"example": 200, "client": 4, "group": groups}[unit]


@pytest.mark.parametrize(("name", "yields"), [("dp-gaussian", "generator"), ("dp-prototypes", "classifier")])
def test_a_row_says_what_its_algorithm_yields_even_if_it_failed(name: str, yields: str) -> None:
    (trial,) = small_cells(quick(name), epsilon=4.0).trials
    assert joined(trial, RowError(type="ValueError", message="no", traceback="")).yields == yields


def test_a_row_holds_the_numbers_of_its_plan_its_outcome_and_its_references() -> None:
    prepared = small_cells(quick("dp-linear"), epsilon=4.0, alpha=0.5, seeds=2)
    (trial,) = prepared.trials
    outcome, judged = ran(prepared, trial)
    row = joined(trial, outcome, judged, Ceiling(0.9, 0.8), LocalOnly(0.5, (0.2, 0.7)))
    assert (row.epsilon_spent, row.balanced_accuracy) == (outcome.epsilon_spent, judged.scores.balanced_accuracy)
    assert (row.ceiling_balanced_accuracy, row.ceiling_accuracy, row.local_only_balanced_accuracy) == (0.9, 0.8, 0.5)
    assert (row.alpha, row.clients, row.seed, row.chance) == (0.5, 4, 2, 0.1)
    assert (row.train_seconds, row.judge_seconds, row.seconds) == (outcome.seconds, 1.0, outcome.seconds + 1.0)
    assert sum(one.count for one in row.ran) == 1 + trial.cell.params["rounds"]  # the mean's step is a step
    without_alpha = small_cells(quick("dp-linear"), epsilon=4.0, partition={"scheme": "iid"}).trials[0]
    assert joined(without_alpha, outcome, judged).alpha is None
