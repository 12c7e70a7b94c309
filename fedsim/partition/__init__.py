"""Which rows each client holds: a function of labels and columns, scheme, its parameters, alpha, how many clients, and the seed.

So every algorithm and every epsilon of a grid sees the same partition; its fingerprint is in every row of results.
"""

from fedsim.partition.limits import check_partition
from fedsim.partition.partition import Partition, make_partition
from fedsim.partition.schemes import SCHEMES
from fedsim.partition.seen import as_seen
from fedsim.partition.spec import PartitionSpec

__all__ = ["SCHEMES", "Partition", "PartitionSpec", "as_seen", "check_partition", "make_partition"]
