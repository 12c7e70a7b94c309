"""Neighbouring worlds: the small cell with and without one unit, and how to train in them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from fedsim.evidence.check.subject import ROWS_OF_A_GROUP, Subject, fixed_random_states, varied
from fedsim.evidence.worlds import Hidden, RowBlock, Tape, WatchedPool, tape_of, watched
from fedsim.methods.algorithm import Algorithm
from fedsim.methods.messages import Round
from fedsim.methods.parameters import l2_norm
from fedsim.privacy.ledger import Ledger
from fedsim.seeds import Seeds
from fedsim.training import rounds
from fedsim.training.cohort import CohortSpec
from fedsim.training.rounds import Trained
from fedsim.training.state import Checkpoint

SMALL_CLIP = 0.05
"""Share of the clip norm with which clipping bites everywhere, so that what is not clipped stands out."""

FEW = 4
"""Rows of each client in small worlds, where one example is a large part of the whole."""

UNCLIPPED = 1e6
"""Share of the clip norm with which nothing is clipped."""

FEW_ROUNDS = 2
"""Rounds of a pair whose point is its rows."""

Rows = tuple[NDArray[np.int64], ...]
"""Each member's row numbers."""


@dataclass(frozen=True)
class World:
    """A data set in clients' hands.

    Attributes:
        x, y: all rows.
        rows: each member's.
        members: the clients that are there.
        hidden: the unit that one of two neighbouring worlds lacks, or the block of rows that differ.
        size: rows of the hidden unit.
        secret: what its clients' secret streams are drawn from; None: as the pair's seed has it.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    rows: Rows
    members: tuple[int, ...]
    hidden: Hidden | RowBlock | None = None
    size: int = 1
    secret: int | None = None

    def groups(self) -> Rows:
        """The number of each row's group within its client: the hidden unit is one, and so are :data:`ROWS_OF_A_GROUP` of the others."""
        return tuple(self._groups_of(client, len(own)) for client, own in zip(self.members, self.rows, strict=True))

    def _groups_of(self, client: int, rows: int) -> NDArray[np.int64]:
        hidden = self.hidden
        if not isinstance(hidden, Hidden) or client != hidden.client or not hidden.present:
            return np.arange(rows) // ROWS_OF_A_GROUP
        others = np.arange(rows - self.size) // ROWS_OF_A_GROUP
        own = hidden.index(-(-len(others) // ROWS_OF_A_GROUP))
        return np.concatenate([others[others < own], np.full(self.size, own), others[others >= own] + 1])


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
        rounds: of the training, where the algorithm has such a parameter; None: the subject's.
        late: rounds that are run in place of a training, of one that is not shortened: no result comes of them.
        client: the client that ``other`` lacks, or whose unit it lacks; None: data of any size are replaced there, so that no bound holds,
            and only what no noise covers, and steps in whose samples they are not, are compared.
    """

    label: str
    whole: World
    other: World
    seed: int
    clip: float = SMALL_CLIP
    weights: float = 1.0
    rounds: int | None = None
    client: int | None = None
    late: tuple[Round, ...] = ()


def everyone(subject: Subject, rows: Rows | None = None, hidden: Hidden | RowBlock | None = None) -> World:
    """The cell's data in the hands of clients who hold ``rows``; None: what the partition gives them."""
    own = subject.trial.partition.rows if rows is None else rows
    return World(subject.data.x_train, subject.data.y_train, own, tuple(range(len(own))), hidden)


def with_unit(pair: Pair, x: NDArray[np.float32], y: int, size: int | None = None) -> Pair:
    """The pair whose ``other`` lacks the hidden unit, and whose ``whole`` has it.

    Args:
        pair: its ``other`` says where the unit is missing.
        x: the unit's row ``[d]``, or rows ``[size, d]``, which are scaled to unit norm; of a group all rows may be one.
        y: their label.
        size: how many rows the unit has, if it is a group; None: an example.
    """
    other, hidden = pair.other, pair.other.hidden
    assert isinstance(hidden, Hidden)
    count, units_of = size or 1, ROWS_OF_A_GROUP if size else 1
    new = np.broadcast_to(x, (count, other.x.shape[1]))
    more = np.concatenate([other.x, new / np.linalg.norm(new, axis=1, keepdims=True)]).astype(np.float32)
    added = len(other.x) + np.arange(count)
    at = [min(hidden.index(-(-len(own) // units_of)) * units_of, len(own)) for own in other.rows]
    rows = tuple(np.insert(own, at[i], added) if i == hidden.client else own for i, own in enumerate(other.rows))
    label = pair.label if size is None else f"{pair.label}, {count} times, as one group"
    whole = World(more, np.append(other.y, np.full(count, y)), rows, other.members, hidden, count)
    return replace(pair, label=label, whole=whole, other=replace(other, hidden=replace(hidden, present=False)), client=hidden.client)


def few(rows: Rows, count: int) -> Rows:
    """The first ``count`` rows of every member."""
    return tuple(own[:count] for own in rows)


def late(subject: Subject, pair: Pair) -> Iterator[Pair]:
    """The pair in a round that no training of the check reaches; none where all are reached."""
    if chosen := subject.late_rounds():
        yield replace(pair, label=f"{pair.label}, late", late=tuple(chosen))


def of_pair(subject: Subject, pair: Pair) -> Subject:
    """The subject with the pair's clip norm and rounds."""
    own, clip = subject.as_given if pair.late else subject, clip_of(subject)
    changed = {} if clip is None else {"clip": pair.clip * clip}
    return varied(own, **changed, **({} if pair.rounds is None else {"rounds": pair.rounds}))


def live(subject: Subject, pair: Pair, world: World, script: Tape | None = None, only: Sequence[Round] = ()) -> tuple[Trained | None, Tape]:
    """Train in ``world`` of ``pair``, all clients in one cohort; with a ``script``, the noise gives that world's outputs.

    With rounds that are run in place of all, the pair's or ``only`` these, there is no result.
    """
    cell, trial, algorithm, only = subject.trial.cell, subject.trial, subject.build(), only or pair.late
    held = (world.members, world.rows, world.groups() if trial.task.unit == "group" else None)
    spec = CohortSpec(cell.algorithm, cell.params, trial.task, trial.plan, Seeds(pair.seed, world.secret), *held)
    cohort = watched(spec, world.x, world.y, world.hidden, script)
    pool, tape = WatchedPool([cohort], script=None if script is None else [script]), tape_of(cohort)
    with fixed_random_states([]):
        steps = rounds.train(algorithm, pool, subject.plan, Seeds(pair.seed), _start(algorithm, pair), schedule=only or None)
        if not only:
            return rounds.to_the_end(steps)[1], tape
        for _ in only:
            next(steps)
        steps.close()
    return None, tape


def clip_of(subject: Subject) -> float | None:
    """The parameter that sets the clip norm, if there is one."""
    clip = subject.trial.cell.params.get("clip")
    return float(clip) if isinstance(clip, float | int) else None


def contributions(subject: Subject, worlds: Sequence[World], seed: int, weights: float = 1.0) -> list[float]:
    """The norm of what all of each world adds to the first noisy step, nothing clipped, in units of the clip norm that is a parameter."""
    clip, norms = clip_of(subject), list[float]()
    assert clip is not None
    for world in worlds:
        pair = Pair("", world, world, seed, UNCLIPPED, weights)
        own = of_pair(subject, pair)
        _, tape = live(own, pair, world, only=list(islice(own.algorithm.schedule(), 1)))
        queries = [tape.queries_of(number)[0] for number in tape.messages]
        sent = [query.sent for query in queries] if own.algorithm.noise_at_clients() else [m.sums for m in tape.messages.values()]
        norms.append(math.hypot(*map(l2_norm, sent), *(l2_norm(query.kept) for query in queries)) / clip)
    return norms


def _start(algorithm: Algorithm, pair: Pair) -> Checkpoint | None:
    """Where a training begins whose server has a share of its initial weights."""
    if pair.weights == 1:
        return None
    server = algorithm.initial_server(Seeds(pair.seed).public)
    tensors = {f"server.model.{name}": pair.weights * p.detach() for name, p in server.model.named_parameters() if p.numel()}
    tensors |= {f"server.tensors.{name}": value for name, value in server.tensors.items()}
    return Checkpoint(0, tensors, Ledger().to_json(), 0, 0)
