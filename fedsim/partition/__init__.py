"""Which rows each client holds: a function of labels and columns, scheme, its parameters, alpha,
how many clients, and the seed.

So every algorithm and every epsilon of a grid sees the same partition; its fingerprint is in every
row of results.
"""

from fedsim.partition.partition import (
    OwnRows,
    Partition,
    as_seen,
    check_partition,
    make_partition,
    own_rows,
    site_names,
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
]
