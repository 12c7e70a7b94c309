"""Partitions: which client holds which training example.

A partition is a function of labels, columns, the scheme and its parameters, alpha, the number of
clients and the seed. So every algorithm and every epsilon of a grid sees the same partition. Its
fingerprint is part of every result.
"""

from fedsim.partition.partition import (
    OwnRows,
    Partition,
    as_seen,
    check_partition,
    make_partition,
    own_rows,
    site_names,
    with_validation,
)
from fedsim.partition.schemes import PartitionSpec

__all__ = [
    "OwnRows",
    "Partition",
    "PartitionSpec",
    "as_seen",
    "check_partition",
    "make_partition",
    "own_rows",
    "site_names",
    "with_validation",
]
