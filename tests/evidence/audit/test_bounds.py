"""Bounds that hold: exact intervals, thresholds that another half chose, guesses in one run."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from fedsim.evidence.audit.audit import GUESSED_SHARES, Audit, black_box_audit
from fedsim.evidence.audit.bounds import at_best, bound, least_pairs, lower, one_run_epsilon, one_run_p_value, upper
from fedsim.evidence.audit.setting import setting_of_options
from fedsim.privacy import accountant
from fedsim.privacy.mechanism import Mechanism
from fedsim.privacy.plan import Release, calibrate

AUDITED = Path(__file__).parents[3] / "benchmarks" / "audited.py"


@given(st.integers(1, 400), st.data())
def test_rates_have_the_intervals_of_clopper_and_pearson(total: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, total))
    exact = binomtest(count, total).proportion_ci(0.95, "exact")
    assert float(lower(np.array(float(count)), total)) == pytest.approx(exact.low)
    assert float(upper(np.array(float(count)), total)) == pytest.approx(exact.high)


def test_fewer_pairs_than_the_least_bound_nothing_and_the_least_do() -> None:
    least, events = least_pairs(1e-4), [Mechanism(1.0)]
    for pairs, is_bound in ((least - 2, False), (least, True)):
        assert (bound([0.0] * pairs, [1.0] * pairs, events, 1e-4).clopper_pearson > 0) == is_bound


@pytest.mark.parametrize(
    ("absent", "present"), [([0.0, 0.0], [0.0, 1.0]), ([0.0, -1.0], [0.0, 0.0])], ids=["called present", "called absent"]
)
def test_what_only_one_world_shows_refutes_any_epsilon_but_for_the_chance_of_it_that_delta_allows(absent, present) -> None:
    found = [bound(200 * absent, 200 * present, [Mechanism(1.0)], delta).clopper_pearson for delta in (1e-4, 0.6)]
    assert found[0] > 3
    assert found[1] == 0


def test_scores_that_tell_nothing_bound_nothing() -> None:
    stream = np.random.default_rng(0)
    found = bound(stream.normal(size=200), stream.normal(size=200), [Mechanism(1.0)], 1e-4)
    assert found.epsilon < 0.3


def test_without_a_delta_the_one_run_p_value_is_the_tail_of_a_binomial() -> None:
    for epsilon, guesses, correct in ((0.0, 100, 60), (1.0, 100, 80), (2.0, 50, 50)):
        rate = 1 / (1 + math.exp(-epsilon))
        assert one_run_p_value(200, guesses, correct, epsilon, 0.0) == pytest.approx(binom.sf(correct - 1, guesses, rate))


def test_a_delta_adds_to_the_one_run_p_value_what_the_theorem_says() -> None:
    canaries, guesses, correct, delta = 40, 30, 24, 1e-3
    rate = 1 / (1 + math.exp(-1.0))
    tail = binom.sf(correct - 1, guesses, rate)
    # of a number i of guesses, the chance that the true count is at most so many below
    share = max((binom.sf(correct - i - 1, guesses, rate) - tail) / i for i in range(1, correct + 1))
    assert one_run_p_value(canaries, guesses, correct, 1.0, delta) == pytest.approx(tail + 2 * canaries * delta * share)


def test_all_of_a_hundred_guesses_right_refute_what_the_paper_says() -> None:
    # rate^100 <= 0.05 where epsilon is below log(r / (1 - r)), r = 0.05^(1 / 100)
    rate = 0.05**0.01
    assert one_run_epsilon(100, 100, 100, 0.0) == pytest.approx(math.log(rate / (1 - rate)), abs=1e-3)
    assert one_run_epsilon(100, 100, 100, 1e-4) < one_run_epsilon(100, 100, 100, 0.0)
    assert one_run_p_value(100, 100, 100, one_run_epsilon(100, 100, 100, 1e-4), 1e-4) <= 0.05
    assert one_run_epsilon(100, 100, 50, 1e-4) == 0


def test_every_try_at_guessing_has_its_part_of_what_a_bound_may_be_wrong_with() -> None:
    inside = np.arange(100) % 2 == 0
    told, blind = inside.astype(float), np.zeros(100)
    for scores in ([told], [told, blind]):
        level = 0.05 / (len(scores) * len(GUESSED_SHARES))
        assert black_box_audit(1.0, 1e-5, scores, inside).clopper_pearson == one_run_epsilon(100, 100, 100, 1e-5, level)
    assert black_box_audit(1.0, 1e-5, [-told], inside).clopper_pearson == 0
    # of the other canaries nothing is guessed right, and they cost their delta
    some = np.where(np.arange(100) < 10, 2 * told - 1, 0)
    assert black_box_audit(1.0, 1e-4, [some], inside).clopper_pearson == one_run_epsilon(100, 10, 10, 1e-4, 0.05 / len(GUESSED_SHARES))


@pytest.mark.parametrize(
    ("lower", "most", "heuristic", "refuted"),
    [(4.1, 1, True, True), (3.9, 1, False, False), (3.9, 1.01, False, True), (3.9, 1.01, True, False)],
)
def test_a_claim_is_refuted_by_a_bound_above_it_and_a_theorem_by_what_a_canary_adds_too(lower, most, heuristic, refuted) -> None:
    assert Audit("white box", 4.0, lower, 1.0, 100, 1.0, most, heuristic).refuted == refuted


def test_the_public_schedule_spends_four_times_its_claim_which_200_pairs_can_show() -> None:
    schedule = ("rounds=25", "local_steps=1", "sample_rate=1")
    setting = setting_of_options(f"{AUDITED}:PublicSchedule", schedule, "example", "aggregate", 1.0, 1e-4)
    (counted,) = setting.plan.mechanisms
    assert (counted.sample_rate, counted.count) == (1.0, 2)
    assert accountant.epsilon([counted.times(25)], 1e-4)[0] == pytest.approx(4.30, abs=0.01)
    facts: dict[str, Any] = {"delta": 1e-4, "unit": "example", "trust": "aggregate", "scope": "", "claim": "proved"}
    published = calibrate(epsilon=1.0, **facts, clip=1.0, sensitivity=1.0, releases=[Release("local steps", 0.2, 100)])
    assert accountant.epsilon([Mechanism(published.sigma, 0.2, 1250)], 1e-4)[0] == pytest.approx(4.24, abs=0.01)
    assert at_best((counted.times(25),), 1e-4, 200).mechanism > 2
    assert at_best((counted,), 1e-4, 200).mechanism < 0.1
