"""Bounds that hold: exact intervals, thresholds that another half chose."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from fedsim.evidence.audit.audit import Audit
from fedsim.evidence.audit.bounds import bound, least_pairs, lower, upper
from fedsim.privacy.mechanism import Mechanism


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


@pytest.mark.parametrize(
    ("lower", "most", "heuristic", "refuted"),
    [(4.1, 1, True, True), (3.9, 1, False, False), (3.9, 1.01, False, True), (3.9, 1.01, True, False)],
)
def test_a_claim_is_refuted_by_a_bound_above_it_and_a_theorem_by_what_a_canary_adds_too(lower, most, heuristic, refuted) -> None:
    assert Audit(4.0, lower, 1.0, 100, 1.0, most, heuristic).refuted == refuted
