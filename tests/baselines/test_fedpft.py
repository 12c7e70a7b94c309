"""Mixtures of every class of every client: what is sent, and what one row changes under noise."""

import math
from typing import Any

import pytest
import torch
from cells import one_cell, quick
from streams import seeded

from baselines import fedpft
from baselines.fedpft import CLIENT_CLASS_WEIGHTS, Mixtures
from fedsim.methods import Purpose, Seeds, Task, Tensors, one_hot
from fedsim.privacy.noise import gaussian
from fedsim.privacy.statistics.moments import in_unit_ball
from fedsim.training.cohort import Cohort
from fedsim.training.trial import Trial


def sampled(label: int) -> torch.Tensor:
    """4,000 rows of a mixture: two components of class 0 (1 to 3), one of class 1."""
    means = torch.tensor([[[0.0, 0.0], [10.0, 0.0]], [[5.0, 5.0], [0.0, 0.0]]])
    roots = torch.tensor([0.1, 0.2]).expand(2, 2, 2)
    mass = torch.tensor([[1.0, 3.0], [2.0, 0.0]])
    labels = torch.full((4000,), label)
    return Mixtures(means, roots, mass).sample(
        labels,
        seeded(0),
    )


def test_a_component_is_drawn_as_often_as_its_mass_says() -> None:
    x = sampled(0)
    second = x[:, 0] > 5
    assert float(second.float().mean()) == pytest.approx(0.75, abs=0.03)
    assert x[second].std(0).tolist() == pytest.approx([0.1, 0.2], rel=0.1)


def test_a_component_without_mass_is_not_drawn() -> None:
    assert sampled(1).mean(0).tolist() == pytest.approx([5.0, 5.0], abs=0.05)


def private_cell(**keys: Any) -> tuple[Trial, Any, Cohort]:
    """A cell of DP-FedPFT whose clients are in one cohort."""
    resources = {"clients_per_actor": "all"}
    trial, data, algorithm = one_cell(
        quick("dp-fedpft"),
        resources=resources,
        **keys,
    )
    (spec,) = trial.cohorts(Seeds(trial.cell.seed))
    return (
        trial,
        algorithm,
        Cohort(
            spec,
            data.x_train,
            data.y_train,
        ),
    )


def sums_without(row: int | None) -> Tensors:
    """The sums of all clients without noise, without one row of client 1."""
    _, algorithm, cohort = private_cell(
        epsilon=math.inf,
        trust="silo",
    )
    if row is not None:
        for part in ("x", "y"):
            first, second, *others = getattr(cohort.clients, part)
            shorter = torch.cat([second[:row], second[row + 1 :]])
            setattr(
                cohort.clients,
                part,
                (first, shorter, *others),
            )
    (round_,) = algorithm.schedule()
    return cohort.round(round_, {}).sums


@pytest.mark.parametrize("row", [0, 7])
def test_one_row_changes_its_clients_statistics_alone_by_at_most_one(row: int) -> None:
    whole = sums_without(None)
    less = sums_without(row)
    changes = {name: float((whole[name] - less[name]).norm()) for name in whole}
    own = [change for name, change in changes.items() if name.endswith(".1")]
    assert 0.5 < math.hypot(*own) <= 1 + 1e-4
    assert sum(changes.values()) == sum(own)


def test_its_sums_are_rounded_once_their_noise_is_added() -> None:
    trial, algorithm, cohort = private_cell(epsilon=4.0)
    assert trial.plan is not None
    (round_,) = algorithm.schedule()
    weights = CLIENT_CLASS_WEIGHTS
    sums = cohort.round(round_, {}).sums
    for client, (x, y) in enumerate(zip(cohort.clients.x, cohort.clients.y, strict=True)):
        onehot = one_hot(y, trial.task.classes).double()
        r = in_unit_ball(x)
        exact = {
            "sums": onehot.T @ r.double(),
            "counts": onehot.sum(0)[:, None],
            "squares": onehot.T @ (r * r).double(),
        }
        shapes = {name: value.shape for name, value in exact.items()}
        stream = Seeds(trial.cell.seed).keystream(
            Purpose.NOISE,
            round_.stream,
            client,
        )
        noise = gaussian(shapes, trial.plan.noise_std("gaussians"), stream).parts
        for name, value in exact.items():
            rounded_once = (weights[name] * value + noise[name]).float()
            equal = sums[f"{name}.{client}"] == rounded_once
            assert equal.float().mean() > 0.99


def test_sums_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    together = sums_without(None)
    monkeypatch.setattr(fedpft, "BLOCK", 10)
    for name, value in sums_without(None).items():
        torch.testing.assert_close(value, together[name])


@pytest.mark.parametrize(("clients", "components"), [(4, 40), (30, 5), (1000, 1)])
def test_components_of_all_clients_fit_in_memory(clients: int, components: int) -> None:
    task = Task(384, 1000, clients)
    assert fedpft.FedPFT(fedpft.FedPFTParams(), task).components == components
