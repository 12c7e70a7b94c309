import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.privacy.accountant import epsilon
from fedsim.privacy.ledger import Ledger, LedgerEntry, Tally, _undominated
from fedsim.privacy.plan import Release, calibrate

DELTA = 1e-4

PLAN = calibrate(
    epsilon=2.0,
    delta=DELTA,
    releases=(Release("means", 1.0, 1, relative_noise=4.0, main=False), Release("step", 0.2, 30)),
    unit="example",
    trust="aggregate",
    scope="joint",
    claim="proved",
    clip=1.0,
    sensitivity=1.0,
)

an_entry = st.builds(
    LedgerEntry,
    release=st.sampled_from(["step", "means"]),
    round=st.integers(0, 5),
    client=st.integers(0, 4),
    noise_multiplier=st.floats(0.0, 1e3),
    sample_rate=st.floats(1e-6, 1.0),
)


def ran(entries):
    ledger = Ledger()
    for entry in entries:
        ledger.record(entry)
    return ledger


def steps(rounds, clients=range(3), noise_multiplier=4.0, sample_rate=0.2, release="step"):
    return [LedgerEntry(release, r, c, noise_multiplier, sample_rate) for r in rounds for c in clients]


def test_an_empty_ledger_spent_nothing():
    assert (Ledger().epsilon(DELTA), Ledger().entries, Ledger().mechanisms()) == ((0.0, "none"), (), ())


def test_a_run_as_planned_spends_what_the_plan_says():
    ledger = ran(
        LedgerEntry(release.name, round_, client, PLAN.noise_multiplier(release.name), release.sample_rate)
        for release in PLAN.releases
        for round_ in range(release.steps)
        for client in range(3)
    )
    assert ledger.epsilon(DELTA) == (PLAN.epsilon_reached, PLAN.accountant)


def test_one_step_more_or_half_the_noise_costs_more():
    spent = ran(steps(range(30))).epsilon(DELTA)[0]
    assert ran(steps(range(31))).epsilon(DELTA)[0] > spent
    assert ran(steps(range(30), noise_multiplier=2.0)).epsilon(DELTA)[0] > spent


def test_one_step_without_noise_costs_everything():
    ledger = ran(steps(range(30)))
    ledger.record(LedgerEntry("step", 30, 1, 0.0, 0.2))
    assert ledger.epsilon(DELTA) == (math.inf, "none")


def test_releases_of_one_client_add_up_whatever_they_are_called():
    apart = ran([*steps(range(10), release="encoder"), *steps(range(10), release="decoder")])
    assert apart.epsilon(DELTA) == ran(steps(range(20))).epsilon(DELTA)


def test_disjoint_clients_cost_the_largest_of_them():
    ledger = ran([*steps(range(10), clients=[0, 1]), *steps(range(25), clients=[2])])
    assert ledger.epsilon(DELTA) == epsilon([(4.0, 0.2, 25)], DELTA)


def test_the_largest_of_incomparable_histories_is_taken():
    few_loud = [*steps(range(4), clients=[0], noise_multiplier=1.0), *steps(range(1), clients=[0], noise_multiplier=5.0)]
    many_quiet = [*steps(range(1), clients=[1], noise_multiplier=1.0), *steps(range(60), clients=[1], noise_multiplier=5.0)]
    costs = [ran(few_loud).epsilon(DELTA), ran(many_quiet).epsilon(DELTA)]
    assert costs[0] != costs[1]
    both = ran([*few_loud, *many_quiet])
    assert both.epsilon(DELTA) == max(costs)


@given(
    st.sets(st.dictionaries(st.sampled_from([(1.0, 0.2), (5.0, 0.2), (4.0, 1.0)]), st.integers(1, 4)).map(lambda d: frozenset(d.items())))
)
def test_every_history_is_part_of_one_that_may_have_cost_the_most(histories):
    kept = [dict(history) for history in _undominated(histories)]
    for history in histories:
        assert any(all(larger.get(mechanism, 0) >= count for mechanism, count in history) for larger in kept)


def test_a_thousand_clients_that_took_part_unequally_often_cost_one_composition():
    ledger = Ledger()
    for client in range(1000):
        ledger.record(LedgerEntry("step", 0, client, 4.0, 0.2), times=1 + client % 300)
    assert ledger.epsilon(DELTA) == epsilon([(4.0, 0.2, 300)], DELTA)


def test_entries_are_tallies_and_many_rounds_stay_small():
    ledger = ran(steps(range(300), clients=range(100)))
    assert ledger.entries == tuple(Tally(client, "step", 4.0, 0.2, 300) for client in range(100))
    assert len(ledger.to_json()) < 1000


@settings(max_examples=50)
@given(st.lists(an_entry, max_size=30), st.randoms(use_true_random=False))
def test_equal_whatever_the_order_and_exact_through_json(entries, random):
    shuffled = random.sample(entries, len(entries))
    assert ran(entries) == ran(shuffled)
    assert ran(entries).to_json() == ran(shuffled).to_json()
    assert Ledger.from_json(ran(entries).to_json()) == ran(entries)


def test_a_resumed_run_equals_an_uninterrupted_one():
    whole = ran(steps(range(10)))
    resumed = Ledger.from_json(ran(steps(range(6))).to_json())
    assert resumed != whole
    for entry in steps(range(6, 10)):
        resumed.record(entry)
    assert resumed == whole
    assert resumed.to_json() == whole.to_json()


@pytest.mark.parametrize(
    "changed",
    [
        {"noise_multiplier": math.nextafter(4.0, 5.0)},
        {"sample_rate": math.nextafter(0.2, 1.0)},
        {"release": "other"},
        {"clients": [0, 1, 3]},
        {"rounds": range(9)},
    ],
)
def test_ledgers_differ_in_anything_that_differs(changed):
    assert ran(steps(**{"rounds": range(10), **changed})) != ran(steps(range(10)))


def as_planned(**changed):
    """All steps of two clients; of the second release as ``changed``."""
    kept = {"rounds": range(30), "noise_multiplier": PLAN.sigma, **changed}
    return ran([*steps(range(1), range(2), 4 * PLAN.sigma, 1.0, "means"), *steps(clients=range(2), **kept)])


def test_a_ledger_as_planned_accounts_for_every_step_of_every_client_and_for_no_other_client():
    assert as_planned().unaccounted(PLAN, clients=2) == ""
    assert "client 2 has 0 steps" in as_planned().unaccounted(PLAN, clients=3)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"rounds": range(29)}, "client 0 has 29 steps of 'step' in the ledger, the plan 30"),
        ({"rounds": range(31)}, "client 0 has 31 steps of 'step' in the ledger, the plan 30"),
        ({"rounds": []}, "client 0 has 0 steps of 'step' in the ledger, the plan 30"),
        ({"noise_multiplier": 0.0}, "client 0, 'step': noise multiplier 0 at rate 0.2 ran"),
        ({"noise_multiplier": PLAN.sigma * 1.001}, "was planned"),
        ({"sample_rate": 0.1}, "at rate 0.1 ran"),
        ({"release": "other"}, "client 0 has 30 steps of 'other', which is not in the plan"),
    ],
)
def test_anything_else_than_the_plan_is_unaccounted(changed, reason):
    assert reason in as_planned(**changed).unaccounted(PLAN, clients=2)


def test_steps_of_one_release_add_up_where_their_noise_differs_in_the_last_bit():
    ledger = as_planned()
    ledger.record(LedgerEntry("step", 30, 0, math.nextafter(PLAN.sigma, 0), 0.2))
    assert "client 0 has 31 steps" in ledger.unaccounted(PLAN, clients=2)


@pytest.mark.parametrize(
    ("noise_multiplier", "sample_rate", "times"),
    [(-1.0, 0.2, 1), (math.nan, 0.2, 1), (1.0, 0.0, 1), (1.0, 1.5, 1), (1.0, 0.2, 0)],
)
def test_refuses_what_cannot_have_run(noise_multiplier, sample_rate, times):
    with pytest.raises(ValueError, match="cannot have run"):
        Ledger().record(LedgerEntry("step", 0, 0, noise_multiplier, sample_rate), times)


@pytest.mark.parametrize("text", ["{", json.dumps([{"clients": [0]}]), json.dumps(3)])
def test_refuses_a_text_that_is_no_ledger(text):
    with pytest.raises(ValueError, match=r".+"):
        Ledger.from_json(text)


def test_the_mechanisms_are_those_of_all_clients_and_none_if_they_differ():
    ledger = Ledger()
    for client in range(3):
        ledger.record(LedgerEntry("b", 0, client, 2.0, 0.1), 5)
        ledger.record(LedgerEntry("a", 0, client, 4.0, 1.0))
    assert [(tally.release, tally.count) for tally in ledger.mechanisms()] == [("a", 1), ("b", 5)]
    ledger.record(LedgerEntry("a", 0, 1, 4.0, 1.0))
    assert ledger.mechanisms() is None
