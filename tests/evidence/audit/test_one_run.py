"""Many canaries in one training, and rows that are told apart by what is released."""

from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fedsim.evidence.audit.audit import AuditRun, key_of, one_run_audit
from fedsim.evidence.audit.membership import likelihood_ratios, membership
from fedsim.evidence.audit.one_run import one_run
from fedsim.evidence.audit.setting import Setting, setting_of
from fedsim.privacy.plan import Trust


def tiny(trust: Trust = "aggregate") -> Setting:
    return replace(setting_of("broken.tiny:Tiny", {"rounds": 6, "sample_rate": 1.0}, "example", trust, 1.0, 1e-4, dim=256), apart=False)


@pytest.mark.parametrize("trust", ["aggregate", pytest.param("silo", marks=pytest.mark.slow)])
def test_one_run_refutes_what_has_hardly_any_noise_and_not_what_has_enough(trust: Trust) -> None:
    setting = tiny(trust)
    assert not one_run_audit(setting, one_run(setting, 100, 0)).refuted
    silent = replace(setting, plan=replace(setting.plan, sigma=setting.plan.sigma / 1000))
    assert one_run_audit(silent, one_run(silent, 100, 0)).refuted


def test_a_run_that_was_stopped_among_its_canaries_tells_each_of_them_once() -> None:
    run = AuditRun(tiny(), "one-run", 20)
    whole = list(run.missing([]))
    rest = list(run.missing(whole[:13]))
    assert [line["pair"] for line in rest] == list(range(13, 20))
    assert whole[:13] + rest == whole


def test_what_a_canary_adds_in_one_run_is_within_the_claimed_sensitivity() -> None:
    canaries = one_run(tiny(), 20, 0)
    assert 0.99 < one_run_audit(tiny(), canaries).most < 1.001
    assert {(one.inside, next_.inside) for one, next_ in pairwise(canaries)} == {*product((False, True), repeat=2)}, "fair coins"


def test_an_audit_of_another_task_claim_way_or_seed_does_not_go_on_from_this_one() -> None:
    setting = tiny()
    tasks: list[dict[str, Any]] = [{"dim": 8}, {"classes": 3}, {"clients": 9}, {"unit": "client"}, {"trust": "silo"}]
    claims: list[dict[str, Any]] = [{"epsilon_target": 2.0}, {"delta": 1e-6}]
    others = [replace(setting, task=replace(setting.task, **changed)) for changed in tasks]
    others += [replace(setting, plan=replace(setting.plan, **changed)) for changed in claims]
    keys = [key_of(each, "white box", 0) for each in [setting, *others]]
    keys += [key_of(setting, "white box", 1), key_of(setting, "one-run", 0)]
    assert len(set(keys)) == len(keys)


def test_shadows_tell_a_row_whose_score_depends_on_whether_it_is_there() -> None:
    stream = np.random.default_rng(0)
    inside = stream.random((8, 300)) < 0.5
    # rows differ more from each other than a row from itself, which LiRA takes out
    scores = 5 * stream.normal(size=300) + inside + 0.5 * stream.normal(size=(8, 300))
    raw, shadows = (membership("a", each, inside).auc for each in (scores, likelihood_ratios(scores, inside)))
    assert raw.low < 0.6
    assert shadows.low > 0.85


def test_noise_tells_nothing_and_its_interval_holds_a_half() -> None:
    stream = np.random.default_rng(1)
    found = membership("a", stream.normal(size=(4, 300)), stream.random((4, 300)) < 0.5)
    assert found.auc.low < 0.5 < found.auc.high
    assert found.true_positives[0].value < 0.05


def test_a_likelihood_ratio_is_that_of_two_gaussians_of_the_other_trainings() -> None:
    """Of the first: means 3 and 1, variance 2/3, so ((1 - 1)^2 - (1 - 3)^2) / (2 * 2/3)."""
    found = likelihood_ratios(np.array([[1.0], [3.0], [0.0], [2.0]]), np.array([[True], [True], [False], [False]]))
    np.testing.assert_allclose(found[:, 0], [-3, 0, 0, 3], atol=1e-12)


def test_shadows_of_noise_tell_nothing_either() -> None:
    stream = np.random.default_rng(1)
    scores, inside = stream.normal(size=(8, 300)), stream.random((8, 300)) < 0.5
    assert roc_auc_score(inside.ravel(), likelihood_ratios(scores, inside).ravel()) == pytest.approx(0.5, abs=0.05)


def test_true_positives_are_those_of_a_threshold_with_no_more_false_ones_than_the_rate() -> None:
    """From the highest score down: 10 rows that are in, 1 of 100 that are out, 5 that are in, the other 99, the other 85."""
    inside = np.repeat([True, False, True, False, True], [10, 1, 5, 99, 85])[None]
    found = membership("a", -np.arange(200.0)[None], inside)
    assert [each.value for each in found.true_positives] == [0.15, 0.1]
