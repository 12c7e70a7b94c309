"""Which rows are for training and which for testing, where a data set does not say: fixed, public, stratified."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import UserError

TRAIN, VALIDATION, TEST = 0, 1, 2
"""The values of a split array; validation rows are ignored."""
SPLIT_SEED = 20240601
"""Public and fixed: which rows are test rows, or survive a ``limit``, is part of the data set, not of an experiment."""
WORDS = {"train": TRAIN, "training": TRAIN, "val": VALIDATION, "valid": VALIDATION, "validation": VALIDATION, "test": TEST}
"""How folders, columns and hubs name the splits."""


def stratified_rows(y: NDArray[np.int64], size: int, seed: int = SPLIT_SEED) -> NDArray[np.int64]:
    """Choose ``size`` rows whose label counts follow those of ``y``, at least one row of every class.

    Args:
        y: labels ``[n]`` in 0 .. C-1, every class present.
        size: how many rows, between C and n.
        seed: of the choice inside each class.

    Returns:
        Sorted row numbers int64 ``[size]``.
    """
    counts = np.bincount(y)
    spare = counts - 1
    exact = spare * ((size - len(counts)) / max(int(spare.sum()), 1))
    quota = 1 + np.floor(exact).astype(np.int64)
    # the largest remainders, the lower class first, take what rounding down left over
    order = np.argsort(np.floor(exact) - exact, kind="stable")
    quota[order[: size - int(quota.sum())]] += 1
    rng = np.random.default_rng(seed)
    return np.sort(np.concatenate([rng.permutation(np.flatnonzero(y == c))[: quota[c]] for c in range(len(counts))]))


def quarter_for_testing(y: NDArray[np.int64], names: tuple[str, ...], where: str, thing: str = "image") -> NDArray[np.int64]:
    """A split ``[n]`` with a stratified quarter of the rows as test rows.

    Args:
        y: labels ``[n]`` in 0 .. C-1, every class present.
        names: what the classes are called.
        where: the place to name in an error.
        thing: what a row is.

    Raises:
        UserError: a class has a single row, which cannot be both for training and for testing.
    """
    counts = np.bincount(y)
    if counts.min() < 2:
        what = f"class '{names[int(counts.argmin())]}' has a single {thing}"
        raise UserError(where, what, "give two at least, one to train on and one to test on, or leave the class out")
    # one row of every class is for training whatever the rounding does
    others = np.setdiff1d(np.arange(len(y)), np.unique(y, return_index=True)[1])
    split = np.full(len(y), TRAIN, dtype=np.int64)
    split[others[stratified_rows(y[others], max(round(len(y) / 4), len(counts)))]] = TEST
    return split
