"""Which rows each client holds: a function of labels and columns, scheme, its parameters, alpha, how many clients, and the seed.

So every algorithm and every epsilon of a grid sees the same partition; its fingerprint is in every row of results.
"""

from fedsim.partition.partition import Partition, as_seen, check_partition, make_partition
from fedsim.partition.schemes import SCHEMES
from fedsim.partition.spec import PartitionSpec

__all__ = ["SCHEMES", "Partition", "PartitionSpec", "as_seen", "check_partition", "make_partition"]
