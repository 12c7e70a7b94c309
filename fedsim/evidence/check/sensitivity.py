"""Remove-one sensitivity, measured: what one unit changes in every query while both worlds see the same noisy outputs.

Sampling belongs to it, for its amplification is of a sensitivity; and so does the audit's canary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from fedsim.device import bytes_of
from fedsim.evidence.audit.setting import brief, setting_of
from fedsim.evidence.audit.white_box import MOST_ADDED, ROOT, in_clean_processes, saturating
from fedsim.evidence.audit.white_box import pairs as trained_pairs
from fedsim.evidence.check.corpus import CORPUS
from fedsim.evidence.check.neighbours import NEAR_ZERO, Draw, Levels, Pair, World, draw_of, levels_of, pair_of, takes_part, trained
from fedsim.evidence.check.subject import CHECKED_CLIENTS, DELTA, EPSILON, Subject, drawn
from fedsim.evidence.check.verdict import Verdict, failed, idle, passed, raised
from fedsim.evidence.forked import forked, in_forks
from fedsim.evidence.worlds import Divergence, Query, Tape
from fedsim.methods.messages import Tensors
from fedsim.plugins.registry import lookup
from fedsim.privacy.ledger import Ledger
from fedsim.privacy.plan import THEOREMS

BOUND_SLACK = 1e-3
"""Relative excess over the bound that is put down to rounding."""
TOGETHER = 8
"""Pairs whose first worlds share a process, and whose second ones do: what a module keeps of earlier ones then differs, too."""
ROUNDING = 1e-6
"""Change of a tensor, relative to its norm, that is put down to rounding."""
CLIP_FIX = (
    "clip every unit's whole contribution jointly (clipped_sum, clipped_statistics), by a clip norm and weights that are public, and give "
    "it to Clients.add_noise in one call; draw what is random per row by Clients.batch or Clients.draws"
)
FREE_FIX = "send only what Clients.add_noise returned, weigh and divide by public numbers, or put the quantity into the clipped release"
PUBLIC_FIX = "let the schedule, all shapes, names and sizes depend on public numbers only"
SAMPLE_FIX = "take each step's rows from clients.poisson(round, release.sample_rate) and give them to clients.batch or clients.batches"
CLIENTS_FIX = (
    "sample whole clients by clients.poisson(round, rate, client_rate) or LocalTraining.participants, at the rate that releases() claims, "
    "and let those that are left out send nothing, not even what they remember"
)
STATE_FIX = "give everything that is kept and depends on an example to Clients.add_noise as 'kept', or state claim 'heuristic'"
FEW_FIX = "give parameters (--param) under which a few rows matter, such as a lower threshold"
CANARY_FIX = "let sensitivity() and plan() claim what one unit can add to a query, through every client and whatever the process saw before"


def sensitivity(subject: Subject) -> Verdict:
    """Every query's change is within the plan's sensitivity, and what no noise covers does not change at all.

    What is measured is a lower bound of the truth: that no pair breaks the claim is no proof of it.
    """
    claim, unit = subject.algorithm.claim(), subject.trial.task.unit
    if subject.plan is None or claim == "none":
        return idle("not private, nothing is claimed")
    draws = [*CORPUS["client" if unit == "client" else "row"].values()]
    draws += [draw_of(number, unit, subject.data.classes) for number in subject.draws]
    verdict = searched(subject, draws)
    return verdict if claim in THEOREMS else idle(f"claim {claim}, nothing is promised; measured: {verdict.reason}")


def sampling(subject: Subject) -> Verdict:
    """Under a claimed rate below 1, rows are sampled by the harness's streams, at that rate, anew for every step."""
    if subject.plan is None or subject.trial.task.unit == "client":
        return idle("no rows are sampled")
    seen = dict[int, int]()
    steps = [round_.release.per_round for round_ in subject.algorithm.schedule()]
    for sample in subject.tape.samples:
        # in a round of one step, with noise once, asking again is looking again
        if sample.step in seen and not (seen[sample.step] == sample.round and steps[sample.round] == 1):
            text = f"round {sample.round}: the Poisson sample of step {sample.step} is drawn again, after round {seen[sample.step]}"
            return failed(text, SAMPLE_FIX)
        seen[sample.step] = sample.round
    for round_ in subject.algorithm.schedule():
        if (release := round_.release).sample_rate == 1:
            continue
        samples, text = [sample for sample in subject.tape.samples if sample.round == round_.number], ""
        if len(samples) < release.per_round:
            text = f"{len(samples)} Poisson samples for {release.per_round} steps"
        elif other := next((sample for sample in samples if not math.isclose(sample.rate, release.sample_rate)), None):
            text = f"rows are sampled at rate {other.rate:g}"
        for taken in (rows for at, rows in subject.tape.taken if at == round_.number):
            if not any(all(map(torch.equal, taken, sample.rows)) for sample in samples):
                text = text or f"a batch of {sum(map(len, taken))} rows that are not its Poisson sample"
        if text:
            return failed(f"round {round_.number}: {text}; the plan claims rate {release.sample_rate:g} for '{release.name}'", SAMPLE_FIX)
    return passed("rows are sampled as claimed")


@dataclass(frozen=True)
class Compared:
    """What a pair showed: what breaks the claim, if anything, and the largest change in units of the bound."""

    draw: Draw
    fault: Verdict | None = None
    ratio: float = 0.0


def searched(subject: Subject, draws: Sequence[Draw]) -> Verdict:
    """The verdict on the pairs of these draws; the first fault is the one that is told."""
    unit, results = subject.trial.task.unit, list[Compared]()
    levels = {weights: forked(levels_of, subject, weights) for weights in (1.0, NEAR_ZERO)}
    some = (draws[at : at + TOGETHER] for at in range(0, len(draws), TOGETHER))
    with closing(in_forks(compare, ((subject, own, levels) for own in some))) as compared:
        for result in chain.from_iterable(compared):
            if result.fault is not None:
                return result.fault
            results.append(result)
    most = max((result for result in results if result.draw.way == "removed"), key=lambda result: result.ratio)
    seen = f"{len(results)} pairs of neighbours"
    if most.ratio == 0:
        return failed(f"nothing that is released depends on any unit that was tried, {seen}: nothing was measured", FEW_FIX)
    return passed(f"the largest change seen is {most.ratio:.3f} of the claimed bound ({most.draw.words(unit)}), over {seen}")


def compare(subject: Subject, draws: Sequence[Draw], levels: Mapping[float, Levels | None]) -> list[Compared]:
    """Train in the first worlds of these draws, all in one process, and in the second ones under the first ones' outputs, in this one."""
    pairs = [pair_of(subject, draw, levels[draw.weights]) for draw in draws]
    return [_compared(pair, first) for pair, first in zip(pairs, forked(_first_worlds, pairs), strict=True)]


def _first_worlds(pairs: Sequence[Pair]) -> list[Seen | Verdict]:
    return [look(pair, pair.whole) for pair in pairs]


def _compared(pair: Pair, first: Seen | Verdict) -> Compared:
    if isinstance(first, Verdict):
        return Compared(pair.draw, first)
    second = look(pair, pair.other, first.tape)
    return Compared(pair.draw, second) if isinstance(second, Verdict) else judged(pair, first, second)


@dataclass(frozen=True)
class Seen:
    """What a training left behind: what its clients did, what its result says, released label shares, what is kept of it, what it paid."""

    tape: Tape
    said: Tensor
    shares: Tensor
    state: Tensors
    ledger: Ledger


def look(pair: Pair, world: World, script: Tape | None = None) -> Seen | Verdict:
    """Train in a world of the pair; a fault, if that is how it ends."""
    try:
        made, tape = trained(pair.subject, pair.draw, world, pair.rounds, script)
        # a result may ask for the version of a client that is not there
        said = drawn(made.made, pair.subject.data, CHECKED_CLIENTS if pair.same_clients else 0)
    except Divergence as error:
        return failed(f"{pair.words}: {error}", PUBLIC_FIX)
    except (Exception, SystemExit) as error:
        fault = raised(error, lookup(pair.subject.trial.cell.algorithm))
        return failed(f"{pair.words}: {fault.reason}", fault.fix)
    shares = torch.zeros(0) if made.shares is None else torch.from_numpy(made.shares)
    return Seen(tape.without_diagnostics(), said, shares, made.state, made.ledger)


def judged(pair: Pair, first: Seen, second: Seen) -> Compared:
    """What breaks the claim in two worlds, if anything."""
    subject, draw, plan, words = pair.subject, pair.draw, pair.subject.plan, pair.words
    assert plan is not None
    if len(first.tape.queries) != len(second.tape.queries):
        return Compared(draw, failed(f"{words}: how often Clients.add_noise runs depends on the data", PUBLIC_FIX))
    at_clients = subject.algorithm.noise_at_clients()
    # a world without a client lacks what that client alone would have sent, noised
    if (pair.same_clients or not at_clients) and (difference := envelope(first.tape, second.tape)):
        return Compared(draw, failed(f"{words} changes what a message is: {difference}", PUBLIC_FIX))
    if pair.same_clients and (text := _uncovered(first, second, at_clients=at_clients)):
        return Compared(draw, failed(f"{words} {text}", FREE_FIX))
    changes = list(_changes(pair, first.tape, second.tape))
    for change in changes:
        if not change.sampled and change.norm > BOUND_SLACK * plan.sensitivity + ROUNDING * change.scale:
            what = f"changes '{change.most}' by {change.norm / plan.sensitivity:.3g} of the bound; the plan claims rate {change.rate:g}"
            fix = CLIENTS_FIX if subject.trial.task.unit == "client" else STATE_FIX
            return Compared(draw, failed(f"round {change.round}: {words}, not in the round's sample, {what}", fix))
    worst = max(changes, key=lambda change: change.norm / math.sqrt(change.steps), default=Change(0, {"": 0.0}, {}))
    limit = plan.sensitivity * math.sqrt(worst.steps)
    ratio = worst.norm / limit if worst.norm > ROUNDING * worst.scale else 0.0
    if draw.way != "removed" or worst.norm <= limit * (1 + BOUND_SLACK) + ROUNDING * worst.scale:
        return Compared(draw, None, ratio)
    text = f"round {worst.round}: removing {words} changes what is released by {worst.norm:.3g}, the claimed bound is {limit:.3g}"
    share = f"; '{worst.most}' alone by {worst.norms[worst.most]:.3g}" if len(worst.norms) > 1 else f" ('{worst.most}')"
    return Compared(draw, failed(f"{text} ({ratio:.2f} of it){share}", CLIP_FIX), ratio)


def _uncovered(first: Seen, second: Seen, *, at_clients: bool) -> str:
    """What the same clients do with another row, and what comes out, may differ in nothing but the queries: all outputs are equal."""
    for round_, message in first.tape.messages.items() if at_clients else ():
        norms, scales = _norms(message.sums, second.tape.messages[round_].sums), _norms(message.sums, {})
        if name := next((name for name, norm in norms.items() if norm > ROUNDING * scales.get(name, 0.0) + 1e-9), None):
            text = f"changes '{name}' in the messages of round {round_} by {norms[name]:.3g}"
            return f"{text}; no noise of Clients.add_noise covers it, no ledger pays for it"
    if first.ledger != second.ledger:
        return "changes the ledger"
    for name in {**first.state, **second.state}:
        one, two = first.state.get(name), second.state.get(name)
        # bits, so that what is not a number equals itself
        if one is None or two is None or one.shape != two.shape or not np.array_equal(bytes_of(one), bytes_of(two)):
            return f"changes '{name}' in what is kept of a training, though all noisy outputs are equal"
    for what, said, other in (("what the result says", first.said, second.said), ("label_counts", first.shares, second.shares)):
        if said.shape != other.shape or not torch.allclose(said, other, atol=1e-5, rtol=1e-4, equal_nan=True):
            return f"changes {what} though all noisy outputs are equal"
    return ""


def envelope(first: Tape, second: Tape) -> str:
    """The first thing, if any, in which what is sent differs in two worlds and that no noise can cover: names, shapes and types."""
    for round_, one in first.messages.items():
        two = second.messages[round_].sums
        if one.sums.keys() != two.keys():
            names = ", ".join(map(repr, sorted(one.sums.keys() ^ two.keys())))
            return f"round {round_}: the message holds {names} in one of the two worlds only"
        for name, value in one.sums.items():
            if (value.shape, value.dtype) != (two[name].shape, two[name].dtype):
                return f"round {round_}: shape or type of '{name}' in the message"
    return ""


@dataclass(frozen=True)
class Change:
    """What a unit changed in one query.

    Attributes:
        round: the round.
        norms: L2 norm of the change by tensor name.
        scales: L2 norm of each tensor.
        steps: how many steps of the release it covers.
        sampled: whether the unit was in the sample, of several steps in that of one.
        rate: that is claimed of the sample.
    """

    round: int
    norms: Mapping[str, float]
    scales: Mapping[str, float]
    steps: int = 1
    sampled: bool = True
    rate: float = 1.0

    @property
    def norm(self) -> float:
        """Joint L2 norm."""
        return math.hypot(*self.norms.values())

    @property
    def scale(self) -> float:
        """Joint L2 norm of the tensors."""
        return math.hypot(*self.scales.values())

    @property
    def most(self) -> str:
        """The tensor that changed most."""
        return max(self.norms, key=lambda name: self.norms[name])


def _changes(pair: Pair, first: Tape, second: Tape) -> Iterator[Change]:
    """What changed in every query that clients noise themselves, or in every round's sum."""
    task, draw = pair.subject.trial.task, pair.draw

    def in_sample(query: Query) -> bool:
        if task.unit != "client" or draw.way != "removed":
            return query.sampled
        return takes_part(draw.seed, query.step, draw.client, query.release)

    if not pair.subject.algorithm.noise_at_clients():
        yield from of_rounds(first, second, in_sample)
        return
    for one, two in zip(first.queries, second.queries, strict=True):
        norms, scales = _kept(one, two), _norms(one.kept, {})
        if task.trust == "silo":
            norms, scales = _joined(norms, _norms(one.sent, two.sent)), _joined(scales, _norms(one.sent, {}))
        yield Change(one.round, norms, scales, 1, in_sample(one), one.release.sample_rate)


def of_rounds(first: Tape, second: Tape, in_sample: Callable[[Query], bool]) -> Iterator[Change]:
    """What changed in every round's sum, to which the server adds noise, together with what clients noised in that round."""
    for round_, message in first.messages.items():
        pairs = [pair for pair in zip(first.queries, second.queries, strict=True) if pair[0].round == round_]
        norms = _norms(message.sums, second.messages[round_].sums)
        for one, two in pairs:
            norms = _joined(norms, _kept(one, two))
        # a sum over several steps may depend on a unit that is in the sample of one of them
        held = not pairs or any(in_sample(one) for one, _ in pairs)
        release = pairs[0][0].release if pairs else None
        facts = (release.per_round, held, release.sample_rate) if release is not None else ()
        yield Change(round_, norms, _norms(message.sums, {}), *facts)


def _kept(one: Query, two: Query) -> dict[str, float]:
    """Norms of the change in per-client tensors; a client that is missing counts in full."""
    padded: Tensors = {}
    for name, value in two.kept.items():
        full = torch.zeros_like(one.kept[name])
        full[[one.members.index(client) for client in two.members]] = value
        padded[name] = full
    return _norms(one.kept, padded)


def _joined(one: Mapping[str, float], two: Mapping[str, float]) -> dict[str, float]:
    return {name: math.hypot(one.get(name, 0.0), two.get(name, 0.0)) for name in {**one, **two}}


def _norms(one: Tensors, two: Tensors) -> dict[str, float]:
    """Norms of the difference by name; what only one side has counts in full."""
    nothing = torch.zeros(())
    return {name: float((one.get(name, nothing).double() - two.get(name, nothing).double()).norm()) for name in {**one, **two}}


def canary(subject: Subject) -> Verdict:
    """The audit's canary adds no more than the sensitivity that the plan claims; of bounds nothing is said, which takes many more pairs."""
    claim, cell, task = subject.algorithm.claim(), subject.trial.cell, subject.trial.task
    if subject.plan is None or claim not in THEOREMS:
        return idle("not private, nothing is claimed" if subject.plan is None else f"claim {claim}, nothing is promised")
    params = {**cell.params, **brief(cell.algorithm, ("rounds",))}
    setting = setting_of(cell.algorithm, params, task.unit, task.trust, EPSILON, DELTA)
    ((tight, unit),) = in_clean_processes(setting, saturating, [(setting, ROOT)])
    ((pair,),) = in_clean_processes(setting, trained_pairs, [(tight, unit, ROOT, range(1))])
    text = f"{unit.label} adds {pair.most:.3f} of the claimed sensitivity to a step of fedsim audit's trainings"
    return failed(text, CANARY_FIX) if pair.most > MOST_ADDED else passed(text)
