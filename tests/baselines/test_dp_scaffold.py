"""Control variates: what they hold, who keeps them, and that local steps no longer drift apart."""

import math
from typing import Any

import torch
from cells import one_cell, quick

from fedsim.methods import Norms, Seeds, Server
from fedsim.privacy.clipping import clipped_sum
from fedsim.training.cohort import LocalPool
from fedsim.training.trial import local_pool

EXACT = {"clip": 1e9, "sample_rate": 1.0, "expected_batch": 50.0}
WEIGHT = "control.head.weight"


def trained(**params: Any) -> tuple[Server, LocalPool, Any]:
    trial, data, algorithm = one_cell(
        quick("dp-scaffold", **EXACT, **params),
        epsilon=math.inf,
        alpha=0.1,
        resources={"clients_per_actor": "all"},
    )
    server = algorithm.initial_server(Seeds(0))
    pool = local_pool(trial, data)
    phase, *_ = algorithm.phases()
    for round_ in algorithm.schedule():
        (message,) = pool.round(round_, phase.broadcast(server))
        phase.at_server(
            server, round_, {name: value.float() for name, value in message.sums.items()}
        )
    return server, pool, algorithm


def gradients(server: Server, pool: LocalPool, algorithm: Any) -> torch.Tensor:
    """Every client's at the server's parameters, in units of a local step's ``[K, C, d]``."""
    clients = pool.cohorts[0].clients
    batches = clients.batches([torch.arange(len(x)) for x in clients.x], 0, {})

    def loss(model: Any, batch: Any) -> torch.Tensor:
        return algorithm.loss(model, batch)["cross_entropy"]

    sums = [
        clipped_sum(server.model, loss, batch, Norms(1e9), "bookkeeping").sums["head.weight"]
        for batch in batches
    ]
    return torch.stack(sums) / 50.0


def test_after_one_step_a_clients_control_variate_is_its_gradient_and_the_servers_their_mean() -> (
    None
):
    server, pool, algorithm = trained(rounds=1, local_steps=1)
    own = pool.cohorts[0].clients.state[WEIGHT]
    torch.testing.assert_close(
        own, gradients(algorithm.initial_server(Seeds(0)), pool, algorithm), atol=1e-5, rtol=1e-3
    )
    torch.testing.assert_close(server.tensors[WEIGHT], own.mean(0), atol=1e-6, rtol=1e-3)
