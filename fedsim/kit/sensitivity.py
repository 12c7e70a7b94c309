"""Remove-one sensitivity, measured: what one unit changes in every query while both worlds see the same noisy outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.algorithm import Tensors, l2_norm
from fedsim.kit.neighbours import Pair, live, pairs, with_clip
from fedsim.kit.subject import CLIENTS, Subject
from fedsim.kit.training import Training, drawn
from fedsim.kit.verdict import Verdict, failed, idle, passed
from fedsim.kit.watch import Divergence, Query, Tape, WatchedPool

SLACK = 1e-3
"""Relative excess over the bound that is put down to rounding."""

ROUNDING = 1e-5
"""Change of a tensor, relative to its norm, that is put down to rounding."""

CLIP_FIX = (
    "clip every unit's whole contribution jointly (clipped_sum, clipped_statistics) and give it to Clients.add_noise in one call; "
    "draw what is random per row by Clients.batch or Clients.draws"
)
FREE_FIX = "send only what Clients.add_noise returned, weigh and divide by public numbers, or put the quantity into the clipped release"
STATE_FIX = "give everything that is kept and depends on an example to Clients.add_noise as 'kept', or state claim 'heuristic'"


@dataclass(frozen=True)
class Change:
    """What a unit changed in one query.

    Attributes:
        round: the round.
        norms: L2 norm of the change by tensor name.
        scale: L2 norm of the tensors.
        steps: how many steps of the release it covers.
        sampled: whether the unit was in the sample.
    """

    round: int
    norms: Mapping[str, float]
    scale: float
    steps: int = 1
    sampled: bool = True

    @property
    def norm(self) -> float:
        """Joint L2 norm."""
        return math.hypot(*self.norms.values())

    @property
    def most(self) -> str:
        """The tensor that changed most."""
        return max(self.norms, key=lambda name: self.norms[name])


def sensitivity(subject: Subject) -> Verdict:
    """Every query's change is within the plan's sensitivity; what no noise covers does not change at all."""
    plan, claim = subject.plan, subject.algorithm.claim()
    if plan is None or claim == "none":
        return idle("not private, nothing is claimed")
    largest, label = 0.0, ""
    for pair in pairs(subject):
        own = with_clip(subject, pair.clip)
        assert own.plan is not None
        try:
            fault, ratio = _compare(own, pair, own.plan.sensitivity)
        except Divergence as error:
            fault, ratio = failed(f"{pair.label}: {error}", "let the schedule and all shapes depend on public numbers only"), 0.0
        if fault is not None:
            return fault if claim == "proved" else idle(f"claim {claim}, nothing is promised; measured: {fault.reason}")
        if ratio >= largest:
            largest, label = ratio, pair.label
    if claim != "proved":
        return idle(f"claim {claim}, nothing is promised; measured: at most {largest:.3g} of the bound ({label})")
    return passed(f"at most {largest:.3f} of the claimed bound ({label})")


def _compare(subject: Subject, pair: Pair, bound: float) -> tuple[Verdict | None, float]:
    """The fault that the pair shows, if any, and the largest change in units of the bound."""
    training, pool = live(subject, pair, pair.whole)
    forced, other = live(subject, pair, pair.other, pool.tape)
    if len(pool.tape.queries) != len(other.tape.queries):
        raise Divergence("how often Clients.add_noise runs depends on the data")
    at_clients = subject.algorithm.noise_at_clients()
    # a world without a client lacks what that client's noise alone would have sent
    if pair.whole.members == pair.other.members:
        fault = (_unpaid(pair, pool.tape, other.tape) if at_clients else None) or _told(subject, pair, training, forced)
        if fault is not None:
            return fault, math.inf
    if not pair.removed:
        return None, 0.0
    changes = list(_queries(pool.tape, other.tape, silo=subject.trial.task.trust == "silo") if at_clients else _rounds(pool, other))
    worst = max(changes, key=lambda change: change.norm / math.sqrt(change.steps), default=Change(0, {"": 0.0}, 0.0))
    limit = bound * math.sqrt(worst.steps)
    return _remembered(changes, bound) or _excess(pair, worst, limit), worst.norm / limit


def _unpaid(pair: Pair, first: Tape, second: Tape) -> Verdict | None:
    """What clients send under their own noise may not differ once the noise's outputs are equal."""
    for change in _messages(first, second):
        if change.norm > ROUNDING * change.scale + 1e-9:
            text = f"round {change.round}: {pair.label} changes '{change.most}' in the messages by {change.norm:.3g}"
            return failed(f"{text}; no noise of Clients.add_noise covers it, no ledger pays for it", FREE_FIX)
    return None


def _told(subject: Subject, pair: Pair, first: Training, second: Training) -> Verdict | None:
    """Neither may what the result says."""
    before, after = (drawn(each.trained.made, subject.data, CLIENTS) for each in (first, second))
    if torch.allclose(before, after, atol=1e-5, rtol=1e-4):
        return None
    by = float((before - after).abs().max())
    return failed(f"{pair.label} changes what the result says by {by:.3g} though all noisy outputs are equal", FREE_FIX)


def _remembered(changes: Sequence[Change], bound: float) -> Verdict | None:
    """A unit that is not in a step's sample changes nothing in that step."""
    for change in changes:
        if not change.sampled and change.norm > SLACK * bound + ROUNDING * change.scale:
            text = f"round {change.round}: an example that is not in the round's sample changes '{change.most}'"
            text = f"{text} by {change.norm / bound:.3g} of the bound: state without noise remembers it, or the rows are not sampled"
            return failed(text, STATE_FIX)
    return None


def _excess(pair: Pair, change: Change, limit: float) -> Verdict | None:
    """No query changes by more than the bound."""
    if change.norm <= limit * (1 + SLACK) + ROUNDING * change.scale:
        return None
    share = f"; '{change.most}' alone by {change.norms[change.most]:.3g}" if len(change.norms) > 1 else f" ('{change.most}')"
    text = f"round {change.round}: removing {pair.label} changes what is released by {change.norm:.3g}, the claimed bound is {limit:.3g}"
    return failed(f"{text} ({change.norm / limit:.2f} of it){share}", CLIP_FIX)


def _messages(first: Tape, second: Tape) -> Iterator[Change]:
    """What changed in the sums of every round's messages."""
    for round_ in range(len(first.messages)):
        one, two = first.sums(round_), second.sums(round_)
        yield Change(round_, _norms(one, two), l2_norm(one))


def _queries(first: Tape, second: Tape, *, silo: bool) -> Iterator[Change]:
    """What changed in every query that clients noise themselves."""
    for one, two in zip(first.queries, second.queries, strict=True):
        norms, scale = _kept(one, two), l2_norm(one.kept)
        if silo:
            norms = _joined(norms, _norms(one.sent, two.sent))
            scale = math.hypot(scale, l2_norm(one.sent))
        yield Change(one.round, norms, scale, 1, one.sampled)


def _rounds(first: WatchedPool, second: WatchedPool) -> Iterator[Change]:
    """What changed in every round's sum, to which the server adds noise, together with what clients noised in that round."""
    for message in _messages(first.tape, second.tape):
        pairs = [pair for pair in zip(first.tape.queries, second.tape.queries, strict=True) if pair[0].round == message.round]
        norms = dict(message.norms)
        for one, two in pairs:
            norms = _joined(norms, _kept(one, two))
        steps = pairs[0][0].release.per_round if pairs else 1
        yield Change(message.round, norms, message.scale, steps, all(one.sampled for one, _ in pairs))


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
    return {name: float(_difference(one.get(name), two.get(name)).double().norm()) for name in {**one, **two}}


def _difference(one: Tensor | None, two: Tensor | None) -> Tensor:
    if one is None or two is None:
        found = two if one is None else one
        assert found is not None
        return found
    if one.shape != two.shape:
        raise Divergence("the shape of a message depends on the data")
    return one - two
