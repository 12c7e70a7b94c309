"""Checks of algorithms: every shipped one passes, and every broken one fails its own check."""

import re
from collections.abc import Callable
from functools import partial
from itertools import product

import pytest
from broken.leaks import KeepsPublic
from broken.tiny import Adapted, Bounded, Classified, Coded, OneByOne, Spelled, Tiny
from cells import SHIPPED

from fedsim.errors import PluginError, UserError
from fedsim.evidence.check.check import (
    CHECKS,
    CheckResult,
    _result_of_refusal,
    check_algorithm,
    check_lines,
    guarded,
)
from fedsim.evidence.check.neighbours import CORPUS, Draw, draw_of, pair_of
from fedsim.evidence.check.sensitivity import search_pairs, sensitivity
from fedsim.evidence.check.subject import Subject, shortened, subject
from fedsim.methods.algorithm import Algorithm
from fedsim.methods.one_shot import OneShot
from fedsim.plugins.registry import lookup

slow = pytest.mark.slow
BROKEN = {
    "sums:BatchLevelLoss": ("per-example loss", r"leaving out row 0 of 6 changes the clipped sum"),
    "sums:HypernetworkOverBatch": (
        "per-example loss",
        r"layer 'hyper' gave \[1, 640\] for 6 examples",
    ),
    "sums:ClientsCapped": (
        "per-example loss",
        r"of 'moments' is not per example: it changes for the last 1 of 400 rows",
    ),
    "sums:RemembersRows": (
        "predictions",
        r"its prediction for an example changes by 0\.\d+ after it has seen other examples",
    ),
    "leaks:TakenForPublic": (
        "public rows",
        r"a training replaced task.public by other examples",
    ),
    "leaks:ForgetsPublic": ("restored", r"made from the saved state draws other embeddings"),
    "noise:SamplingNotPoisson": (
        "sensitivity",
        r"0 Poisson samples for 1 steps.*; the plan claims the sampling rate 0\.2",
    ),
    "noise:SampleReusedBetweenRounds": (
        "sensitivity",
        r"the Poisson sample of step 0 is drawn again, after round 0",
    ),
    "noise:NoiseReusedBetweenRounds": (
        "noise not reused",
        r"of client (\d) in step 0 and that of client \1 in step 0 have the correlation",
    ),
    "noise:TakesTheNoiseOff": (
        "trains",
        r"a server may not draw from the stream NOISE",
    ),
    "noise:Overspends": ("budget", r"6 steps of 'dp-sgd' in the ledger, but the plan has 3"),
    "results:RowsAreNotFinite": ("result finite", r"sample returned numbers that are not finite"),
    "results:GlobalRandomState": ("global random state", r"the global random generator of torch"),
    "results:NotDeterministic": ("determinism", r"two trainings with one seed differ"),
    "results:DataChanged": (
        "determinism",
        r"a training changed the labels of a client",
    ),
    "results:DependsOnPacking": ("packing", r"with actors of 1, 2, 1 clients"),
    "results:UnserialisableMessage": ("packing", r"the message of a client cannot be pickled"),
    "results:ResumeDiffers": ("resume", r"a training that resumes after round 1 of 3 differs"),
    "results:Raises": ("trains", r"^ZeroDivisionError: .* \(\S*results\.py:\d+\)$"),
    "results:Exits": ("trains", r"^SystemExit: 0 \(\S*results\.py:\d+\)$"),
}
"""For each broken algorithm the check that fails, and the reason that it gives."""
SEARCHED = {
    "results:LearnsNothing": (
        "ordinary",
        r"no unit of the 1 pairs .* changes anything that is released",
    ),
    "sums:WeightsFromLabelCounts": ("against two alike", r"is 1\.3\d times the claimed bound"),
    "sums:Majority": ("beside sixty of its label", r"is 14\.\d+ times the claimed bound"),
    "sums:CapThousand": ("beside thousands", r"is 1\.1\d times the claimed bound"),
    "sums:BatchClippedAsOne": ("against another", r"is 1\.5\d times the claimed bound"),
    "sums:GroupsClippedByRow": (
        "ordinary",
        r"removing a group of 3 examples .* is (2\.9|3\.0)\d times the claimed bound",
    ),
    "sums:DoubleInCoordinates": ("ordinary", r"is (1\.9|2\.0)\d times the claimed bound"),
    "sums:SensitivityOfATenth": ("ordinary", r"is (9\.9\d|10\.0\d) times the claimed bound"),
    "sums:OneLabelCountsDouble": ("label six", r"is (1\.9|2\.0)\d times the claimed bound"),
    "sums:DividesByStepsOfTenRows": ("beside ten alike", r"is 4\.\d+ times the claimed bound"),
    "sums:ClipAtTheBatchMedian": ("moves the median", r"is 8\.\d+ times the claimed bound"),
    "sums:ClipAtAHighQuantile": ("moves a high quantile", r"is 1\.6\d times the claimed bound"),
    "sums:NoClipWhileTheMeanIsSmall": ("moves the mean", r"is 2\.\d+ times the claimed bound"),
    "sums:StopsClippingLate": ("ordinary", r"round 257: .* is \d\d\.\d+ times the claimed bound"),
    "sums:NotANumberOfAZeroRow": ("zero row", r"has a number that is not finite"),
    "sums:DoubleBesideALargeConstant": ("ordinary", r"is (1\.9|2\.0)\d times the claimed bound"),
    "sums:DoubleWithALargeConstant": ("ordinary", r"is (1\.9|2\.0)\d times the claimed bound"),
    "sums:TimesAQuarterOfTheClients": (
        "twelve clients",
        r"12 clients .* is (2\.9|3\.0)\d times the claimed bound",
    ),
    "sums:DividesByEightRootsOfTheWidth": (
        "few features",
        r"is (1\.9|2\.0)\d times the claimed bound",
    ),
    "sums:DoubleForALongGroup": (
        "forty rows",
        r"a group of 40 examples .* times the claimed bound",
    ),
    "sums:OneHotCountsDouble": ("one-hot", r"is (1\.9|2\.0)\d times the claimed bound"),
    "sums:ScaledByTheFirstBatch": ("first row", r"is 1\.6\d times the claimed bound"),
    "leaks:SizeLeavesUnpaid": (
        "ordinary",
        r"round 0: .* changes 'rows' in the messages by 1; no noise of Clients.add_noise covers it",
    ),
    "leaks:LabelCountsToldExactly": (
        "ordinary",
        r"changes label_counts, although all noisy outputs are equal",
    ),
    "leaks:LabelsToldByShape": (
        "new label",
        r"the name or the shape of 'zeros', which gets noise, depends on the data",
    ),
    "leaks:ParticipantsToldByName": (
        "resampled",
        r"another sample of clients changes .* 'present 1'",
    ),
    "leaks:StateWithoutNoise": ("in the first sample", r"not in the round's sample, changes"),
    "leaks:RateFromOwnRows": ("replaced", r"'codes\.code\.weight' in what is kept of a training"),
    "leaks:StopsOnOwnLoss": ("in no sample", r"round [5-9]: .* not in the round's sample, changes"),
    "leaks:RaisesWithoutRows": (
        "beside none",
        r"ValueError: a client has no row \(\S*leaks\.py:\d+\)",
    ),
    "noise:EveryoneTakesPart": (
        "left out",
        r"not in the round's sample.* claims the sampling rate 0\.2",
    ),
}
"""For each broken algorithm the draw that finds its fault of sensitivity, and the reason."""
SOUND = (Spelled, Classified, Coded, KeepsPublic, Tiny, Adapted, Bounded, OneByOne)


def failures(findings: list[CheckResult]) -> list[CheckResult]:
    return [finding for finding in findings if finding.passed is False]


def in_first_setting(name: str) -> Subject:
    return subject(name, [], lookup(name).units[0], lookup(name).trusts[0])


def result_of_draws(cell: Subject, *draws: Draw) -> CheckResult:
    """Return the result of the check of sensitivity with these draws alone."""
    return guarded(partial(search_pairs, draws=draws), cell)


def run_of(check_name: str) -> Callable[[Subject], str]:
    """Return the function of a check."""
    return next(check.run for check in CHECKS if check.name == check_name)


@pytest.mark.parametrize("path", BROKEN)
def test_broken_algorithm_fails_for_its_own_reason(path: str) -> None:
    check_name, reason = BROKEN[path]
    result = guarded(run_of(check_name), in_first_setting(f"broken.{path}"))
    assert result.passed is False
    assert re.search(reason, result.reason)
    assert result.fix


@pytest.mark.parametrize("path", SEARCHED)
def test_draw_finds_its_fault_of_sensitivity(path: str) -> None:
    draw_name, reason = SEARCHED[path]
    cell = in_first_setting(f"broken.{path}")
    unit = "client" if cell.trial.task.unit == "client" else "row"
    result = result_of_draws(cell, CORPUS[unit][draw_name])
    assert result.passed is False
    assert re.search(reason, result.reason)
    assert result.fix


@slow
@pytest.mark.parametrize("path", [*BROKEN, *SEARCHED])
def test_broken_algorithm_fails_no_other_check(path: str) -> None:
    name = f"broken.{path}"
    expected = {"sensitivity"}
    if path in BROKEN:
        expected = {BROKEN[path][0]}
    # Its shapes also differ from one cohort to another.
    if path == "leaks:LabelsToldByShape":
        expected |= {"packing", "noise not reused"}
    # What it was shown before a training resumed is forgotten.
    if path == "sums:RemembersRows":
        expected |= {"resume"}
    failed = failures(check_algorithm(name, trust=lookup(name).trusts[0], quick=True))
    assert {finding.check for finding in failed} == expected


def test_random_draws_cover_all_sizes() -> None:
    draws = [draw_of(number, "group", 10) for number in range(400)]
    assert {draw.clients for draw in draws} == set(range(4, 13))
    assert len({draw.features for draw in draws}) == 2
    assert max(draw.client for draw in draws) == 11
    assert max(draw.copies for draw in draws) == 40
    assert "one-hot" in {draw.direction for draw in draws}


@pytest.mark.parametrize("draw", [Draw(clients=12, client=11), Draw(features=16)])
def test_size_that_a_method_refuses_is_left_out(draw: Draw) -> None:
    cell = in_first_setting("broken.results:FourClientsOf64Features")
    result = result_of_draws(cell, draw)
    assert result.passed
    assert result.reason.endswith("(an example (class mean, 100 clip norms) beside 50 others)")


def test_words_of_a_group_count_its_examples() -> None:
    assert Draw().words("group").startswith("a group of 1 example (")


def test_words_leave_out_a_clip_norm_that_the_method_lacks() -> None:
    cell = in_first_setting("dp-gaussian")
    assert pair_of(cell, Draw(), None).words == "an example (class mean) beside 50 others"


def test_round_without_noise_is_a_fault_of_sensitivity() -> None:
    cell = in_first_setting("broken.noise:AsksForNoNoise")
    result = result_of_draws(cell, CORPUS["row"]["ordinary"])
    assert result.passed is False
    assert "no noise of Clients.add_noise covers it" in result.reason


def test_method_without_settings_is_a_mistake() -> None:
    with pytest.raises(PluginError, match=r"NoSettings\.units and trusts: one of them is empty"):
        check_algorithm("broken.results:NoSettings")


@pytest.mark.parametrize(("quick", "passed"), [(False, False), (True, None)])
def test_full_check_tries_the_defaults_that_it_refuses(quick: bool, passed: bool | None) -> None:
    error = UserError("latent", "clients have no plan", "give less")
    name = "broken.results:ClientIsRefusedIfWide"
    refusal = _result_of_refusal(name, "client", "silo", error, quick=quick)
    assert refusal.setting == "client, silo (refused)"
    assert refusal.passed is passed


def test_full_check_changes_only_numbers_of_steps() -> None:
    short = shortened("private-evolution", [], quick=False)
    assert short == {"rounds": 3}
    assert shortened("private-evolution", [], quick=True) == short | {"candidates": 40, "votes": 4}


def test_line_of_a_check_says_what_was_tried() -> None:
    (line,) = check_lines(
        "private-evolution",
        {"rounds": 9, "votes": 40, "candidates": 400},
        ["candidates=400"],
        [CheckResult(True, "", setting="example, aggregate")],
        quick=True,
    )
    assert line["params"] == {"rounds": 9, "votes": 40, "candidates": 400}
    assert line["tried"] == {"rounds": 3, "votes": 4, "candidates": 400}


@pytest.mark.parametrize("cls", SOUND)
def test_bases_of_broken_algorithms_are_sound(cls: type[Algorithm]) -> None:
    cell = in_first_setting(f"{cls.__module__}:{cls.__name__}")
    for check in CHECKS:
        if check.run is not sensitivity:
            assert guarded(check.run, cell).passed is not False
    draws = list(CORPUS["row"].values())
    assert result_of_draws(cell, *draws[:3], draws[-1]).passed


def check_few_draws(cell: Subject) -> None:
    """Assert that four pairs of neighbouring data sets show no fault."""
    unit = cell.task.unit
    draws = [Draw(), Draw(way="replaced"), draw_of(0, unit, 10), draw_of(1, unit, 10)]
    result = result_of_draws(cell, *draws)
    assert result.passed, result.reason


@pytest.mark.parametrize("name", [name for name in SHIPPED if lookup(name).private])
def test_few_draws_do_not_break_a_shipped_method(name: str) -> None:
    cls = lookup(name)
    turn = SHIPPED.index(name)
    unit = cls.units[turn % len(cls.units)]
    trust = cls.trusts[turn // 2 % len(cls.trusts)]
    check_few_draws(subject(name, [], unit, trust))


def test_draws_do_not_break_a_bounded_batch_of_fedhypevae() -> None:
    cell = subject("fedhypevae", ["most_sampled=8"], "example", "aggregate")
    rate = 8 / cell.task.public_size
    assert cell.algorithm.releases()[-1].sample_rate == rate < 0.2
    check_few_draws(cell)


@slow
@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_method_passes_in_all_settings(name: str) -> None:
    cls = lookup(name)
    findings = check_algorithm(name, quick=not issubclass(cls, OneShot))
    assert failures(findings) == []
    if cls.private:
        settings = [f"{unit}, {trust}" for unit, trust in product(cls.units, cls.trusts)]
    else:
        settings = ["not private"]
    assert list(dict.fromkeys(finding.setting for finding in findings)) == settings
    assert len(findings) == len(settings) * len({check.name for check in CHECKS})


@pytest.mark.parametrize(
    ("words", "name", "params"),
    [
        ("it claims no privacy", "fedavg-linear", []),
        ("the claim is heuristic", "fedhypevae", ["noised=shared"]),
    ],
)
def test_unpromised_sensitivity_is_only_measured(words: str, name: str, params: list[str]) -> None:
    result = guarded(sensitivity, subject(name, params, "example", "aggregate"))
    assert result.passed is None
    assert words in result.reason


def test_checks_that_need_a_failed_one_are_not_run() -> None:
    findings = check_algorithm(
        "broken.results:Raises",
        trust="silo",
        quick=True,
    )
    (failed,) = failures(findings)
    assert failed.check == "trains"
    rest = [finding for finding in findings if finding.check not in ("trains", "per-example loss")]
    assert {finding.passed for finding in rest} == {None}
    assert {finding.reason for finding in rest} == {"not checked, because 'trains' failed"}


@slow
@pytest.mark.parametrize(
    ("path", "params", "passed", "reason"),
    [
        ("ClientIsRefused", [], False, "the class states this setting and refuses it: "),
        ("ClientMayBeRefused", ["rows_only=true"], None, "these parameters rule it out: "),
    ],
)
def test_refused_setting_is_reported(
    path: str,
    params: list[str],
    passed: bool | None,
    reason: str,
) -> None:
    *others, refusal = check_algorithm(f"broken.results:{path}", params, quick=True)
    assert refusal.setting == "client, silo (refused)"
    assert refusal.passed == passed
    assert re.match(f"{reason}.*clients have no plan", refusal.reason)
    assert {finding.setting for finding in others} == {"example, silo"}
    assert failures(others) == []
