from cells import one_cell, quick, small_cells
from rows import joined, ran
from sites import digits_of_writers

from fedsim.evaluation.judge import Judgement
from fedsim.evaluation.references import Ceiling, LocalOnly

SHIFT = {"scheme": "feature-shift", "strength": 2.0}


def judgement(algorithm: dict, **keys) -> Judgement:
    prepared = small_cells(algorithm, epsilon=float("inf"), **keys)
    return ran(prepared, prepared.trials[0])[1]


def test_under_feature_shift_a_generator_for_every_client_beats_one_for_all():
    evaluation = {"per_class": 30, "per_client": True}
    personal = judgement(quick("fedhypevae-sites"), partition=SHIFT, evaluation=evaluation)
    assert personal.scores["client_balanced_accuracy"] > personal.scores.balanced_accuracy + 0.05


def test_a_budget_protects_as_many_units_as_there_are_rows_groups_or_clients(tmp_path):
    writers = {"dataset": {"npz": str(digits_of_writers(tmp_path)), "overlap": "keep"}, "unit": {"column": "writer"}}
    for unit, keys in {"example": {}, "client": {"unit": "client"}, "group": writers}.items():
        trial, data, _ = one_cell(quick("fedhypevae"), epsilon=4.0, **keys)
        groups = len(set(data.columns["writer"])) if unit == "group" else None
        assert trial.units == {"example": 200, "client": 4, "group": groups}[unit]


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
