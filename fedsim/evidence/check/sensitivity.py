"""Remove-one sensitivity, measured: what one unit changes in every query while both worlds see the
same noisy outputs.

Sampling belongs to it, for its amplification is of a sensitivity.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from fedsim.device import bytes_of
from fedsim.evidence.check.neighbours import (
    CORPUS,
    FINITE_FIX,
    Draw,
    Levels,
    Pair,
    World,
    begun,
    draw_of,
    levels_of,
    norms_apart,
    pair_of,
)
from fedsim.evidence.check.subject import (
    Fault,
    Idle,
    Subject,
    drawn,
    raised,
)
from fedsim.evidence.forked import forked, in_forks
from fedsim.evidence.worlds import Divergence, Query, Tape
from fedsim.methods.messages import Tensors
from fedsim.privacy.ledger import Ledger
from fedsim.privacy.plan import THEOREMS
from fedsim.seeds import Purpose, Seeds
from fedsim.training import rounds

BOUND_SLACK = 1e-3
"""Relative excess over the bound that is put down to rounding."""
TOGETHER = 8
"""Pairs whose first worlds share a process, and whose second ones do: what a module keeps of
earlier ones then differs, too.
"""
ROUNDING = 1e-6
"""Change of a tensor, relative to its norm, that is put down to rounding; never more than this
share of what all units together may add, so that a large constant hides nothing.
"""
CLIP_FIX = (
    "clip every unit's whole contribution jointly, by public norms and weights, and give it "
    "to Clients.add_noise in one call"
)
FREE_FIX = (
    "send only what Clients.add_noise returned, weigh and divide by public numbers, or put "
    "the quantity into the clipped release"
)
PUBLIC_FIX = (
    "let the schedule, all shapes, names and sizes, and whether it ends, depend on public "
    "numbers only"
)
SAMPLE_FIX = (
    "take each step's rows from clients.poisson(round, release.sample_rate) and give them to "
    "clients.batch or clients.batches"
)
CLIENTS_FIX = (
    "sample clients by clients.poisson(round, rate, client_rate) or "
    "LocalTraining.participants; who is left out sends nothing"
)
STATE_FIX = (
    "give everything that is kept and depends on an example to Clients.add_noise as 'kept', "
    "or state claim 'heuristic'"
)
FEW_FIX = "give parameters (--param) under which a few rows matter, such as a lower threshold"


def sensitivity(subject: Subject) -> str:
    """Every query's change is within the plan's sensitivity, and what no noise covers does not
    change at all.

    What is measured is a lower bound of the truth: that no pair breaks the claim is no proof of it.
    """
    claim = subject.algorithm.claim()
    unit = subject.trial.task.unit
    if subject.plan is None or claim == "none":
        raise Idle("not private, nothing is claimed")
    if unit != "client":
        forked(
            check_samples, subject
        )  # in this process nothing trains, so that each pair begins as a new process would
    draws = [*CORPUS["client" if unit == "client" else "row"].values()]
    draws += [draw_of(number, unit, subject.data.classes) for number in subject.draws]
    try:
        seen = searched(subject, draws)
    except Fault as fault:
        if claim in THEOREMS:
            raise
        seen = fault.args[0]
    if claim not in THEOREMS:
        raise Idle(f"claim {claim}, nothing is promised; measured: {seen}")
    return seen


def check_samples(subject: Subject) -> None:
    """Under a claimed rate below 1, rows are sampled by the harness's streams, at that rate, anew
    for every step.
    """
    schedule = list(subject.algorithm.schedule())
    seen = dict[int, int]()
    taken = subject.first[1].tapes[0].samples
    for sample in taken:
        # in a round of one step, with noise once, asking again is looking again
        if sample.step in seen and not (
            seen[sample.step] == sample.round and schedule[sample.round].release.per_round == 1
        ):
            text = (
                f"round {sample.round}: the Poisson sample of step {sample.step} is drawn "
                f"again, after round {seen[sample.step]}"
            )
            raise Fault(text, SAMPLE_FIX)
        seen[sample.step] = sample.round
    for number, release in (
        (round_.number, round_.release) for round_ in schedule if round_.release.sample_rate < 1
    ):
        rates = [sample.rate for sample in taken if sample.round == number]
        if len(rates) < release.per_round or not np.allclose(
            rates, release.sample_rate, rtol=1e-9, atol=0
        ):
            text = f"{len(rates)} Poisson samples for {release.per_round} steps, at rates {rates}"
            raise Fault(
                f"round {number}: {text}; the plan claims rate {release.sample_rate:g} for "
                f"'{release.name}'",
                SAMPLE_FIX,
            )


def searched(subject: Subject, draws: Sequence[Draw]) -> str:
    """What the pairs of these draws show."""
    levels = {
        (weights, features): forked(levels_of, subject, weights, features)
        for weights, features in dict.fromkeys((draw.weights, draw.features) for draw in draws)
    }
    some = (draws[at : at + TOGETHER] for at in range(0, len(draws), TOGETHER))
    with closing(in_forks(compare, ((subject, own, levels) for own in some))) as compared:
        ratios = list(chain.from_iterable(compared))
    seen = f"{len(ratios)} pairs of neighbours"
    most, where = max(
        (ratio, -number) for number, ratio in enumerate(ratios) if draws[number].way == "removed"
    )
    if most == 0:
        raise Fault(
            f"nothing that is released depends on any unit that was tried, {seen}: nothing "
            "was measured",
            FEW_FIX,
        )
    words = draws[-where].words(subject.trial.task.unit)
    return f"the largest change seen is {most:.3f} of the claimed bound ({words}), over {seen}"


def compare(
    subject: Subject,
    draws: Sequence[Draw],
    levels: Mapping[tuple[float, int | None], Levels | None],
) -> list[float]:
    """The largest change in every pair, in units of the bound; first worlds are trained in a
    process of their own.
    """
    pairs = [pair_of(subject, draw, levels[draw.weights, draw.features]) for draw in draws]
    firsts = forked(lambda: [look(pair, pair.whole) for pair in pairs])
    return [
        judged(pair, first, look(pair, pair.other, first.tape))
        for pair, first in zip(pairs, firsts, strict=True)
    ]


@dataclass(frozen=True)
class Seen:
    """What a training left behind: what its clients did, what its result says, label shares, what
    is kept of it, what it paid.
    """

    tape: Tape
    said: Tensor
    shares: Tensor
    state: Tensors
    ledger: Ledger


def look(pair: Pair, world: World, script: Tape | None = None) -> Seen:
    """Train in a world of the pair; with a ``script``, the noise gives that world's outputs."""
    words = pair.draw.words(pair.subject.trial.task.unit)
    try:
        steps, tape = begun(pair.subject, pair.draw, world, pair.rounds, script)
        made = rounds.to_the_end(steps)[1]
        # a result may ask for the version of a client that is not there
        told = drawn(
            made.made,
            pair.subject.data,
            pair.subject.trial.task.clients if len(pair.other.held) == len(pair.whole.held) else 0,
        )
    except Divergence as error:
        raise Fault(f"{words}: {error}", PUBLIC_FIX) from error
    except (Exception, SystemExit) as error:
        raise Fault(f"{words}: {raised(error, pair.subject)}", PUBLIC_FIX) from error
    if made.shares is None:
        shares = torch.zeros(0)
    else:
        shares = torch.from_numpy(made.shares)
    # diagnostics are not compared, and may be what cannot be pickled
    messages = {
        number: replace(message, diagnostics={}) for number, message in tape.messages.items()
    }
    return Seen(replace(tape, messages=messages), told, shares, made.state, made.ledger)


def judged(pair: Pair, first: Seen, second: Seen) -> float:
    """The largest change in units of the bound, in two worlds in which nothing breaks the claim."""
    subject = pair.subject
    plan = pair.subject.plan
    words = pair.draw.words(pair.subject.trial.task.unit)
    assert plan is not None
    for seen in (first, second):
        _check_finite(words, seen.tape)
    if len(first.tape.queries) != len(second.tape.queries):
        raise Fault(f"{words}: how often Clients.add_noise runs depends on the data", PUBLIC_FIX)
    at_clients = subject.algorithm.noise_at_clients()
    same_clients = len(pair.other.held) == len(pair.whole.held)
    # a world without a client lacks what that client alone would have sent, noised
    if same_clients or not at_clients:
        _check_envelopes(words, first.tape, second.tape)
    if same_clients:
        _check_uncovered(words, first, second, at_clients=at_clients)
    changes = list(_changes(pair, first.tape, second.tape))
    for change in changes:
        if not change.sampled and not change.norm <= BOUND_SLACK * plan.sensitivity:
            what = (
                f"changes '{change.most}' by {change.norm / plan.sensitivity:.3g} of the "
                f"bound; the plan claims rate {change.rate:g}"
            )
            if subject.trial.task.unit == "client":
                fix = CLIENTS_FIX
            else:
                fix = STATE_FIX
            raise Fault(f"round {change.round}: {words}, not in the round's sample, {what}", fix)
    worst = max(
        changes,
        key=lambda change: change.norm / math.sqrt(change.steps),
        default=Change(0, {"": 0.0}),
    )
    limit = plan.sensitivity * math.sqrt(worst.steps)
    ratio = worst.norm / limit
    if pair.draw.way == "removed" and not ratio <= 1 + BOUND_SLACK:
        text = (
            f"round {worst.round}: removing {words} changes what is released by "
            f"{worst.norm:.3g}, the claimed bound is {limit:.3g}"
        )
        if len(worst.norms) > 1:
            share = f"; '{worst.most}' alone by {worst.norms[worst.most]:.3g}"
        else:
            share = f" ('{worst.most}')"
        raise Fault(f"{text} ({ratio:.2f} of it){share}", CLIP_FIX)
    return ratio


def _check_finite(words: str, tape: Tape) -> None:
    """Check that every number of a message or query is finite: noise covers no other number."""
    named = [
        (message_round, name, value)
        for message_round, message in tape.messages.items()
        for name, value in message.sums.items()
    ]
    named += [
        (query.round, name, value)
        for query in tape.queries
        for name, value in (*query.sent.items(), *query.kept.items())
    ]
    for round_, name, value in named:
        if not bool(torch.isfinite(value).all()):
            text = f"round {round_}: {words}: '{name}' has a number that is not finite"
            raise Fault(f"{text}, and no noise covers it", FINITE_FIX)


def _check_envelopes(words: str, first: Tape, second: Tape) -> None:
    """That nothing differs in what is sent that no noise can cover: names, shapes and types."""
    for round_ in first.messages:
        one, two = (
            {(name, value.shape, value.dtype) for name, value in tape.messages[round_].sums.items()}
            for tape in (first, second)
        )
        if one != two:
            what = f"round {round_}: name, shape or type of '{min(name for name, *_ in one ^ two)}'"
            raise Fault(f"{words} changes what a message is: {what}", PUBLIC_FIX)


def _check_uncovered(words: str, first: Seen, second: Seen, *, at_clients: bool) -> None:
    """That what the same clients do with another row, and what comes out, differs in nothing but
    the queries: all outputs are equal.
    """
    for round_, message in first.tape.messages.items() if at_clients else ():
        other_sums = second.tape.messages[round_].sums
        for name, norm in norms_apart(message.sums, other_sums).items():
            # what is computed from equal outputs is equal to the last bit
            if not torch.equal(message.sums[name], other_sums[name]):
                text = f"changes '{name}' in the messages of round {round_} by {norm:.3g}"
                raise Fault(
                    f"{words} {text}; no noise of Clients.add_noise covers it, no ledger "
                    "pays for it",
                    FREE_FIX,
                )
    if first.ledger != second.ledger:
        raise Fault(f"{words} changes the ledger", FREE_FIX)
    for name in {**first.state, **second.state}:
        one = first.state.get(name)
        two = second.state.get(name)
        # bits, so that what is not a number equals itself
        if (
            one is None
            or two is None
            or one.shape != two.shape
            or not np.array_equal(bytes_of(one), bytes_of(two))
        ):
            raise Fault(
                f"{words} changes '{name}' in what is kept of a training, though all noisy "
                "outputs are equal",
                FREE_FIX,
            )
    for what, told, other in (
        ("what the result says", first.said, second.said),
        ("label_counts", first.shares, second.shares),
    ):
        if told.shape != other.shape or not torch.allclose(
            told, other, atol=1e-5, rtol=1e-4, equal_nan=True
        ):
            raise Fault(f"{words} changes {what} though all noisy outputs are equal", FREE_FIX)


@dataclass(frozen=True)
class Change:
    """What a unit changed in one query, or in a round's sum over ``steps``.

    The ``norms`` are L2 norms by tensor, less what is put down to rounding in that tensor.
    """

    round: int
    norms: Mapping[str, float]
    steps: int = 1
    sampled: bool = True
    rate: float = 1.0

    @property
    def norm(self) -> float:
        """Joint L2 norm of the change."""
        return math.hypot(*self.norms.values())

    @property
    def most(self) -> str:
        """The tensor that changed most."""
        return max(self.norms, key=self.norms.__getitem__)


def _changes(pair: Pair, first: Tape, second: Tape) -> Iterator[Change]:
    """What changed in every query that clients noise themselves; or in every round's sum, with what
    clients noised in that round.
    """
    task = pair.subject.trial.task
    draw = pair.draw
    queries = list(zip(first.queries, second.queries, strict=True))

    def in_sample(query: Query) -> bool:
        if task.unit != "client" or draw.way != "removed":
            return query.sampled
        # the stream by which Clients.poisson samples whole clients
        return bool(
            Seeds(draw.seed).keystream(Purpose.SAMPLING, query.step, draw.client).uniform(1)[0]
            < query.release.sample_rate
        )

    if pair.subject.algorithm.noise_at_clients():
        for one, two in queries:
            norms = _kept(pair, one, two)
            if task.trust == "silo":
                norms = _joined(norms, _beyond_rounding(pair, one.sent, two.sent))
            yield Change(one.round, norms, 1, in_sample(one), one.release.sample_rate)
        return
    for round_, message in first.messages.items():
        own = [both for both in queries if both[0].round == round_]
        if own:
            release = own[0][0].release
        else:
            release = None
        if release is None:
            steps = 1
        else:
            steps = release.per_round
        norms = _beyond_rounding(pair, message.sums, second.messages[round_].sums, steps)
        for one, two in own:
            norms = _joined(norms, _kept(pair, one, two))
        if release is None:
            yield Change(round_, norms)
            continue
        # a sum over several steps may depend on a unit that is in the sample of one of them
        sampled = any(in_sample(one) for one, _ in own)
        yield Change(round_, norms, steps, sampled, release.sample_rate)


def _kept(pair: Pair, one: Query, two: Query) -> dict[str, float]:
    """Norms of the change in per-client tensors; a client that is missing counts in full."""
    padded: Tensors = {}
    for name, value in two.kept.items():
        full = torch.zeros_like(one.kept[name])
        full[[one.members.index(client) for client in two.members]] = value
        padded[name] = full
    return _beyond_rounding(pair, one.kept, padded)


def _beyond_rounding(pair: Pair, one: Tensors, two: Tensors, steps: int = 1) -> dict[str, float]:
    """Norms of the difference by name, less what rounding may have changed in a sum of so many
    ``steps``.
    """
    assert pair.subject.plan is not None
    most = pair.subject.plan.sensitivity * pair.whole.units(pair.subject.trial.task.unit) * steps
    beyond = dict[str, float]()
    for name, norm in norms_apart(one, two).items():
        if name in one:
            size = float(one[name].double().norm())
        else:
            size = 0.0
        rounding = ROUNDING * min(size, most)
        # so written that what is not a number stays so
        if norm <= rounding:
            beyond[name] = 0.0
        else:
            beyond[name] = norm - rounding
    return beyond


def _joined(one: Mapping[str, float], two: Mapping[str, float]) -> dict[str, float]:
    return {name: math.hypot(one.get(name, 0.0), two.get(name, 0.0)) for name in {**one, **two}}
