import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.privacy.accountant import epsilon
from fedsim.privacy.ledger import Ledger
from fedsim.privacy.mechanism import Mechanism
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
STEP = Mechanism(4.0, 0.2, 1, "step")

some_clients = st.lists(
    st.integers(0, 4),
    min_size=1,
    max_size=3,
    unique=True,
)
a_mechanism = st.builds(
    Mechanism,
    st.floats(0.0, 1e3),
    st.floats(1e-6, 1.0),
    st.integers(1, 3),
    st.sampled_from(["step", "means"]),
)
runs = st.lists(st.tuples(some_clients, a_mechanism), max_size=30)


def ran(*entries):
    ledger = Ledger()
    for clients, mechanism in entries:
        ledger.record(clients, mechanism)
    return ledger


def test_releases_of_one_client_add_up_and_clients_cost_the_largest():
    apart = ran(
        ([0], STEP.times(10)),
        ([0], replace(STEP, release="decoder").times(10)),
        ([1, 2], STEP.times(15)),
    )
    assert apart.epsilon(DELTA) == epsilon([Mechanism(4.0, 0.2, 20)], DELTA)


def test_the_largest_of_incomparable_histories_is_taken():
    loud = replace(STEP, noise_multiplier=1.0)
    quiet = replace(STEP, noise_multiplier=5.0)
    few = [([0], loud.times(4)), ([0], quiet)]
    many = [([1], loud), ([1], quiet.times(60))]
    costs = [ran(*few).epsilon(DELTA), ran(*many).epsilon(DELTA)]
    assert costs[0] != costs[1]
    assert ran(*few, *many).epsilon(DELTA) == max(costs)


@settings(max_examples=50)
@given(runs, st.randoms(use_true_random=False))
def test_order_of_records_does_not_matter(entries, random):
    whole = ran(*entries)
    shuffled = ran(*random.sample(entries, len(entries)))
    assert whole == shuffled
    assert whole.to_json() == shuffled.to_json()


@settings(max_examples=50)
@given(runs)
def test_ledger_of_a_resumed_run_equals_that_of_a_whole_one(entries):
    resumed = Ledger.from_json(ran(*entries[:5]).to_json())
    for entry in entries[5:]:
        resumed.record(*entry)
    assert resumed == ran(*entries)


def as_planned(**changed):
    """Return all planned steps of two clients, those of the second release ``changed``."""
    means, step = PLAN.mechanisms
    return ran((range(2), means), (range(2), replace(step, **changed)))


def test_planned_steps_are_accounted_for_and_missing_clients_are_not():
    assert as_planned().unaccounted(PLAN, clients=2) == ""
    assert "client 2 has 0 steps" in as_planned().unaccounted(PLAN, clients=3)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"count": 29}, "client 0 has 29 steps of 'step' in the ledger, but the plan has 30"),
        ({"count": 31}, "client 0 has 31 steps of 'step' in the ledger, but the plan has 30"),
        ({"noise_multiplier": 0.0}, "client 0, 'step': noise multiplier 0 at rate 0.2 ran"),
        ({"noise_multiplier": PLAN.sigma * 1.001}, "was planned"),
        ({"sample_rate": 0.1}, "at rate 0.1 ran"),
        ({"release": "other"}, "client 0 has 30 steps of 'other', which is not in the plan"),
    ],
)
def test_anything_else_than_the_plan_is_unaccounted(changed, reason):
    assert reason in as_planned(**changed).unaccounted(PLAN, clients=2)


@pytest.mark.parametrize(
    "mechanism",
    [
        Mechanism(-1.0, 0.2, 1),
        Mechanism(math.nan, 0.2, 1),
        Mechanism(1.0, 0.0, 1),
        Mechanism(1.0, 1.5, 1),
        Mechanism(1.0, 0.2, 0),
    ],
)
def test_refuses_what_cannot_have_run(mechanism):
    with pytest.raises(ValueError, match="cannot have run"):
        Ledger().record([0], mechanism)


def test_mechanisms_are_ordered_by_release_and_none_if_clients_differ():
    first = Mechanism(4.0, release="a")
    second = Mechanism(2.0, 0.1, 5, "b")
    ledger = ran((range(3), second), (range(3), first))
    assert ledger.mechanisms() == (first, second)
    ledger.record([1], first)
    assert ledger.mechanisms() is None
