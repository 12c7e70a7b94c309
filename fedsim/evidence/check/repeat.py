"""Checks that a training can be repeated: by the same seed, on any packing, from any checkpoint."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from fedsim.evidence.check.subject import Subject, Training, drawn, same, train
from fedsim.evidence.check.verdict import Verdict, failed, passed
from fedsim.evidence.worlds import WatchedPool
from fedsim.methods.messages import Message, Round, Tensors
from fedsim.training.checkpoint import Checkpoints
from fedsim.training.rounds import RoundRecord
from fedsim.training.state import Checkpoint

SEED_FIX = "draw every random number from the seed tree (clients.seeds, server.seeds, Clients.draws)"
PACKING_FIX = (
    "send sums over the cohort's members, never means or counts of cohorts; key streams by client number (clients.members), not by position"
)
RESUME_FIX = "keep all that lives on between rounds in server.tensors and clients.state, not in attributes of the algorithm"
PACKINGS: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (((1, 2, 1), (0, 1, 2)), ((1, 1, 1, 1), (3, 1, 2, 0)))
"""Clients per actor, and the order in which actors compute."""
ORDER = 1e-4
"""What the order of a sum may change of a tensor in the first round, relative to its norm; Adam divides by small gradients."""
GROWTH_A_ROUND = 2.0
"""By how much more in each further round: training amplifies what is rounded differently, and a fault shows in the first rounds."""

AMPLIFIED = 10.0
"""How many times the change that a last bit of every sum makes may be the order of sums', where training amplifies it faster."""


class NudgedPool(WatchedPool):
    """A pool that moves every number of its messages to the next float."""

    def round(self, round_: Round, broadcast: Tensors) -> list[Message]:
        """See :class:`fedsim.methods.messages.Pool`."""
        return [replace(sent, sums={name: _next(value) for name, value in sent.sums.items()}) for sent in super().round(round_, broadcast)]


def _next(value: Tensor) -> Tensor:
    return torch.nextafter(value, torch.full_like(value, torch.inf)) if value.is_floating_point() else value


def determinism(subject: Subject) -> Verdict:
    """Two trainings of one seed are equal bit for bit; where there is noise, those of two seeds differ."""
    one, two = subject.first[0], subject.train()
    if difference := _unequal(subject, one, two):
        return failed(f"two trainings with one seed differ: {difference}", SEED_FIX)
    if subject.plan is not None and not _unequal(subject, one, subject.train(seed=1)):
        return failed("another seed gives the same result, though there is noise", SEED_FIX)
    return passed("the same seed gives the same bits, another seed others")


def packing(subject: Subject) -> Verdict:
    """Clients may be packed onto actors in any way, and actors may compute in any order."""
    one = subject.first[0]
    nudged = cache(lambda: train(subject.build(), NudgedPool(subject.cohorts()), subject.plan, 0))
    for sizes, order in PACKINGS:
        two = train(subject.build(), WatchedPool(subject.cohorts(sizes), order), subject.plan, 0)
        if _not_close(one, two) and (difference := _not_close(one, two, nudged())):
            on = f"actors of {', '.join(map(str, sizes))} clients, computed in the order {', '.join(map(str, order))}"
            return failed(f"on {on}: {difference}", PACKING_FIX)
    return passed("the same on 1, 3 and 4 actors, in any order")


def resume(subject: Subject) -> Verdict:
    """Going on from the checkpoint of any round equals the uninterrupted training."""
    whole = subject.first[0]
    with tempfile.TemporaryDirectory() as folder:
        for at in _some(whole.progress):
            file = Checkpoints(Path(folder) / "cell.safetensors")
            file.save(at)
            rest = train(subject.build(), WatchedPool(subject.cohorts()), subject.plan, 0, file.load())
            if difference := _unequal(subject, whole, rest, at.round):
                return failed(f"going on after {at.round} of {len(whole.records)} rounds differs: {difference}", RESUME_FIX)
    rounds = ", ".join(str(at.round) for at in _some(whole.progress))
    return passed(f"the same after {rounds} of {len(whole.records)} rounds, through a file")


def _some(progress: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Of many checkpoints the first two, the middle one and the last two."""
    last = len(progress) - 1
    return [progress[i] for i in sorted({0, 1, last // 2, last - 1, last} & set(range(len(progress))))]


def _unequal(subject: Subject, one: Training, two: Training, start: int = 0) -> str:
    """The first thing, if any, in which two trainings differ by a bit; the second one began at round ``start``."""
    if difference := _records(one.records[start:], two.records):
        return difference
    if one.trained.ledger != two.trained.ledger:
        return "the ledgers"
    if one.trained.uplink_bytes != two.trained.uplink_bytes:
        return f"{one.trained.uplink_bytes} and {two.trained.uplink_bytes} bytes sent"
    clients = subject.trial.task.clients
    first, second = (drawn(training.trained.made, subject.data, clients) for training in (one, two))
    return "" if same(first, second) else f"what the result generates, by up to {float((first - second).abs().max()):.3g}"


def _records(one: Sequence[RoundRecord], two: Sequence[RoundRecord]) -> str:
    if len(one) != len(two):
        return f"{len(one)} and {len(two)} rounds"
    for first, second in zip(one, two, strict=True):
        for name in {**first.values, **second.values}:
            if repr(first.values.get(name)) != repr(second.values.get(name)):
                return f"round {first.round}, {name}: {_short(first.values.get(name))} and {_short(second.values.get(name))}"
    return ""


def _short(value: object) -> str:
    return text if len(text := repr(value)) <= 24 else f"{text[:24]}..."


def _not_close(one: Training, two: Training, nudged: Training | None = None) -> str:
    """The first thing, if any, in which two trainings differ by more than the order of a sum, as far as ``nudged`` shows what that does."""
    for first, second in zip(one.records, two.records, strict=True):
        for name in ("sampled", "noise"):
            if first.values[name] != second.values[name]:
                return f"round {first.round}: {'other rows are sampled' if name == 'sampled' else 'other noise is drawn'}"
    if one.trained.ledger != two.trained.ledger:
        return "the ledgers differ"
    if one.trained.uplink_bytes != two.trained.uplink_bytes:
        return f"{one.trained.uplink_bytes} bytes sent became {two.trained.uplink_bytes}"
    for at, (before, after) in enumerate(zip(one.progress, two.progress, strict=True)):
        moved = {} if nudged is None else nudged.progress[at].tensors
        if difference := _tensors(before.tensors, after.tensors, ORDER * GROWTH_A_ROUND ** (before.round - 1), moved):
            return f"round {before.round - 1}: {difference}"
    return ""


def _tensors(one: Tensors, two: Tensors, order: float, nudged: Tensors) -> str:
    for name in {**one, **two}:
        if name not in one or name not in two or one[name].shape != two[name].shape:
            return f"'{name}' is not there, or has another shape"
        first, second = one[name].double(), two[name].double()
        amplified = AMPLIFIED * float((first - nudged[name].double()).norm()) if name in nudged else 0.0
        allowed = amplified + order * (math.sqrt(first.numel()) / 10 + float(first.norm()))
        if not same(first, second) and not float((first - second).norm()) <= allowed:
            return f"'{name}' differs by up to {float((first - second).abs().max()):.3g}"
    return ""
