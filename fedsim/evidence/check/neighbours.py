"""Random pairs of neighbouring worlds, and trainings in them.

A *world* is a small data set in the hands of clients. Two worlds are neighbours if they differ in
one unit: an example, a group of examples, or a client. A :class:`Draw` says how two worlds differ,
:func:`pair_of` makes both of them, and :func:`begin_training` starts a training in one of them.

The *small cell* is the cell on which an algorithm is checked. It gives the data from which worlds
are made (:mod:`fedsim.evidence.check.subject`).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
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
    with_params,
    with_size,
)
from fedsim.evidence.worlds import Hidden, RowBlock, Tape, WatchedPool, watched
from fedsim.methods.algorithm import Algorithm
from fedsim.methods.clients import Noised
from fedsim.methods.messages import Round, Tensors
from fedsim.privacy.ledger import Ledger
from fedsim.seeds import Seeds
from fedsim.training import rounds
from fedsim.training.cohort import CohortSpec
from fedsim.training.rounds import RoundRecord, Trained
from fedsim.training.state import Checkpoint, nested
from fedsim.words import counted

MOST_ROWS = 3000
"""The most examples of a client: enough to show a cap on them, or a counter."""
BASE_ROWS = 50
"""The number of examples of a client in the small cell."""
FEW_ROWS = 4
"""A number of examples of a client at which a single one is a large part of their sum."""
COPIES = (1, 3, 12)
"""How often an example may be repeated. Copies expose a bound that holds for means only."""
MOST_OF_A_GROUP = 40
"""The most examples of a group."""
MOST_CLIENTS = 12
"""The most clients of a world, so that a factor in the number of clients shows."""
FEW_FEATURES = 16
"""The other number of features that is tried, beside that of the small cell's data."""
MAGNITUDES = (0.0, 0.01, 1.0, 100.0)
"""What a unit adds, in clip norms: nothing, far below one, just below one, and far above."""
NEAR_ZERO = 0.01
"""A factor on the initial weights, so small that an example's gradient points along the example."""
MORE_ROUNDS = 2
"""The number of rounds that a random pair runs besides the first round of every phase."""
FINITE_FIX = "bound every number before it is sent, so that no example makes it infinite or NaN"
UNCLIPPED = 1e6
"""The factor on the clip norm at which nothing is clipped, whatever a unit adds."""
BARELY = 1.01
"""The factor on a norm at which a contribution of that norm is just not clipped."""
TRIED_ROWS = 12
"""The number of examples for which :func:`levels_of` measures what each of them adds."""

FloatRows = NDArray[np.float32]
Labels = NDArray[np.int64]
ClientRows = dict[int, tuple[FloatRows, Labels]]
"""Examples ``[n, d]`` and labels ``[n]`` by client number."""
Steps = Generator[RoundRecord, None, Trained]
"""A training that is under way: a record per round, and the outcome."""


@dataclass(frozen=True)
class Draw:
    """How two worlds differ; the defaults describe an ordinary difference in one unit.

    Attributes:
        way: how the second world is made from the first. ``removed`` takes the unit out, so the
            claimed bound holds. ``replaced`` swaps examples for others, so the worlds are no
            neighbours and no bound holds. If the unit is a client, all examples of the client are
            swapped. Otherwise half of the client's examples are swapped. No Poisson sample holds
            this half, or only the first sample does, so steps without it may not change.
            ``resampled`` keeps the data and draws other samples of clients.
        client: the number of the client that is the unit or holds it.
        size: the number of examples beside the unit, or of the client that is the unit.
        others: the numbers of examples of the other clients, by turns.
        copies: how often each example beside the unit is repeated. For a group it is the number of
            its examples, too.
        large: the share of the examples beside the unit that are copies of the one that adds most
            among :data:`TRIED_ROWS` examples; the rest are copies of the one that adds least. None
            takes examples of the data.
        label: the label of the unit. None takes the label of the last example beside it, or for a
            client the labels of the data.
        alike: whether all examples beside the unit have its label.
        direction: where the examples of the unit point. ``class mean`` leaves the examples of a
            client as they are.
        magnitude: the most that an ordinary unit adds to a step, in units of the clip norm. The
            parameter ``clip`` is set accordingly. At 0 the examples of the unit are zero. It is
            None in the draw of a :class:`Pair` whose ``clip`` could not be set.
        position: where the unit stands among its client's: 0 is first, 1 is last.
        sampled: the Poisson samples that hold the unit. With ``alone`` every sample is all examples
            of its client and of no other.
        client_rate: the rate at which clients are sampled. It is used only if the unit is a client
            and the algorithm's own parameter ``client_rate`` is 1.
        weights: the factor on the initial weights, from which the server starts. A bound holds for
            any weights.
        rounds: the numbers of the rounds that are run beside the first of every phase. A number
            counts modulo the number of rounds of the training.
        seed: the seed of examples, noise and samples.
        clients: the number of clients of the task, each with examples.
        features: the number of features; None for that of the data.
    """

    way: Literal["removed", "replaced", "resampled"] = "removed"
    client: int = 1
    size: int = BASE_ROWS
    others: tuple[int, ...] = (FEW_ROWS,)
    copies: int = 1
    large: float | None = None
    label: int | None = None
    alike: bool = False
    direction: Literal["class mean", "batch mean", "random", "opposite", "one-hot"] = "class mean"
    magnitude: float | None = 100.0
    position: float = 0.5
    sampled: Literal["every", "first", "alone"] = "every"
    client_rate: float = 1.0
    weights: float = 1.0
    rounds: tuple[int, ...] = ()
    seed: int = 0
    clients: int = CHECKED_CLIENTS
    features: int | None = None

    def words(self, unit: str) -> str:
        """Describe for people what differs between the two worlds."""
        if self.way == "resampled":
            return "another sample of clients"
        if self.way == "replaced":
            return f"other examples of client {self.client}"
        sizes = ""
        if self.clients != CHECKED_CLIENTS:
            sizes += f", {self.clients} clients"
        if self.features is not None:
            sizes += f", {self.features} features"
        if unit == "client":
            return f"client {self.client} with {self.size} examples ({self.direction}){sizes}"
        noun = "an example"
        if unit == "group":
            noun = f"a group of {counted(self.copies, 'example')}"
        how: str = self.direction
        if self.magnitude is not None:
            how += f", {self.magnitude:.3g} clip norms"
        beside = f"{self.size} others"
        if self.alike:
            beside += " of its label"
        return f"{noun} ({how}) beside {beside}{sizes}"


LATE = (9, 19, 257)
"""Rounds late in a training, which an ordinary draw runs, too."""
CORPUS: dict[str, dict[str, Draw]] = {
    "row": {
        "ordinary": Draw(copies=3, rounds=LATE),
        "first row": Draw(position=0.0, direction="opposite"),
        "beside none": Draw(size=0, direction="random"),
        "new label": Draw(
            size=4,
            copies=12,
            others=(0,),
            label=0,
        ),
        "label six": Draw(label=6),
        "beside ten alike": Draw(
            size=10,
            copies=12,
            sampled="alone",
        ),
        "beside sixty of its label": Draw(size=60, alike=True),
        "beside thousands": Draw(
            size=2000,
            direction="batch mean",
            position=0.0,
        ),
        "against another": Draw(
            size=1,
            direction="opposite",
            sampled="alone",
            weights=NEAR_ZERO,
        ),
        "against two alike": Draw(
            size=2,
            large=1.0,
            direction="opposite",
            magnitude=2.0,
            sampled="alone",
            weights=NEAR_ZERO,
        ),
        "moves the median": Draw(
            size=80,
            large=0.5,
            magnitude=1.0,
            sampled="alone",
        ),
        "moves the mean": Draw(
            size=80,
            large=0.5,
            magnitude=1.10884,
            sampled="alone",
        ),
        "moves a high quantile": Draw(
            size=40,
            large=0.1,
            magnitude=1.0,
            sampled="alone",
        ),
        "in the first sample": Draw(
            size=13,
            large=0.08,
            magnitude=1.0,
            sampled="first",
            rounds=(1, 2, 3),
        ),
        "zero row": Draw(magnitude=0.0),
        "one-hot": Draw(direction="one-hot"),
        "forty rows": Draw(copies=MOST_OF_A_GROUP),
        "twelve clients": Draw(clients=MOST_CLIENTS, client=MOST_CLIENTS - 1),
        "few features": Draw(features=FEW_FEATURES),
        "in no sample": Draw(
            way="replaced",
            weights=NEAR_ZERO,
            rounds=tuple(range(1, 12)),
        ),
    },
    "client": {
        "ordinary": Draw(rounds=LATE),
        "replaced": Draw(
            way="replaced",
            client=3,
            seed=1,
        ),
        "resampled": Draw(way="resampled", client_rate=0.5),
        "twelve clients": Draw(clients=MOST_CLIENTS, client=MOST_CLIENTS - 1),
        "few features": Draw(features=FEW_FEATURES, direction="one-hot"),
        "left out": Draw(client_rate=0.5, rounds=(1, 2, 3)),
        "moves the median": Draw(
            size=12,
            others=(150, 150, 12),
            magnitude=0.65,
        ),
    },
}
"""Draws that found known faults (``tests/broken``), by unit and then by name.

The key ``row`` is for units that are an example or a group. Every search begins with these draws.
"""


def draw_of(number: int, unit: str, classes: int) -> Draw:
    """Return the random draw with a number.

    The arguments alone decide the draw, so the order in which values are drawn here must stay.

    Args:
        number: the number of the draw, any integer from 0.
        unit: the unit: ``example``, ``group`` or ``client``.
        classes: the number of classes of the data.
    """
    is_client = unit == "client"
    stream = np.random.default_rng((number, is_client))

    def choose(*values: Any) -> Any:
        return values[stream.integers(len(values))]

    def between(low: float, high: float) -> float:
        """Return a number that is log-uniform between ``low`` and ``high`` + 1."""
        return float(np.exp(stream.uniform(math.log(low), math.log(high + 1))))

    few = stream.integers(TRIED_ROWS + 1)
    many = 3 * BASE_ROWS
    size = choose(
        few,
        between(1, many),
        between(1, many),
        between(many, MOST_ROWS),
    )
    is_mixed = not is_client and choose(True, False, False)
    clients = int(stream.integers(CHECKED_CLIENTS, MOST_CLIENTS + 1))
    ways = ["removed"] * 9 + ["replaced"]
    if is_client:
        ways = ["removed", "replaced", "resampled", "removed"]
    way = choose(*ways)
    client = int(stream.integers(clients))
    others = tuple(int(choose(FEW_ROWS, FEW_ROWS, BASE_ROWS)) for _ in range(3))
    copies: tuple[int, ...] = COPIES
    if unit == "group":
        copies = (*COPIES, int(between(1, MOST_OF_A_GROUP)))
    return Draw(
        way=way,
        client=client,
        size=int(size),
        others=others,
        copies=choose(*copies),
        large=choose(0.0, 0.05, 0.1, 0.25, 0.5, 1.0) if is_mixed else None,
        label=choose(None, int(stream.integers(classes))),
        alike=choose(True, False),
        direction=choose("class mean", "batch mean", "random", "opposite", "one-hot"),
        # Half of all draws have a magnitude that is log-uniform between 1 and 6.
        magnitude=choose(
            *MAGNITUDES,
            *(math.exp(stream.uniform(0, math.log(6))) for _ in MAGNITUDES),
        ),
        position=choose(0.0, 0.5, 1.0),
        sampled=choose("every", "first", "alone"),
        client_rate=choose(1.0, 0.5),
        weights=choose(1.0, 1.0, NEAR_ZERO),
        # Consecutive numbers run consecutive rounds, so all rounds are run equally often.
        rounds=tuple(MORE_ROUNDS * number + more for more in range(MORE_ROUNDS)),
        seed=number,
        clients=clients,
        features=choose(None, FEW_FEATURES),
    )


@dataclass(frozen=True)
class World:
    """A data set in the hands of clients.

    Attributes:
        rows: each client's examples ``[n, d]`` and labels ``[n]``.
        hidden: the unit or the block of examples in which two worlds differ; None for a client.
        size: the number of examples of the hidden unit.
        secret: what the secret streams of clients are drawn from; None for the seed of the pair.
    """

    rows: ClientRows
    hidden: Hidden | RowBlock | None = None
    size: int = 1
    secret: int | None = None

    def units(self, unit: str) -> int:
        """Return the number of clients, or of examples, which is at least the number of units."""
        if unit == "client":
            return len(self.rows)
        return sum(len(y) for _, y in self.rows.values())

    def groups_of(self, client: int) -> Labels:
        """Return the number of the group that each example of a client belongs to, shape ``[n]``.

        The hidden unit is one group. All other groups have :data:`ROWS_OF_A_GROUP` examples.
        """
        hidden = self.hidden
        rows = len(self.rows[client][1])
        if not isinstance(hidden, Hidden) or client != hidden.client or not hidden.present:
            return np.arange(rows) // ROWS_OF_A_GROUP
        others = np.arange(rows - self.size) // ROWS_OF_A_GROUP
        number = hidden.index(math.ceil(len(others) / ROWS_OF_A_GROUP))
        others += others >= number
        return np.sort(np.append(others, [number] * self.size))


@dataclass(frozen=True)
class Pair:
    """The two worlds of a draw, and how to train in them.

    Attributes:
        draw: how they differ.
        subject: the small cell with the parameters for this pair.
        whole: the first world; if a unit is removed, it is the world with the unit.
        other: the second world, whose training is given the noisy outputs of the first.
        rounds: the rounds that are run.
    """

    draw: Draw
    subject: Subject
    whole: World
    other: World
    rounds: Sequence[Round]

    @property
    def words(self) -> str:
        """What differs between the two worlds, for people."""
        return self.draw.words(self.subject.task.unit)

    @property
    def has_same_clients(self) -> bool:
        """Whether both worlds have the same number of clients."""
        return len(self.other.rows) == len(self.whole.rows)


class Levels(NamedTuple):
    """What single units add to one step of a training in which nothing is clipped.

    Attributes:
        x: examples ``[n, d]``.
        y: their labels ``[n]``.
        norms: the norm of what each of these examples adds, in units of the clip norm. If the unit
            is a client, it is what each client of the small cell adds instead.
    """

    x: FloatRows
    y: Labels
    norms: NDArray[np.float64]


def levels_of(
    subject: Subject,
    weights: float,
    features: int | None = None,
) -> Levels | None:
    """Measure what each of a few units adds to one step if nothing is clipped.

    The step is the first one of gradients or updates. A statistic is scaled to the clip norm, so
    every example adds about one clip norm to it, whatever the clip norm is.

    A unit that is an example or a group is tried as the only example of the only client. A client
    is tried with all its examples as the only client.

    Args:
        subject: the small cell.
        weights: the share of the initial weights that the server starts from.
        features: the number of features; None for that of the data.

    Returns:
        The levels, or None if the algorithm has no clip norm or no unit adds anything.

    Raises:
        Fault: a single unit makes a number that is not finite.
    """
    subject = with_size(subject, CHECKED_CLIENTS, features)
    clip = clip_of(subject)
    if clip is None:
        return None
    data = subject.data
    x = data.x_test[:TRIED_ROWS]
    y = data.y_test[:TRIED_ROWS]
    if subject.task.unit == "client":
        worlds = [
            World({client: (data.x_train[numbers], data.y_train[numbers])})
            for client, numbers in enumerate(subject.trial.partition.rows)
        ]
    else:
        hidden = Hidden(0, "alone")
        worlds = [World({0: (x[[i]], y[[i]])}, hidden) for i in range(len(x))]
    unclipped = with_params(subject, clip=UNCLIPPED * clip)
    schedule = _rounds_up_to_clipped(unclipped.algorithm)
    norms = [_norm_added(unclipped, weights, world, schedule) / clip for world in worlds]
    if not np.isfinite(norms).all():
        raise Fault(
            f"round {schedule[-1].number}: one unit alone makes a number that is not finite",
            FINITE_FIX,
        )
    if not any(norms):
        return None
    return Levels(x, y, np.array(norms))


def _rounds_up_to_clipped(algorithm: Algorithm) -> list[Round]:
    """Return the first round of every phase, up to the first phase of gradients or updates.

    If all phases release statistics, it is the first round alone.
    """
    phases = enumerate(algorithm.phases())
    last = min((number for number, phase in phases if not phase.weights), default=0)
    return [round_ for round_ in algorithm.schedule() if round_.step == 0 and round_.phase <= last]


def _norm_added(
    subject: Subject,
    weights: float,
    world: World,
    schedule: Sequence[Round],
) -> float:
    """Return the norm of what the examples of a world change in the first step of the last round.

    Args:
        subject: the small cell.
        weights: the share of the initial weights that the server starts from.
        world: the examples of the clients.
        schedule: the rounds that are run.
    """
    with_unit = _first_step(subject, weights, world, schedule)
    # What the same clients send without examples is subtracted, so that constants do not count.
    empty = World({client: (x[:0], y[:0]) for client, (x, y) in world.rows.items()})
    without = _first_step(subject, weights, empty, schedule)
    return math.hypot(*norms_apart(with_unit, without).values())


def _first_step(
    subject: Subject,
    weights: float,
    world: World,
    schedule: Sequence[Round],
) -> Tensors:
    """Return what clients send and keep in the first step of the last round, before the noise."""
    steps, tape = begin_training(subject, Draw(weights=weights), world, schedule)
    for _ in schedule:
        next(steps)
    last = schedule[-1].number
    plain = Noised({}, {})
    queries = tape.queries_of(last)
    if queries:
        plain = queries[0].plain
    sent = plain.sent
    if not subject.algorithm.noise_at_clients():
        sent = tape.messages[last].sums
    return nested("sent", sent) | nested("kept", plain.kept)


def norms_apart(first: Tensors, second: Tensors) -> dict[str, float]:
    """Return the L2 norm of the difference of two sets of tensors, by name.

    A tensor that only one of them has counts in full.
    """
    nothing = torch.zeros(())
    norms = {}
    for name in {**first, **second}:
        difference = first.get(name, nothing).double() - second.get(name, nothing).double()
        norms[name] = float(difference.norm())
    return norms


def pair_of(subject: Subject, draw: Draw, levels: Levels | None) -> Pair:
    """Make the two worlds of a draw, with the clip norm and the rounds with which they are run.

    Args:
        subject: the small cell.
        draw: how the worlds differ.
        levels: what :func:`levels_of` measured at the weights and features of the draw.
    """
    unit = subject.task.unit
    subject = with_size(subject, draw.clients, draw.features)
    # The algorithm may have refused the number of clients or of features that was drawn. The draw
    # then gets the number with which the worlds are made.
    clients = subject.task.clients
    draw = replace(draw, client=draw.client % clients, clients=clients)
    if draw.features != subject.task.dim:
        draw = replace(draw, features=None)
    whole, other = _worlds_of(subject, draw, levels)
    params: dict[str, Any] = {}
    if subject.rounds is not None:
        params["rounds"] = subject.rounds
    if unit == "client" and subject.trial.cell.params.get("client_rate") == 1:
        params["client_rate"] = draw.client_rate
    clip = clip_of(subject)
    if clip is not None and levels is not None:
        largest_norm = float(levels.norms.max())
        if unit == "group":
            largest_norm *= draw.copies
        # At this clip norm, the unit that adds most adds ``magnitude`` clip norms. A unit of zeros
        # adds nothing at any clip norm. Beside it, ordinary examples are clipped.
        magnitude = draw.magnitude or MAGNITUDES[-1]
        params["clip"] = BARELY * clip * largest_norm / magnitude
    changed = with_params(subject, **params)
    # The algorithm has no clip norm, or it refused this one.
    if draw.magnitude and clip_of(changed) == clip:
        draw = replace(draw, magnitude=None)
    schedule = list(changed.algorithm.schedule())
    chosen = {round_.number for round_ in schedule if round_.step == 0}
    chosen |= {number % len(schedule) for number in draw.rounds}
    rounds = [schedule[number] for number in sorted(chosen)]
    return Pair(draw, changed, whole, other, rounds)


def _worlds_of(
    subject: Subject,
    draw: Draw,
    levels: Levels | None,
) -> tuple[World, World]:
    """Return the world with the unit, and the one without it or with another in its place."""
    data = subject.data
    stream = np.random.default_rng(draw.seed)
    rows = ClientRows()
    parts = subject.trial.partition.rows
    for client in range(subject.task.clients):
        count = draw.others[client % len(draw.others)]
        numbers = np.resize(parts[client % len(parts)], count)
        rows[client] = data.x_train[numbers], data.y_train[numbers]
    x = data.x_train
    y = data.y_train
    if draw.large is not None and levels is not None:
        x = levels.x
        y = levels.y
        of_largest = round(draw.large * draw.size)
        extremes = [levels.norms.argmin(), levels.norms.argmax()]
        numbers = np.repeat(extremes, [draw.size - of_largest, of_largest])
    else:
        distinct = stream.integers(len(x), size=draw.size // draw.copies + 1)
        numbers = np.repeat(distinct, draw.copies)[: draw.size]
    make_worlds = _worlds_of_rows
    if subject.task.unit == "client":
        make_worlds = _worlds_of_clients
    return make_worlds(subject, draw, rows, x[numbers], y[numbers], stream)


def _worlds_of_clients(
    subject: Subject,
    draw: Draw,
    rows: ClientRows,
    x: FloatRows,
    y: Labels,
    stream: np.random.Generator,
) -> tuple[World, World]:
    """Return two worlds that differ in a client, which has the examples ``x`` with labels ``y``."""
    if len(x):
        x = _directed(draw, x, subject.data.x_train.mean(0), stream)
    if draw.label is not None:
        y = np.full(len(y), draw.label)
    whole = World({**rows, draw.client: (x, y)})
    if draw.way == "resampled":
        return whole, replace(whole, secret=draw.seed + 1)
    if draw.way == "replaced":
        mirrored = unit_norm(-x + x.mean(0))
        return whole, World({**rows, draw.client: (mirrored[:-3], y[:-3])})
    del rows[draw.client]
    return whole, World(rows)


def _worlds_of_rows(
    subject: Subject,
    draw: Draw,
    rows: ClientRows,
    x: FloatRows,
    y: Labels,
    stream: np.random.Generator,
) -> tuple[World, World]:
    """Return two worlds that differ in an example or a group beside ``x`` with labels ``y``."""
    data = subject.data
    label = draw.label
    if label is None:
        label = int(y[-1]) if len(y) else 0
    if draw.alike:
        y = np.full_like(y, label)
    if draw.way == "replaced":
        return _worlds_with_other_block(draw, rows, x, y, data.classes)
    size = 1
    size_of_others = 1
    if subject.task.unit == "group":
        size = draw.copies
        size_of_others = ROWS_OF_A_GROUP
    same_label = x[y == label]
    if not len(same_label):
        same_label = data.x_train[data.y_train == label]
    batch = x if len(x) else data.x_train
    unit_row = _directed(draw, same_label.mean(0)[None], batch.mean(0), stream)
    hidden = Hidden(draw.client, draw.sampled, draw.position)
    # The examples of the unit stand together and split no other unit.
    units_before = hidden.index(math.ceil(len(x) / size_of_others))
    position = min(units_before * size_of_others, len(x))
    more_x = np.insert(x, [position] * size, unit_row, 0)
    more_y = np.insert(y, [position] * size, label)
    whole = World({**rows, draw.client: (more_x, more_y)}, hidden, size)
    absent = replace(hidden, present=False)
    return whole, World({**rows, draw.client: (x, y)}, absent)


def _worlds_with_other_block(
    draw: Draw,
    rows: ClientRows,
    x: FloatRows,
    y: Labels,
    classes: int,
) -> tuple[World, World]:
    """Return two worlds that differ in half of a client's examples, which few samples hold."""
    start = len(x) // 2 // ROWS_OF_A_GROUP * ROWS_OF_A_GROUP
    block = RowBlock(draw.client, start, int(draw.sampled == "first"))
    other_x = np.concatenate([x[:start], -x[start:]])
    other_y = np.concatenate([y[:start], (y[start:] + 1) % classes])
    whole = World({**rows, draw.client: (x, y)}, block)
    return whole, World({**rows, draw.client: (other_x, other_y)}, block)


def _directed(
    draw: Draw,
    class_rows: FloatRows,
    mean: FloatRows,
    stream: np.random.Generator,
) -> FloatRows:
    """Return examples of norm 1 that point where the draw says; zeros if its magnitude is 0.

    Args:
        draw: names the direction.
        class_rows: the examples ``[n, d]`` for the direction ``class mean``: the mean of a class,
            or all examples of a client. As many examples are returned.
        mean: the mean example ``[d]`` of the batch.
        stream: random numbers.
    """
    shape = class_rows.shape
    means = np.broadcast_to(mean, shape)
    directions: dict[str, NDArray[Any]] = {
        "class mean": class_rows,
        "batch mean": means,
        "random": stream.standard_normal(shape),
        "opposite": -means,
        "one-hot": np.eye(shape[1])[stream.integers(shape[1], size=len(class_rows))],
    }
    rows = unit_norm(directions[draw.direction].astype(np.float32))
    return rows * np.float32(draw.magnitude != 0)


def begin_training(
    subject: Subject,
    draw: Draw,
    world: World,
    schedule: Sequence[Round],
    script: Tape | None = None,
) -> tuple[Steps, Tape]:
    """Begin a training in a world, with all clients in one cohort.

    Args:
        subject: the small cell.
        draw: gives the seed and the weights that the server starts from.
        world: the examples of the clients.
        schedule: the rounds that are run.
        script: another world's tape, whose noisy outputs this training is given.

    Returns:
        The training, a record per round; and the tape, to which it adds what its clients do.
    """
    task = subject.task
    algorithm = subject.build()
    members = tuple(world.rows)
    x, y = zip(*world.rows.values(), strict=True)
    ends = np.cumsum([len(labels) for labels in y])
    groups = None
    if task.unit == "group":
        groups = tuple(map(world.groups_of, members))
    spec = CohortSpec(
        subject.trial.cell.algorithm,
        subject.trial.cell.params,
        task,
        subject.plan,
        Seeds(draw.seed, world.secret),
        members,
        tuple(np.split(np.arange(ends[-1]), ends[:-1])),
        groups,
    )
    cohort = watched(
        spec,
        np.concatenate(x),
        np.concatenate(y),
        world.hidden,
        script,
    )
    pool = WatchedPool([cohort], script=[script] if script else None)
    start = None
    if draw.weights != 1:
        start = _start_with_weights(algorithm, draw)
    fix_random_states()
    steps = rounds.train(
        algorithm,
        pool,
        subject.plan,
        Seeds(draw.seed),
        start,
        schedule=schedule,
    )
    return steps, pool.tapes[0]


def _start_with_weights(algorithm: Algorithm, draw: Draw) -> Checkpoint:
    """Return a checkpoint before the first round with a share of the initial weights."""
    server = algorithm.initial_server(Seeds(draw.seed).public)
    tensors = nested("server.tensors", server.tensors)
    for name, parameter in server.model.named_parameters():
        if parameter.numel():
            tensors[f"server.model.{name}"] = draw.weights * parameter.detach()
    return Checkpoint(0, tensors, Ledger().to_json(), 0, 0)


def clip_of(subject: Subject) -> float | None:
    """Return the parameter that sets the clip norm; None if the algorithm has none."""
    clip = subject.trial.cell.params.get("clip")
    if isinstance(clip, float | int):
        return float(clip)
    return None
