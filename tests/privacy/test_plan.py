import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedsim.errors import UserError
from fedsim.privacy import accountant
from fedsim.privacy.plan import Release, calibrate, large_delta

SETTING = {"unit": "example", "trust": "aggregate", "scope": "joint", "claim": "proved"}


def solve(epsilon, *releases, delta=1e-4, clip=1.0, sensitivity=1.0):
    return calibrate(
        epsilon=epsilon,
        delta=delta,
        releases=releases,
        clip=clip,
        sensitivity=sensitivity,
        **SETTING,
    )


def spent(plan):
    """Return the cost of the plan's releases, at the multipliers that an algorithm uses."""
    return accountant.epsilon(plan.mechanisms, plan.delta)


a_release = st.builds(
    Release,
    name=st.just("step"),
    sample_rate=st.sampled_from([0.02, 0.1, 0.3, 1.0]),
    steps=st.integers(1, 200),
)
maybe_first = st.one_of(
    st.none(),
    st.builds(Release, st.just("first"), st.just(1.0), st.integers(1, 3), st.floats(0.5, 4.0)),
)


@settings(max_examples=4)
@example(epsilon=0.05, delta=1e-4, release=Release("step", 0.1, 50), first=None)
@example(epsilon=300.0, delta=1e-4, release=Release("step", 0.1, 50), first=None)
@given(
    epsilon=st.floats(0.5, 10.0),
    delta=st.sampled_from([1e-4, 1e-5]),
    release=a_release,
    first=maybe_first,
)
def test_a_plan_spends_its_budget_and_no_more(epsilon, delta, release, first):
    releases = filter(None, (first, release))
    plan = solve(epsilon, *releases, delta=delta)
    assert spent(plan) == (plan.epsilon_reached, plan.accountant)
    assert 0.99 * epsilon <= plan.epsilon_reached <= epsilon


# Sigma by dp-accounting 0.6's calibrate_dp_mechanism over its PLD accountant
@pytest.mark.parametrize(("epsilon", "golden"), [(1.0, 11.2111), (4.0, 3.4629), (8.0, 2.0423)])
def test_golden_sigmas_for_300_steps(epsilon, golden):
    plan = solve(epsilon, Release("step", 0.2, 300), delta=0.9e-4)
    assert golden - 1e-4 <= plan.sigma <= 1.005 * golden


STEPS = Release("step", 0.2, 40)
MEANS = Release("means", 1.0, 1, relative_noise=4.0)


def test_releases_keep_their_ratio():
    plan = solve(2.0, MEANS, STEPS)
    multipliers = [mechanism.noise_multiplier for mechanism in plan.mechanisms]
    assert multipliers == [4 * plan.sigma, plan.sigma]


def test_sensitivity_scales_the_noise_and_not_the_multiplier():
    one = solve(2.0, MEANS, STEPS)
    half = solve(2.0, MEANS, STEPS, sensitivity=0.5)
    assert half.sigma == one.sigma
    assert half.noise_std("means") == 4 * half.sigma * 0.5


def test_an_infinite_epsilon_has_no_noise_and_claims_nothing():
    plan = solve(
        math.inf,
        STEPS,
        clip=math.inf,
        sensitivity=math.inf,
    )
    assert plan.sigma == 0.0
    assert plan.claim == "none"
    assert plan.mechanism("step").noise_multiplier == 0.0
    assert plan.noise_std("step") == 0.0
    assert spent(plan) == (math.inf, "none")
    assert (plan.epsilon_reached, plan.accountant) == spent(plan)


@pytest.mark.parametrize(
    ("epsilon", "delta", "release"),
    [
        (0.0, 1e-4, STEPS),
        (math.nan, 1e-4, STEPS),
        (1.0, 1.0, STEPS),
        (1.0, 1e-4, Release("step", 0.2, 0)),
        (1.0, 1e-4, Release("step", 1.2, 40)),
        (1.0, 1e-4, Release("step", 0.2, 40, relative_noise=0.0)),
        (1e-6, 1e-4, STEPS),
        (1.0, 1e-2, Release("step", 1e-3, 5)),
    ],
)
def test_impossible_budget_is_refused(epsilon, delta, release):
    with pytest.raises(UserError):
        solve(epsilon, release, delta=delta)


def test_budget_above_the_least_noise_is_called_too_large():
    with pytest.raises(UserError, match=r"1e\+07 at delta 0.0001 is too large.*; give a smaller"):
        solve(1e7, Release("step", 1.0, 1), delta=1e-4)


def test_budget_below_the_accountants_resolution_is_called_too_small():
    message = r"0\.003 is too small to account for at delta 0\.0001; give a larger epsilon"
    with pytest.raises(UserError, match=message):
        solve(0.003, Release("step", 1.0, 100_000), delta=1e-4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("clip", 0.0),
        ("clip", math.inf),
        ("sensitivity", -1.0),
        ("sensitivity", math.nan),
    ],
)
def test_noise_needs_a_bound(name, value):
    with pytest.raises(UserError, match=name):
        solve(1.0, STEPS, **{name: value})


@pytest.mark.parametrize(
    ("unit", "delta", "units", "words"),
    [
        ("example", 1e-4, 10_000, "the 10000 training rows of digits"),
        ("client", 0.1, 10, "the 10 clients of digits"),
        ("writer", 1e-2, 100, "the 100 groups by writer of digits"),
    ],
)
def test_delta_of_1_over_n_is_large(unit, delta, units, words):
    assert words in large_delta(unit, delta, units, "digits")


def test_delta_below_1_over_n_is_not_large():
    assert large_delta("example", 1e-4, 9_999, "digits") is None
