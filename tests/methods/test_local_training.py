"""Local training: who takes part, what is sent, what stays."""

import math
from itertools import islice
from typing import Any

import pytest
import torch
from cells import one_cell, quick
from torch import Tensor, nn

from baselines.fedavg_linear import SoftmaxRegression
from fedsim.methods.local_training import clip_updates
from fedsim.methods.messages import Diagnostic, Task, Tensors
from fedsim.privacy.plan import Unit
from fedsim.seeds import Seeds
from fedsim.training.cohort import Cohort, build_algorithm


def cohort_of(
    name: str,
    unit: str = "client",
    **params: Any,
) -> tuple[Cohort, Any]:
    """Return all four clients in one cohort, and the algorithm at the server."""
    trial, data, algorithm = one_cell(
        quick(name, **params),
        epsilon=4.0,
        unit=unit,
        resources={"clients_per_actor": "all"},
    )
    (spec,) = trial.cohorts()
    return Cohort(spec, data.x_train, data.y_train), algorithm


def first_broadcast(algorithm: Any) -> Tensors:
    server = algorithm.initial_server(Seeds(0))
    return algorithm.broadcast(server)


def test_absent_client_trains_and_sends_nothing() -> None:
    cohort, algorithm = cohort_of("weight-noise", client_rate=0.5)
    broadcast = first_broadcast(algorithm)
    state = cohort.clients.state
    numbers_of_active = set()
    for round_ in islice(algorithm.schedule(), 6):
        before = {name: value.clone() for name, value in state.items()}
        message = cohort.round(round_, broadcast)
        active = algorithm.participants(cohort.clients, round_)
        numbers_of_active.add(int(active.sum()))
        for name, value in state.items():
            changed = (value != before[name]).flatten(1).any(1)
            assert torch.equal(changed, active > 0)
        # A step in which a client is not sampled is one of its steps, too.
        (step,) = message.ran.steps
        assert step.members == (0, 1, 2, 3)
        # Who takes part is private, so bytes are counted for everyone.
        numbers = sum(value.numel() for value in broadcast.values())
        assert message.uplink_bytes == 4 * 4 * numbers
    assert numbers_of_active - {0, 4}, "every client has its own coin"


@pytest.mark.parametrize(
    ("unit", "rate", "sensitivity"),
    [
        ("client", 0.25, 3.0),
        ("example", 1.0, 6.0),
        ("group", 1.0, 6.0),
    ],
)
def test_client_sampling_amplifies_only_for_unit_client(
    unit: Unit,
    rate: float,
    sensitivity: float,
) -> None:
    algorithm = build_algorithm(
        "weight-noise",
        {"client_rate": 0.25, "clip": 3.0},
        Task(4, 2, 10, unit),
    )
    (release,) = algorithm.releases()
    assert release.sample_rate == rate
    assert algorithm.sensitivity() == sensitivity


@pytest.mark.parametrize("name", ["weight-noise", "dp-linear", "dp-prototypes"])
def test_diverged_client_counts_as_clipped_and_sends_what_an_absent_one_sends(name: str) -> None:
    diverged, algorithm = cohort_of(name)
    absent, _ = cohort_of(name)
    diverged_x = list(diverged.clients.x)
    diverged_x[2] = torch.full_like(diverged_x[2], math.nan)
    diverged.clients.x = tuple(diverged_x)
    absent_x = list(absent.clients.x)
    absent_x[2] = absent_x[2][:0]
    absent.clients.x = tuple(absent_x)
    absent_y = list(absent.clients.y)
    absent_y[2] = absent_y[2][:0]
    absent.clients.y = tuple(absent_y)
    broadcast = first_broadcast(algorithm)
    first_round = next(algorithm.schedule())
    message = diverged.round(first_round, broadcast)
    sums = message.sums
    assert Diagnostic.of(message.diagnostics["clipped_fraction"]).values[2] == 1
    expected = absent.round(first_round, broadcast).sums
    for name, value in sums.items():
        assert value.isfinite().all()
        torch.testing.assert_close(
            value,
            expected[name],
            atol=1e-6,
            rtol=1e-5,
        )


class Scaled(nn.Module):
    """A linear head with a scale, which is one number, and a shift that is not trained."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(dim, classes)
        self.scale = nn.Parameter(torch.ones(()))
        self.shift = nn.Parameter(
            torch.ones(classes),
            requires_grad=False,
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.scale * self.head(x) + self.shift
        return logits


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("fedavg-linear", "example"),
        ("dp-fedavg-linear", "client"),
    ],
)
def test_scalar_parameters_train_and_frozen_ones_stay(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    unit: str,
) -> None:
    def build(self: SoftmaxRegression, clients: int) -> nn.Module:
        return Scaled(self.task.dim, self.task.classes)

    monkeypatch.setattr(SoftmaxRegression, "build", build)
    cohort, algorithm = cohort_of(name, unit)
    broadcast = first_broadcast(algorithm)
    active = cohort.clients.only([0, 1, 2, 3])
    first_round = next(algorithm.schedule())
    trained, _ = algorithm._train(active, first_round, broadcast)
    updates = trained["scale"] - broadcast["scale"]
    clipped, _ = clip_updates({"scale": updates}, 1e-3)
    assert clipped["scale"].abs().max() <= 1.001e-3
    assert (trained["scale"] != broadcast["scale"]).all()
    shift = trained["shift"]
    expected = broadcast["shift"].expand_as(shift)
    assert torch.equal(shift, expected)
