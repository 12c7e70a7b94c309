"""Local training: who takes part, what is sent, what stays."""

import math
from itertools import islice
from typing import Any

import pytest
import torch
from cells import SHIPPED, one_cell, quick

from fedsim.methods.local_training import WEIGHT, clip_updates
from fedsim.methods.messages import Diagnostic, Task
from fedsim.methods.parameters import rounded
from fedsim.plugins.registry import lookup
from fedsim.privacy.plan import Unit
from fedsim.seeds import Seeds
from fedsim.training.cohort import Cohort, LocalPool, build_algorithm


def cohort_of(name: str, unit: str = "client", **params: Any) -> tuple[Cohort, Any]:
    """All four clients in one cohort, and the algorithm at the server."""
    trial, data, algorithm = one_cell(quick(name, **params), epsilon=4.0, unit=unit, resources={"clients_per_actor": "all"})
    (spec,) = trial.cohorts()
    return Cohort(spec, data.x_train, data.y_train), algorithm


def test_a_client_that_does_not_take_part_trains_nothing_and_sends_nothing() -> None:
    cohort, algorithm = cohort_of("weight-noise", client_rate=0.5)
    broadcast = algorithm.broadcast(algorithm.initial_server(Seeds(0)))
    seen = set()
    for round_ in islice(algorithm.schedule(), 6):
        before = {name: value.clone() for name, value in cohort.clients.state.items()}
        message = cohort.round(round_, broadcast)
        active = algorithm.participants(cohort.clients, round_)
        seen.add(int(active.sum()))
        for name, value in cohort.clients.state.items():
            changed = (value != before[name]).flatten(1).any(1)
            assert torch.equal(changed, active > 0)
        (step,) = message.ran.steps
        assert step.members == (0, 1, 2, 3)  # a step in which a client is not sampled is a step too
        # who takes part is private: a count of bytes must not tell
        assert message.uplink_bytes == 4 * 4 * sum(value.numel() for value in broadcast.values())
    assert seen - {0, 4}, "every client by its own coin"


def test_clients_that_train_locally_may_keep_a_counter() -> None:
    cohort, algorithm = cohort_of("weight-noise", client_rate=0.5)
    cohort.clients.state["rounds"] = torch.tensor(5)
    cohort.round(next(algorithm.schedule()), algorithm.broadcast(algorithm.initial_server(Seeds(0))))
    assert cohort.clients.state["rounds"].tolist() == 5


def test_every_round_has_minibatches_of_its_own() -> None:
    (cohort, algorithm), (other, _) = cohort_of("fedavg-linear", batch_size=4), cohort_of("fedavg-linear", batch_size=4)
    broadcast = algorithm.broadcast(algorithm.initial_server(Seeds(0)))
    one, two = islice(algorithm.schedule(), 2)
    first, second, again = (own.round(round_, broadcast).sums for own, round_ in ((cohort, one), (cohort, two), (other, one)))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], second[name]) for name in first.keys() - {WEIGHT})


def test_a_round_without_participants_is_a_round() -> None:
    cohort, algorithm = cohort_of("weight-noise", client_rate=0.01)
    message = cohort.round(next(algorithm.schedule()), algorithm.broadcast(algorithm.initial_server(Seeds(0))))
    assert all(not value.any() for value in message.sums.values())
    assert message.ran.steps[0].members == (0, 1, 2, 3)
    norms = message.diagnostics["gradient_norm"]
    assert isinstance(norms, Diagnostic)
    assert (len(norms.values), norms.reduction) == (0, "quantiles")


@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_the_sum_is_of_clipped_updates_of_participants(rate: float) -> None:
    cohort, algorithm = cohort_of("weight-noise", client_rate=rate, clip=0.01)
    broadcast = algorithm.broadcast(algorithm.initial_server(Seeds(0)))
    for round_ in islice(algorithm.schedule(), 3):
        (message,) = LocalPool([cohort]).round(round_, broadcast)
        norm = math.sqrt(sum(float(value.square().sum()) for value in message.sums.values()))
        assert norm <= 0.01 * float(algorithm.participants(cohort.clients, round_).sum()) + 1e-6


def test_the_sum_is_divided_by_how_many_take_part_on_average() -> None:
    _, algorithm = cohort_of("weight-noise", client_rate=0.5)
    server = algorithm.initial_server(Seeds(0))
    before = {name: value.clone() for name, value in algorithm.broadcast(server).items()}
    algorithm.server_step(server, next(algorithm.schedule()), {name: torch.ones_like(value) for name, value in before.items()})
    for name, value in algorithm.broadcast(server).items():
        torch.testing.assert_close(value, before[name] + 1 / (0.5 * 4))


@pytest.mark.parametrize(("unit", "rate", "sensitivity"), [("client", 0.25, 3.0), ("example", 1.0, 6.0), ("group", 1.0, 6.0)])
def test_sampling_clients_amplifies_for_clients_alone_and_less_than_a_client_may_turn_its_update_round(
    unit: Unit, rate: float, sensitivity: float
) -> None:
    algorithm = build_algorithm("weight-noise", {"client_rate": 0.25, "clip": 3.0}, Task(4, 2, 10, unit))
    (release,) = algorithm.releases()
    assert (release.sample_rate, algorithm.sensitivity()) == (rate, sensitivity)


@pytest.mark.parametrize(("clip", "clipped"), [(1e-9, 1.0), (1e9, 0.0)])
def test_the_share_of_clipped_updates_is_recorded(clip: float, clipped: float) -> None:
    cohort, algorithm = cohort_of("weight-noise", clip=clip)
    message = cohort.round(next(algorithm.schedule()), algorithm.broadcast(algorithm.initial_server(Seeds(0))))
    fractions: Any = message.diagnostics["clipped_fraction"]
    assert fractions.tolist() == [clipped] * 4


def test_without_privacy_an_update_counts_as_often_as_its_client_has_rows() -> None:
    cohort, algorithm = cohort_of("fedavg-linear", local_steps=1)
    rows = [len(x) for x in cohort.clients.x]
    assert len(set(rows)) == 4
    broadcast = algorithm.broadcast(algorithm.initial_server(Seeds(0)))
    message = cohort.round(next(algorithm.schedule()), broadcast)
    assert message.sums[WEIGHT] == sum(rows)
    # Adam's first step is the learning rate against the gradient's sign, which for some weights is the same of all clients
    largest = float(message.sums["head.weight"].abs().max())
    assert largest == pytest.approx(algorithm.params.learning_rate * sum(rows), rel=1e-3)


def test_the_proximal_term_is_half_of_mu_times_the_squared_distance_to_the_broadcast() -> None:
    cohort, algorithm = cohort_of("fedavg-linear", mu=0.3)
    stream = torch.Generator().manual_seed(0)
    broadcast = {"a": torch.randn(2, 3, generator=stream), "b": torch.randn(3, generator=stream)}
    shared = {name: torch.randn(4, *value.shape, generator=stream).requires_grad_() for name, value in broadcast.items()}
    term = sum(0.3 / 2 * (value - broadcast[name]).square().sum() for name, value in shared.items())
    expected = dict(zip(shared, torch.autograd.grad(term, list(shared.values())), strict=True))  # type: ignore[arg-type]
    gradients = {name: torch.ones_like(value) for name, value in shared.items()}
    algorithm.pull(cohort.clients, gradients, shared, broadcast)
    for name, value in gradients.items():
        torch.testing.assert_close(value, 1 + expected[name])


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_an_update_that_is_not_finite_counts_as_zero(broken: float) -> None:
    updates = {"a": torch.ones(3, 2, 2), "b": torch.full((3, 5), 0.5)}
    updates["b"][1, 3] = broken
    clipped, norms = clip_updates(updates, 0.1)
    assert not norms[1].isfinite()
    assert all(not value[1].any() for value in clipped.values())
    joint = torch.cat([value.flatten(1) for value in clipped.values()], 1).norm(dim=1)
    assert joint.tolist() == pytest.approx([0.1, 0.0, 0.1])


def test_a_client_whose_training_diverges_sends_what_an_absent_one_would() -> None:
    cohort, algorithm = cohort_of("weight-noise")
    broadcast = algorithm.broadcast(algorithm.initial_server(Seeds(0)))
    x = list(cohort.clients.x)
    x[2] = torch.full_like(x[2], math.nan)
    cohort.clients.x = tuple(x)
    message = cohort.round(next(algorithm.schedule()), broadcast)
    assert all(value.isfinite().all() for value in message.sums.values())
    others, _ = cohort_of("weight-noise")
    for held in ("x", "y"):
        setattr(others.clients, held, tuple(v[:0] if i == 2 else v for i, v in enumerate(getattr(others.clients, held))))
    without = others.round(next(algorithm.schedule()), broadcast)
    assert all(torch.allclose(value, without.sums[name], atol=1e-6) for name, value in message.sums.items())


@pytest.mark.parametrize("name", [name for name in SHIPPED if lookup(name).private])
def test_a_client_whose_last_row_is_removed_is_a_client_still(name: str) -> None:
    cohort, algorithm = cohort_of(name, unit=lookup(name).units[0])
    cohort.clients.x = (cohort.clients.x[0][:0], *cohort.clients.x[1:])
    cohort.clients.y = (cohort.clients.y[0][:0], *cohort.clients.y[1:])
    server = algorithm.initial_server(Seeds(0))
    server.plan = cohort.clients.plan
    phases = algorithm.phases()
    for round_ in algorithm.schedule():
        phase = phases[round_.phase]
        message = cohort.round(round_, phase.broadcast(server))
        assert all(value.isfinite().all() for value in message.sums.values())
        phase.at_server(server, round_, rounded(message.sums))
