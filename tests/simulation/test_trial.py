from cells import quick, small_cells

from fedsim.simulation.trial import Outcome, packing, run_trial

SHIFT = {"scheme": "feature-shift", "strength": 2.0}


def outcome(algorithm: dict, **keys) -> Outcome:
    prepared = small_cells(algorithm, epsilon=float("inf"), **keys)
    (trial,), (*_, data) = prepared.trials, prepared.data.values()
    *_, last = run_trial(trial, data)
    assert isinstance(last, Outcome)
    return last


def test_clients_are_judged_by_themselves_only_where_the_grid_asks():
    assert "client_balanced_accuracy" not in outcome(quick("fedhypevae")).scores
    assert 0 <= outcome(quick("fedhypevae"), evaluation={"per_class": 10, "per_client": True}).scores["client_balanced_accuracy"] <= 1


def test_under_feature_shift_a_generator_for_every_client_beats_one_for_all():
    evaluation, params = {"per_class": 30, "per_client": True}, {"rounds": 120, "local_learning_rate": 0.1, "code": 4, "code_scale": 1.0}
    personal = outcome(quick("fedhypevae", **params), partition=SHIFT, evaluation=evaluation)
    assert personal.scores["client_balanced_accuracy"] > personal.scores.balanced_accuracy + 0.05


def test_a_shared_generator_serves_each_client_about_as_well_as_all_of_them():
    shared = outcome(quick("dp-gaussian"), evaluation={"per_class": 50, "per_client": True})
    assert abs(shared.scores["client_balanced_accuracy"] - shared.scores.balanced_accuracy) < 0.1


def test_clients_are_spread_as_evenly_as_can_be():
    assert packing(10, 4) == (4, 3, 3)
    assert packing(4, 4) == (4,)
