"""Chooses the test rows of data sets that have no split of their own, and the rows of a `limit`.

The choice keeps the label frequencies and uses a fixed public seed. So the chosen rows are part of
the data set and not of an experiment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import UserError

Integers = NDArray[np.int64]
"""Labels, values of a split, numbers of rows, or counts."""
Columns = Mapping[str, NDArray[Any]]
"""Further values of every row by column name, ``[n]`` each."""
TRAIN = 0
VALIDATION = 1
TEST = 2
"""The three values of a split array; validation rows are ignored."""
SPLIT_SEED = 20240601
"""The public seed of every choice of rows."""
WORDS = {
    "train": TRAIN,
    "training": TRAIN,
    "val": VALIDATION,
    "valid": VALIDATION,
    "validation": VALIDATION,
    "test": TEST,
}
"""The values of a split by the names that folders, columns and hubs of data sets use."""


def stratified_rows(
    y: Integers,
    size: int,
    *,
    leave_one: bool = False,
) -> Integers:
    """Return the sorted positions of ``size`` rows with the label frequencies of ``y``.

    Args:
        y: the labels ``[n]``. C is the number of different labels.
        size: the number of rows to choose, at most n, or n - C with ``leave_one``.
        leave_one: whether at least one row of every class is left out of the choice. If so, every
            class needs at least two rows.

    Returns:
        Row positions, int64 ``[size]``, with at least one row of every class. Equal arguments give
        equal positions.

    Raises:
        UserError: ``size`` is below C.
    """
    classes, counts = np.unique(y, return_counts=True)
    if size < len(counts):
        raise UserError(
            "",
            f"limit {size} leaves some of the {len(counts)} classes without a row",
            "give a larger limit",
        )
    # Every class gets one row, and a share of the other rows in proportion to its spare rows.
    spare = counts - 1
    exact = spare * ((size - len(counts)) / max(spare.sum(), 1))
    quota = 1 + np.floor(exact).astype(np.int64)
    # Rounding down left some rows over. The classes with the largest remainders take them, and
    # the lower class goes first where remainders are equal.
    order = np.argsort(np.floor(exact) - exact, kind="stable")
    while quota.sum() < size:
        unfilled = order[quota[order] < counts[order] - leave_one]
        quota[unfilled[: size - quota.sum()]] += 1
    rng = np.random.default_rng(SPLIT_SEED)
    chosen = [
        rng.permutation(np.flatnonzero(y == label))[:rows]
        for label, rows in zip(classes, quota, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


NO_LABELS = ("unlabelled", "unlabelled too")
"""The class names of public rows without labels, which get made-up labels of two classes."""


def made_up_labels(rows: int) -> tuple[Integers, Integers]:
    """Return made-up labels and a split for ``rows`` public rows without labels.

    Other code needs two classes and a test row, so the labels alternate and the last row is the
    test row.

    Returns:
        Labels and split, int64 ``[rows]`` each; the last row is the only test row.

    Raises:
        UserError: there are fewer than three rows.
    """
    if rows < 3:
        raise UserError(
            "",
            f"public data without labels needs at least 3 rows, and this has {rows}",
            "give more rows",
        )
    numbers = np.arange(rows, dtype=np.int64)
    return numbers % 2, np.where(numbers == rows - 1, TEST, TRAIN)


def quarter_for_testing(
    y: Integers,
    names: tuple[str, ...],
    thing: str = "image",
) -> Integers:
    """Return a split ``[n]`` in which a stratified quarter of the rows are test rows.

    Every class has at least one test row, so there are more than a quarter if classes are small.

    Args:
        y: the labels ``[n]``.
        names: the names of the classes, for the error message.
        thing: the word for a row in the error message, such as ``image``.

    Raises:
        UserError: a class has a single row, which cannot be on both sides of the split.
    """
    classes, counts = np.unique(y, return_counts=True)
    if counts.min() < 2:
        raise UserError(
            "",
            f"class '{names[classes[counts.argmin()]]}' has a single {thing}",
            f"add another {thing} of this class, so that there is one to train on and one to test "
            "on, or remove the class from the data",
        )
    size = max(round(len(y) / 4), len(counts))
    split = np.full(len(y), TRAIN, dtype=np.int64)
    split[stratified_rows(y, size, leave_one=True)] = TEST
    return split


def quarter_of_groups(
    values: NDArray[Any],
    y: Integers,
    names: tuple[str, ...],
    thing: str,
) -> Integers:
    """Return a split ``[n]`` in which all rows of a quarter of the groups are test rows.

    Rows with equal ``values`` form a group, and a group is never divided. The choice is stratified
    by the label that most rows of a group have (the lowest one if several are equally frequent).

    Args:
        values: the group of every row ``[n]``, such as the patient.
        y: the labels ``[n]``.
        names: the names of the classes, for the error message.
        thing: the word for a group in the error message, such as ``patient``.

    Raises:
        UserError: a row has no group, or a class has a single group.
    """
    without_group = np.count_nonzero(lacking(values))
    if without_group:
        raise UserError(
            "",
            f"{without_group} rows have no {thing}",
            "give every row one; give a row that stands alone its own value",
        )
    groups, group = np.unique(values, return_inverse=True)
    label_of_group = count_labels(group, y, len(groups)).argmax(1)
    return quarter_for_testing(label_of_group, names, thing)[group]


def count_labels(group: Integers, y: Integers, groups: int) -> Integers:
    """Return how many rows of each group have each label, int64 ``[groups, classes]``.

    Args:
        group: the number of every row's group ``[n]``, in ``0 .. groups - 1``.
        y: the labels ``[n]``.
        groups: the number of groups.
    """
    classes = int(y.max()) + 1
    counts = np.bincount(group * classes + y, minlength=groups * classes)
    return counts.reshape(groups, classes)


def take_rows(columns: Columns, rows: NDArray[Any]) -> Columns:
    """Return the values of some rows, given as a mask ``[n]`` or as positions, in every column."""
    return {name: np.asarray(values)[rows] for name, values in columns.items()}


def lacking(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Return a mask ``[n]`` of the entries without a value: empty texts and NaN."""
    if values.dtype.kind in "US":
        return np.asarray(np.char.str_len(values) == 0)
    return np.asarray(values != values)  # only NaN differs from itself
