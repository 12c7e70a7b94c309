"""Checks of what is paid: Poisson samples at the planned rate, every step in the ledger, epsilon within the target."""

from __future__ import annotations

import math
from contextlib import closing

import torch

from fedsim.evidence.check.client_pairs import RESAMPLED, sampled_pairs
from fedsim.evidence.check.comparison import PairResult, comparisons, seen_words
from fedsim.evidence.check.subject import Subject, varied
from fedsim.evidence.check.verdict import Verdict, failed, idle, passed

SAMPLE_FIX = "take each step's rows from clients.poisson(round, release.sample_rate) and give them to clients.batch or clients.batches"
CLIENTS_FIX = (
    "sample whole clients by clients.poisson(round, rate, client_rate) or LocalTraining.participants, at the rate that releases() claims, "
    "and let those that are left out send nothing, not even what they remember"
)
CLIENT_RATE = 0.5
"""Rate at which clients are sampled where an algorithm's default claims none."""
LEDGER_FIX = (
    "let every step of the plan call Clients.add_noise once, with the release that it is given; override no noise_at_clients; "
    "noise that is drawn otherwise is not counted"
)


def sampling(subject: Subject) -> Verdict:
    """Under a claimed rate below 1, units are sampled by the harness's streams, at that rate, anew for every step."""
    if subject.plan is None:
        return idle("not private")
    if subject.trial.task.unit == "client":
        return _clients(subject)
    if all(release.sample_rate == 1 for release in subject.plan.releases):
        return passed("no amplification by sampling is claimed")
    if again := _again(subject):
        return failed(again, SAMPLE_FIX)
    releases = [round_.release for round_ in subject.algorithm.schedule()]
    for round_, release in enumerate(releases):
        if release.sample_rate == 1:
            continue
        samples = [sample for sample in subject.tape.samples if sample.round == round_]
        claimed = f"the plan claims rate {release.sample_rate:g} for '{release.name}'"
        if len(samples) < release.per_round:
            return failed(f"round {round_}: {len(samples)} Poisson samples for {release.per_round} steps; {claimed}", SAMPLE_FIX)
        if other := next((s for s in samples if not math.isclose(s.rate, release.sample_rate)), None):
            return failed(f"round {round_}: rows are sampled at rate {other.rate:g}; {claimed}", SAMPLE_FIX)
        for taken in (rows for at, rows in subject.tape.taken if at == round_):
            if not any(_same(taken, sample.rows) for sample in samples):
                count = sum(map(len, taken))
                return failed(f"round {round_}: a batch of {count} rows that are not its Poisson sample; {claimed}", SAMPLE_FIX)
    rates = {release.sample_rate for release in releases}
    return passed(f"Poisson samples at {', '.join(f'{rate:g}' for rate in sorted(rates))}")


def _clients(subject: Subject) -> Verdict:
    """A client that the sampling stream leaves out of a round changes nothing in it, and nothing shows which client it is."""
    claimed = any(release.sample_rate < 1 for release in subject.algorithm.releases())
    # an algorithm that claims nothing as it stands may claim it with another parameter
    own = subject if claimed else varied(subject, client_rate=CLIENT_RATE)
    release = next((release for release in own.algorithm.releases() if release.sample_rate < 1), None)
    if release is None:
        return passed("no amplification by sampling is claimed")
    results = list[PairResult]()
    with closing(comparisons(own, sampled_pairs(own, release))) as compared:
        for result in compared:
            results.append(result)
            if result.fault is not None and (not claimed or result.pair == RESAMPLED):
                return result.fault
            if result.outsider is not None:
                round_, name, share = result.outsider
                text = f"round {round_}: {result.pair} that is not in the round's sample changes '{name}' by {share:.3g} of the bound"
                return failed(f"{text}; the plan claims rate {release.sample_rate:g} for '{release.name}'", CLIENTS_FIX)
    return passed(f"clients that are not sampled (rate {release.sample_rate:g}) change nothing: {seen_words(results)}")


def _again(subject: Subject) -> str:
    """Two steps of one sample are not what was accounted for; in a round of one step, with noise once, asking again is looking again."""
    seen: dict[int, int] = {}
    steps = [round_.release.per_round for round_ in subject.algorithm.schedule()]
    for sample in subject.tape.samples:
        if sample.step in seen and not (seen[sample.step] == sample.round and steps[sample.round] == 1):
            return f"round {sample.round}: the Poisson sample of step {sample.step} is drawn again, after round {seen[sample.step]}"
        seen[sample.step] = sample.round
    return ""


def _same(one: list[torch.Tensor], two: list[torch.Tensor]) -> bool:
    return len(one) == len(two) and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def budget(subject: Subject) -> Verdict:
    """The ledger holds what the plan planned, and epsilon is spent, not overspent."""
    plan, ledger = subject.plan, subject.first[0].trained.ledger
    if plan is None:
        if ledger.mechanisms() != () or any(record.values["noise_norm"] for record in subject.records):
            return failed("it is not private, yet something is noised or accounted", "set private = True, or leave noise alone")
        return passed("no epsilon, no noise, no ledger")
    if fault := ledger.unaccounted(plan, subject.trial.task.clients):
        return failed(fault, LEDGER_FIX)
    spent, accountant = ledger.epsilon(plan.delta)
    text = f"epsilon {spent:.4g} of {plan.epsilon_target:g} ({accountant})"
    if spent > plan.epsilon_target:
        return failed(f"{text} is overspent", LEDGER_FIX)
    if spent < 0.99 * plan.epsilon_target:
        return failed(f"{text}: less is spent than was planned", LEDGER_FIX)
    return passed(text)
