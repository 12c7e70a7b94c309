"""A cluster of three nodes of one CPU each: its address is printed; a line that is read kills the two workers, and the end of input all."""

import sys

from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
workers = [cluster.add_node(num_cpus=1) for _ in range(2)]
print(cluster.address, flush=True)
for _ in sys.stdin:
    while workers:
        cluster.remove_node(workers.pop(), allow_graceful=False)
cluster.shutdown()
