"""A data set as the clients of a partition see it."""

from __future__ import annotations

from dataclasses import replace

from fedsim.data.embeddings import Embeddings
from fedsim.partition.partition import Partition
from fedsim.partition.schemes import SCHEMES
from fedsim.partition.schemes.scheme import own_test_rows
from fedsim.partition.spec import PartitionSpec


def as_seen(data: Embeddings, partition: Partition, spec: PartitionSpec, seed: int) -> Embeddings:
    """Every training row through its owner's map; the data set itself where the scheme has none.

    Test rows stand for all clients alike: row i goes through the map of client ``i mod clients``.
    """
    map_rows = SCHEMES[spec.scheme].map_rows
    if map_rows is None:
        return data
    x_train, x_test = data.x_train.copy(), data.x_test.copy()
    for client, rows in enumerate(partition.rows):
        x_train[rows] = map_rows(data.x_train[rows], client, spec.given, seed)
        own = own_test_rows(client, len(partition.rows))
        x_test[own] = map_rows(data.x_test[own], client, spec.given, seed)
    return replace(data, x_train=x_train, x_test=x_test)
