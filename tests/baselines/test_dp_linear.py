"""The classifier's own mathematics."""

from typing import Any

import pytest
import torch
from cells import small_cells
from rows import ran

from baselines.dp_linear import DPLinear, DPLinearParams
from fedsim.methods import Seeds, Task, load_parameters

DIM, CLASSES = 6, 3


@pytest.mark.parametrize(("share", "rate"), [(0.1, 1.0), (0.3, 0.5)])
def test_the_mean_takes_its_share_of_the_budget_and_the_steps_the_rest(share: float, rate: float) -> None:
    algorithm = DPLinear(DPLinearParams(mean_share=share, sample_rate=rate, rounds=40), Task(DIM, CLASSES, 2))
    mean, sgd = algorithm.releases()
    assert mean.relative_noise**-2 == pytest.approx(share)
    assert sgd.steps * (sgd.sample_rate / sgd.relative_noise) ** 2 == pytest.approx(1 - share)


def scores(name: str, **params: float) -> dict[str, float]:
    prepared = small_cells({"name": name, "params": params}, epsilon=8.0, dataset="digits", evaluation={"per_class": 100})
    return dict(ran(prepared, prepared.trials[0])[1].scores)


def test_a_probe_and_neighbours_love_the_reencoded_form_and_its_rows_do_not_cover_real_ones() -> None:
    reencoded, model = scores("dp-linear", reencoded=0.3), scores("dp-gaussian")
    for name in ("balanced_accuracy", "knn_balanced_accuracy"):
        assert reencoded[name] > model[name] - 0.03
    assert reencoded["coverage"] < 0.5 * model["coverage"]
    assert reencoded["frechet_distance"] > 2 * model["frechet_distance"]


def test_class_means_lie_along_the_weights_and_rows_have_the_variance_that_unit_norm_leaves() -> None:
    algorithm = DPLinear(DPLinearParams(reencoded=0.4), Task(DIM, CLASSES, 2))
    server = algorithm.initial_server(Seeds(0))
    weight, mean = torch.eye(CLASSES, DIM), torch.full((DIM,), 0.25)
    load_parameters(server.model, {"head.weight": weight, "mean": mean})
    made: Any = algorithm.generator(server)
    apart = made.means - mean
    wanted = weight - weight.mean(0)
    torch.testing.assert_close(apart / apart.norm(), wanted / wanted.norm())
    labels = torch.arange(30_000) % CLASSES
    rows = made.sample(labels, torch.Generator().manual_seed(1)) - mean
    left = 1 - float(mean.square().sum())
    assert float(rows.square().sum(1).mean()) == pytest.approx(left, rel=0.02)
    assert float(apart.square().sum(1).mean()) == pytest.approx(0.4 * left, rel=1e-5)
