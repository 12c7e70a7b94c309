"""A partition: which rows each client holds, and the limits that none can escape.

Rows may stay together: the groups of a column, such as a patient's images, are each divided among clients as one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.data.split import lacking
from fedsim.errors import UserError, nearest
from fedsim.partition.schemes import OWNERS, Division, Integers, check
from fedsim.partition.spec import PartitionSpec
from fedsim.seeds import Purpose, Seeds

TOGETHER_KEY = "partition.together"
"""The grid's key that errors of groups name."""


@dataclass(frozen=True, eq=False)
class Partition:
    """Which rows each client holds.

    Attributes:
        rows: an int64 array of training row numbers per client, sorted, or sorted within groups; disjoint, together all rows.
        fingerprint: 16 hex digits of what the clients hold.
        label_counts: int64 ``[clients, classes]``.
        scheme: the scheme that made it.
        groups: where rows stay together: the number of each row's group within its client, ascending from 0.
    """

    rows: tuple[NDArray[np.int64], ...]
    fingerprint: str
    label_counts: NDArray[np.int64]
    scheme: str
    groups: tuple[NDArray[np.int64], ...] | None = None


def check_partition(y: NDArray[np.int64], *, spec: PartitionSpec, clients: int, columns: Mapping[str, NDArray[Any]]) -> None:
    """Check the limits that no partition of labels ``y`` ``[n]`` and columns, values per training row, can escape, before one is made."""
    if clients < 1:
        raise UserError("clients", f"{clients} is not positive", "give at least 1 client")
    labels, kept, _ = parts_of(y, columns, spec)
    need, things, there = clients * spec.min_size, "rows" if spec.together is None else f"values of {spec.together}", len(labels)
    if need > there:
        arithmetic = f"{clients} clients × {spec.min_size} (partition.min_size) = {need} {things}, but there are {there} training {things}"
        raise UserError("clients", arithmetic, f"give at most {there // spec.min_size} clients, or a smaller min_size")
    check(Division(labels, kept, clients, spec))


def make_partition(
    y: NDArray[np.int64], *, spec: PartitionSpec, alpha: float, clients: int, seed: int, columns: Mapping[str, NDArray[Any]]
) -> Partition:
    """Divide training rows with labels ``y`` ``[n]``, 0 .. C-1, among clients; alpha > 0 is the concentration of the schemes that use one.

    ``columns`` are values per training row, for schemes by column and for groups that stay together.
    """
    check_partition(y, spec=spec, clients=clients, columns=columns)
    rng = Seeds(seed).numpy(Purpose.PARTITION)
    labels, kept, part = parts_of(y, columns, spec)
    owner = OWNERS[spec.scheme](Division(labels, kept, clients, spec, alpha), rng)[part]
    order = np.lexsort((part, owner))
    sizes = np.bincount(owner, minlength=clients)
    rows = tuple(np.split(order, np.cumsum(sizes)[:-1]))
    classes = int(y.max()) + 1
    label_counts = np.bincount(owner * classes + y, minlength=clients * classes).reshape(clients, classes)
    digest = hashlib.sha256(f"{len(y)} {sizes.tolist()}".encode())
    digest.update(order.tobytes())
    groups = None
    if spec.together is not None:
        groups = tuple(np.unique(part[own], return_inverse=True)[1] for own in rows)
        digest.update(np.concatenate(groups).tobytes())
    if spec.shifts and spec.strength:
        digest.update(f"shift {spec.strength!r} {seed}".encode())  # equal rows, other values
    return Partition(rows, digest.hexdigest()[:16], label_counts, spec.scheme, groups)


Columns = Mapping[str, NDArray[Any]]


def parts_of(y: Integers, columns: Columns, spec: PartitionSpec) -> tuple[Integers, Columns, Integers]:
    """What is divided, rows or groups that stay together: labels and columns ``[m]``, and the part that each row belongs to ``[n]``.

    The label of a group is the one that most of its rows have, of several the lowest.
    """
    together, site = spec.together, spec.column
    if together is None:
        return y, columns, np.arange(len(y))
    _, first, part = np.unique(_values(columns, together), return_index=True, return_inverse=True)
    counts = np.zeros((len(first), int(y.max()) + 1), np.int64)
    np.add.at(counts, (part, y), 1)
    if site is not None and site in columns:
        apart = np.flatnonzero(columns[site] != columns[site][first][part])
        if len(apart):
            what = f"{together} '{columns[together][apart[0]]}' has rows of two values of {site}, so of two clients"
            raise UserError(TOGETHER_KEY, what, "keep a group within a client: correct the column, or divide by another scheme")
    return counts.argmax(1), {name: values[first] for name, values in columns.items()}, part.astype(np.int64)


def check_split(column: str, train: Columns, test: Columns) -> None:
    """No group has rows on both sides of the split: its test rows would be judged by what was learned of it."""
    both = np.intersect1d(_values(train, column), _values(test, column))
    if len(both):
        what = f"{len(both)} values of {column} have both training and test rows, such as '{both[0]}'"
        raise UserError(TOGETHER_KEY, what, f"give the data a split that keeps all rows of a {column} on one side")


def _values(columns: Columns, name: str) -> NDArray[Any]:
    if name not in columns:
        raise UserError(TOGETHER_KEY, f"the data set has no column '{name}'", nearest(name, columns))
    values = columns[name]
    if missing := int(np.count_nonzero(lacking(values))):
        what = f"{missing} rows have no value of '{name}'"
        raise UserError(TOGETHER_KEY, what, "give every row one; a row that stands alone a value of its own")
    return values
