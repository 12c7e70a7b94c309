import pytest
from cells import NODES, quick, small_grid

from fedsim.errors import UserError
from fedsim.methods.one_shot import OneShot
from fedsim.planning.node import Node
from fedsim.planning.prepare import prepare


def test_sampled_clients_are_refused_where_the_budget_is_an_examples() -> None:
    sampled = quick("fedhypevae", client_rate=0.5)
    with pytest.raises(UserError, match=r"client_rate with fedhypevae: 0.5 samples clients, .*; give 1, or unit: client"):
        prepare(small_grid(sampled), NODES)
    (trial,) = prepare(small_grid(sampled, unit="client"), NODES).trials
    assert trial.plan is not None
    assert trial.plan.main.sample_rate == 0.5


def test_cells_of_one_data_set_alpha_number_of_clients_and_seed_share_a_partition() -> None:
    trials = prepare(small_grid("dp-gaussian", "weight-noise", epsilon=[1.0, 4.0], seeds=[0, 1]), NODES).trials
    assert len(trials) == 8
    assert len({id(trial.partition) for trial in trials}) == 2
    assert all(len({id(t.partition) for t in trials if t.cell.seed == seed}) == 1 for seed in (0, 1))


def test_what_cannot_be_planned_or_placed_is_named_by_the_grid_s_key() -> None:
    with pytest.raises(UserError, match=r"^unit with fedhypevae-sites: does not support 'client'; supported: example, group"):
        prepare(small_grid("fedhypevae-sites", unit="client"), NODES)
    with pytest.raises(UserError, match=r"^epsilon\[1\] with dp-gaussian: 1e-06 is too small"):
        prepare(small_grid("dp-gaussian", epsilon=[1.0, 1e-6]), NODES)
    with pytest.raises(UserError, match=r"^resources.clients_per_actor: 4 clients need 4 actors at once and the cluster has room for 2"):
        prepare(small_grid("dp-gaussian", resources={"clients_per_actor": 1}), [Node(2.0, 0.0)])
    with pytest.raises(UserError, match=r"^dataset\[1\]: /none.npz: there is no such file"):
        prepare(small_grid("dp-gaussian", dataset=["digits", {"npz": "/none.npz"}]), NODES)


def test_cells_that_differ_in_alpha_and_seed_alone_share_a_plan() -> None:
    trials = prepare(small_grid("dp-gaussian", "fedavg-cvae", alpha=[0.3, 1.0], seeds=[0, 1], epsilon=[1, 4]), NODES).trials
    plans = {(trial.cell.label, trial.cell.epsilon): trial.plan for trial in trials}
    assert len(plans) == 3
    assert all(trial.plan is plans[trial.cell.label, trial.cell.epsilon] for trial in trials)
    assert [plan and plan.epsilon_target for plan in plans.values()] == [1.0, 4.0, None]


def test_a_plan_is_of_the_cells_own_parameters() -> None:
    entries = [
        quick("fedhypevae", rounds=rounds, sample_rate=rate) | {"label": f"{rounds} {rate}"} for rounds in (3, 5) for rate in (0.1, 0.2)
    ]
    for trial in prepare(small_grid(*entries, epsilon=4.0), NODES).trials:
        assert trial.plan is not None
        assert (trial.plan.main.steps, trial.plan.main.sample_rate) == (trial.cell.params["rounds"], trial.cell.params["sample_rate"])


def test_a_plan_is_of_the_cells_own_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a method releases may depend on how many clients there are."""
    scope = "{} clients".format
    monkeypatch.setattr(OneShot, "scope", lambda self: scope(self.task.clients))
    for trial in prepare(small_grid("dp-gaussian", clients=[2, 4], epsilon=4.0), NODES).trials:
        assert trial.plan is not None
        assert trial.plan.scope == scope(trial.cell.clients)


def test_of_several_cells_without_a_plan_the_first_is_told() -> None:
    with pytest.raises(UserError, match=r"^epsilon\[0\] with dp-gaussian: 1e-09 "):
        prepare(small_grid("dp-gaussian", "dp-gmm", epsilon=[1e-9, 2e-9]), NODES)
