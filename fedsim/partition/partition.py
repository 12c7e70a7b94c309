"""Divides training examples among clients, and computes how each client sees its examples.

Examples may have to stay together. All examples with the same value of a column, such as the images
of one patient, then form a group and go to one client. Under feature shift, every client sees its
embeddings through its own affine map.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedsim.data.embeddings import Embeddings, unit_norm
from fedsim.data.split import Columns, Integers, count_labels, take_rows
from fedsim.errors import UserError
from fedsim.partition.schemes import (
    OWNERS,
    Division,
    PartitionSpec,
    RowNumbers,
    check,
    complete_column,
)
from fedsim.seeds import Purpose, Seeds

TOGETHER_KEY = "partition.together"
"""The grid's key that errors about groups name."""
VALIDATION = 5
"""One in this many examples (or groups) of a client is held out by :func:`with_validation`."""


@dataclass(frozen=True, eq=False)
class Partition:
    """Which training examples each client holds.

    Attributes:
        rows: the numbers of each client's training examples, one int64 array per client. They are
            ascending, or ascending within groups that stay together. Clients share no example, and
            together they hold all but those for validation.
        fingerprint: 16 hexadecimal digits of a hash of the partition, with its feature shift.
        label_counts: how many examples of each class each client holds, with those for
            validation, int64 ``[clients, classes]``.
        scheme: the name of the scheme that made it.
        groups: if examples stay together: the number of each example's group within its client,
            ascending from 0, one array per client; else None.
        validation: the numbers of each client's examples that are held out of training, one int64
            array per client; empty if none are (:func:`with_validation`).
    """

    rows: RowNumbers
    fingerprint: str
    label_counts: Integers
    scheme: str
    groups: RowNumbers | None = None
    validation: RowNumbers = ()

    @property
    def all_rows(self) -> RowNumbers:
        """The numbers of each client's examples, with those for validation."""
        if not self.validation:
            return self.rows
        return tuple(map(np.concatenate, zip(self.rows, self.validation, strict=True)))

    def units_of(self, client: int) -> Integers:
        """Return the number of the unit of each training example of a client, int64 ``[n]``.

        The unit is the example's group. If examples do not stay together, it is the example itself,
        and its number is its position.
        """
        if self.groups is None:
            return np.arange(len(self.rows[client]))
        return self.groups[client]

    def without(self, left_out: Sequence[NDArray[np.bool_]]) -> Partition:
        """Return a copy without some training examples.

        The groups that remain are numbered from 0 again. All other attributes stay the same.

        Args:
            left_out: whether each example is left out, one array per client.
        """
        rows = []
        groups = []
        for client, is_out in enumerate(left_out):
            rows.append(self.rows[client][~is_out])
            units = self.units_of(client)[~is_out]
            groups.append(np.unique(units, return_inverse=True)[1])
        return replace(
            self,
            rows=tuple(rows),
            groups=self.groups and tuple(groups),
        )

    def count(self, unit: str) -> int:
        """Return the number of units of protection: ``example``, ``group`` or ``client``."""
        if unit == "client":
            return len(self.rows)
        if unit == "group":
            assert self.groups is not None
            return sum(int(numbers[-1]) + 1 for numbers in self.groups if len(numbers))
        return sum(map(len, self.rows))


def check_partition(
    y: Integers,
    *,
    spec: PartitionSpec,
    clients: int,
    columns: Columns,
) -> None:
    """Check that data can be divided as ``spec`` says, without dividing them.

    Args:
        y: labels of the training examples ``[n]``.
        spec: the scheme and its parameters.
        clients: the number of clients.
        columns: values of each training example by column name.

    Raises:
        UserError: no partition of these data can be like that.
    """
    _checked_division(y, spec, clients, columns)


def _checked_division(
    y: Integers,
    spec: PartitionSpec,
    clients: int,
    columns: Columns,
    alpha: float = 1.0,
) -> tuple[Division, Integers]:
    """Return the checked division, and the number of each example's part, int64 ``[n]``.

    A part is an example, or a group that stays together.

    Raises:
        UserError: the scheme cannot divide these data.
    """
    labels, part_columns, part = divisible_parts(y, columns, spec)
    _check_min_size(len(labels), clients, spec)
    division = Division(labels, part_columns, clients, spec, alpha)
    check(division)
    return division, part


def _check_min_size(parts: int, clients: int, spec: PartitionSpec) -> None:
    """Refuse fewer parts (examples, or groups) than all clients together need."""
    needed = clients * spec.min_size
    if needed <= parts:
        return
    problem = (
        f"{clients} clients × {spec.min_size} (partition.min_size) = {needed} "
        f"{spec.divided_things}, but there are only {parts} for training"
    )
    hint = f"give at most {parts // spec.min_size} clients, or a smaller min_size"
    raise UserError("clients", problem, hint)


def make_partition(
    y: Integers,
    *,
    spec: PartitionSpec,
    alpha: float,
    clients: int,
    seed: int,
    columns: Columns,
) -> Partition:
    """Divide training examples among clients.

    Args:
        y: labels of the training examples ``[n]``, 0 .. C-1.
        spec: the scheme and its parameters.
        alpha: the concentration of Dirichlet draws, above 0; other schemes ignore it.
        clients: the number of clients.
        seed: the seed of all random draws.
        columns: values of each training example by column name, for schemes by column and for
            groups that stay together.

    Raises:
        UserError: the data cannot be divided like that.
    """
    division, part = _checked_division(y, spec, clients, columns, alpha)
    rng = Seeds(seed).numpy(Purpose.PARTITION)
    owner = OWNERS[spec.scheme](division, rng)[part]
    # Examples are sorted by client, then by part, then by row number.
    order = np.lexsort((part, owner))
    sizes = np.bincount(owner, minlength=clients)
    rows = tuple(np.split(order, np.cumsum(sizes)[:-1]))
    digest = hashlib.sha256(f"{len(y)} {sizes.tolist()}".encode())
    digest.update(order.tobytes())
    groups = None
    if spec.together is not None:
        groups = tuple(np.unique(part[client_rows], return_inverse=True)[1] for client_rows in rows)
        digest.update(np.concatenate(groups).tobytes())
    if spec.shifts and spec.strength:
        # Clients hold the same examples as without a shift, but see other values.
        digest.update(f"shift {spec.strength!r} {seed}".encode())
    return Partition(
        rows,
        digest.hexdigest()[:16],
        count_labels(owner, y, clients),
        spec.scheme,
        groups,
    )


def with_validation(partition: Partition) -> Partition:
    """Return a partition that holds out every fifth example of each client for validation.

    If examples stay together, it holds out every fifth group. The choice reads no label and no
    embedding. A client with fewer than five examples (or groups) has none for validation.
    """
    left_out = []
    validation = []
    for client, rows in enumerate(partition.rows):
        is_out = partition.units_of(client) % VALIDATION == VALIDATION - 1
        left_out.append(is_out)
        validation.append(rows[is_out])
    digest = hashlib.sha256(f"{partition.fingerprint} without validation".encode())
    return replace(
        partition.without(left_out),
        fingerprint=digest.hexdigest()[:16],
        validation=tuple(validation),
    )


def divisible_parts(
    y: Integers,
    columns: Columns,
    spec: PartitionSpec,
) -> tuple[Integers, Columns, Integers]:
    """Return the parts that a scheme divides: examples, or the groups that stay together.

    Args:
        y: labels of the training examples ``[n]``.
        columns: values of each training example by column name.
        spec: says whether examples stay together, and by which column.

    Returns:
        Labels ``[m]`` and columns ``[m]`` of the m parts, and the number of each example's part,
        int64 ``[n]``. The label of a group is the most frequent one of its examples; of equally
        frequent labels, the lowest.

    Raises:
        UserError: the column is missing or incomplete, or a group lies in two sites.
    """
    if spec.together is None:
        return y, columns, np.arange(len(y))
    groups = complete_column(columns, spec.together, TOGETHER_KEY)
    _, first_rows, part = np.unique(groups, return_index=True, return_inverse=True)
    if spec.column is not None and spec.column in columns:
        # Every example must have the site of the first example of its group.
        sites = columns[spec.column]
        misplaced = np.flatnonzero(sites != sites[first_rows][part])
        if len(misplaced):
            raise UserError(
                TOGETHER_KEY,
                f"all rows of one {spec.together} must be at one client, but {spec.together} "
                f"'{groups[misplaced[0]]}' has rows with different values of {spec.column}, and "
                "these are at different clients",
                f"correct {spec.column} in these rows, give each {spec.together} its own value, or "
                "give another scheme, such as scheme: dirichlet",
            )
    labels = count_labels(part, y, len(first_rows)).argmax(1)
    return labels, take_rows(columns, first_rows), part


def check_split(column: str, train: Columns, test: Columns) -> None:
    """Refuse a split that has training and test examples of the same group.

    Such test examples would be scored by a model that has learned from their group.

    Args:
        column: the column whose values are the groups.
        train: columns of the training examples.
        test: columns of the test examples.

    Raises:
        UserError: the column is missing or incomplete, or a group is on both sides.
    """
    train_groups = complete_column(train, column, TOGETHER_KEY)
    test_groups = complete_column(test, column, TOGETHER_KEY)
    both = np.intersect1d(train_groups, test_groups)
    if len(both):
        raise UserError(
            TOGETHER_KEY,
            f"{len(both)} values of {column} have both training and test rows, such as '{both[0]}'",
            f"for images write split: {{by: {column}}} in the data set; for embeddings give all "
            f"rows with one value of {column} the same split",
        )


_SHIFT_RANK = 8
"""The rank of a feature shift's linear map: small enough to be fast in any dimension."""


def shift_of(
    client: int,
    dim: int,
    strength: float,
    seed: int,
) -> tuple[NDArray[np.float32], ...]:
    """Return a client's affine map ``x -> gain * x + (x left) right^T + offset``.

    Gains are log-normal, ``exp(strength * N(0, 1))``, like those of instruments that were
    calibrated separately; their mean square is 1. The map ``left right^T``, of rank
    r = min(8, ``dim``), and the offset have norm ``strength`` and random directions.

    Args:
        client: the client's number.
        dim: d, the dimension of embeddings.
        strength: the size of the shift.
        seed: the seed of the map.

    Returns:
        gain ``[d]``, left ``[d, r]``, right ``[d, r]`` and offset ``[d]``.
    """
    rng = Seeds(seed).numpy(Purpose.FEATURE_SHIFT, 0, client)
    shape = (dim, min(_SHIFT_RANK, dim))
    left, _ = np.linalg.qr(rng.standard_normal(shape))
    right, _ = np.linalg.qr(rng.standard_normal(shape))
    offset = rng.standard_normal(dim)
    offset /= np.linalg.norm(offset)
    gain = np.exp(strength * rng.standard_normal(dim))
    gain /= np.sqrt(np.mean(gain**2))
    affine_map = (gain, strength * left, right, strength * offset)
    return tuple(array.astype(np.float32) for array in affine_map)


def apply_shift(
    x: NDArray[np.float32],
    client: int,
    *,
    strength: float,
    seed: int,
) -> NDArray[np.float32]:
    """Return embeddings as a client sees them: shifted, then scaled back to unit norm.

    Args:
        x: embeddings of unit norm ``[n, d]``.
        client: the client's number.
        strength: the size of the shift; at 0 the embeddings come back unchanged.
        seed: the seed of the client's map.
    """
    if strength == 0:
        return x
    gain, left, right, offset = shift_of(client, x.shape[1], strength, seed)
    shifted = gain * x + (x @ left) @ right.T + offset
    return unit_norm(shifted.astype(np.float32, copy=False))


def as_seen(
    data: Embeddings,
    partition: Partition,
    spec: PartitionSpec,
    seed: int,
) -> Embeddings:
    """Return the data set with every example as its client sees it.

    Test examples belong to no client, so they are dealt in turn: test example i is as client
    ``i mod clients`` sees it. Without feature shift the same data set comes back.
    """
    if not spec.shifts:
        return data
    x_train = data.x_train.copy()
    x_test = data.x_test.copy()
    clients = len(partition.rows)
    for client, rows in enumerate(partition.all_rows):
        test_rows = slice(client, None, clients)
        for x, client_rows in ((x_train, rows), (x_test, test_rows)):
            x[client_rows] = apply_shift(
                x[client_rows],
                client,
                strength=spec.strength,
                seed=seed,
            )
    return replace(data, x_train=x_train, x_test=x_test)


@dataclass(frozen=True, eq=False)
class OwnRows:
    """The test examples on which each client's own results are computed.

    Attributes:
        names: what each client is called: its site or its number.
        rows: the numbers of each client's test examples, int64; empty for a site without any.
        words: the same choice of test examples in words, for tables.
    """

    names: tuple[str, ...]
    rows: RowNumbers
    words: str


def own_rows(
    data: Embeddings,
    partition: Partition,
    spec: PartitionSpec,
) -> OwnRows:
    """Return the test examples that count as each client's own.

    Under a scheme with sites they are the test examples of the client's site. Under feature shift
    they are the test examples that :func:`as_seen` shows as this client sees them. Under any other
    scheme they are all test examples.
    """
    clients = len(partition.rows)
    names = site_names(data, partition, spec) or tuple(map(str, range(clients)))
    if spec.column is not None:
        sites = _sites(data, partition, spec.column)
        test_sites = data.test_columns[spec.column].astype(np.str_)
        rows = tuple(np.flatnonzero(test_sites == site) for site in sites)
        words = f"the test rows with its {spec.column}"
        unowned = np.count_nonzero(~np.isin(test_sites, sites))
        if unowned:
            words += f"; {unowned} test rows are of no client's {spec.column}"
        return OwnRows(names, rows, words)
    all_rows = np.arange(len(data.y_test))
    if spec.shifts:
        rows = tuple(all_rows[client::clients] for client in range(clients))
        return OwnRows(
            names,
            rows,
            f"one of {clients} test rows, as the client sees them",
        )
    return OwnRows(names, (all_rows,) * clients, "all test rows")


def site_names(
    data: Embeddings,
    partition: Partition,
    spec: PartitionSpec,
) -> tuple[str, ...]:
    """Return the name of every client's site; empty under a scheme without sites.

    If a site has several clients, each name ends with the client's number.
    """
    if spec.column is None:
        return ()
    sites = _sites(data, partition, spec.column)
    if len(set(sites)) == len(sites):
        return tuple(sites)
    return tuple(f"{site} {client}" for client, site in enumerate(sites))


def _sites(data: Embeddings, partition: Partition, column: str) -> list[str]:
    """Return the site of every client: the column's value of its first example."""
    values = data.columns[column]
    return [str(values[rows[0]]) for rows in partition.rows]
