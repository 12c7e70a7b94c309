"""Pairs of worlds that differ in one row, or one group of rows: which, beside which others, under which clip norm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.evidence.check.neighbours import (
    FEW,
    FEW_ROUNDS,
    SMALL_CLIP,
    Pair,
    World,
    clip_of,
    contributions,
    everyone,
    few,
    late,
    with_unit,
)
from fedsim.evidence.check.subject import ROWS_OF_A_GROUP, Subject
from fedsim.evidence.worlds import Hidden, RowBlock

OTHER_COUNTS = (0, 1, 3, 7, 8, 9, 10, 15, 16, 19, 20, 24, 25, 31, 32, 49, 50, 63, 64, 99, 100, 127, 128)
"""Rows beside the one that is removed: a number of steps or a threshold at a round number changes with that one."""
POSITIONS = (0.0, 0.5, 1.0)
GROUP_ROWS = 3
"""Of a group that is removed: alike, so that their sum is three times what one of them adds."""
EQUAL_ROWS = 12
"""Of one row, so that what one more row changes for all of them adds up."""
CROWD, QUANTILES = 40, (0.75, 0.9, 0.95)
"""Rows of which a share is small, so that one more row moves the quantile of that share."""
NEAR_ZERO = 0.01
"""Share of the initial weights from which rows' gradients follow the rows."""
SCAN = (1.01, 0.7, 0.5, 0.35, 0.25, 0.18)
"""Clip norms in units of the largest contribution: weights that scale it fall between two of them."""
LARGE_FIRST = 1
"""Seed with which a large row comes in the second sample and not in the first."""

FloatRows = NDArray[np.float32]


@dataclass(frozen=True)
class Levels:
    """What single rows add to the first step, nothing clipped, and the clip norms that this suggests, as shares of the algorithm's.

    Attributes:
        rows: the rows that were tried, with labels ``y``.
        norms: of what each one adds ``[n]``, in units of the algorithm's clip norm.
        weights: share of the initial weights that the server starts from.
    """

    rows: FloatRows
    y: NDArray[np.int64]
    norms: Tensor
    weights: float

    @property
    def median(self) -> float:
        """Half of the rows are clipped."""
        return float(self.norms.median())

    @property
    def loose(self) -> float:
        """No row is clipped, but hardly so."""
        return 1.01 * float(self.norms.max())

    @property
    def small(self) -> int:
        """The number of the row that adds least."""
        return int(self.norms.argmin())

    @property
    def large(self) -> int:
        """The number of the row that adds most."""
        return int(self.norms.argmax())

    @property
    def largest(self) -> tuple[FloatRows, int]:
        """That row and its label."""
        return self.rows[self.large], int(self.y[self.large])


def example_pairs(subject: Subject) -> Iterator[Pair]:
    """Pairs for unit example or group; few of them for a quick subject."""
    characters = list(_characters(subject))
    yield from characters
    yield _against_few(subject)
    if subject.quick:
        return
    blocks = list(_blocks(subject))
    yield from blocks
    for pair in (characters[1], blocks[0]):
        yield from late(subject, pair)
    levels = _levels(subject)
    two_sizes = [] if levels is None or _size(subject) is not None else list(_two_sizes(subject, levels))
    # the first fault is the one that is printed: one of a median or a mean shows less beside the rows that follow
    yield from two_sizes[:1]
    yield from _sizes(subject, levels)
    if levels is not None:
        yield from _unsaturated(subject, levels)
    if _size(subject) is not None:
        return
    yield from two_sizes[1:]
    if (near_zero := _levels(subject, NEAR_ZERO)) is not None:
        yield from _opposite(subject, near_zero)
    if (of_seed := _levels(subject, seed=LARGE_FIRST)) is not None:
        yield _large_first(subject, of_seed)


def _size(subject: Subject) -> int | None:
    """Rows of a unit that is a group; None for an example."""
    return GROUP_ROWS if subject.trial.task.unit == "group" else None


def _characters(subject: Subject) -> Iterator[Pair]:
    """Rows of several kinds, over all rounds, under a small clip norm."""
    data, held = subject.data, subject.trial.partition.rows
    random = np.random.default_rng(0).standard_normal(data.dim).astype(np.float32)
    opposite, rare = -data.x_train.mean(0), int(np.argmin(subject.trial.partition.label_counts[1]))
    units = [
        ("an ordinary row", data.x_test[0], int(data.y_test[0]), held, 1.0, Hidden(0, position=0.0)),
        ("a row against the mean, of a rare label", opposite, rare, few(held, 1), SMALL_CLIP, Hidden(1)),
        ("a row in a random direction", random, 0, few(held, FEW), SMALL_CLIP, Hidden(2, position=0.5)),
        ("a row that is sampled in the first step only", opposite, rare, few(held, FEW), SMALL_CLIP, Hidden(1, "first", 0.0)),
    ]
    for seed, (label, x, y, rows, clip, hidden) in enumerate(units):
        other = everyone(subject, rows, hidden)
        yield with_unit(Pair(label, other, other, seed, clip), x, y, _size(subject))


def _against_few(subject: Subject) -> Pair:
    """A row that outweighs all others of its sample, from weights near zero: what is clipped as one with the others turns round."""
    data, held = subject.data, few(subject.trial.partition.rows, 2)
    along, across = np.linalg.qr(np.random.default_rng(1).standard_normal((data.dim, 2)))[0].T.astype(np.float32)
    x, y = data.x_train.copy(), data.y_train.copy()
    x[held[1]] = np.stack([0.2 * along + across, 0.2 * along - across]) / np.float32(np.sqrt(1.04))
    y[held[1]] = 0
    other = replace(everyone(subject, held, Hidden(1, "alone")), x=x, y=y)
    return with_unit(Pair("a row against the others of its sample", other, other, 4, weights=NEAR_ZERO), -along, 0, _size(subject))


def _blocks(subject: Subject) -> Iterator[Pair]:
    """Half of a client's rows turned round where no sample, or the first one only, holds them: a loss that rises, counts that differ."""
    data, held = subject.data, subject.trial.partition.rows
    start = len(held[1]) // 2 // ROWS_OF_A_GROUP * ROWS_OF_A_GROUP
    x, y, own = data.x_train.copy(), data.y_train.copy(), held[1][start:]
    x[own], y[own] = -x[own], (y[own] + 1) % data.classes
    for steps, words in ((0, "in no sample"), (1, "in the first sample only")):
        for seed, weights in enumerate((1.0, NEAR_ZERO)):
            whole = everyone(subject, hidden=RowBlock(1, start, steps))
            yield Pair(f"half of a client's rows, {words}", whole, replace(whole, x=x, y=y), seed, weights=weights)


def _levels(subject: Subject, weights: float = 1.0, seed: int = 0) -> Levels | None:
    """What some ordinary rows add, each the only one of the only client; None where no parameter sets the clip norm."""
    if clip_of(subject) is None:
        return None
    x, y = subject.data.x_test[:EQUAL_ROWS], subject.data.y_test[:EQUAL_ROWS]
    size = _size(subject) or 1
    worlds = [World(x, y, (np.full(size, row),), (0,), Hidden(0, "alone"), size) for row in range(len(x))]
    given = contributions(subject, worlds, seed, weights)
    return Levels(x, y, torch.tensor(given), weights) if min(given) > 0 else None


def _sizes(subject: Subject, levels: Levels | None) -> Iterator[Pair]:
    """A row more or less at every size, of every label, at every client, first, in the middle and last among rows alike and unlike."""
    data, held = subject.data, subject.trial.partition.rows
    stream = np.random.default_rng(2)
    spike = np.eye(1, data.dim, dtype=np.float32)[0]
    for i, count in enumerate(OTHER_COUNTS):
        client, copied = i % len(held), i % 2 == 1
        own = np.full(count, stream.integers(len(data.x_train))) if copied else stream.integers(len(data.x_train), size=count)
        rows = tuple(own if k == client else few(held, FEW)[k] for k in range(len(held)))
        last = data.x_train[own[-1]] if count else spike
        x = (data.x_test[i], -data.x_train.mean(0), spike, -last, last)[i % 5]
        clip = SMALL_CLIP if levels is None else (levels.loose, levels.median, SMALL_CLIP)[i // 2 % 3]
        other = everyone(subject, rows, Hidden(client, "alone", POSITIONS[i % 3]))
        pair = Pair(f"a row beside {count}{' equal' * copied} others", other, other, i, clip, rounds=FEW_ROUNDS)
        yield with_unit(pair, x, i % data.classes, _size(subject))


def _unsaturated(subject: Subject, levels: Levels) -> Iterator[Pair]:
    """An ordinary row over all rounds, where half of the rows, and where none, are clipped at the start."""
    data, other = subject.data, everyone(subject, hidden=Hidden(3, position=0.5))
    for seed, (words, clip) in enumerate((("half of the rows are", levels.median), ("hardly a row is", levels.loose))):
        pair = Pair(f"an ordinary row where {words} clipped", other, other, seed, clip)
        yield with_unit(pair, data.x_test[1], int(data.y_test[1]), _size(subject))


def _two_sizes(subject: Subject, levels: Levels) -> Iterator[Pair]:
    """A large contribution among small and large ones: it moves their median, mean, quantile or maximum from the small to the large.

    The clip norm is between their means without it and with it: a rule by the mean clips in one world only.
    """
    small, large = levels.small, levels.large
    without = 0.5 * float(levels.norms[small] + levels.norms[large])
    between = without + 0.5 * (float(levels.norms[large]) - without) / (2 * CROWD + 1)
    label = "a row that moves the median and the mean of the gradients' norms"
    yield _beside(subject, label, levels, [small] * CROWD + [large] * CROWD, levels.largest, between)
    for share in QUANTILES:
        above = round((1 - share) * CROWD)
        label = f"a row that moves the {share:.0%} quantile of the gradients' norms"
        yield _beside(subject, label, levels, [small] * (CROWD - above) + [large] * above, levels.largest, levels.loose)


def _large_first(subject: Subject, levels: Levels) -> Pair:
    """A large row in the first sample: another, which comes in a later one, shows what scale was remembered."""
    label, others = "a large row, in the first sample only", [levels.small] * EQUAL_ROWS + [levels.large]
    return replace(_beside(subject, label, levels, others, levels.largest, levels.loose, "first"), seed=LARGE_FIRST, rounds=None)


def _opposite(subject: Subject, levels: Levels) -> Iterator[Pair]:
    """A row against two of its label: a weight that follows counts turns their sum as far as its own."""
    row, y = levels.largest
    for share in SCAN:
        label = f"a row against the others of its label, clip norm {share:g} of the largest gradient"
        yield _beside(subject, label, levels, [levels.large] * 2, (-row, y), share / 1.01 * levels.loose)


def _beside(
    subject: Subject,
    label: str,
    levels: Levels,
    others: Sequence[int],
    row: tuple[FloatRows, int],
    clip: float,
    sampled: Literal["first", "alone"] = "alone",
) -> Pair:
    """A row in the midst of others at the third client; the other clients have few."""
    data, held = subject.data, subject.trial.partition.rows
    x, y = np.concatenate([data.x_train, levels.rows]), np.concatenate([data.y_train, levels.y])
    own = len(data.x_train) + np.array(others)
    rows = tuple(own if k == 2 else few(held, FEW)[k] for k in range(len(held)))
    other = replace(everyone(subject, rows, Hidden(2, sampled, 0.5)), x=x, y=y)
    return with_unit(Pair(label, other, other, 0, clip, levels.weights, FEW_ROUNDS), *row)
