"""Which rows are for training and which for testing, where a data set does not say: fixed, public,
stratified.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import UserError

TRAIN = 0
VALIDATION = 1
TEST = 2
"""The values of a split array; validation rows are ignored."""
SPLIT_SEED = 20240601
"""Public and fixed: which rows are test rows, or survive a ``limit``, is part of the data set, not
of an experiment.
"""
WORDS = {
    "train": TRAIN,
    "training": TRAIN,
    "val": VALIDATION,
    "valid": VALIDATION,
    "validation": VALIDATION,
    "test": TEST,
}
"""How folders, columns and hubs name the splits."""


def stratified_rows(y: NDArray[np.int64], size: int, leave: int = 0) -> NDArray[np.int64]:
    """The sorted numbers of ``size`` rows whose label counts follow those of ``y`` ``[n]``, at
    least one of every class.

    ``leave`` rows of every class, which has more, are not chosen.
    """
    counts = np.bincount(y)
    spare = counts - 1
    exact = spare * ((size - len(counts)) / max(int(spare.sum()), 1))
    quota = 1 + np.floor(exact).astype(np.int64)
    # the largest remainders, the lower class first, take what rounding down left over
    order = np.argsort(np.floor(exact) - exact, kind="stable")
    while quota.sum() < size:
        open_ = order[quota[order] < counts[order] - leave]
        quota[open_[: size - int(quota.sum())]] += 1
    rng = np.random.default_rng(SPLIT_SEED)
    return np.sort(
        np.concatenate(
            [rng.permutation(np.flatnonzero(y == c))[: quota[c]] for c in range(len(counts))]
        )
    )


NO_LABELS = ("unlabelled", "unlabelled too")
"""Names of the classes that stand in where rows, which are public ones then, have no labels."""


def made_up_labels(rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labels of two classes and a split ``[n]`` that stand in for those of rows without any."""
    if rows < 3:
        raise UserError("", f"{rows} rows are too few", "give three or more")
    numbers = np.arange(rows, dtype=np.int64)
    return numbers % 2, np.where(numbers == rows - 1, TEST, TRAIN)


def quarter_for_testing(
    y: NDArray[np.int64], names: tuple[str, ...], thing: str = "image"
) -> NDArray[np.int64]:
    """A split ``[n]`` with a stratified quarter of the rows as test rows; of labels ``y`` every
    class is present, a row is a ``thing``.
    """
    counts = np.bincount(y)
    if counts.min() < 2:
        what = f"class '{names[int(counts.argmin())]}' has a single {thing}"
        raise UserError(
            "",
            what,
            "give two at least, one to train on and one to test on, or leave the class out",
        )
    split = np.full(len(y), TRAIN, dtype=np.int64)
    split[stratified_rows(y, max(round(len(y) / 4), len(counts)), leave=1)] = TEST
    return split


def quarter_of_groups(
    values: NDArray[Any], y: NDArray[np.int64], names: tuple[str, ...], thing: str
) -> NDArray[np.int64]:
    """A split ``[n]`` with a quarter of the groups as test rows, all rows of a group, of equal
    ``values``, on one side.

    It is stratified by the groups' labels: the one that most rows of a group, a ``thing``, have, of
    several the lowest.
    """
    if missing := int(np.count_nonzero(lacking(values))):
        raise UserError(
            "",
            f"{missing} rows have no {thing}",
            "give every row one; a row that stands alone a value of its own",
        )
    _, group = np.unique(values, return_inverse=True)
    counts = np.zeros((int(group.max()) + 1, len(names)), np.int64)
    np.add.at(counts, (group, y), 1)
    held, label = np.unique(counts.argmax(1), return_inverse=True)
    return quarter_for_testing(label, tuple(names[c] for c in held), thing)[group]


def lacking(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Which rows have no value in a column: one that is not itself, as nan, or an empty text."""
    missing: NDArray[np.bool_] = (
        np.char.str_len(values) == 0 if values.dtype.kind in "US" else values != values
    )
    return missing
