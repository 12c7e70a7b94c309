"""Local training: who takes part, what is sent, what stays."""

import math
from typing import Any

import pytest
import torch
from cells import quick, small_cells

from fedsim.runtime.cohort import Cohort, LocalPool, build_algorithm
from fedsim.seeds import Seeds


def cohort_of(name: str, unit: str = "client", **params: Any) -> tuple[Cohort, Any]:
    """All four clients in one cohort, and the algorithm at the server."""
    prepared = small_cells(quick(name, **params), epsilon=4.0, unit=unit, resources={"clients_per_actor": "all"})
    (trial,), (data,) = prepared.trials, prepared.data.values()
    (spec,) = trial.cohorts()
    return Cohort(spec, data.x_train, data.y_train), build_algorithm(trial.cell.algorithm, trial.cell.params, trial.task)


def test_who_does_not_take_part_trains_nothing_and_sends_nothing() -> None:
    cohort, algorithm = cohort_of("weight-noise", client_rate=0.5)
    (release,) = algorithm.releases()
    broadcast = algorithm.broadcast(algorithm.initial_server(Seeds(0)))
    seen = set()
    for round_ in range(6):
        before = {name: value.clone() for name, value in cohort.clients.state.items()}
        message = cohort.round(round_, release, broadcast)
        active = algorithm.participants(cohort.clients, round_)
        seen.add(int(active.sum()))
        for name, value in cohort.clients.state.items():
            changed = (value != before[name]).flatten(1).any(1)
            assert torch.equal(changed, active > 0)
        assert len(message.entries) == 4  # a step in which a client is not sampled is a step too
        assert message.uplink_bytes == int(active.sum()) * 4 * sum(value.numel() for value in broadcast.values())
    assert len(seen) > 1


def test_a_round_in_which_nobody_takes_part_is_a_round() -> None:
    cohort, algorithm = cohort_of("weight-noise", client_rate=0.01)
    (release,) = algorithm.releases()
    message = cohort.round(0, release, algorithm.broadcast(algorithm.initial_server(Seeds(0))))
    assert all(not value.any() for value in message.sums.values())
    assert len(message.entries) == 4
    assert message.diagnostics["gradient_norm"] == []


@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_the_sum_is_of_clipped_updates_of_those_who_take_part(rate: float) -> None:
    cohort, algorithm = cohort_of("weight-noise", client_rate=rate, clip=0.01)
    (release,) = algorithm.releases()
    broadcast = algorithm.broadcast(algorithm.initial_server(Seeds(0)))
    for round_ in range(3):
        (message,) = LocalPool([cohort]).round(round_, release, broadcast)
        norm = math.sqrt(sum(float(value.square().sum()) for value in message.sums.values()))
        assert norm <= 0.01 * float(algorithm.participants(cohort.clients, round_).sum()) + 1e-6
