"""Chooses the real rows for references and scores, so that a large data set takes minutes.

All rows of a small data set are used. A large one is represented by a choice of rows, with classes
as equally frequent as possible. The choice of test rows does not depend on a cell's seed, so cells
with equal settings are scored on the same rows.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedsim.data.embeddings import Embeddings
from fedsim.data.split import Integers
from fedsim.partition import Partition, PartitionSpec, own_rows
from fedsim.partition.partition import OwnRows

MOST_TRAIN_ROWS = 50_000
"""The largest number of real rows that a reference is trained on, over all clients together."""
MOST_TEST_ROWS = 20_000
"""The largest number of test rows that anything is scored on."""
MOST_CLIENT_SCORES = 500_000_000
"""The largest number of class scores (clients × rows × classes) if each client is scored alone."""
MOST_LOCAL_SCORES = 20_000_000
"""The largest number of class scores (rows × classes) that clients' own probes are trained on.

Each client counts with one row of every class that it holds.
"""
LARGE = 1_000_000
"""A data set with more training rows times classes than this is large, see :func:`is_large`."""
SEED = 0
"""The public seed of the choice of rows."""


def is_large(data: Embeddings) -> bool:
    """Return whether a data set is large, so that its references are fitted in a faster way.

    It is large if it has more than :data:`MOST_TRAIN_ROWS` training rows, or more than
    :data:`LARGE` training rows times classes.
    """
    rows = len(data.y_train)
    return rows > MOST_TRAIN_ROWS or rows * data.classes > LARGE


def balanced_rows(group: Integers, most: int) -> Integers:
    """Return at most ``most`` row numbers, ascending, with groups as equally large as possible.

    Every group keeps at least one row, even if there are more groups than ``most``.

    Args:
        group: the group of every row, such as its class, ``[n]``.
        most: the largest number of rows; all rows are returned if there are no more.
    """
    if len(group) <= most:
        return np.arange(len(group))
    shuffled = np.random.default_rng(SEED).permutation(len(group))
    by_group = shuffled[np.argsort(group[shuffled], kind="stable")]
    counts = np.bincount(group)
    first = np.cumsum(counts) - counts
    # The position of each shuffled row within its group.
    rank = np.arange(len(group)) - np.repeat(first, counts)
    # The number of rows in all if every group keeps at most 1, 2, 3, … of its rows.
    totals = np.cumsum(np.bincount(rank))
    per_group = max(1, int(np.searchsorted(totals, most, side="right")))
    return np.sort(by_group[rank < per_group])


def client_step(partition: Partition) -> int:
    """Return k if only every k-th client's own probe is fitted: 1, or more for very many clients.

    The probe of a client that holds h classes is trained on h rows or more, and its time grows with
    rows times classes.
    """
    held_classes = (partition.label_counts > 0).sum(axis=1)
    return 1 + int(np.square(held_classes).sum()) // MOST_LOCAL_SCORES


def probed_clients(partition: Partition) -> range:
    """Return the numbers of the clients whose own probe is fitted: all, or every k-th one."""
    return range(0, len(partition.rows), client_step(partition))


def client_rows(data: Embeddings, partition: Partition) -> list[Integers]:
    """Return the training rows of each of the :func:`probed_clients`, in their order.

    These clients have at most :data:`MOST_TRAIN_ROWS` together, but each keeps at least one row of
    every class that it holds.
    """
    rows_of_clients = [partition.rows[client] for client in probed_clients(partition)]
    rows = np.concatenate(rows_of_clients)
    sizes = [len(of_client) for of_client in rows_of_clients]
    client_of_row = np.repeat(np.arange(len(sizes)), sizes)
    # A group is all rows of one class of one client.
    kept = balanced_rows(client_of_row * data.classes + data.y_train[rows], MOST_TRAIN_ROWS)
    ends = np.searchsorted(client_of_row[kept], np.arange(1, len(sizes)))
    return np.split(rows[kept], ends)


def most_per_client(clients: int, classes: int) -> int:
    """Return the largest number of rows that each of several clients is scored on."""
    return min(MOST_TEST_ROWS, MOST_CLIENT_SCORES // (clients * classes))


def own_rows_among(
    chosen: Integers,
    data: Embeddings,
    partition: Partition,
    spec: PartitionSpec,
) -> OwnRows:
    """Return each client's own test rows among the chosen ones, as positions in ``chosen``.

    Args:
        chosen: the numbers of the chosen test rows, ascending.
        data: the data set.
        partition: the training rows of each client.
        spec: the scheme of the partition.
    """
    own = own_rows(data, partition, spec)
    if len(chosen) == len(data.y_test):
        return own
    # The position is -1 for a test row that is not chosen.
    position_of = np.full(len(data.y_test), -1)
    position_of[chosen] = np.arange(len(chosen))
    # Clients whose test rows are one array share one array of positions, too.
    positions = {id(rows): position_of[rows][position_of[rows] >= 0] for rows in own.rows}
    return replace(
        own,
        rows=tuple(positions[id(rows)] for rows in own.rows),
        words=(
            f"{own.words}, among {len(chosen)} of {len(position_of)} with classes as equal as "
            "possible"
        ),
    )
