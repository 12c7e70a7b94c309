"""`overhead.py`'s round in Flower: clients that send 100,000 numbers back, on two actors; prints milliseconds a round by clients, as JSON.

Flower fixes its own version of Ray, so this runs in an environment of its own: `overhead.py --flower PYTHON` calls it there.
"""

import json
import logging
import os
import statistics
import sys
import time
from itertools import pairwise

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
from flwr.client import ClientApp, NumPyClient
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.simulation import run_simulation

NUMBERS, WARM = 100_000, 5


class Nothing(NumPyClient):
    """Sends back what it got."""

    def fit(self, parameters, config):
        """The parameters as they are."""
        return parameters, 1, {}


class Timed(FedAvg):
    """Federated averaging that notes when each round's updates were averaged."""

    def __init__(self, **keys):
        super().__init__(**keys)
        self.clock = []

    def aggregate_fit(self, server_round, results, failures):
        """The average, and the time."""
        averaged = super().aggregate_fit(server_round, results, failures)
        self.clock.append(time.perf_counter())
        return averaged


def milliseconds(clients: int, rounds: int) -> float:
    """The median time of a round."""
    start = ndarrays_to_parameters([np.zeros(NUMBERS, np.float32)])
    strategy = Timed(fraction_fit=1.0, fraction_evaluate=0.0, initial_parameters=start)
    server = ServerApp(server_fn=lambda context: ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=rounds)))
    client = ClientApp(client_fn=lambda context: Nothing().to_client())
    backend = {"client_resources": {"num_cpus": 1, "num_gpus": 0}, "init_args": {"num_cpus": 2, "include_dashboard": False}}
    run_simulation(server, client, num_supernodes=clients, backend_config=backend)
    return 1e3 * statistics.median(after - before for before, after in pairwise(strategy.clock[WARM:]))


if __name__ == "__main__":
    logging.getLogger("flwr").setLevel(logging.ERROR)
    rounds = int(sys.argv[1])
    print(json.dumps({clients: milliseconds(clients, rounds) for clients in (10, 100)}))
