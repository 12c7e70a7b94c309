"""Local training: who takes part, what is sent, what stays."""

import math
from itertools import islice
from typing import Any

import pytest
import torch
from cells import one_cell, quick

from fedsim.methods.messages import Task
from fedsim.privacy.plan import Unit
from fedsim.seeds import Seeds
from fedsim.training.cohort import Cohort, build_algorithm


def cohort_of(name: str, unit: str = "client", **params: Any) -> tuple[Cohort, Any]:
    """All four clients in one cohort, and the algorithm at the server."""
    trial, data, algorithm = one_cell(
        quick(name, **params), epsilon=4.0, unit=unit, resources={"clients_per_actor": "all"}
    )
    (spec,) = trial.cohorts()
    return Cohort(spec, data.x_train, data.y_train), algorithm


def test_absent_client_trains_and_sends_nothing() -> None:
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


@pytest.mark.parametrize(
    ("unit", "rate", "sensitivity"),
    [("client", 0.25, 3.0), ("example", 1.0, 6.0), ("group", 1.0, 6.0)],
)
def test_client_sampling_amplifies_only_for_unit_client(
    unit: Unit, rate: float, sensitivity: float
) -> None:
    algorithm = build_algorithm(
        "weight-noise", {"client_rate": 0.25, "clip": 3.0}, Task(4, 2, 10, unit)
    )
    (release,) = algorithm.releases()
    assert (release.sample_rate, algorithm.sensitivity()) == (rate, sensitivity)


def test_diverged_client_sends_what_an_absent_one_sends() -> None:
    cohort, algorithm = cohort_of("weight-noise")
    broadcast = algorithm.broadcast(algorithm.initial_server(Seeds(0)))
    x = list(cohort.clients.x)
    x[2] = torch.full_like(x[2], math.nan)
    cohort.clients.x = tuple(x)
    message = cohort.round(next(algorithm.schedule()), broadcast)
    assert all(value.isfinite().all() for value in message.sums.values())
    others, _ = cohort_of("weight-noise")
    for held in ("x", "y"):
        setattr(
            others.clients,
            held,
            tuple(v[:0] if i == 2 else v for i, v in enumerate(getattr(others.clients, held))),
        )
    without = others.round(next(algorithm.schedule()), broadcast)
    assert all(
        torch.allclose(value, without.sums[name], atol=1e-6) for name, value in message.sums.items()
    )
