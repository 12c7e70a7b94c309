"""What one unit changes in what clients compute, query by query, while two worlds see the same noisy outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from fedsim.evidence.check.watch import Query, Tape
from fedsim.methods.messages import Message, Tensors

Sampled = Callable[[int, float], bool]
"""Whether the unit is in the sample of a step (its number, the release's sample rate)."""


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
        # a sum over several steps may tell of a unit that is in the sample of one of them
        held = not pairs or any(_in_sample(one, sampled) for one, _ in pairs)
        yield Change(message.round, norms, message.scales, steps, held)


def messages(first: Tape, second: Tape) -> Iterator[Change]:
    """What changed in the sums of every round's messages."""
    for round_ in first.messages:
        one, two = first.sums(round_), second.sums(round_)
        yield Change(round_, _norms(one, two), _norms(one, {}))


def envelope(first: Tape, second: Tape, *, sizes: bool) -> str:
    """The first thing, if any, in which two worlds differ that no noise can cover: what is sent, and how much.

    Args:
        first: the one world's.
        second: the other's.
        sizes: whether bytes are compared; a client that is missing sends none.
    """
    for round_, ones in first.messages.items():
        for one, two in zip(ones, second.messages[round_], strict=True):
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
    return query.sampled if sampled is None else sampled(query.step, query.release.sample_rate)


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
