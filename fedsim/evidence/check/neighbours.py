"""Neighbouring worlds, drawn at random: the small cell with and without one unit, and how to train
in them.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.data.embeddings import unit_norm
from fedsim.evidence.check.subject import (
    CHECKED_CLIENTS,
    ROWS_OF_A_GROUP,
    Fault,
    Subject,
    fix_random_states,
    resized,
    varied,
)
from fedsim.evidence.worlds import Hidden, RowBlock, Tape, WatchedPool, tape_of, watched
from fedsim.methods.messages import Round, Tensors
from fedsim.privacy.ledger import Ledger
from fedsim.seeds import Seeds
from fedsim.training import rounds
from fedsim.training.cohort import CohortSpec
from fedsim.training.rounds import RoundRecord, Trained
from fedsim.training.state import Checkpoint

MOST_ROWS = 3000
BASE_ROWS = 50
FEW_ROWS = 4
"""Rows of a client: at most, of the small cell, and where one row is a large part of all."""
COPIES = (1, 3, 12)
MOST_OF_A_GROUP = 40
FEWEST_CLIENTS = CHECKED_CLIENTS
MOST_CLIENTS = 12
FEW_FEATURES = 16
"""The other number of features beside that of the small cell's data."""
MAGNITUDES = (0.0, 0.01, 1.0, 100.0)
NEAR_ZERO = 0.01
"""Share of the initial weights from which rows' gradients follow the rows."""
MORE_ROUNDS = 2
"""Rounds of a pair beside the first one of every phase."""
FINITE_FIX = (
    "let no row, whatever it is, make a number that is not finite: bound it before it is sent"
)
UNCLIPPED = 1e6
BARELY = 1.01
"""Shares of a norm at which nothing of that norm is clipped."""
TRIED_ROWS = 12

FloatRows = NDArray[np.float32]
Labels = NDArray[np.int64]
Held = dict[int, tuple[FloatRows, Labels]]
Steps = Generator[RoundRecord, None, Trained]


@dataclass(frozen=True)
class Draw:
    """How two worlds differ in one unit; the defaults are an ordinary one."""

    way: Literal["removed", "replaced", "resampled"] = "removed"
    # replaced: by one of any size, where no bound holds: half of a client's rows, which no sample
    # holds or the first one, or a client
    client: int = 1
    size: int = BASE_ROWS  # rows beside the unit, or of the client that is the unit
    others: tuple[int, ...] = (FEW_ROWS,)  # rows of the other clients, by turns
    copies: int = 1  # how often each row beside the unit stands there, or rows of a group
    large: float | None = (
        # the share of rows that add most of some that were tried, the rest adds least; None: rows
        # of the data
        None
    )
    label: int | None = (
        # of the unit; None: of the last row beside it, or those of the data for a client's rows
        None
    )
    alike: bool = False  # whether all rows have that label
    direction: Literal["class mean", "batch mean", "random", "opposite", "one-hot"] = "class mean"
    # the most that an ordinary unit adds, in units of the clip norm; 0: the unit's rows are zero
    magnitude: float = 100.0
    position: float = 0.5  # where the unit stands among its client's: 0 first, 1 last
    sampled: Literal["every", "first", "alone"] = (
        "every"  # in which Poisson samples it is; alone: all rows of its client and no other
    )
    client_rate: float = 1.0  # where an algorithm has it as a parameter and claims none by default
    weights: float = (
        1.0  # share of the initial weights that the server starts from; a bound holds for any
    )
    rounds: tuple[
        int, ...
    ] = ()  # that are run beside the first one of every phase, modulo how many there are
    seed: int = 0
    clients: int = CHECKED_CLIENTS  # of the task, each with rows
    features: int | None = None  # None: as many as the data have

    def words(self, unit: str) -> str:
        """What differs, for people."""
        if self.way == "resampled":
            return "another sample of clients"
        if self.way == "replaced":
            return f"other rows of client {self.client}"
        sizes = ""
        if self.clients != CHECKED_CLIENTS:
            sizes += f", {self.clients} clients"
        if self.features is not None:
            sizes += f", {self.features} features"
        if unit == "client":
            return f"client {self.client} with {self.size} rows ({self.direction}){sizes}"
        if unit == "example":
            noun = "a row"
        else:
            noun = f"a group of {self.copies} rows"
        if self.alike:
            alike = " of its label"
        else:
            alike = ""
        return (
            f"{noun} ({self.direction}, {self.magnitude:.3g} clip norms) beside "
            f"{self.size}{alike}{sizes}"
        )


LATE = (9, 19, 257)
CORPUS: dict[str, dict[str, Draw]] = {
    "row": {
        "ordinary": Draw(copies=3, rounds=LATE),
        "first row": Draw(position=0.0, direction="opposite"),
        "beside none": Draw(size=0, direction="random"),
        "new label": Draw(size=4, copies=12, others=(0,), label=0),
        "label six": Draw(label=6),
        "beside ten alike": Draw(size=10, copies=12, sampled="alone"),
        "beside sixty of its label": Draw(size=60, alike=True),
        "beside thousands": Draw(size=2000, direction="batch mean", position=0.0),
        "against another": Draw(size=1, direction="opposite", sampled="alone", weights=NEAR_ZERO),
        "against two alike": Draw(
            size=2,
            large=1.0,
            direction="opposite",
            magnitude=2.0,
            sampled="alone",
            weights=NEAR_ZERO,
        ),
        "moves the median": Draw(size=80, large=0.5, magnitude=1.0, sampled="alone"),
        "moves the mean": Draw(size=80, large=0.5, magnitude=1.10884, sampled="alone"),
        "moves a high quantile": Draw(size=40, large=0.1, magnitude=1.0, sampled="alone"),
        "in the first sample": Draw(
            size=13, large=0.08, magnitude=1.0, sampled="first", rounds=(1, 2, 3)
        ),
        "zero row": Draw(magnitude=0.0),
        "one-hot": Draw(direction="one-hot"),
        "forty rows": Draw(copies=MOST_OF_A_GROUP),
        "twelve clients": Draw(clients=MOST_CLIENTS, client=MOST_CLIENTS - 1),
        "few features": Draw(features=FEW_FEATURES),
        "in no sample": Draw(way="replaced", weights=NEAR_ZERO, rounds=tuple(range(1, 12))),
    },
    "client": {
        "ordinary": Draw(rounds=LATE),
        "replaced": Draw(way="replaced", client=3, seed=1),
        "resampled": Draw(way="resampled", client_rate=0.5),
        "twelve clients": Draw(clients=MOST_CLIENTS, client=MOST_CLIENTS - 1),
        "few features": Draw(features=FEW_FEATURES, direction="one-hot"),
        "left out": Draw(client_rate=0.5, rounds=(1, 2, 3)),
        "moves the median": Draw(size=12, others=(150, 150, 12), magnitude=0.65),
    },
}
"""Draws that found known faults (``tests/broken``), with which every search begins, by what the
unit is: a row or a group, or a client.
"""


def draw_of(number: int, unit: str, classes: int) -> Draw:
    """The random draw of that number."""
    stream = np.random.default_rng((number, unit == "client"))

    def one(*values: Any) -> Any:
        return values[stream.integers(len(values))]

    def between(low: float, high: float) -> float:
        return float(np.exp(stream.uniform(math.log(low), math.log(high + 1))))

    small = stream.integers(TRIED_ROWS + 1)
    large = 3 * BASE_ROWS
    size = one(small, between(1, large), between(1, large), between(large, MOST_ROWS))
    mixed = unit != "client" and one(True, False, False)
    clients = int(stream.integers(FEWEST_CLIENTS, MOST_CLIENTS + 1))
    return Draw(
        way=one("removed", "replaced", "resampled", "removed")
        if unit == "client"
        else one(*["removed"] * 9, "replaced"),
        client=int(stream.integers(clients)),
        size=int(size),
        others=tuple(int(one(FEW_ROWS, FEW_ROWS, BASE_ROWS)) for _ in range(3)),
        copies=one(*COPIES, int(between(1, MOST_OF_A_GROUP))) if unit == "group" else one(*COPIES),
        large=one(0.0, 0.05, 0.1, 0.25, 0.5, 1.0) if mixed else None,
        label=one(None, int(stream.integers(classes))),
        alike=one(True, False),
        direction=one("class mean", "batch mean", "random", "opposite", "one-hot"),
        magnitude=one(*MAGNITUDES, *(math.exp(stream.uniform(0, math.log(6))) for _ in MAGNITUDES)),
        position=one(0.0, 0.5, 1.0),
        sampled=one("every", "first", "alone"),
        client_rate=one(1.0, 0.5),
        weights=one(1.0, 1.0, NEAR_ZERO),
        # of all rounds one is as often run as another
        rounds=tuple(MORE_ROUNDS * number + more for more in range(MORE_ROUNDS)),
        seed=number,
        clients=clients,
        features=one(None, FEW_FEATURES),
    )


@dataclass(frozen=True)
class World:
    """A data set in clients' hands: each one's rows and labels, and the unit, or block of rows, in
    which two worlds differ.

    The ``size`` is of the hidden unit; ``secret`` is what clients' secret streams are drawn from,
    None: as the pair's seed has it.
    """

    held: Mapping[int, tuple[FloatRows, Labels]]
    hidden: Hidden | RowBlock | None = None
    size: int = 1
    secret: int | None = None

    def units(self, unit: str) -> int:
        """At least as many units as its clients hold: clients, or rows."""
        if unit == "client":
            return len(self.held)
        return sum(len(y) for _, y in self.held.values())

    def groups_of(self, client: int) -> Labels:
        """The number of each row's group in a client: the hidden unit is one, and so are
        :data:`ROWS_OF_A_GROUP` of the others.
        """
        hidden = self.hidden
        rows = len(self.held[client][1])
        if not isinstance(hidden, Hidden) or client != hidden.client or not hidden.present:
            return np.arange(rows) // ROWS_OF_A_GROUP
        others = np.arange(rows - self.size) // ROWS_OF_A_GROUP
        own = hidden.index(-(-len(others) // ROWS_OF_A_GROUP))
        return np.concatenate(
            [others[others < own], np.full(self.size, own), others[others >= own] + 1]
        )


@dataclass(frozen=True)
class Pair:
    """Two worlds: the ``whole`` one has the unit, the ``other`` sees its outputs."""

    draw: Draw
    subject: Subject
    whole: World
    other: World
    rounds: tuple[Round, ...]


class Levels(NamedTuple):
    """What single units add to the first step, nothing clipped: ``norms`` in units of the clip
    norm; rows ``x`` with labels ``y``.
    """

    x: FloatRows
    y: Labels
    norms: NDArray[np.float64]


def levels_of(subject: Subject, weights: float, features: int | None = None) -> Levels | None:
    """Of some ordinary rows, each the only one of the only client, or of each client alone; None
    where nothing is clipped or added.
    """
    subject = resized(subject, CHECKED_CLIENTS, features)
    data = subject.data
    clip = clip_of(subject)
    if clip is None:
        return None
    x = data.x_test[:TRIED_ROWS]
    y = data.y_test[:TRIED_ROWS]
    worlds = [World({0: (x[[i]], y[[i]])}, Hidden(0, "alone")) for i in range(len(x))]
    if subject.trial.task.unit == "client":
        worlds = [
            World({client: (data.x_train[own], data.y_train[own])})
            for client, own in enumerate(subject.trial.partition.rows)
        ]
    own = varied(subject, clip=UNCLIPPED * clip)
    norms = list[float]()
    first = next(own.algorithm.schedule())
    for world in worlds:
        with_unit = _first_step(own, weights, world, first)
        nobody = World({client: (x[:0], y[:0]) for client, (x, y) in world.held.items()})
        without = _first_step(own, weights, nobody, first)
        # constants are no unit's
        norms.append(math.hypot(*norms_apart(with_unit, without).values()) / clip)
    if not np.isfinite(norms).all():
        raise Fault(
            f"round {first.number}: one unit alone makes a number that is not finite", FINITE_FIX
        )
    if any(norms):
        return Levels(x, y, np.array(norms))
    return None


def _first_step(subject: Subject, weights: float, world: World, first: Round) -> Tensors:
    """What clients send, and what they keep, in the first step of a training, before the noise."""
    steps, tape = begun(subject, Draw(weights=weights), world, [first])
    next(steps)
    query = tape.queries[0]
    at_clients = subject.algorithm.noise_at_clients()
    if at_clients:
        sent = query.sent
    else:
        sent = tape.messages[first.number].sums
    tensors = {f"sent {name}": value for name, value in sent.items()}
    return tensors | {f"kept {name}": value for name, value in query.kept.items()}


def norms_apart(one: Tensors, two: Tensors) -> dict[str, float]:
    """Norms of the difference by name; what only one side has counts in full."""
    nothing = torch.zeros(())
    return {
        name: float((one.get(name, nothing).double() - two.get(name, nothing).double()).norm())
        for name in {**one, **two}
    }


def pair_of(subject: Subject, draw: Draw, levels: Levels | None) -> Pair:
    """The worlds of a draw, and the clip norm and rounds with which they are run."""
    unit = subject.trial.task.unit
    subject = resized(subject, draw.clients, draw.features)
    draw = replace(draw, client=draw.client % subject.trial.task.clients)
    whole, other = _worlds(subject, draw, levels)
    if subject.rounds is None:
        own = subject
    else:
        own = varied(subject, rounds=subject.rounds)
    if unit == "client" and subject.trial.cell.params.get("client_rate") == 1:
        own = varied(own, client_rate=draw.client_rate)
    if (clip := clip_of(subject)) is not None and levels is not None:
        most = float(levels.norms.max()) * (draw.copies if unit == "group" else 1)
        own = varied(own, clip=BARELY * clip * most / (draw.magnitude or MAGNITUDES[-1]))
    schedule = list(own.algorithm.schedule())
    chosen = {round_.number for round_ in schedule if round_.step == 0} | {
        number % len(schedule) for number in draw.rounds
    }
    return Pair(draw, own, whole, other, tuple(schedule[number] for number in sorted(chosen)))


def _worlds(subject: Subject, draw: Draw, levels: Levels | None) -> tuple[World, World]:
    """The world with the unit beside so many rows, and the one without it or with another."""
    data = subject.data
    stream = np.random.default_rng(draw.seed)
    held = Held()
    parts = subject.trial.partition.rows
    for client in range(subject.trial.task.clients):
        numbers = np.resize(parts[client % len(parts)], draw.others[client % len(draw.others)])
        held[client] = data.x_train[numbers], data.y_train[numbers]
    x = data.x_train
    y = data.y_train
    if draw.large is not None and levels is not None:
        x = levels.x
        y = levels.y
        many = round(draw.large * draw.size)
        numbers = np.repeat(
            [levels.norms.argmin(), levels.norms.argmax()], [draw.size - many, many]
        )
    else:
        numbers = np.repeat(
            stream.integers(len(x), size=draw.size // draw.copies + 1), draw.copies
        )[: draw.size]
    return (_clients if subject.trial.task.unit == "client" else _rows)(
        subject, draw, held, x[numbers], y[numbers], stream
    )


def _clients(
    subject: Subject, draw: Draw, held: Held, x: FloatRows, y: Labels, stream: np.random.Generator
) -> tuple[World, World]:
    mean = np.broadcast_to(subject.data.x_train.mean(0), x.shape)
    turned = {
        "class mean": x,
        "batch mean": mean,
        "random": stream.standard_normal(x.shape),
        "opposite": -mean,
        "one-hot": np.eye(subject.data.dim)[stream.integers(subject.data.dim, size=len(x))],
    }[draw.direction]
    if len(x):
        x = unit_norm(turned.astype(np.float32)) * np.float32(draw.magnitude > 0)
    if draw.label is not None:
        y = np.full(len(y), draw.label)
    held[draw.client] = x, y
    whole = World(held)
    if draw.way == "resampled":
        return whole, replace(whole, secret=draw.seed + 1)
    if draw.way == "replaced":
        return whole, World({**held, draw.client: (unit_norm(-x + x.mean(0))[:-3], y[:-3])})
    return whole, World({client: own for client, own in held.items() if client != draw.client})


def _rows(
    subject: Subject, draw: Draw, held: Held, x: FloatRows, y: Labels, stream: np.random.Generator
) -> tuple[World, World]:
    group = subject.trial.task.unit == "group"
    if draw.label is not None:
        label = draw.label
    elif len(y):
        label = int(y[-1])
    else:
        label = 0
    if draw.alike:
        y = np.full_like(y, label)
    if draw.way == "replaced":
        start = len(x) // 2 // ROWS_OF_A_GROUP * ROWS_OF_A_GROUP
        block = RowBlock(draw.client, start, int(draw.sampled == "first"))
        turned = (
            np.concatenate([x[:start], -x[start:]]),
            np.concatenate([y[:start], (y[start:] + 1) % subject.data.classes]),
        )
        return World({**held, draw.client: (x, y)}, block), World(
            {**held, draw.client: turned}, block
        )
    if group:
        count = draw.copies
        units_of = ROWS_OF_A_GROUP
    else:
        count = 1
        units_of = 1
    hidden = Hidden(draw.client, draw.sampled, draw.position)
    at = min(hidden.index(-(-len(x) // units_of)) * units_of, len(x))
    data = subject.data
    if len(x):
        all_rows = x
    else:
        all_rows = subject.data.x_train
    if (y == label).any():
        same = x[y == label]
    else:
        same = data.x_train[data.y_train == label]
    random = stream.standard_normal(data.dim)
    mean = {
        "class mean": same.mean(0),
        "batch mean": all_rows.mean(0),
        "random": random,
        "opposite": -all_rows.mean(0),
        "one-hot": np.eye(data.dim)[stream.integers(data.dim)],
    }[draw.direction]
    row = unit_norm(mean[None].astype(np.float32)) * np.float32(draw.magnitude > 0)
    more = np.insert(x, [at] * count, row, 0), np.insert(y, [at] * count, label)
    whole = replace(World({**held, draw.client: more}, hidden), size=count)
    return whole, World({**held, draw.client: (x, y)}, replace(hidden, present=False))


def begun(
    subject: Subject,
    draw: Draw,
    world: World,
    schedule: Sequence[Round],
    script: Tape | None = None,
) -> tuple[Steps, Tape]:
    """A training in a world, all clients in one cohort, and what they will do; with a ``script``,
    the noise gives that world's outputs.
    """
    cell = subject.trial.cell
    task = subject.trial.task
    algorithm = subject.build()
    members = tuple(world.held)
    x, y = zip(*world.held.values(), strict=True)
    held = tuple(np.arange(start, end) for start, end in pairwise(np.cumsum([0, *map(len, y)])))
    if task.unit == "group":
        groups = tuple(map(world.groups_of, members))
    else:
        groups = None
    spec = CohortSpec(
        cell.algorithm,
        cell.params,
        task,
        subject.plan,
        Seeds(draw.seed, world.secret),
        members,
        held,
        groups,
    )
    cohort = watched(spec, np.concatenate(x), np.concatenate(y), world.hidden, script)
    pool = WatchedPool([cohort], script=None if script is None else [script])
    start = None
    if draw.weights != 1:
        server = algorithm.initial_server(Seeds(draw.seed).public)
        tensors = {
            f"server.model.{name}": draw.weights * p.detach()
            for name, p in server.model.named_parameters()
            if p.numel()
        }
        tensors |= {f"server.tensors.{name}": value for name, value in server.tensors.items()}
        start = Checkpoint(0, tensors, Ledger().to_json(), 0, 0)
    fix_random_states()
    return rounds.train(
        algorithm, pool, subject.plan, Seeds(draw.seed), start, schedule=schedule
    ), tape_of(cohort)


def clip_of(subject: Subject) -> float | None:
    """The parameter that sets the clip norm, if there is one."""
    clip = subject.trial.cell.params.get("clip")
    if isinstance(clip, float | int):
        return float(clip)
    return None
