"""Pairs of trainings through the real rounds: what is broken is refuted, what is right is not."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedsim.evidence.audit.audit import Audit, key_of, outcome_of
from fedsim.evidence.audit.bounds import bound
from fedsim.evidence.audit.setting import Setting, setting_of
from fedsim.evidence.audit.white_box import evidence, observed, pair, saturating
from fedsim.privacy.plan import Trust, Unit
from fedsim.seeds import Seeds

SHORT = {"rounds": 3, "sample_rate": 1.0}


def audited(setting: Setting, count: int, root: int = 0) -> Audit:
    own, canary = saturating(setting, root)
    return outcome_of(own, [pair(own, canary, root, number) for number in range(count)])


def tiny(path: str = "tiny:Tiny", trust: Trust = "aggregate", **params: float) -> Setting:
    """Its trainings share a process, which is faster."""
    return replace(setting_of(f"broken.{path}", {**SHORT, **params}, "example", trust, 4.0, 1e-4), apart=False)


def test_the_score_of_a_right_one_is_the_privacy_loss_that_was_paid_for() -> None:
    setting = tiny()
    saturated = saturating(setting, 0)
    found = [pair(*saturated, 0, number) for number in range(30)]
    mu_squared = sum(one.count / one.noise_multiplier**2 for one in setting.plan.mechanisms)
    spread = math.sqrt(mu_squared / len(found))
    assert np.mean([each.absent for each in found]) == pytest.approx(-mu_squared / 2, abs=4 * spread)
    assert np.mean([each.present for each in found]) == pytest.approx(mu_squared / 2, abs=4 * spread)
    assert [each.ratio for each in found] == pytest.approx([1.0] * len(found), abs=1e-5)


@pytest.mark.parametrize(
    ("path", "trust", "params", "count"),
    [
        ("clips:SensitivityOfATenth", "aggregate", {"rounds": 1}, 30),
        pytest.param("clips:UnclippedPart", "aggregate", {"rounds": 1, "clip": 0.1}, 100, marks=pytest.mark.slow),
        pytest.param("noise:NoiseReusedBetweenRounds", "silo", {"rounds": 2, "sample_rate": 0.5}, 100, marks=pytest.mark.slow),
        ("noise:NoiseReusedBetweenClients", "silo", {"rounds": 1}, 30),
        ("leaks:SizeLeavesUnpaid", "silo", {"rounds": 1}, 30),
    ],
)
def test_a_broken_one_is_refuted(path: str, trust: Trust, params: dict[str, float], count: int) -> None:
    found = audited(tiny(path, trust, **params), count)
    assert found.refuted
    assert found.words().startswith("REFUTED: ε = 4 claimed")


@pytest.mark.slow
def test_a_right_one_is_not_accused_in_twenty_repetitions() -> None:
    setting = tiny(rounds=1)
    saturated = saturating(setting, 0)
    found = [pair(*saturated, 0, number) for number in range(20 * 12)]
    repetitions = [found[start : start + 12] for start in range(0, len(found), 12)]
    assert not any(outcome_of(setting, each).refuted for each in repetitions)


def test_scores_of_the_claimed_mechanism_are_rarely_above_it_and_near_it_with_many() -> None:
    setting, stream = tiny(), np.random.default_rng(0)
    mu = math.sqrt(sum(one.count / one.noise_multiplier**2 for one in setting.plan.mechanisms))
    refuted = 0
    for _ in range(20):
        absent, present = stream.normal(-(mu**2) / 2, mu, 500), stream.normal(mu**2 / 2, mu, 500)
        refuted += bound(absent, present, setting.plan.mechanisms, 1e-4).epsilon > 4
    assert refuted <= 2
    absent, present = stream.normal(-(mu**2) / 2, mu, 20000), stream.normal(mu**2 / 2, mu, 20000)
    assert bound(absent, present, setting.plan.mechanisms, 1e-4).mechanism > 3.5


@pytest.mark.parametrize(
    ("algorithm", "unit", "trust"),
    [
        ("fedhypevae", "example", "aggregate"),
        ("dp-fedavg-linear", "client", "silo"),
        ("fedhypevae", "group", "silo"),
        ("dp-gaussian", "example", "silo"),
    ],
)
def test_a_canary_saturates_the_claimed_sensitivity_and_never_exceeds_it(algorithm: str, unit: Unit, trust: Trust) -> None:
    setting = setting_of(algorithm, {"rounds": 2} if algorithm != "dp-gaussian" else {}, unit, trust, 4.0, 1e-4)
    setting, canary = saturating(setting, 0)
    found = evidence(observed(setting, canary, Seeds(0, 1), present=True), setting.plan.sensitivity)
    assert 0.99 < found.most < 1.001


@pytest.mark.parametrize("unit", ["example", "group"])
def test_what_is_outside_of_the_unit_is_the_same_in_both_worlds(unit: Unit) -> None:
    setting = setting_of("fedhypevae", {"rounds": 2}, unit, "aggregate", 4.0, 1e-4)
    setting, canary = saturating(setting, 0)
    absent, present = (observed(setting, canary, Seeds(0, 1), present=each) for each in (False, True))
    one, two = absent.steps[0], present.steps[0]
    for before, after in zip(one, two, strict=True):
        # the same noise, and the unit where it was sampled
        difference, shift = after.residual - before.residual, before.shift
        assert float(difference.norm()) < 1e-5 or float((difference - shift).norm()) < 1e-4 * float(shift.norm())


def test_an_audit_of_another_task_claim_or_seed_does_not_go_on_from_this_one() -> None:
    setting = tiny()
    tasks: list[dict[str, Any]] = [{"dim": 8}, {"classes": 3}, {"clients": 9}, {"unit": "client"}, {"trust": "silo"}]
    claims: list[dict[str, Any]] = [{"epsilon_target": 2.0}, {"delta": 1e-6}]
    others = [replace(setting, task=replace(setting.task, **changed)) for changed in tasks]
    others += [replace(setting, plan=replace(setting.plan, **changed)) for changed in claims]
    keys = [*(key_of(each, 0) for each in [setting, *others]), key_of(setting, 1)]
    assert len(set(keys)) == len(keys)
