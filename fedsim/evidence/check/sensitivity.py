"""The check of an algorithm's sensitivity: what one unit changes in every query, measured.

Pairs of trainings run in neighbouring worlds, one with a unit and one without it. The clients of
both get the same noisy outputs, so what differs between them are the queries, and their difference
must be within the plan's sensitivity. Poisson sampling is checked here too, because the plan's
amplification holds only for samples of the claimed rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from operator import itemgetter

import numpy as np
import torch

from fedsim.device import bytes_of
from fedsim.evidence.check.neighbours import (
    CORPUS,
    FINITE_FIX,
    Draw,
    Levels,
    Pair,
    World,
    begin_training,
    draw_of,
    levels_of,
    norms_apart,
    pair_of,
)
from fedsim.evidence.check.subject import (
    Fault,
    Idle,
    Subject,
    blame,
)
from fedsim.evidence.forked import forked, in_forks
from fedsim.evidence.worlds import Divergence, Query, Sample, Tape
from fedsim.methods.messages import Round, Tensors
from fedsim.privacy.ledger import Ledger
from fedsim.privacy.plan import THEOREMS
from fedsim.seeds import Purpose, Seeds
from fedsim.training import rounds

LevelsByStart = Mapping[tuple[float, int | None], Levels | None]
"""Levels by the share of the initial weights and the number of features."""
BOUND_SLACK = 1e-3
"""The relative excess over the bound that may be due to rounding."""
TOGETHER = 8
"""The number of pairs that two processes train together.

One process trains all first worlds, the other all second worlds. So what a module remembers of
earlier worlds also differs between the two worlds of a pair.
"""
ROUNDING = 1e-6
"""The change of a tensor, relative to its norm, that may be due to rounding.

At most this share of what all units together may add is put down to rounding. So a large constant
in a tensor does not hide a change.
"""
CLIP_FIX = (
    "clip the whole contribution of every unit jointly, by public norms and weights, and give it "
    "to Clients.add_noise in one call"
)
FREE_FIX = (
    "send only what Clients.add_noise returned, and weigh and divide by public numbers; or make "
    "this quantity a part of the release that is clipped"
)
PUBLIC_FIX = (
    "let the schedule, all names, shapes and sizes, and whether the training ends, depend on "
    "public numbers only"
)
SAMPLE_FIX = (
    "take the examples of each step from clients.poisson(round, release.sample_rate), and give "
    "them to clients.batch or clients.batches"
)
CLIENTS_FIX = (
    "sample clients by clients.poisson(round, rate, client_rate) or by "
    "LocalTraining.participants; a client that is not sampled sends nothing"
)
STATE_FIX = (
    "give everything that is kept and depends on an example to Clients.add_noise as 'kept', "
    "or claim 'heuristic'"
)
FEW_FIX = "give parameters (--param) with which a few examples matter, such as a lower threshold"


def sensitivity(subject: Subject) -> str:
    """Check that every query changes by at most the plan's sensitivity, and nothing else changes.

    The largest change that is seen is a lower bound of the true sensitivity. So a check that finds
    no fault does not prove the claim.

    Returns:
        The largest change that was seen, relative to the claimed bound, in words.

    Raises:
        Fault: a Poisson sample is not as planned, whatever the claim is, or a pair of worlds breaks
            a claim that is a theorem.
        Idle: the algorithm claims no theorem.
    """
    claim = subject.algorithm.claim()
    unit = subject.task.unit
    if subject.plan is None or claim == "none":
        raise Idle("it claims no privacy")
    if unit == "client":
        draws = list(CORPUS["client"].values())
    else:
        # Nothing trains in this process, so that each pair begins as a new process would.
        forked(check_samples, subject)
        draws = list(CORPUS["row"].values())
    draws += [draw_of(number, unit, subject.data.classes) for number in subject.draws]
    try:
        summary = search_pairs(subject, draws)
    except Fault as fault:
        if claim in THEOREMS:
            raise
        summary = fault.args[0]
    if claim not in THEOREMS:
        raise Idle(f"the claim is {claim}, which promises nothing; measured: {summary}")
    return summary


def check_samples(subject: Subject) -> None:
    """Check that every step samples its examples anew, by fedsim's streams, at the claimed rate.

    Raises:
        Fault: a sample is drawn twice, is missing, or has another rate than the plan claims.
    """
    samples = subject.first.pool.tapes[0].samples
    schedule = list(subject.algorithm.schedule())
    _check_no_sample_twice(schedule, samples)
    for round_ in schedule:
        release = round_.release
        if release.sample_rate == 1:
            continue
        rates = [sample.rate for sample in samples if sample.round == round_.number]
        are_claimed = np.allclose(rates, release.sample_rate, rtol=1e-9, atol=0)
        if len(rates) < release.per_round or not are_claimed:
            raise Fault(
                f"round {round_.number}: {len(rates)} Poisson samples for {release.per_round} "
                f"steps, at rates {rates}; the plan claims the sampling rate "
                f"{release.sample_rate:g} for '{release.name}'",
                SAMPLE_FIX,
            )


def _check_no_sample_twice(schedule: Sequence[Round], samples: Sequence[Sample]) -> None:
    """Raise a fault if one Poisson sample is drawn again, so that two steps may share it."""
    round_of_step: dict[int, int] = {}
    for sample in samples:
        earlier = round_of_step.get(sample.step)
        # A round of one step adds noise once, so it may ask for its sample several times.
        is_same_step = earlier == sample.round and schedule[sample.round].release.per_round == 1
        if earlier is not None and not is_same_step:
            raise Fault(
                f"round {sample.round}: the Poisson sample of step {sample.step} is drawn "
                f"again, after round {earlier}",
                SAMPLE_FIX,
            )
        round_of_step[sample.step] = sample.round


def search_pairs(subject: Subject, draws: Sequence[Draw]) -> str:
    """Train in both worlds of every draw, and return in words the largest change and its draw.

    Raises:
        Fault: a pair breaks the claim, or nothing depends on any unit.
    """
    starts = dict.fromkeys((draw.weights, draw.features) for draw in draws)
    levels = {start: forked(levels_of, subject, *start) for start in starts}
    arguments = [
        (subject, draws[first : first + TOGETHER], levels)
        for first in range(0, len(draws), TOGETHER)
    ]
    with closing(in_forks(compare, arguments)) as compared:
        ratios = list(chain.from_iterable(compared))
    removed = [ratio for ratio, draw in zip(ratios, draws, strict=True) if draw.way == "removed"]
    largest, words = max(removed, key=itemgetter(0))
    count = f"{len(removed)} pairs of neighbouring data sets"
    if largest == 0:
        raise Fault(
            f"no unit of the {count} changes anything that is released, so nothing was measured",
            FEW_FIX,
        )
    return f"the largest change in {count} is {largest:.3f} times the claimed bound ({words})"


def compare(
    subject: Subject,
    draws: Sequence[Draw],
    levels: LevelsByStart,
) -> list[tuple[float, str]]:
    """Return the largest change in each pair, in units of the claimed bound, and the pair's words.

    The first worlds are trained in a process of their own, the second ones in this process.

    Args:
        subject: the small cell.
        draws: how the worlds of each pair differ.
        levels: what single units add, for the weights and features of every draw.
    """
    pairs = [pair_of(subject, draw, levels[draw.weights, draw.features]) for draw in draws]
    firsts = forked(lambda: [observe(pair, pair.whole) for pair in pairs])
    return [
        (largest_change(pair, first, observe(pair, pair.other, first.tape)), pair.words)
        for pair, first in zip(pairs, firsts, strict=True)
    ]


@dataclass(frozen=True)
class Observation:
    """What a training in one world left behind.

    Attributes:
        tape: what its clients did.
        answers: what its generator or classifier returns for fixed questions, and its label shares
            if it has some.
        state: the tensors that a run keeps of it.
        ledger: what it spent.
    """

    tape: Tape
    answers: Tensors
    state: Tensors
    ledger: Ledger


def observe(
    pair: Pair,
    world: World,
    script: Tape | None = None,
) -> Observation:
    """Train in a world of a pair.

    Args:
        pair: the pair, which gives parameters, seed and rounds.
        world: one of its worlds.
        script: the tape of the other world, whose noisy outputs this training is given.

    Raises:
        Fault: the training raises, or asks for other outputs than the other world did.
    """
    subject = pair.subject
    try:
        steps, tape = begin_training(
            subject,
            pair.draw,
            world,
            pair.rounds,
            script,
        )
        _, trained = rounds.to_the_end(steps)
        # A result may ask for the version of a client that is not there.
        product = subject.answers(trained.made, personal=pair.has_same_clients)
    except Divergence as error:
        raise Fault(f"{pair.words}: {error}", PUBLIC_FIX) from error
    except (Exception, SystemExit) as error:
        raise Fault(f"{pair.words}: {blame(error, subject)}", PUBLIC_FIX) from error
    answers = {"what the result generates or predicts": product}
    if trained.shares is not None:
        answers["label_counts"] = torch.from_numpy(trained.shares)
    # Diagnostics are not compared, and some cannot be pickled.
    for number, message in tape.messages.items():
        tape.messages[number] = replace(message, diagnostics={})
    return Observation(tape, answers, trained.state, trained.ledger)


def largest_change(
    pair: Pair,
    first: Observation,
    second: Observation,
) -> float:
    """Return the largest change of a query or a sum, in units of the claimed bound.

    Args:
        pair: the two worlds.
        first: what was observed in the world with the unit.
        second: what was observed in the other world, given the outputs of the first.

    Raises:
        Fault: the two worlds break the claim.
    """
    plan = pair.subject.plan
    assert plan is not None
    words = pair.words
    _check_observations(pair, first, second)
    changes = list(_changes(pair, first.tape, second.tape))
    for change in changes:
        if not change.sampled and not change.norm <= BOUND_SLACK * plan.sensitivity:
            fix = STATE_FIX
            if plan.unit == "client":
                fix = CLIENTS_FIX
            raise Fault(
                f"round {change.round}: {words}, not in the round's sample, changes "
                f"'{change.most}' by {change.norm / plan.sensitivity:.3g} times the claimed bound; "
                f"the plan claims the sampling rate {change.rate:g}",
                fix,
            )
    if not changes:
        return 0.0
    worst = max(changes, key=lambda change: change.norm / math.sqrt(change.steps))
    limit = plan.sensitivity * math.sqrt(worst.steps)
    ratio = worst.norm / limit
    if pair.draw.way == "removed" and not ratio <= 1 + BOUND_SLACK:
        tensor = f" ('{worst.most}')"
        if len(worst.norms) > 1:
            tensor = f"; '{worst.most}' alone changes by {worst.norms[worst.most]:.3g}"
        raise Fault(
            f"round {worst.round}: removing {words} changes what is released by "
            f"{worst.norm:.3g}, which is {ratio:.2f} times the claimed bound {limit:.3g}{tensor}",
            CLIP_FIX,
        )
    return ratio


def _check_observations(
    pair: Pair,
    first: Observation,
    second: Observation,
) -> None:
    """Raise a fault if the two worlds differ in anything that no noise covers."""
    words = pair.words
    for observation in (first, second):
        _check_finite(words, observation.tape)
    if len(first.tape.queries) != len(second.tape.queries):
        raise Fault(f"{words}: how often Clients.add_noise runs depends on the data", PUBLIC_FIX)
    at_clients = pair.subject.algorithm.noise_at_clients()
    same_clients = pair.has_same_clients
    for number, message in first.tape.messages.items():
        where = f"round {number}: {words}"
        sums = message.sums
        other_sums = second.tape.messages[number].sums
        # A world without a client lacks what that client alone would have sent, with noise.
        if same_clients or not at_clients:
            _check_envelopes(where, sums, other_sums)
        if same_clients and at_clients:
            _check_equal_sums(where, sums, other_sums)
    if same_clients:
        _check_results(words, first, second)


def _check_finite(words: str, tape: Tape) -> None:
    """Raise a fault if a message or query has a number that is not finite."""
    tensors_and_rounds = [(message.sums, number) for number, message in tape.messages.items()]
    for query in tape.queries:
        tensors_and_rounds.append((query.plain.sent, query.round))
        tensors_and_rounds.append((query.plain.kept, query.round))
    for tensors, number in tensors_and_rounds:
        for name, value in tensors.items():
            if not value.isfinite().all():
                raise Fault(
                    f"round {number}: {words}: '{name}' has a number that is not finite, and no "
                    "noise covers it",
                    FINITE_FIX,
                )


def _check_envelopes(where: str, sums: Tensors, other_sums: Tensors) -> None:
    """Raise a fault if names, shapes or types of what is sent differ: no noise covers these."""

    def envelopes(tensors: Tensors) -> set[tuple[str, torch.Size, str]]:
        return {(name, value.shape, str(value.dtype)) for name, value in tensors.items()}

    differing = envelopes(sums) ^ envelopes(other_sums)
    if differing:
        name, *_ = min(differing)
        raise Fault(f"{where} changes the name, shape or type of '{name}' in a message", PUBLIC_FIX)


def _check_equal_sums(where: str, sums: Tensors, other_sums: Tensors) -> None:
    """Raise a fault if a noised message differs, though all noisy outputs are equal."""
    for name, value in sums.items():
        # What is computed from equal outputs is equal to the last bit.
        if not torch.equal(value, other_sums[name]):
            norm = norms_apart(sums, other_sums)[name]
            raise Fault(
                f"{where} changes '{name}' in the messages by {norm:.3g}; no noise of "
                "Clients.add_noise covers it, and the ledger does not count it",
                FREE_FIX,
            )


def _check_results(words: str, first: Observation, second: Observation) -> None:
    """Raise a fault if what a training leaves differs, though all noisy outputs are equal."""
    if first.ledger != second.ledger:
        raise Fault(f"{words} changes the ledger", FREE_FIX)
    differing_state = _differing(first.state, second.state, bits=True)
    differing = [f"'{name}' in what is kept of a training" for name in differing_state]
    differing += _differing(first.answers, second.answers, bits=False)
    if differing:
        name = differing[0]
        raise Fault(f"{words} changes {name}, although all noisy outputs are equal", FREE_FIX)


def _differing(tensors: Tensors, others: Tensors, *, bits: bool) -> list[str]:
    """Return the names of tensors that differ, or that one side lacks.

    Args:
        tensors: the tensors of one world.
        others: the tensors of the other world.
        bits: whether they must be equal bit by bit. If not, they may differ by rounding, and NaN
            equals itself.
    """
    differing = []
    for name in {**tensors, **others}:
        value = tensors.get(name)
        other = others.get(name)
        if value is None or other is None or value.shape != other.shape:
            are_equal = False
        elif bits:
            are_equal = np.array_equal(bytes_of(value), bytes_of(other))
        else:
            are_equal = torch.allclose(
                value,
                other,
                atol=1e-5,
                rtol=1e-4,
                equal_nan=True,
            )
        if not are_equal:
            differing.append(name)
    return differing


@dataclass(frozen=True)
class Change:
    """What a unit changed in one query, or in the sum of a round.

    Attributes:
        round: the number of the round.
        norms: L2 norms of the change by tensor, less what rounding may have changed there.
        steps: the number of steps that the sum is over.
        sampled: whether the unit is in the Poisson sample of any of these steps.
        rate: the sampling rate that the plan claims.
    """

    round: int
    norms: Mapping[str, float]
    steps: int = 1
    sampled: bool = True
    rate: float = 1.0

    @property
    def norm(self) -> float:
        """The joint L2 norm of the change."""
        return math.hypot(*self.norms.values())

    @property
    def most(self) -> str:
        """The name of the tensor that changed most."""
        return max(self.norms, key=self.norms.__getitem__)


def _changes(pair: Pair, first: Tape, second: Tape) -> Iterator[Change]:
    """Yield the change in every query; if the server adds the noise, in the sum of every round."""
    if pair.subject.algorithm.noise_at_clients():
        for query, other in zip(first.queries, second.queries, strict=True):
            sums = Tensors()
            other_sums = Tensors()
            if pair.subject.task.trust == "silo":
                sums = query.plain.sent
                other_sums = other.plain.sent
            yield _change(pair, query.round, sums, other_sums, [(query, other)], 1)
        return
    for number, message in first.messages.items():
        of_round = list(zip(first.queries_of(number), second.queries_of(number), strict=True))
        steps = 1
        if of_round:
            steps = of_round[0][0].release.per_round
        yield _change(
            pair,
            number,
            message.sums,
            second.messages[number].sums,
            of_round,
            steps,
        )


def _change(
    pair: Pair,
    round_: int,
    sums: Tensors,
    other_sums: Tensors,
    queries: Sequence[tuple[Query, Query]],
    steps: int,
) -> Change:
    """Return what changed in sums, and in the tensors that clients keep.

    Args:
        pair: the two worlds.
        round_: the number of the round.
        sums: the sums of the world with the unit.
        other_sums: the sums of the other world.
        queries: the queries of both worlds in which clients noised the tensors that they keep.
        steps: the number of steps that the sums are over.
    """
    norms = _norms_beyond_rounding(pair, sums, other_sums, steps)
    if not queries:
        return Change(round_, norms)
    for query, other in queries:
        for name, norm in _norms_kept(pair, query, other).items():
            norms[name] = math.hypot(norms.get(name, 0.0), norm)
    # A sum over several steps may depend on a unit that is in the sample of one of them.
    sampled = any(_is_in_sample(pair, query) for query, _ in queries)
    return Change(
        round_,
        norms,
        steps,
        sampled,
        queries[0][0].release.sample_rate,
    )


def _is_in_sample(pair: Pair, query: Query) -> bool:
    """Return whether the unit in which the worlds differ is in the Poisson sample of a query."""
    if pair.subject.task.unit != "client" or pair.draw.way != "removed":
        return query.sampled
    # Clients.poisson samples whole clients by the first number of this stream.
    stream = Seeds(pair.draw.seed).keystream(
        Purpose.SAMPLING,
        query.step,
        pair.draw.client,
    )
    return bool(stream.uniform(1)[0] < query.release.sample_rate)


def _norms_kept(pair: Pair, query: Query, other: Query) -> dict[str, float]:
    """Return norms of the change in per-client tensors; a client that is missing counts in full."""
    rows = [query.members.index(client) for client in other.members]
    padded: Tensors = {}
    for name, value in other.plain.kept.items():
        padded[name] = torch.zeros_like(query.plain.kept[name])
        padded[name][rows] = value
    return _norms_beyond_rounding(pair, query.plain.kept, padded)


def _norms_beyond_rounding(
    pair: Pair,
    tensors: Tensors,
    others: Tensors,
    steps: int = 1,
) -> dict[str, float]:
    """Return norms of the difference by name, less what rounding may have changed.

    Args:
        pair: the two worlds.
        tensors: those of the world with the unit.
        others: those of the other world.
        steps: the number of steps that the tensors are sums over.
    """
    assert pair.subject.plan is not None
    units = pair.whole.units(pair.subject.task.unit)
    largest_sum = pair.subject.plan.sensitivity * units * steps
    beyond = norms_apart(tensors, others)
    for name, norm in beyond.items():
        size = float(tensors.get(name, torch.zeros(())).double().norm())
        rounding = ROUNDING * min(size, largest_sum)
        # NaN comes first here, so that max returns it.
        beyond[name] = max(norm - rounding, 0.0)
    return beyond
