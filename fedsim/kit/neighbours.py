"""Neighbouring worlds: the small cell with and without one unit, chosen so that a fault shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedsim.algorithm import Algorithm, Progress
from fedsim.kit.subject import Subject
from fedsim.kit.training import Training, train
from fedsim.kit.watch import Hidden, Tape, WatchedPool, watched
from fedsim.privacy.ledger import Ledger
from fedsim.runtime.cohort import CohortSpec
from fedsim.seeds import Seeds

SMALL_CLIP = 0.05
"""Share of the clip norm that most pairs run with, so that clipping bites and what is not clipped stands out."""

FEW = 4
"""Rows of each client in small worlds, where one example is a large part of the whole."""


Rows = tuple[NDArray[np.int64], ...]
"""Each member's row numbers."""


@dataclass(frozen=True)
class World:
    """A data set in clients' hands.

    Attributes:
        x, y: all rows.
        rows: each member's.
        members: the clients that are there.
        hidden: the row that one of two neighbouring worlds lacks.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    rows: Rows
    members: tuple[int, ...]
    hidden: Hidden | None = None


@dataclass(frozen=True)
class Pair:
    """Two worlds and how to run them.

    Attributes:
        label: what is special about the unit.
        whole: the world with the unit.
        other: the world that sees the first one's outputs.
        seed: of both.
        clip: share of the algorithm's clip norm.
        weights: share of the initial weights that the server starts from; a bound holds for any.
        removed: whether ``other`` lacks the unit; else the unit's data are replaced there, and only what no noise covers can tell.
    """

    label: str
    whole: World
    other: World
    seed: int
    clip: float = SMALL_CLIP
    weights: float = 1.0
    removed: bool = True


def pairs(subject: Subject) -> Iterator[Pair]:
    """All pairs for the subject's unit."""
    return _examples(subject) if subject.trial.task.unit == "example" else _clients(subject)


def _examples(subject: Subject) -> Iterator[Pair]:
    """One row more or less, last among its client's rows, so that all others keep their numbers."""
    data, held = subject.data, subject.trial.partition.rows
    stream = np.random.default_rng(0)
    opposite = -data.x_train.mean(0)
    random = stream.standard_normal(data.dim).astype(np.float32)
    rare = int(np.argmin(subject.trial.partition.label_counts[1]))
    units: list[tuple[str, NDArray[np.float32], int, Rows, float, Hidden]] = [
        ("an ordinary row", data.x_test[0], int(data.y_test[0]), held, 1.0, Hidden(0)),
        ("a row against the mean, of a rare label", opposite, rare, _few(held, 1), SMALL_CLIP, Hidden(1)),
        ("a row in a random direction", random, 0, _few(held, FEW), SMALL_CLIP, Hidden(2)),
        ("a row that is sampled in the first step only", opposite, rare, _few(held, FEW), SMALL_CLIP, Hidden(1, "first")),
    ]
    for seed, (label, x, y, rows, clip, hidden) in enumerate(units):
        other = World(data.x_train, data.y_train, rows, tuple(range(len(rows))), hidden)
        yield _pair(Pair(label, other, other, seed, clip), x, y)
    yield _against_few(subject)


def _pair(pair: Pair, x: NDArray[np.float32], y: int) -> Pair:
    """The pair whose ``other`` lacks the hidden row, and whose ``whole`` has it: ``x``, scaled to unit norm, of label ``y``."""
    other, hidden = pair.other, pair.other.hidden
    assert hidden is not None
    more = np.concatenate([other.x, (x / np.linalg.norm(x))[None]]).astype(np.float32)
    rows = tuple(np.append(own, len(other.x)) if i == hidden.client else own for i, own in enumerate(other.rows))
    whole = World(more, np.append(other.y, np.int64(y)), rows, other.members, hidden)
    return replace(pair, whole=whole, other=replace(other, hidden=replace(hidden, present=False)))


def _against_few(subject: Subject) -> Pair:
    """A row that outweighs all others of its sample, from weights near zero: what is clipped as one with the others turns round."""
    data, held = subject.data, _few(subject.trial.partition.rows, 2)
    stream = np.random.default_rng(1)
    along, across = np.linalg.qr(stream.standard_normal((data.dim, 2)))[0].T.astype(np.float32)
    x, y = data.x_train.copy(), data.y_train.copy()
    x[held[1]] = np.stack([0.2 * along + across, 0.2 * along - across]) / np.float32(np.sqrt(1.04))
    y[held[1]] = 0
    other = World(x, y, held, tuple(range(len(held))), Hidden(1, "alone"))
    return _pair(Pair("a row against the others of its sample", other, other, 4, weights=0.01), -along, 0)


def _clients(subject: Subject) -> Iterator[Pair]:
    """One client more or less; and one client with other rows, of which no trace may be left but in what is noised."""
    data, held = subject.data, subject.trial.partition.rows
    members = tuple(range(len(held)))
    against = data.x_train.copy()
    against[held[1]] = -data.x_train.mean(0) / np.linalg.norm(data.x_train.mean(0))
    kinds = [
        ("an ordinary client", 3, data.x_train, held, 1.0),
        ("a client with rows against the mean", 1, against, held, SMALL_CLIP),
        ("a client among small ones", 2, data.x_train, tuple(r if i == 2 else r[:FEW] for i, r in enumerate(held)), SMALL_CLIP),
    ]
    for seed, (label, client, x, rows, clip) in enumerate(kinds):
        whole = World(x, data.y_train, rows, members)
        others = tuple(own for i, own in enumerate(rows) if i != client)
        yield Pair(label, whole, World(x, data.y_train, others, tuple(i for i in members if i != client)), seed, clip)
    whole = World(data.x_train, data.y_train, held, members)
    fewer = tuple(own[:-3] if i == 1 else own for i, own in enumerate(held))
    yield Pair("a client with other rows", whole, World(against, data.y_train, fewer, members), 3, SMALL_CLIP, removed=False)


def _few(rows: Rows, count: int) -> Rows:
    return tuple(own[:count] for own in rows)


def with_clip(subject: Subject, share: float) -> Subject:
    """The subject with ``share`` of its clip norm, if it has such a parameter; its plan then has that share of the noise."""
    given = subject.trial.cell.params
    if share == 1 or subject.plan is None or not isinstance(given.get("clip"), float | int):
        return subject
    cell = subject.trial.cell.model_copy(update={"params": given | {"clip": share * given["clip"]}})
    changed = Subject(replace(subject.trial, cell=cell), subject.data)
    plan = replace(subject.plan, clip=changed.algorithm.clip(), sensitivity=changed.algorithm.sensitivity())
    return Subject(replace(changed.trial, plan=plan), subject.data)


def live(subject: Subject, pair: Pair, world: World, script: Tape | None = None) -> tuple[Training, WatchedPool]:
    """Train in ``world`` of ``pair``, all clients in one cohort; with a ``script``, the noise gives that world's outputs."""
    cell, trial = subject.trial.cell, subject.trial
    spec = CohortSpec(cell.algorithm, cell.params, trial.task, trial.plan, Seeds(pair.seed), world.members, world.rows)
    pool = WatchedPool([watched(spec, world.x, world.y, world.hidden, script)], script=script)
    algorithm = subject.build()
    return train(algorithm, pool, trial.plan, pair.seed, _start(algorithm, pair)), pool


def _start(algorithm: Algorithm, pair: Pair) -> Progress | None:
    """Where a training begins whose server has a share of its initial weights."""
    if pair.weights == 1:
        return None
    server = algorithm.initial_server(Seeds(pair.seed))
    tensors = {f"server.model.{name}": pair.weights * p.detach() for name, p in server.model.named_parameters() if p.numel()}
    tensors |= {f"server.tensors.{name}": value for name, value in server.tensors.items()}
    return Progress(0, tensors, Ledger().to_json(), 0)
