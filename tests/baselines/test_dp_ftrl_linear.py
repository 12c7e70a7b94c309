"""Clients in turns under banded noise: what the account of dp-ftrl-linear rests on."""

import math
from itertools import islice

import numpy as np
import pytest
import torch
from cells import one_cell, quick, small_cells
from rows import outcome_and_plan, score_of
from scipy.linalg import toeplitz

from baselines.dp_ftrl_linear import square_root_band
from fedsim.methods.messages import Round
from fedsim.privacy.noise import gaussian, inverse
from fedsim.privacy.plan import Release
from fedsim.seeds import Purpose, Seeds
from fedsim.training.rounds import server_noise
from fedsim.training.trial import local_pool

TURNS, ROUNDS = 3, 12


@pytest.mark.parametrize("client", range(4))
def test_a_clients_turns_change_disjoint_rows_of_what_is_noised_each_by_its_norm_at_most(client: int) -> None:
    c = toeplitz(np.pad(square_root_band(TURNS), (0, ROUNDS - TURNS)), np.zeros(ROUNDS))
    updates = np.random.default_rng(client).standard_normal((ROUNDS, 5))
    updates /= np.linalg.norm(updates, axis=1, keepdims=True)
    touched = np.zeros(ROUNDS)
    for turn in range(ROUNDS):
        if Round(turn, 0, turn, turn, Release("updates", 1.0, 4, turns=TURNS)).has_turn(client):
            rows = np.linalg.norm(c[:, [turn]] * updates[turn], axis=1)
            assert np.linalg.norm(rows) <= 1 + 1e-12
            touched += rows > 0
    assert touched.max() == 1


def test_decorrelated_the_noise_of_every_round_is_its_own_stream() -> None:
    trial, _, algorithm = one_cell({"name": "dp-ftrl-linear", "params": {"turns": TURNS, "rounds": 6}}, epsilon=4.0, unit="client")
    plan, (phase,), shapes = trial.plan, algorithm.phases(), {"w": (1000,)}
    assert plan is not None
    noise = [
        server_noise(algorithm, plan, round_, {"w": torch.zeros(1000)}, Seeds(0), phase.correlation)[0].parts["w"]
        for round_ in algorithm.schedule()
    ]
    own = [gaussian(shapes, plan.noise_std(phase.release.name), Seeds(0).keystream(Purpose.NOISE, t)).parts["w"] for t in range(6)]
    for t, drawn in enumerate(own):
        decorrelated = sum(c * noise[t - j] for j, c in enumerate(phase.correlation[: t + 1]))
        torch.testing.assert_close(decorrelated, drawn)
    assert torch.stack(noise).sum(0).norm() < 0.8 * torch.stack(own).sum(0).norm()
    assert inverse((), 3) == []


def test_a_client_pays_for_its_turns_alone() -> None:
    trial, data, algorithm = one_cell(quick("dp-ftrl-linear", turns=3, rounds=5), epsilon=4.0, unit="client")
    pool, broadcast = local_pool(trial, data), algorithm.broadcast(algorithm.initial_server(Seeds(0)))
    for round_ in islice(algorithm.schedule(), 3):
        members = [client for message in pool.round(round_, broadcast) for step in message.ran.steps for client in step.members]
        assert members == [client for client in range(4) if client % 3 == round_.number]
    ended, plan = outcome_and_plan(small_cells(quick("dp-ftrl-linear", turns=3, rounds=5), epsilon=4.0, unit="client"))
    assert ended.unaccounted == ""
    assert [(release.steps, release.rounds) for release in plan.releases] == [(2, 6)]
    assert ended.epsilon_spent == pytest.approx(plan.epsilon_reached)
    assert plan.claim == "proved"


def test_it_learns_digits() -> None:
    entry = {"name": "dp-ftrl-linear", "params": {"rounds": 16, "local_steps": 10, "clip": 10.0, "turns": 2}}
    assert score_of(small_cells(entry, epsilon=math.inf, unit="client")) > 0.6
