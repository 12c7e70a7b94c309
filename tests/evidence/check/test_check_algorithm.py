"""The conformance kit: every registered algorithm passes, and every broken one fails its own check for its own reason."""

import re
from itertools import product
from typing import Any

import pytest
from broken.centred_by_the_first_batch import CentredByAConstant
from broken.private_rows_as_public import KeepsPublic
from broken.tiny import Adapted, Classified, Coded, Counting, Spelled, Tiny
from cells import SHIPPED

from fedsim.errors import UserError
from fedsim.evidence.check.budget import sampling
from fedsim.evidence.check.check import CHECKS, CheckResult, check_algorithm, guarded
from fedsim.evidence.check.client_pairs import client_pairs
from fedsim.evidence.check.example_pairs import example_pairs
from fedsim.evidence.check.repeat import packing
from fedsim.evidence.check.sensitivity import canary, judged, sensitivity
from fedsim.evidence.check.subject import subject
from fedsim.evidence.check.verdict import Verdict
from fedsim.methods.algorithm import Algorithm
from fedsim.plugins.registry import lookup
from fedsim.privacy.plan import Trust, Unit

SMALL = {"dp-cvae": ["hidden=[8]", "latent=2"], "fedavg-cvae": ["encoder_hidden=[8]"], "weight-noise": ["encoder_hidden=[8]"]}
BROKEN = {
    "private_rows_as_public:TakenForPublic": ("public rows", r"a training put other rows in the place of task.public"),
    "private_rows_as_public:WrittenOverPublic": ("public rows", r"a training wrote into task.public"),
    "private_rows_as_public:ForgetsPublic": ("restored", r"made again from its saved state it generates other rows"),
    "batch_level_loss:BatchLevelLoss": ("per-example loss", r"leaving out row 0 of 6 changes the clipped sum"),
    "loss_is_a_mean:LossIsAMean": ("per-example loss", r"loss returned 'distance' as float32 \[\]; expected one number a row: \[6\]"),
    "loss_is_not_a_number:LossIsNotANumber": ("per-example loss", r"part 'likelihood' of the loss is not finite"),
    "learns_nothing:LearnsNothing": (
        "sensitivity",
        r"nothing that is released depends on any unit .*: nothing was measured",
    ),
    "learns_nothing:LearnsOnlyThatAClientIsThere": (
        "sensitivity",
        r"no query changes with a client's rows, over 4 pairs .*: nothing was measured",
    ),
    "rare_labels_left_out:RareLabelsLeftOut": ("per-example loss", r"the loss .* the first 1 of 40 rows .* when they are evaluated alone"),
    "frequent_labels_capped:FrequentLabelsCapped": ("per-example loss", r"'class_sums' of 'moments' .* the first 1 of 40 rows"),
    "rare_labels_merged:RareLabelsMerged": ("per-example loss", r"'class_sums' of 'moments' .* the first 1 of 400 rows of one client when"),
    "clients_capped:ClientsCapped": ("per-example loss", r"of 'moments' is not per example: it changes for the last 1 of 400 rows"),
    "one_label_shares:OneLabelShares": ("per-example loss", r"the loss is not per example: it changes for the first 2 of 400 rows"),
    "large_batches_averaged:LargeBatchesAveraged": ("per-example loss", r"loss is not per example: it changes for the first 1 of 400 rows"),
    "hypernetwork_over_batch:HypernetworkOverBatch": ("per-example loss", r"layer 'hyper' gave \[1, 640\] for 6 examples"),
    "batch_clipped_as_one:BatchClippedAsOne": ("sensitivity", r"a row against the others of its sample .* \(1\.9\d of it\)"),
    "sensitivity_of_a_tenth:SensitivityOfATenth": ("sensitivity", r"the claimed bound is .* \((9\.9\d|10\.0\d) of it\)"),
    "groups_clipped_by_row:GroupsClippedByRow": ("sensitivity", r"3 times, as one group changes .* \((2\.9|3\.0)\d of it\)"),
    "unclipped_part:UnclippedPart": ("sensitivity", r"the claimed bound is 1 .*'prototypes\.bias' alone"),
    "size_leaves_unpaid:SizeLeavesUnpaid": ("sensitivity", r"changes 'rows' in the messages by 1; no noise of Clients.add_noise covers it"),
    "label_counts_told_exactly:LabelCountsToldExactly": ("sensitivity", r"changes label_counts though all noisy outputs are equal"),
    "takes_the_noise_off:TakesTheNoiseOff": ("trains", r"the stream NOISE is drawn at the clients and by the harness"),
    "takes_the_noise_off:GuessesTheSeed": (
        "secret key",
        r"seeded noise moves what is kept of a training by \d\S*e-\d+ of its size, noise of a secret key by 0\.\d+",
    ),
    "label_counts_leave_unpaid:LabelCountsLeaveUnpaid": ("sensitivity", r"the claimed bound is 1 .*'label_counts' alone by 1"),
    "state_without_noise:StateWithoutNoise": ("sensitivity", r"not in the round's sample, changes .*state without noise remembers"),
    "noise_reused_between_rounds:NoiseReusedBetweenRounds": ("noise", r"the noise of round 0 is used again in round 1"),
    "noise_reused_between_clients:NoiseReusedBetweenClients": (
        "noise",
        r"of client \d in step (\d) and of client \d in step \1 is used twice",
    ),
    "sampling_not_poisson:SamplingNotPoisson": ("sampling", r"0 Poisson samples for 1 steps; the plan claims rate 0\.2"),
    "overspends:Overspends": ("budget", r"client 0 has 6 steps of 'dp-sgd' in the ledger, the plan 3"),
    "rows_are_not_finite:RowsAreNotFinite": ("result", r"sample returned numbers that are not finite"),
    "remembers_rows:RemembersRows": ("predictions", r"what it predicts of a row changes by 0\.\d+ after other rows"),
    "rows_are_numpy:RowsAreNumpy": ("result", r"rows_are_numpy\.py:\d+: sample returned a ndarray"),
    "label_counts_of_three_classes:LabelCountsOfThreeClasses": ("trains", r"label_counts returned float32 \[3\]; expected .* \[10\]"),
    "global_random_state:GlobalRandomState": ("global random state", r"the global random generator of torch"),
    "not_deterministic:NotDeterministic": ("determinism", r"two trainings with one seed differ"),
    "depends_on_packing:DependsOnPacking": ("packing", r"on actors of 1, 2, 1 clients"),
    "resume_differs:ResumeDiffers": ("resume", r"going on after 1 of 3 rounds differs"),
    "unserialisable_message:UnserialisableMessage": ("serialisable", r"the message cannot be serialised"),
    "data_changed:DataChanged": ("data untouched", r"client 0's rows are not what the partition gave"),
    "joined_rows_changed:JoinedRowsChanged": ("data untouched", r"the clients' joined rows are not what the partition gave"),
    "sample_reused_between_rounds:SampleReusedBetweenRounds": ("sampling", r"the Poisson sample of step 0 is drawn again, after round 0"),
    "everyone_takes_part:EveryoneTakesPart": ("sampling", r"a client that is not in the round's sample .* claims rate 0\.2"),
    "rate_of_rows_claimed_for_clients:RateOfRowsClaimedForClients": ("sampling", r"is not in the round's sample .* claims rate 0\.2"),
    "left_out_client_sends_old_update:LeftOutClientSendsOldUpdate": ("sampling", r"by 0\.5 of the bound; the plan claims rate 0\.5"),
    "bytes_by_size:BytesBySize": ("sensitivity", r"changes what a message is: round 0: \d+ and \d+ bytes sent"),
    "label_told_by_name:LabelToldByName": ("sensitivity", r"the message holds 'label 0' in one of the two worlds only"),
    "label_told_by_name:FewRowsToldByNoisyName": ("sensitivity", r"name or shape of 'zeros' in what is to be noised depends on"),
    "participants_told_by_name:ParticipantsToldByName": ("sampling", r"another sample of clients changes .* 'present 1'"),
    "codes_without_noise:CodesWithoutNoise": ("sensitivity", r"'codes\.code\.weight' in what is kept of a training"),
    "rate_from_own_rows:RateFromOwnRows": ("sensitivity", r"'codes\.code\.weight' in what is kept of a training"),
    "centred_by_the_first_batch:CentredByTheFirstBatch": ("sensitivity", r"removing a row against the mean.* \(1\.\d+ of it\)"),
    "votes_counted_twice:VotesCountedTwice": ("sensitivity", r"removing .* claimed bound is 1 \(2\.00 of it\)"),
    "first_row_is_the_anchor:FirstRowIsTheAnchor": ("sensitivity", r"removing an ordinary row .* claimed bound is 1 \([12]\.\d+ of it\)"),
}
"""A quick check sees them."""
HIDDEN = {
    "rate_from_own_rows:RateOfTheLastClient": ("client 3 with other rows", r" changes 'codes\.code\.weight' in what is kept of a training"),
    "rate_from_own_rows:RateAtSomeSeeds": (r"client \d with other rows", r" changes 'codes\.code\.weight' in what is kept of a training"),
    "stops_clipping_late:StopsClippingLate": (", late$", r"round (?!50)\d{2,3}: removing a row .* \([1-9]\d+\.\d+ of it\)"),
    "stops_clipping_late:ClientsStopClippingLate": (", late$", r"round (?!50)\d{2,3}: removing a client .* \([1-9]\d+\.\d+ of it\)"),
    "weights_from_label_counts:WeightsFromLabelCounts": (r"against the others of its label, clip norm 0\.5 ", r"\(1\.33 of it\)"),
    "clip_at_the_batch_median:ClipAtTheBatchMedian": ("a row that moves the median and the mean", r"\([1-9]\d*\.\d+ of it\)"),
    "clip_at_a_high_quantile:ClipAtAHighQuantile": ("a row that moves the 90% quantile", r"\([1-9]\d*\.\d+ of it\)"),
    "no_clip_while_the_mean_is_small:NoClipWhileTheMeanIsSmall": ("a row that moves the median and the mean", r"\([2-9]\.\d+ of it\)"),
    "clip_set_by_the_first_sample:ClipSetByTheFirstSample": ("a large row, in the first sample only", "not in the round's sample"),
    "updates_clipped_at_their_median:UpdatesClippedAtTheirMedian": ("a client that moves the median", r"\(1\.\d+ of it\)"),
    "stops_on_own_loss:StopsOnOwnLoss": ("half of a client's rows, in no sample", r"round [5-9]: .* not in the round's sample, changes"),
    "statistics_every_tenth_round:StatisticsEveryTenthRound": (
        "an ordinary row$",
        r"round 9: .* changes 'prototypes\.bias' in the messages",
    ),
    "divides_by_steps_of_ten_rows:DividesByStepsOfTenRows": ("a row beside 10 others", r"\(1\.\d+ of it\)"),
    "one_label_counts_double:OneLabelCountsDouble": ("a row beside 50 others", r"removing a row .* \([12]\.\d+ of it\)"),
    "raises_without_rows:RaisesWithoutRows": (
        "a row beside 0 others",
        r"ValueError: a client has no row \(\S*raises_without_rows\.py:\d+\)",
    ),
}
"""Their sensitivity shows in a full check only: the pairs in which it does, and how."""
TWIN_PAIRS = "ordinary|a rare label|1 with other rows|half of a client's|, late$"
"""Pairs of a full check in which sound algorithms' broken twins fail."""


CLEARLY = 1.2
"""Share of the bound at which every fault of sensitivity is seen at least: rounding and another machine do not hide it."""


def nightly(value: Any) -> Any:
    return pytest.param(value, marks=pytest.mark.slow)


def assert_caught(verdict: Verdict, reason: str) -> None:
    assert verdict.passed is False
    assert re.search(reason, verdict.reason)
    ratio = re.search(r"\((\d+\.\d+) of it\)", verdict.reason)
    assert ratio is None or float(ratio[1]) >= CLEARLY
    assert verdict.fix


def on_pairs(name: str, unit: Unit, trust: Trust, labels: str) -> Verdict:
    """The verdict of a full check on its pairs of these labels alone."""
    own, pairs = subject(name, [], unit, trust), client_pairs if unit == "client" else example_pairs
    return judged(own, (pair for pair in pairs(own) if re.search(labels, pair.label)))


def failures(findings: list[CheckResult]) -> list[CheckResult]:
    return [finding for finding in findings if finding.passed is False]


def verdict_of(check: str, name: str) -> Verdict:
    """What one quick check says, in the first of the class's units in which it fails, or in the last."""
    (run,) = (one for one in CHECKS if one.name == check)
    cls = lookup(name)
    for unit in cls.units:
        verdict = guarded(run, subject(name, [], unit, cls.trusts[0], quick=True))
        if verdict.passed is False:
            break
    return verdict


@pytest.mark.parametrize("name", SHIPPED)
def test_every_registered_algorithm_passes_in_one_of_its_settings(name: str) -> None:
    cls, turn = lookup(name), SHIPPED.index(name)
    unit, trust = cls.units[turn % len(cls.units)], cls.trusts[turn // 2 % len(cls.trusts)]
    assert failures(list(check_algorithm(name, SMALL.get(name, []), unit, trust, quick=True))) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_every_registered_algorithm_passes_in_all_of_its_settings(name: str) -> None:
    findings = list(check_algorithm(name, SMALL.get(name, []), quick=True))
    assert failures(findings) == []
    cls = lookup(name)
    settings = {f"{unit}, {trust}" for unit in cls.units for trust in cls.trusts} if cls.private else {"not private"}
    assert {finding.setting for finding in findings} == settings
    assert len(findings) == len(settings) * len(CHECKS)


@pytest.mark.parametrize(
    ("name", "unit", "trust"), [("fedavg-cvae", "example", "aggregate"), pytest.param("dp-cvae", "client", "silo", marks=pytest.mark.slow)]
)
def test_a_full_check_takes_no_rounding_that_training_amplifies_for_a_fault_of_packing(name: str, unit: Unit, trust: Trust) -> None:
    assert packing(subject(name, [], unit, trust)).passed


@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("cls", [Spelled, Classified, Coded, KeepsPublic, *map(nightly, (Tiny, Adapted, Counting, CentredByAConstant))])
def test_what_the_broken_ones_are_made_of_is_sound(cls: type[Algorithm], quick: bool) -> None:
    findings = list(check_algorithm(f"{cls.__module__}:{cls.__name__}", trust="silo", quick=quick))
    assert failures(findings) == []
    assert [finding.check for finding in findings if finding.passed is None] == (["predictions"] if cls.generates() else ["restored"])


@pytest.mark.parametrize("path", BROKEN)
def test_a_broken_algorithm_fails_its_own_check_for_its_own_reason(path: str) -> None:
    check, reason = BROKEN[path]
    assert_caught(verdict_of(check, f"broken.{path}"), reason)


@pytest.mark.slow
@pytest.mark.parametrize("path", BROKEN)
def test_a_broken_algorithm_fails_no_other_check(path: str) -> None:
    name = f"broken.{path}"
    failed = failures(list(check_algorithm(name, trust=lookup(name).trusts[0], quick=True)))
    assert [finding.check for finding in failed] == [BROKEN[path][0]]
    assert re.search(BROKEN[path][1], failed[0].verdict.reason)


@pytest.mark.parametrize("path", HIDDEN)
def test_a_pair_of_a_full_check_sees_what_a_quick_one_does_not(path: str) -> None:
    cls, (labels, reason) = lookup(f"broken.{path}"), HIDDEN[path]
    assert_caught(on_pairs(f"broken.{path}", cls.units[0], cls.trusts[0], labels), reason)


@pytest.mark.slow
@pytest.mark.parametrize("path", HIDDEN)
def test_what_a_quick_check_does_not_see_fails_this_one_check_of_a_full_one(path: str) -> None:
    name = f"broken.{path}"
    trust = lookup(name).trusts[0]
    assert failures(list(check_algorithm(name, trust=trust, quick=True))) == []
    (failed,) = failures(list(check_algorithm(name, trust=trust)))
    assert failed.check == "sensitivity"
    assert_caught(failed.verdict, HIDDEN[path][1])


@pytest.mark.parametrize("labels", [TWIN_PAIRS, nightly("")])
@pytest.mark.parametrize(
    ("path", "unit"),
    [
        *product(["rate_from_own_rows:RateByNumber", "label_told_by_name:ZerosAlwaysThere"], ["client", "example"]),
        *product(["stops_clipping_late:ClipsMoreLate"], ["client", "group"]),
    ],
)
def test_the_sound_twin_of_a_broken_algorithm_passes(path: str, unit: Unit, labels: str) -> None:
    verdict = on_pairs(f"broken.{path}", unit, "silo", labels)
    assert verdict.passed, verdict.reason


@pytest.mark.parametrize(
    ("path", "unit", "reason"),
    [
        ("batch_level_loss:BatchLevelLoss", "example", "the claimed bound is"),
        ("label_told_by_name:LabelsToldByShape", "example", "name or shape of 'zeros' in what is to be noised depends on the data"),
        ("participants_told_by_name:ToldInTheSum", "client", "an ordinary client changes what a message is: .* holds 'present 3'"),
    ],
)
def test_what_other_checks_or_worlds_show_is_measured_too(path: str, unit: Unit, reason: str) -> None:
    verdict = sensitivity(subject(f"broken.{path}", [], unit, lookup(f"broken.{path}").trusts[0], quick=True))
    assert verdict.passed is False
    assert re.search(reason, verdict.reason)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("dp-gaussian", []),
        pytest.param("fedhypevae", [], marks=pytest.mark.slow),
        pytest.param("dp-cvae", SMALL["dp-cvae"], marks=pytest.mark.slow),
    ],
)
def test_a_full_check_passes_and_says_how_much_it_saw(name: str, params: list[str]) -> None:
    cls = lookup(name)
    findings = list(check_algorithm(name, params, "group" if name == "dp-cvae" else None, trust=cls.trusts[0]))
    assert failures(findings) == []
    for finding in (finding for finding in findings if finding.check == "sensitivity"):
        assert re.search(r"the largest change seen is 1\.000 of the claimed bound \(.*\), over \d+ pairs", finding.verdict.reason)
        rounds = cls.Params.model_fields.get("rounds")
        seen = "0 to 2" if rounds is None else r"0 to 11 and round (1[2-9]|[2-9]\d|\d{3}) of \d+"
        assert re.search(rf"pairs of neighbours, rounds {seen}; a lower bound", finding.verdict.reason)


def test_whole_clients_are_sampled_where_a_parameter_says_so() -> None:
    verdict = sampling(subject("weight-noise", SMALL["weight-noise"], "client", "silo", quick=True))
    assert verdict.passed
    assert verdict.reason == "clients that are not sampled (rate 0.5) change nothing: 3 pairs of neighbours, rounds 0 to 2"


@pytest.mark.parametrize(
    ("path", "quick", "most"),
    [
        ("tiny:Tiny", True, "1.000"),
        ("sensitivity_of_a_tenth:SensitivityOfATenth", True, "10.000"),
        ("scaled_by_the_first_batch:ScaledByAConstant", False, "1.000"),
        ("scaled_by_the_first_batch:ScaledByTheFirstBatch", False, "1.5"),
    ],
)
def test_the_audits_canary_adds_no_more_than_the_claimed_sensitivity_to_what_is_sound(path: str, quick: bool, most: str) -> None:
    verdict = canary(subject(f"broken.{path}", [], "example", "aggregate", quick=quick))
    assert f" adds {most}" in verdict.reason
    assert verdict.passed == (most == "1.000")


@pytest.mark.parametrize(("name", "params", "why"), [("fedavg-linear", [], "not private"), ("fedhypevae", ["noised=shared"], "heuristic")])
def test_no_canary_is_looked_for_where_nothing_is_promised(name: str, params: list[str], why: str) -> None:
    verdict = canary(subject(name, params, "example", "aggregate", quick=True))
    assert verdict.passed is None
    assert why in verdict.reason


def test_a_heuristic_claim_is_measured_and_not_failed() -> None:
    verdict = sensitivity(subject("fedhypevae", ["noised=shared"], "example", "aggregate", quick=True))
    assert verdict.passed is None
    assert "heuristic" in verdict.reason
    assert "measured" in verdict.reason


def test_an_exception_is_a_failure_with_its_place_and_what_depends_on_it_is_not_checked() -> None:
    findings = list(check_algorithm("broken.raises:Raises", trust="silo", quick=True))
    (failed,) = failures(findings)
    assert failed.check == "trains"
    assert re.fullmatch(r"ZeroDivisionError: .* \(\S*raises\.py:\d+\)", failed.verdict.reason)
    rest = [finding for finding in findings if finding.check not in ("trains", "per-example loss")]
    assert all(finding.passed is None and finding.verdict.reason == "not checked: needs 'trains'" for finding in rest)


def test_an_exception_of_build_is_printed_with_its_type_and_place() -> None:
    (failed,) = failures(list(check_algorithm("broken.cannot_be_built:CannotBeBuilt", trust="silo", quick=True)))
    assert failed.check == "per-example loss"
    assert re.fullmatch(r"RuntimeError: .* negative dimension .* \(\S*cannot_be_built\.py:\d+\)", failed.verdict.reason)
    assert failed.verdict.fix == "mend the line that raises it"


@pytest.mark.parametrize(
    ("cls", "what"),
    [("Doubled", "'prototypes.weight' of the model is float64"), ("HalfABias", "'prototypes.bias' of the model is float16")],
)
def test_a_model_of_another_precision_is_named_as_that(cls: str, what: str) -> None:
    (failed,) = failures(list(check_algorithm(f"broken.not_float32:{cls}", trust="silo", quick=True)))
    assert failed.check == "per-example loss"
    assert re.fullmatch(rf"TypeError: parameter {what}, not float32 .* \(\S*not_float32\.py:\d+\)", failed.verdict.reason)


def test_a_warm_start_is_not_checked_for_a_unit_that_it_does_not_allow() -> None:
    with pytest.raises(UserError, match="does not support 'client'"):
        next(check_algorithm("fedhypevae-sites", unit="client"))


@pytest.mark.parametrize(
    ("path", "params", "passed", "reason"),
    [
        ("ClientIsRefused", [], False, "the class states it, and: "),
        ("ClientIsRefused", ["rounds=2"], False, "the class states it, and: "),
        ("ClientMayBeRefused", ["rows_only=true"], None, "the parameters rule it out: "),
    ],
)
def test_a_setting_that_is_refused_while_others_are_not_is_printed(path: str, params: list[str], passed: bool | None, reason: str) -> None:
    findings = list(check_algorithm(f"broken.client_is_refused:{path}", params, quick=True))
    (found,) = (finding for finding in findings if finding.setting != "example, silo")
    assert (found.setting, found.passed) == ("client, silo (refused)", passed)
    assert reason in found.verdict.reason
    assert "clients have no plan" in found.verdict.reason
    assert failures([finding for finding in findings if finding is not found]) == []


def test_a_wrong_parameter_is_a_users_mistake() -> None:
    with pytest.raises(UserError, match="--param latentt"):
        next(check_algorithm("fedhypevae", ["latentt=3"]))
