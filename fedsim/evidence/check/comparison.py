"""One pair of neighbouring worlds, compared: what a unit changes in every query, and what no noise covers."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from fedsim.device import bytes_of
from fedsim.evidence.check.client_pairs import takes_part
from fedsim.evidence.check.neighbours import Pair, World, live, of_pair
from fedsim.evidence.check.subject import CHECKED_CLIENTS, Subject, drawn
from fedsim.evidence.check.verdict import Verdict, failed, raised
from fedsim.evidence.fresh import forked, in_fresh_processes
from fedsim.evidence.worlds import Divergence, Query, Tape
from fedsim.methods.messages import Message, Tensors
from fedsim.plugins.registry import lookup
from fedsim.privacy.ledger import Ledger
from fedsim.privacy.plan import Release

BOUND_SLACK = 1e-3
"""Relative excess over the bound that is put down to rounding."""

ROUNDING = 1e-6
"""Change of a tensor, relative to its norm, that is put down to rounding."""

CLIP_FIX = (
    "clip every unit's whole contribution jointly (clipped_sum, clipped_statistics), by a clip norm and weights that are public, and give "
    "it to Clients.add_noise in one call; draw what is random per row by Clients.batch or Clients.draws"
)
FREE_FIX = "send only what Clients.add_noise returned, weigh and divide by public numbers, or put the quantity into the clipped release"
PUBLIC_FIX = "let the schedule, all shapes, names and sizes depend on public numbers only"


@dataclass(frozen=True)
class PairResult:
    """What a pair showed.

    Attributes:
        pair: its label.
        rounds: how many were run.
        fault: what breaks the claim, if anything.
        ratio: the largest change in units of the bound, which holds for ``bounded`` pairs alone.
        bounded: whether one world lacks a unit; else units are replaced.
        late: the round that was looked at beyond the others, and how many there are.
        outsider: a change by a unit in a step whose sample it is not in, as (round, tensor, share of the bound).
    """

    pair: str
    rounds: int
    fault: Verdict | None = None
    ratio: float = 0.0
    bounded: bool = True
    late: tuple[int, int] | None = None
    outsider: tuple[int, str, float] | None = None


@dataclass(frozen=True)
class Seen:
    """What a training in one world left behind.

    Attributes:
        tape: what its clients did.
        said: what its result says; empty where the other world lacks a client, whose version it may ask for.
        shares: the label shares that are released with it, if any.
        state: what is kept of it.
        ledger: what it paid.
    """

    tape: Tape
    said: Tensor = field(default_factory=lambda: torch.zeros(0))
    shares: Tensor = field(default_factory=lambda: torch.zeros(0))
    state: Tensors = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)


def comparisons(subject: Subject, pairs: Iterator[Pair]) -> Generator[PairResult, None, None]:
    """Compare the pairs, in order; every world in a process of its own."""
    module = lookup(subject.trial.cell.algorithm).__module__
    # what the subject has cached stays here
    yield from in_fresh_processes(compare, ((replace(subject), pair) for pair in pairs), module)


def compare(subject: Subject, pair: Pair) -> PairResult:
    """Train in both worlds, the second under the first one's outputs, and compare what they did."""
    own, done = of_pair(subject, pair), 0
    try:
        first = forked(_look, own, pair, pair.whole)
        done = len(first.tape.messages)
        return _judged(own, pair, first, _look(own, pair, pair.other, first.tape))
    except Divergence as error:
        return PairResult(pair.label, done, failed(f"{pair.label}: {error}", PUBLIC_FIX), math.inf)
    except Exception as error:
        fault = raised(error, lookup(subject.trial.cell.algorithm))
        return PairResult(pair.label, done, replace(fault, reason=f"{pair.label}: {fault.reason}"), math.inf)


def _look(subject: Subject, pair: Pair, world: World, script: Tape | None = None) -> Seen:
    trained, tape = live(subject, pair, world, script)
    tape = tape.without_diagnostics()
    if trained is None:
        return Seen(tape)
    whole = pair.whole.members == pair.other.members
    said = drawn(trained.made, subject.data, CHECKED_CLIENTS) if whole else torch.zeros(0)
    shares = torch.zeros(0) if trained.shares is None else torch.from_numpy(trained.shares)
    return Seen(tape, said, shares, trained.state, trained.ledger)


def _judged(subject: Subject, pair: Pair, first: Seen, second: Seen) -> PairResult:
    assert subject.plan is not None
    late = (pair.late[-1].number, sum(phase.release.rounds for phase in subject.algorithm.phases())) if pair.late else None
    result = PairResult(pair.label, len(first.tape.messages), bounded=pair.client is not None, late=late)
    if len(first.tape.queries) != len(second.tape.queries):
        raise Divergence("how often Clients.add_noise runs depends on the data")
    at_clients, bound = subject.algorithm.noise_at_clients(), subject.plan.sensitivity
    whole = pair.whole.members == pair.other.members
    # a world without a client lacks what that client alone would have sent, noised
    if (whole or not at_clients) and (difference := envelope(first.tape, second.tape, sizes=whole)):
        return replace(result, fault=failed(f"{pair.label} changes what a message is: {difference}", PUBLIC_FIX), ratio=math.inf)
    if whole and (fault := _uncovered(pair, first, second, at_clients=at_clients)):
        return replace(result, fault=fault, ratio=math.inf)
    changes = list(_changes(subject, pair, first.tape, second.tape, at_clients=at_clients))
    outsiders = [c for c in changes if not c.sampled and c.norm > BOUND_SLACK * bound + ROUNDING * c.scale]
    if outsiders:
        result = replace(result, outsider=(outsiders[0].round, outsiders[0].most, outsiders[0].norm / bound))
    worst = max(changes, key=lambda change: change.norm / math.sqrt(change.steps), default=Change(0, {"": 0.0}, {}))
    limit = bound * math.sqrt(worst.steps)
    ratio = worst.norm / limit if worst.norm > ROUNDING * worst.scale else 0.0
    return replace(result, fault=_excess(pair, worst, limit) if result.bounded else None, ratio=ratio)


def _changes(subject: Subject, pair: Pair, first: Tape, second: Tape, *, at_clients: bool) -> Iterator[Change]:
    task, client = subject.trial.task, pair.client
    sampled = None if task.unit != "client" or client is None else lambda step, release: takes_part(pair.seed, step, client, release)
    return queries(first, second, sampled, silo=task.trust == "silo") if at_clients else rounds(first, second, sampled)


def _uncovered(pair: Pair, first: Seen, second: Seen, *, at_clients: bool) -> Verdict | None:
    """What the same clients do with another row, and what comes out, may differ in nothing but the queries: all outputs are equal."""
    for change in messages(first.tape, second.tape) if at_clients else ():
        if name := next((n for n, norm in change.norms.items() if norm > ROUNDING * change.scales.get(n, 0.0) + 1e-9), None):
            text = f"round {change.round}: {pair.label} changes '{name}' in the messages by {change.norms[name]:.3g}"
            return failed(f"{text}; no noise of Clients.add_noise covers it, no ledger pays for it", FREE_FIX)
    if first.ledger != second.ledger:
        return failed(f"{pair.label} changes the ledger", PUBLIC_FIX)
    if name := _first_unequal(first.state, second.state):
        return failed(f"{pair.label} changes '{name}' in what is kept of a training, though all noisy outputs are equal", FREE_FIX)
    for what, one, two in (("what the result says", first.said, second.said), ("label_counts", first.shares, second.shares)):
        if one.shape != two.shape or not torch.allclose(one, two, atol=1e-5, rtol=1e-4, equal_nan=True):
            return failed(f"{pair.label} changes {what} though all noisy outputs are equal", FREE_FIX)
    return None


def _first_unequal(one: Tensors, two: Tensors) -> str:
    for name in {**one, **two}:
        if name not in one or name not in two or (one[name].shape, one[name].dtype) != (two[name].shape, two[name].dtype):
            return name
        # bits, so that what is not a number equals itself
        if not np.array_equal(bytes_of(one[name]), bytes_of(two[name])):
            return name
    return ""


def _excess(pair: Pair, change: Change, limit: float) -> Verdict | None:
    """No query changes by more than the bound."""
    if change.norm <= limit * (1 + BOUND_SLACK) + ROUNDING * change.scale:
        return None
    share = f"; '{change.most}' alone by {change.norms[change.most]:.3g}" if len(change.norms) > 1 else f" ('{change.most}')"
    text = f"round {change.round}: removing {pair.label} changes what is released by {change.norm:.3g}, the claimed bound is {limit:.3g}"
    return failed(f"{text} ({change.norm / limit:.2f} of it){share}", CLIP_FIX)


def seen_words(results: Sequence[PairResult]) -> str:
    """How many pairs and rounds a verdict rests on."""
    most = max(result.rounds for result in results if result.late is None)
    late = next((f" and round {result.late[0]} of {result.late[1]}" for result in results if result.late is not None), "")
    return f"{len(results)} pairs of neighbours, rounds 0 to {most - 1}{late}"


Sampled = Callable[[int, Release], bool]
"""Whether the unit is in the sample of a step (its number, the release)."""


@dataclass(frozen=True)
class Change:
    """What a unit changed in one query.

    Attributes:
        round: the round.
        norms: L2 norm of the change by tensor name.
        scales: L2 norm of each tensor.
        steps: how many steps of the release it covers.
        sampled: whether the unit was in the sample, of several steps in that of one.
    """

    round: int
    norms: Mapping[str, float]
    scales: Mapping[str, float]
    steps: int = 1
    sampled: bool = True

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


def queries(first: Tape, second: Tape, sampled: Sampled | None, *, silo: bool) -> Iterator[Change]:
    """What changed in every query that clients noise themselves; ``sampled`` None: as the queries say."""
    for one, two in zip(first.queries, second.queries, strict=True):
        norms, scales = _kept(one, two), _norms(one.kept, {})
        if silo:
            norms, scales = _joined(norms, _norms(one.sent, two.sent)), _joined(scales, _norms(one.sent, {}))
        yield Change(one.round, norms, scales, 1, _in_sample(one, sampled))


def rounds(first: Tape, second: Tape, sampled: Sampled | None) -> Iterator[Change]:
    """What changed in every round's sum, to which the server adds noise, together with what clients noised in that round."""
    for message in messages(first, second):
        pairs = [pair for pair in zip(first.queries, second.queries, strict=True) if pair[0].round == message.round]
        norms = dict(message.norms)
        for one, two in pairs:
            norms = _joined(norms, _kept(one, two))
        steps = pairs[0][0].release.per_round if pairs else 1
        # a sum over several steps may depend on a unit that is in the sample of one of them
        held = not pairs or any(_in_sample(one, sampled) for one, _ in pairs)
        yield Change(message.round, norms, message.scales, steps, held)


def messages(first: Tape, second: Tape) -> Iterator[Change]:
    """What changed in the sums of every round's messages."""
    for round_ in first.messages:
        one, two = first.messages[round_].sums, second.messages[round_].sums
        yield Change(round_, _norms(one, two), _norms(one, {}))


def envelope(first: Tape, second: Tape, *, sizes: bool) -> str:
    """The first thing, if any, in which two worlds differ that no noise can cover: what is sent, and how much.

    Args:
        first: the one world's.
        second: the other's.
        sizes: whether bytes are compared; a client that is missing sends none.
    """
    for round_, one in first.messages.items():
        two = second.messages[round_]
        if one.sums.keys() != two.sums.keys():
            own = sorted(one.sums.keys() ^ two.sums.keys())
            return f"round {round_}: the message holds {', '.join(map(repr, own))} in one of the two worlds only"
        if other := next((name for name in one.sums if _form(one, name) != _form(two, name)), None):
            return f"round {round_}: shape or type of '{other}' in the message"
        if sizes and one.uplink_bytes != two.uplink_bytes:
            return f"round {round_}: {one.uplink_bytes} and {two.uplink_bytes} bytes sent"
    return ""


def _form(message: Message, name: str) -> tuple[torch.Size, torch.dtype]:
    return message.sums[name].shape, message.sums[name].dtype


def _in_sample(query: Query, sampled: Sampled | None) -> bool:
    return query.sampled if sampled is None else sampled(query.step, query.release)


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
    """Norm of the difference by name; what only one side has counts in full."""
    nothing = torch.zeros(())
    return {name: float((one.get(name, nothing).double() - two.get(name, nothing).double()).norm()) for name in {**one, **two}}
