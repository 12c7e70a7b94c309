"""A partition: which rows each client holds, the limits that none can escape, and what clients see
of their rows and of test rows.

Rows may stay together: the groups of a column, such as a patient's images, are each divided among
clients as one. Under feature shift every client sees its rows through an affine map of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.data.embeddings import Embeddings, unit_norm
from fedsim.data.split import lacking
from fedsim.errors import UserError, nearest
from fedsim.partition.schemes import OWNERS, Division, Integers, PartitionSpec, check
from fedsim.seeds import Purpose, Seeds

TOGETHER_KEY = "partition.together"
"""The grid's key that errors of groups name."""


@dataclass(frozen=True, eq=False)
class Partition:
    """Which rows each client holds.

    Attributes:
        rows: an int64 array of training row numbers per client, sorted, or sorted within groups;
            disjoint, together all rows.
        fingerprint: 16 hex digits of what the clients hold.
        label_counts: int64 ``[clients, classes]``.
        scheme: the scheme that made it.
        groups: where rows stay together: the number of each row's group within its client,
            ascending from 0.
    """

    rows: tuple[NDArray[np.int64], ...]
    fingerprint: str
    label_counts: NDArray[np.int64]
    scheme: str
    groups: tuple[NDArray[np.int64], ...] | None = None


def check_partition(
    y: NDArray[np.int64], *, spec: PartitionSpec, clients: int, columns: Mapping[str, NDArray[Any]]
) -> None:
    """Check the limits that no partition of labels ``y`` ``[n]`` and columns, values per training
    row, can escape, before one is made.
    """
    labels, kept, _ = parts_of(y, columns, spec)
    need = clients * spec.min_size
    if spec.together is None:
        things = "rows"
    else:
        things = f"values of {spec.together}"
    there = len(labels)
    if need > there:
        arithmetic = (
            f"{clients} clients × {spec.min_size} (partition.min_size) = {need} {things}, "
            f"but there are {there} training {things}"
        )
        raise UserError(
            "clients",
            arithmetic,
            f"give at most {there // spec.min_size} clients, or a smaller min_size",
        )
    check(Division(labels, kept, clients, spec))


def make_partition(
    y: NDArray[np.int64],
    *,
    spec: PartitionSpec,
    alpha: float,
    clients: int,
    seed: int,
    columns: Mapping[str, NDArray[Any]],
) -> Partition:
    """Divide training rows with labels ``y`` ``[n]``, 0 .. C-1, among clients; alpha > 0 is the
    concentration of the schemes that use one.

    ``columns`` are values per training row, for schemes by column and for groups that stay
    together.
    """
    check_partition(y, spec=spec, clients=clients, columns=columns)
    rng = Seeds(seed).numpy(Purpose.PARTITION)
    labels, kept, part = parts_of(y, columns, spec)
    owner = OWNERS[spec.scheme](Division(labels, kept, clients, spec, alpha), rng)[part]
    order = np.lexsort((part, owner))
    sizes = np.bincount(owner, minlength=clients)
    rows = tuple(np.split(order, np.cumsum(sizes)[:-1]))
    classes = int(y.max()) + 1
    label_counts = np.bincount(owner * classes + y, minlength=clients * classes).reshape(
        clients, classes
    )
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


def parts_of(
    y: Integers, columns: Columns, spec: PartitionSpec
) -> tuple[Integers, Columns, Integers]:
    """What is divided, rows or groups that stay together: labels and columns ``[m]``, and the part
    that each row belongs to ``[n]``.

    The label of a group is the one that most of its rows have, of several the lowest.
    """
    together = spec.together
    site = spec.column
    if together is None:
        return y, columns, np.arange(len(y))
    _, first, part = np.unique(_values(columns, together), return_index=True, return_inverse=True)
    counts = np.zeros((len(first), int(y.max()) + 1), np.int64)
    np.add.at(counts, (part, y), 1)
    if site is not None and site in columns:
        apart = np.flatnonzero(columns[site] != columns[site][first][part])
        if len(apart):
            what = (
                f"{together} '{columns[together][apart[0]]}' has rows of two values of "
                f"{site}, so of two clients"
            )
            raise UserError(
                TOGETHER_KEY,
                what,
                "keep a group within a client: correct the column, or divide by another scheme",
            )
    return (
        counts.argmax(1),
        {name: values[first] for name, values in columns.items()},
        part.astype(np.int64),
    )


def check_split(column: str, train: Columns, test: Columns) -> None:
    """No group has rows on both sides of the split: its test rows would be judged by what was
    learned of it.
    """
    both = np.intersect1d(_values(train, column), _values(test, column))
    if len(both):
        what = (
            f"{len(both)} values of {column} have both training and test rows, such as '{both[0]}'"
        )
        raise UserError(
            TOGETHER_KEY,
            what,
            f"give the data a split that keeps all rows of a {column} on one side",
        )


def _values(columns: Columns, name: str) -> NDArray[Any]:
    if name not in columns:
        raise UserError(
            TOGETHER_KEY, f"the data set has no column '{name}'", nearest(name, columns)
        )
    values = columns[name]
    if missing := int(np.count_nonzero(lacking(values))):
        what = f"{missing} rows have no value of '{name}'"
        raise UserError(
            TOGETHER_KEY, what, "give every row one; a row that stands alone a value of its own"
        )
    return values


_SHIFT_RANK = 8


def shift_of(client: int, dim: int, strength: float, seed: int) -> tuple[NDArray[np.float32], ...]:
    """A client's affine map ``x -> gain * x + (x left) right^T + offset``: gain, left ``[d, r]``,
    right ``[d, r]``, offset, of the seed.

    Gains are log-normal, ``exp(strength * N(0, 1))``, as of instruments that were calibrated apart,
    with mean square 1; the map of rank 8 and the offset have norm ``strength`` and random
    directions.
    """
    rng = Seeds(seed).numpy(Purpose.FEATURE_SHIFT, 0, client)
    left, right = (
        np.linalg.qr(rng.standard_normal((dim, min(_SHIFT_RANK, dim))))[0] for _ in range(2)
    )
    offset = rng.standard_normal(dim)
    offset /= np.linalg.norm(offset)
    gain = np.exp(strength * rng.standard_normal(dim))
    gain /= np.sqrt(np.mean(gain**2))
    return tuple(
        part.astype(np.float32) for part in (gain, strength * left, right, strength * offset)
    )


def apply_shift(
    x: NDArray[np.float32], client: int, *, strength: float, seed: int
) -> NDArray[np.float32]:
    """Shift a client's unit rows ``[n, d]`` and scale each back to unit norm; at strength 0 they
    come back unchanged.
    """
    if strength == 0:
        return x
    gain, left, right, offset = shift_of(client, x.shape[1], strength, seed)
    moved = gain * x + (x @ left) @ right.T + offset
    return unit_norm(moved.astype(np.float32, copy=False))


def as_seen(data: Embeddings, partition: Partition, spec: PartitionSpec, seed: int) -> Embeddings:
    """Every training row as its client sees it; the data set itself where clients see values as
    they are.

    Test rows stand for all clients alike: row i is seen by client ``i mod clients``.
    """
    if not spec.shifts:
        return data
    x_train = data.x_train.copy()
    x_test = data.x_test.copy()
    clients = len(partition.rows)
    for client, rows in enumerate(partition.rows):
        x_train[rows] = apply_shift(data.x_train[rows], client, strength=spec.strength, seed=seed)
        x_test[client::clients] = apply_shift(
            data.x_test[client::clients], client, strength=spec.strength, seed=seed
        )
    return replace(data, x_train=x_train, x_test=x_test)


@dataclass(frozen=True, eq=False)
class OwnRows:
    """What each client is called, its site or its number; the test rows int64 that it is judged on,
    and the same in words.

    A site that has no test rows has none.
    """

    names: tuple[str, ...]
    rows: tuple[NDArray[np.int64], ...]
    words: str


def own_rows(data: Embeddings, partition: Partition, spec: PartitionSpec) -> OwnRows:
    """The test rows of the client's site, under a scheme with sites; those that it sees, where it
    sees values of its own; else all.
    """
    clients = len(partition.rows)
    every = np.arange(len(data.y_test))
    names = site_names(data, partition, spec)
    if spec.column is not None:
        sites = _sites(data, partition, spec.column)
        test_sites = data.test_columns[spec.column].astype(np.str_)
        nobodys = np.count_nonzero(~np.isin(test_sites, sites))
        words = f"the test rows with its {spec.column}" + (
            f"; {nobodys} test rows are of no client's {spec.column}" if nobodys else ""
        )
        return OwnRows(names, tuple(np.flatnonzero(test_sites == site) for site in sites), words)
    names = names or tuple(map(str, range(clients)))
    if spec.shifts:
        rows = tuple(every[client::clients] for client in range(clients))
        return OwnRows(names, rows, f"every {clients}th test row, as the client sees it")
    return OwnRows(names, (every,) * clients, "all test rows")


def site_names(data: Embeddings, partition: Partition, spec: PartitionSpec) -> tuple[str, ...]:
    """Every client's site, with its number where several are of one site; empty under a scheme
    without sites.
    """
    if spec.column is None:
        return ()
    sites = _sites(data, partition, spec.column)
    if len(set(sites)) == len(sites):
        return tuple(sites)
    return tuple(f"{site} {client}" for client, site in enumerate(sites))


def _sites(data: Embeddings, partition: Partition, column: str) -> list[str]:
    return [str(data.columns[column][rows[0]]) for rows in partition.rows]
