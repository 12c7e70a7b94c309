"""Control variates after one local step."""

import math
from typing import Any

import pytest
import torch
from cells import one_cell, quick

from fedsim.methods import Norms, Seeds, Server
from fedsim.privacy.clipping import clipped_sum
from fedsim.training.trial import local_pool

EXACT = {"clip": 1e9, "sample_rate": 1.0, "expected_batch": 50.0}
WEIGHT = "control.head.weight"


@pytest.fixture(scope="module")
def trained() -> tuple[Any, Server, Any]:
    """The algorithm, its server and its clients after one round of one exact step."""
    trial, data, algorithm = one_cell(
        quick("dp-scaffold", **EXACT, rounds=1, local_steps=1),
        epsilon=math.inf,
        alpha=0.1,
        resources={"clients_per_actor": "all"},
    )
    server = algorithm.initial_server(Seeds(0))
    pool = local_pool(trial, data)
    (phase,) = algorithm.phases()
    (round_,) = algorithm.schedule()
    (message,) = pool.round(round_, phase.broadcast(server))
    sums = {name: value.float() for name, value in message.sums.items()}
    phase.at_server(server, round_, sums)
    return algorithm, server, pool.cohorts[0].clients


def test_a_clients_control_variate_is_its_gradient(trained: tuple[Any, Server, Any]) -> None:
    algorithm, _, clients = trained
    start = algorithm.initial_server(Seeds(0)).model
    batches = clients.batches(
        [torch.arange(len(x)) for x in clients.x],
        0,
        {},
    )

    def loss(model: Any, batch: Any) -> torch.Tensor:
        return algorithm.loss(model, batch)["cross_entropy"]

    results = [clipped_sum(start, loss, batch, Norms(1e9), "bookkeeping") for batch in batches]
    gradients = torch.stack([result.sums["head.weight"] for result in results]) / 50.0
    torch.testing.assert_close(
        clients.state[WEIGHT],
        gradients,
        atol=1e-5,
        rtol=1e-3,
    )


def test_the_servers_control_variate_is_the_mean(trained: tuple[Any, Server, Any]) -> None:
    _, server, clients = trained
    mean = clients.state[WEIGHT].mean(0)
    torch.testing.assert_close(
        server.tensors[WEIGHT],
        mean,
        atol=1e-6,
        rtol=1e-3,
    )


def test_fedprox_pulls_beside_the_control_variates(trained: tuple[Any, Server, Any]) -> None:
    _, server, clients = trained
    trial, _, algorithm = one_cell(quick("dp-scaffold", **EXACT, mu=2.0), epsilon=math.inf)
    assert trial.cell.params["mu"] == 2.0
    broadcast = algorithm.broadcast(server)
    parameters, _ = algorithm.stacked(clients, broadcast)
    parameters["head.weight"] += 1.0
    gradients = {"head.weight": torch.zeros_like(parameters["head.weight"])}
    algorithm.pull(clients, gradients, parameters, broadcast)
    controls = broadcast[WEIGHT] - clients.state[WEIGHT]
    torch.testing.assert_close(gradients["head.weight"], 2.0 + controls)
