"""One pair of neighbouring worlds, compared: the largest change in units of the bound, and what no noise covers."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from fedsim.device import bytes_of
from fedsim.kit.checks.changes import Change, envelope, messages, queries, rounds
from fedsim.kit.checks.client_pairs import takes_part
from fedsim.kit.checks.neighbours import Pair, World, live, of_pair
from fedsim.kit.checks.subject import CLIENTS, Subject
from fedsim.kit.checks.training import drawn
from fedsim.kit.checks.verdict import Verdict, failed, raised
from fedsim.kit.checks.watch import Divergence, Tape
from fedsim.methods.messages import Tensors
from fedsim.methods.registry import lookup
from fedsim.privacy.ledger import Ledger
from fedsim.simulation.fresh import forked, in_fresh_processes

SLACK = 1e-3
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
class Compared:
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

    @property
    def rounds(self) -> int:
        """How many were run."""
        return len(self.tape.messages)


def comparisons(subject: Subject, pairs: Iterator[Pair]) -> Generator[Compared, None, None]:
    """Compare the pairs, in order; every world in a process of its own."""
    module = lookup(subject.trial.cell.algorithm).__module__
    # what the subject has cached stays here
    yield from in_fresh_processes(compare, ((replace(subject), pair) for pair in pairs), module)


def compare(subject: Subject, pair: Pair) -> Compared:
    """Train in both worlds, the second under the first one's outputs, and compare what they did."""
    own, done = of_pair(subject, pair), 0
    try:
        first = forked(_look, own, pair, pair.whole)
        done = first.rounds
        return _judged(own, pair, first, _look(own, pair, pair.other, first.tape))
    except Divergence as error:
        return Compared(pair.label, done, failed(f"{pair.label}: {error}", PUBLIC_FIX), math.inf)
    except Exception as error:
        fault = raised(error, lookup(subject.trial.cell.algorithm))
        return Compared(pair.label, done, replace(fault, reason=f"{pair.label}: {fault.reason}"), math.inf)


def _look(subject: Subject, pair: Pair, world: World, script: Tape | None = None) -> Seen:
    trained, pool = live(subject, pair, world, script)
    tape = pool.tape
    # diagnostics are nobody's to compare, and may be anything
    tape.messages = {round_: [replace(message, diagnostics={}) for message in sent] for round_, sent in tape.messages.items()}
    if trained is None:
        return Seen(tape)
    whole = pair.whole.members == pair.other.members
    said = drawn(trained.made, subject.data, CLIENTS) if whole else torch.zeros(0)
    shares = torch.zeros(0) if trained.shares is None else torch.from_numpy(trained.shares)
    return Seen(tape, said, shares, trained.state, trained.ledger)


def _judged(subject: Subject, pair: Pair, first: Seen, second: Seen) -> Compared:
    assert subject.plan is not None
    late = (pair.late[-1].number, sum(phase.release.rounds for phase in subject.algorithm.phases())) if pair.late else None
    found = Compared(pair.label, first.rounds, bounded=pair.client is not None, late=late)
    if len(first.tape.queries) != len(second.tape.queries):
        raise Divergence("how often Clients.add_noise runs depends on the data")
    at_clients, bound = subject.algorithm.noise_at_clients(), subject.plan.sensitivity
    whole = pair.whole.members == pair.other.members
    # a world without a client lacks what that client alone would have sent, noised
    if (whole or not at_clients) and (difference := envelope(first.tape, second.tape, sizes=whole)):
        return replace(found, fault=failed(f"{pair.label} changes what a message is: {difference}", PUBLIC_FIX), ratio=math.inf)
    if whole and (fault := _uncovered(pair, first, second, at_clients=at_clients)):
        return replace(found, fault=fault, ratio=math.inf)
    changes = list(_changes(subject, pair, first.tape, second.tape, at_clients=at_clients))
    outsiders = [c for c in changes if not c.sampled and c.norm > SLACK * bound + ROUNDING * c.scale]
    if outsiders:
        found = replace(found, outsider=(outsiders[0].round, outsiders[0].most, outsiders[0].norm / bound))
    worst = max(changes, key=lambda change: change.norm / math.sqrt(change.steps), default=Change(0, {"": 0.0}, {}))
    limit = bound * math.sqrt(worst.steps)
    ratio = worst.norm / limit if worst.norm > ROUNDING * worst.scale else 0.0
    return replace(found, fault=_excess(pair, worst, limit) if found.bounded else None, ratio=ratio)


def _changes(subject: Subject, pair: Pair, first: Tape, second: Tape, *, at_clients: bool) -> Iterator[Change]:
    task, client = subject.trial.task, pair.client
    sampled = None if task.unit != "client" or client is None else lambda step, rate: takes_part(pair.seed, step, client, rate)
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
    if change.norm <= limit * (1 + SLACK) + ROUNDING * change.scale:
        return None
    share = f"; '{change.most}' alone by {change.norms[change.most]:.3g}" if len(change.norms) > 1 else f" ('{change.most}')"
    text = f"round {change.round}: removing {pair.label} changes what is released by {change.norm:.3g}, the claimed bound is {limit:.3g}"
    return failed(f"{text} ({change.norm / limit:.2f} of it){share}", CLIP_FIX)


def sampled_seen(found: Sequence[Compared]) -> str:
    """How many pairs and rounds a verdict rests on."""
    most = max(compared.rounds for compared in found if compared.late is None)
    late = next((f" and round {compared.late[0]} of {compared.late[1]}" for compared in found if compared.late is not None), "")
    return f"{len(found)} pairs of neighbours, rounds 0 to {most - 1}{late}"
