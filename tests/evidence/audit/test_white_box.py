"""Audits: bounds that hold, pairs of trainings that refute what is broken and nothing else, and
what ``fedsim audit`` says.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from benches import Done
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from fedsim.errors import PluginError
from fedsim.evidence.audit.audit import (
    LEAST_PAIRS,
    Audit,
    AuditRun,
    bound,
    interval,
    key_of,
)
from fedsim.evidence.audit.white_box import (
    Setting,
    evidence,
    observed,
    pair,
    saturating,
    setting_of,
)
from fedsim.privacy.mechanism import Mechanism
from fedsim.privacy.plan import Trust, Unit
from fedsim.seeds import Seeds

Command = Callable[..., Done]


@given(st.integers(1, 400), st.data())
def test_rates_have_clopper_pearson_intervals(
    total: int,
    data: st.DataObject,
) -> None:
    count = data.draw(st.integers(0, total))
    exact = binomtest(count, total).proportion_ci(0.95, "exact")
    assert interval(count, total) == (pytest.approx(exact.low), pytest.approx(exact.high))


def test_least_number_of_pairs_gives_a_bound() -> None:
    def bound_of(pairs: int) -> float:
        return bound([-1.0] * pairs, [1.0] * pairs, [Mechanism(1.0)], 1e-4)

    assert bound_of(LEAST_PAIRS - 1) == 0
    assert bound_of(LEAST_PAIRS) > 0


@pytest.mark.parametrize(
    ("lower", "ratio", "heuristic", "refuted"),
    [
        (4.1, 1, True, True),
        (3.9, 1, False, False),
        (3.9, 1.01, False, True),
        (3.9, 1.01, True, False),
    ],
)
def test_bound_or_exceeded_sensitivity_refutes_a_claim(
    lower,
    ratio,
    heuristic,
    refuted,
) -> None:
    assert Audit(4.0, lower, 100, ratio, heuristic).refuted == refuted


def tiny(path: str = "tiny:Tiny", rounds: int = 3, trust: Trust = "aggregate") -> Setting:
    params = {"rounds": rounds, "sample_rate": 1.0}
    return setting_of(
        f"broken.{path}",
        params,
        "example",
        trust,
        4.0,
        1e-4,
    )


def mu_of(mechanisms: Sequence[Mechanism]) -> float:
    """Return the mean of the composed Gaussian mechanism, in standard deviations of its noise."""
    shares = [mechanism.count / mechanism.noise_multiplier**2 for mechanism in mechanisms]
    return math.sqrt(sum(shares))


def test_score_of_a_sound_method_is_its_privacy_loss() -> None:
    setting = tiny()
    saturated = saturating(setting)
    pairs = [pair(*saturated, number) for number in range(30)]
    mu_squared = mu_of(setting.plan.mechanisms) ** 2
    spread = math.sqrt(mu_squared / len(pairs))
    absent = np.mean([pair["absent"] for pair in pairs])
    present = np.mean([pair["present"] for pair in pairs])
    assert absent == pytest.approx(-mu_squared / 2, abs=4 * spread)
    assert present == pytest.approx(mu_squared / 2, abs=4 * spread)
    assert [pair["ratio"] for pair in pairs] == pytest.approx([1.0] * len(pairs), abs=1e-5)


def test_audit_refutes_a_broken_method_by_all_recorded_pairs() -> None:
    setting, canary = saturating(tiny("sums:SensitivityOfATenth", rounds=1))
    pairs = [pair(setting, canary, number) for number in range(30)]
    audit = AuditRun(setting, 6).outcome(pairs)
    assert audit.refuted
    assert audit.words().startswith("REFUTED: ε = 4 claimed; 30 pairs of trainings show")


def test_bound_is_rarely_above_the_true_epsilon() -> None:
    mechanisms = tiny().plan.mechanisms
    stream = np.random.default_rng(0)
    mu = mu_of(mechanisms)

    def reached(pairs: int) -> float:
        absent = stream.normal(-(mu**2) / 2, mu, pairs)
        present = stream.normal(mu**2 / 2, mu, pairs)
        return bound(absent, present, mechanisms, 1e-4)

    assert sum(reached(500) > 4 for _ in range(20)) <= 2
    assert reached(20000) > 3.5


@pytest.mark.parametrize(
    ("algorithm", "params", "unit", "trust"),
    [
        ("fedhypevae", {"rounds": 2}, "example", "aggregate"),
        ("fedhypevae", {"rounds": 2, "sample_rate": 1.0, "most_sampled": 1}, "example", "silo"),
        ("dp-fedavg-linear", {"rounds": 2}, "client", "silo"),
        ("fedhypevae", {"rounds": 2}, "group", "silo"),
        ("dp-gaussian", {}, "example", "silo"),
    ],
)
def test_canary_reaches_the_sensitivity_and_stays_below(
    algorithm: str,
    params: dict[str, Any],
    unit: Unit,
    trust: Trust,
) -> None:
    setting, canary = saturating(setting_of(algorithm, params, unit, trust, 4.0, 1e-4))
    steps = observed(setting, canary, Seeds(0, 1), present=True)
    assert 0.99 < evidence(steps, setting.plan.sensitivity).most < 1.001


def test_trainings_without_the_client_of_the_canary_are_observed() -> None:
    setting, canary = saturating(setting_of("dp-prototypes", {}, "client", "aggregate", 4.0, 1e-4))
    assert observed(setting, canary, Seeds(0, 1), present=False)


def test_clip_norm_that_a_method_refuses_is_not_tried() -> None:
    setting, _ = saturating(tiny("tiny:Bounded"))
    assert setting.params["clip"] == 80.0


@pytest.mark.parametrize("trust", get_args(Trust))
def test_tensor_that_is_sent_only_with_the_canary_is_a_mistake(trust: Trust) -> None:
    setting = tiny("leaks:FurtherTensorOfManyRows", trust=trust)
    with pytest.raises(PluginError, match="whether 'many' is sent in round 0, or its shape"):
        saturating(setting)


def test_numbers_that_are_not_finite_are_a_mistake() -> None:
    with pytest.raises(PluginError, match="makes a released number infinite or NaN"):
        saturating(tiny("results:SumsAreNotFinite"))


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("task", {"dim": 8}),
        ("task", {"classes": 3}),
        ("task", {"clients": 9}),
        ("task", {"unit": "client"}),
        ("task", {"trust": "silo"}),
        ("plan", {"epsilon_target": 2.0}),
        ("plan", {"delta": 1e-6}),
    ],
)
def test_other_task_or_claim_is_another_audit(part: str, change: dict[str, Any]) -> None:
    setting = tiny()
    other = replace(setting, **{part: replace(getattr(setting, part), **change)})
    assert key_of(other) != key_of(setting)


def test_interrupted_audit_resumes_and_takes_more_pairs(
    folder: Path,
    command: Command,
) -> None:
    whole = command("audit", "dp-gaussian", "--pairs", "20", "--out", "whole")
    assert whole.returncode == 0
    assert "not refuted: ε = 4 claimed" in whole.stdout
    assert "20 pairs of trainings show ε ≥" in whole.stdout
    assert "the canary adds 1.00 of the claimed sensitivity" in whole.stdout
    lines = (folder / "whole/pairs.jsonl").read_text().splitlines()
    (folder / "cut").mkdir()
    cut = folder / "cut/pairs.jsonl"
    cut.write_text("\n".join(lines[:7]) + lines[7][:20])
    assert command("audit", "dp-gaussian", "--pairs", "20", "--out", "cut").stdout == whole.stdout
    assert sorted(cut.read_text().splitlines()) == sorted(lines)
    command("audit", "dp-gaussian", "--pairs", "24", "--out", "cut")
    numbers = [json.loads(line)["pair"] for line in cut.read_text().splitlines()]
    assert numbers == list(range(24))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["centralised"], "algorithm centralised: claims no privacy, so there is nothing to audit"),
        (
            ["dp-gaussian", "--pairs", "4"],
            "pairs: 4 are too few: even an attack without an error would bound nothing; give "
            "6 or more",
        ),
        (["dp-gaussian", "--epsilon", "inf"], "epsilon: no audit can refute a claim of ε = inf"),
        (["broken.results:Exits", "--pairs", "12"], "raised SystemExit: 0"),
    ],
)
def test_audit_mistake_prints_one_line_and_writes_nothing(
    arguments: list[str],
    message: str,
    folder: Path,
    command: Command,
) -> None:
    done = command("audit", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(folder.rglob("*.jsonl"))
