"""Mixtures of every class of every client: what is sent, what is drawn, and under noise what one
row changes.
"""

import math

import pytest
import torch
from cells import one_cell, quick

from baselines.fedpft import CLIENT_CLASS_WEIGHTS, Mixtures
from fedsim.methods import Message, Purpose, Seeds, one_hot, unit_weights
from fedsim.privacy.noise import gaussian
from fedsim.privacy.statistics.moments import in_unit_ball
from fedsim.training.cohort import Cohort


def test_a_component_is_drawn_as_often_as_its_mass_says_from_its_own_normal() -> None:
    means = torch.tensor([[[0.0, 0.0], [10.0, 0.0]], [[5.0, 5.0], [0.0, 0.0]]])
    mass = torch.tensor([[1.0, 3.0], [2.0, 0.0]])
    labels = torch.arange(2).repeat_interleave(4000)
    spread = torch.tensor([0.1, 0.2]).expand(2, 2, 2)
    x = Mixtures(means, spread, mass).sample(labels, torch.Generator().manual_seed(0))
    second = x[:4000, 0] > 5
    assert float(second.float().mean()) == pytest.approx(0.75, abs=0.03)
    assert x[:4000][second].std(0).tolist() == pytest.approx([0.1, 0.2], rel=0.1)
    assert x[4000:].mean(0).tolist() == pytest.approx([5.0, 5.0], abs=0.05)


@pytest.mark.parametrize("row", [0, 7])
def test_one_row_changes_its_clients_statistics_by_one_at_most_and_no_other_clients(
    row: int,
) -> None:
    trial, data, algorithm = one_cell(
        quick("dp-fedpft"), epsilon=math.inf, resources={"clients_per_actor": "all"}, trust="silo"
    )
    (spec,) = trial.cohorts()

    def sent(leave_out: bool) -> Message:
        cohort = Cohort(spec, data.x_train, data.y_train)
        if leave_out:
            keep = torch.arange(len(cohort.clients.x[1])) != row
            for part in ("x", "y"):
                held = getattr(cohort.clients, part)
                setattr(cohort.clients, part, (held[0], held[1][keep], *held[2:]))
        return cohort.round(
            next(algorithm.schedule()), algorithm.broadcast(algorithm.initial_server(Seeds(0)))
        )

    whole = sent(leave_out=False).sums
    less = sent(leave_out=True).sums
    changes = {name: float((whole[name] - less[name]).norm()) for name in whole}
    assert (
        0.5
        < math.hypot(*(change for name, change in changes.items() if name.endswith(".1")))
        <= 1 + 1e-4
    )
    assert not any(change for name, change in changes.items() if not name.endswith(".1"))


def test_its_sums_are_rounded_once_their_noise_is_there() -> None:
    trial, data, algorithm = one_cell(
        quick("dp-fedpft"), epsilon=4.0, resources={"clients_per_actor": "all"}
    )
    assert trial.plan is not None
    (spec,), (round_,), weights = (
        trial.cohorts(Seeds(trial.cell.seed)),
        algorithm.schedule(),
        unit_weights(CLIENT_CLASS_WEIGHTS),
    )
    cohort = Cohort(spec, data.x_train, data.y_train)
    sums = cohort.round(round_, {}).sums
    for client, (x, y) in enumerate(zip(cohort.clients.x, cohort.clients.y, strict=True)):
        hot = one_hot(y, data.classes).double()
        r = in_unit_ball(x)
        exact = {
            "sums": hot.T @ r.double(),
            "counts": hot.sum(0)[:, None],
            "squares": hot.T @ (r * r).double(),
        }
        stream = Seeds(trial.cell.seed).keystream(Purpose.NOISE, round_.stream, client)
        noise = gaussian(
            {name: value.shape for name, value in exact.items()},
            trial.plan.noise_std("gaussians"),
            stream,
        ).parts
        for name, value in exact.items():
            once = (weights[name] * value + noise[name]).float()
            assert (sums[f"{name}.{client}"] == once).float().mean() > 0.99
