"""Rows that stay together: the groups of a column, such as a patient's images, each divided among clients as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.data.split import lacking
from fedsim.errors import UserError, nearest
from fedsim.partition.schemes import Integers
from fedsim.partition.spec import PartitionSpec

TOGETHER_KEY = "partition.together"
"""The grid's key that errors name."""


@dataclass(frozen=True, eq=False)
class Grouping:
    """What a scheme divides: rows, or groups of them.

    Attributes:
        y: labels int64 ``[m]``; of a group the one that most of its rows have, of several the lowest.
        columns: further values, ``[m]`` each.
        part: the part that each row belongs to, int64 ``[n]``.
    """

    y: Integers
    columns: Mapping[str, NDArray[Any]]
    part: Integers


def parts_of(y: Integers, columns: Mapping[str, NDArray[Any]], spec: PartitionSpec) -> Grouping:
    """The groups that the specification keeps together; without any every row is a part."""
    together, site = spec.together, spec.column
    if together is None:
        return Grouping(y, columns, np.arange(len(y)))
    _, first, part = np.unique(_values(columns, together), return_index=True, return_inverse=True)
    counts = np.zeros((len(first), int(y.max()) + 1), np.int64)
    np.add.at(counts, (part, y), 1)
    if site is not None and site in columns:
        values = columns[site]
        if len(apart := np.flatnonzero(values != values[first][part])):
            row = int(apart[0])
            one, two, group = values[first][part][row], values[row], columns[together][row]
            what = f"{together} '{group}' has rows of {site} '{one}' and '{two}', so of two clients"
            raise UserError(TOGETHER_KEY, what, "keep a group within a client: correct the column, or divide by another scheme")
    return Grouping(counts.argmax(1), {name: values[first] for name, values in columns.items()}, part.astype(np.int64))


def check_split(column: str, train: Mapping[str, NDArray[Any]], test: Mapping[str, NDArray[Any]]) -> None:
    """No group has rows on both sides of the split: its test rows would be judged by what was learned of it."""
    both = np.intersect1d(_values(train, column), _values(test, column))
    if len(both):
        what = f"{len(both)} values of {column} have both training and test rows, such as '{both[0]}'"
        raise UserError(TOGETHER_KEY, what, f"give the data a split that keeps all rows of a {column} on one side")


def _values(columns: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
    if name not in columns:
        raise UserError(TOGETHER_KEY, f"the data set has no column '{name}'", nearest(name, columns))
    values = columns[name]
    if missing := int(np.count_nonzero(lacking(values))):
        what = f"{missing} rows have no value of '{name}'"
        raise UserError(TOGETHER_KEY, what, "give every row one; a row that stands alone a value of its own")
    return values
