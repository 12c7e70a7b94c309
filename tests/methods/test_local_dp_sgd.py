"""Local DP-SGD: noisy local steps for unit example, clipped updates for unit client."""

import math
from typing import Any

import pytest
import torch
from cells import one_cell, quick

from fedsim.methods.messages import Message
from fedsim.privacy.noise import Noise
from fedsim.seeds import Seeds
from fedsim.training.rounds import server_noise
from fedsim.training.trial import Trial, local_pool


def one(trust: str = "aggregate", unit: str = "example", **params: Any) -> tuple[Trial, Any, Any]:
    """The trial, its data and its algorithm: DP-FedAvg-linear, 3 rounds of 3 steps."""
    return one_cell(quick("dp-fedavg-linear", **params), epsilon=4.0, trust=trust, unit=unit)


def first_messages(trial: Trial, data: Any, algorithm: Any) -> list[Message]:
    return local_pool(trial, data).round(next(algorithm.schedule()), algorithm.broadcast(algorithm.initial_server(Seeds(0))))


def test_every_local_step_is_planned_and_noted() -> None:
    trial, data, algorithm = one()
    assert trial.plan is not None
    (release,) = trial.plan.releases
    assert (release.steps, release.per_round, release.rounds) == (9, 3, 3)
    steps = [step for message in first_messages(trial, data, algorithm) for step in message.ran.steps]
    assert sorted((client, step.number) for step in steps for client in step.members) == [(k, step) for k in range(4) for step in range(3)]
    assert {step.noised(server=0.0).noise_multiplier for step in steps} == {trial.plan.sigma}


@pytest.mark.parametrize("trust", ["aggregate", "silo"])
def test_clients_noise_their_own_steps_whatever_the_trust(trust: str) -> None:
    trial, data, algorithm = one(trust)
    assert algorithm.noise_at_clients()
    assert server_noise(algorithm, trial.plan, next(algorithm.schedule()), {"a": torch.zeros(2)}, Seeds(0)) == (Noise({}, 0), 0.0)
    kept, sent = (first_messages(one(way)[0], data, algorithm) for way in (trust, "silo"))
    assert all(torch.equal(a.sums[key], b.sums[key]) for a, b in zip(kept, sent, strict=True) for key in a.sums)


def test_for_unit_client_the_update_is_clipped_and_sampling_clients_amplifies() -> None:
    sigmas = {}
    for rate in (1.0, 0.25):
        trial, _, algorithm = one(unit="client", client_rate=rate)
        assert trial.plan is not None
        (release,) = trial.plan.releases
        assert (release.sample_rate, release.steps, release.per_round) == (rate, 3, 1)
        assert trial.plan.sensitivity == algorithm.clip()
        assert not algorithm.noise_at_clients()
        sigmas[rate] = trial.plan.sigma
    assert sigmas[0.25] < 0.6 * sigmas[1.0]


def test_without_noise_each_clients_step_is_its_own_clipped_sum() -> None:
    trial, data, algorithm = one_cell(quick("dp-fedavg-linear", clip=1e9, local_steps=1, sample_rate=1.0), epsilon=math.inf)
    messages = first_messages(trial, data, algorithm)
    server = algorithm.initial_server(Seeds(0))
    expected = torch.zeros(10, 64)
    for rows in trial.partition.rows:
        x, y = torch.from_numpy(data.x_train[rows]), torch.from_numpy(data.y_train[rows])
        torch.nn.functional.cross_entropy(server.model(x), y, reduction="sum").backward()
        # Adam's first step is the learning rate against the gradient's sign
        expected -= algorithm.params.learning_rate * server.model.head.weight.grad.sign()
        server.model.zero_grad()
    moved = torch.stack([message.sums["head.weight"] for message in messages]).sum(0)
    torch.testing.assert_close(moved.float(), expected, atol=1e-3, rtol=1e-2)


def diagnostic_values(message: Message, name: str) -> list[float]:
    values: Any = message.diagnostics[name]
    return [float(value) for value in values]


@pytest.mark.parametrize(("clip", "clipped"), [(1e-9, 1.0), (1e9, 0.0)])
def test_the_share_of_clipped_gradients_is_recorded(clip: float, clipped: float) -> None:
    fractions = [diagnostic_values(message, "clipped_fraction") for message in first_messages(*one(clip=clip))]
    assert sum(map(len, fractions)) > 0
    assert all(set(values) == {clipped} for values in fractions if values)


def test_a_proximal_term_keeps_noiseless_local_steps_near_where_they_began() -> None:
    moved = {}
    for mu in (0.0, 10.0):
        trial, data, algorithm = one_cell(quick("dp-fedavg-linear", mu=mu), epsilon=math.inf)
        moved[mu] = [float(message.sums["head.weight"].norm()) for message in first_messages(trial, data, algorithm)]
    assert all(near < 0.5 * far for near, far in zip(moved[10.0], moved[0.0], strict=True))
