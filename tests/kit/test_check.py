"""The conformance kit: every registered algorithm passes, and every broken one fails its own check for its own reason."""

import re

import pytest
from broken.tiny import Adapted, Classified, Spelled, Tiny
from cells import SHIPPED

from fedsim.algorithm import Algorithm
from fedsim.errors import UserError
from fedsim.kit.check import CHECKS, check_algorithm
from fedsim.kit.sensitivity import sensitivity
from fedsim.kit.subject import subject
from fedsim.kit.verdict import Finding
from fedsim.registry import lookup

SMALL = {"dp-cvae": ["hidden=[8]", "latent=2"], "fedavg-cvae": ["encoder_hidden=[8]"], "weight-noise": ["encoder_hidden=[8]"]}
BROKEN = {
    "batch_level_loss:BatchLevelLoss": ("per-example loss", r"leaving out row 0 of 6 changes the clipped sum"),
    "hypernetwork_over_batch:HypernetworkOverBatch": ("per-example loss", r"layer 'hyper' gave \[1, 640\] for 6 examples"),
    "batch_clipped_as_one:BatchClippedAsOne": ("sensitivity", r"a row against the others of its sample .* \(1\.9\d of it\)"),
    "unclipped_part:UnclippedPart": ("sensitivity", r"the claimed bound is 1 .*'prototypes\.bias' alone"),
    "size_leaves_unpaid:SizeLeavesUnpaid": ("sensitivity", r"changes 'rows' in the messages by 1; no noise of Clients.add_noise covers it"),
    "label_counts_leave_unpaid:LabelCountsLeaveUnpaid": ("sensitivity", r"the claimed bound is 1 .*'label_counts' alone by 1"),
    "state_without_noise:StateWithoutNoise": ("sensitivity", r"not in the round's sample, changes .*state without noise remembers"),
    "noise_reused_between_rounds:NoiseReusedBetweenRounds": ("noise", r"the noise of round 0 is used again in round 1"),
    "noise_reused_between_clients:NoiseReusedBetweenClients": (
        "noise",
        r"of client \d in step (\d) and of client \d in step \1 is used twice",
    ),
    "sampling_not_poisson:SamplingNotPoisson": ("sampling", r"0 Poisson samples for 1 steps; the plan claims rate 0\.2"),
    "overspends:Overspends": ("budget", r"2 noisy steps of 'dp-sgd', the plan pays for 1"),
    "global_random_state:GlobalRandomState": ("global random state", r"the global random generator of torch"),
    "not_deterministic:NotDeterministic": ("determinism", r"two trainings with one seed differ"),
    "depends_on_packing:DependsOnPacking": ("packing", r"on actors of 1, 2, 1 clients"),
    "resume_differs:ResumeDiffers": ("resume", r"going on after 1 of 3 rounds differs"),
    "unserialisable_message:UnserialisableMessage": ("serialisable", r"the message cannot be serialised"),
    "data_changed:DataChanged": ("data untouched", r"client 0's rows are not what the partition gave it"),
}


def failures(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.passed is False]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_registered_algorithm_passes(name: str) -> None:
    findings = list(check_algorithm(name, SMALL.get(name, [])))
    assert failures(findings) == []
    cls = lookup(name)
    settings = {f"{unit}, {trust}" for unit in cls.units for trust in cls.trusts} if cls.private else {"not private"}
    assert {finding.setting for finding in findings} == settings
    assert len(findings) == len(settings) * len(CHECKS)


@pytest.mark.parametrize("cls", [Tiny, Adapted, Spelled, Classified])
def test_what_the_broken_ones_are_made_of_is_sound(cls: type[Algorithm]) -> None:
    findings = list(check_algorithm(f"broken.tiny:{cls.__name__}", trust="silo"))
    assert failures(findings) == []
    assert [finding.check for finding in findings if finding.passed is None] == ([] if cls.generates() else ["restored"])


@pytest.mark.parametrize("path", BROKEN)
def test_a_broken_algorithm_fails_its_own_check_for_its_own_reason(path: str) -> None:
    check, reason = BROKEN[path]
    name = f"broken.{path}"
    failed = failures(list(check_algorithm(name, trust=lookup(name).trusts[0])))
    assert [finding.check for finding in failed] == [check]
    assert re.search(reason, failed[0].verdict.reason)
    assert failed[0].verdict.fix


def test_a_batch_level_loss_exceeds_the_bound_also_as_measured() -> None:
    measured = sensitivity(subject("broken.batch_level_loss:BatchLevelLoss", [], "example", "aggregate"))
    assert measured.passed is False
    assert "the claimed bound is" in measured.reason


def test_a_heuristic_claim_is_measured_and_not_failed() -> None:
    findings = check_algorithm("fedhypevae", ["scope=hypernetwork"], "example", "aggregate")
    (found,) = (finding for finding in findings if finding.check == "sensitivity")
    assert found.passed is None
    assert "heuristic" in found.verdict.reason
    assert "measured" in found.verdict.reason


def test_an_exception_is_a_failure_with_its_place_and_what_depends_on_it_is_not_checked() -> None:
    findings = list(check_algorithm("broken.raises:Raises", trust="silo"))
    (failed,) = failures(findings)
    assert failed.check == "trains"
    assert re.fullmatch(r"ZeroDivisionError: .* \(\S*raises\.py:\d+\)", failed.verdict.reason)
    rest = [finding for finding in findings if finding.check not in ("trains", "per-example loss")]
    assert all(finding.passed is None and finding.verdict.reason == "not checked: needs 'trains'" for finding in rest)


def test_a_warm_start_passes_for_the_unit_that_it_allows() -> None:
    warm = ["warm_start=client-moments", "encoder=posterior"]
    findings = list(check_algorithm("fedhypevae", warm, trust="aggregate"))
    assert failures(findings) == []
    assert {finding.setting for finding in findings} == {"example, aggregate"}
    with pytest.raises(UserError, match="does not support unit client"):
        next(check_algorithm("fedhypevae", warm, unit="client"))


def test_a_wrong_parameter_is_a_users_mistake() -> None:
    with pytest.raises(UserError, match="--param latentt"):
        next(check_algorithm("fedhypevae", ["latentt=3"]))
