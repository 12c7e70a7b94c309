"""What the control is for: what learns from its rows is pleased with them, and what compares them with real ones is not."""

import pytest
import torch
from cells import small_cells
from rows import ran

from baselines.dp_linear_reencoded import DPLinearReencoded, DPLinearReencodedParams, WhiteGenerator
from fedsim.methods.messages import Server, Task
from fedsim.methods.parameters import load_parameters
from fedsim.seeds import Seeds

DIM, CLASSES = 8, 3


def scores(name: str) -> dict[str, float]:
    prepared = small_cells({"name": name}, epsilon=8.0, dataset="digits", evaluation={"per_class": 100})
    return dict(ran(prepared, prepared.trials[0])[1].scores)


def test_a_probe_and_neighbours_love_it_and_its_rows_do_not_cover_real_ones() -> None:
    reencoded, model = scores("dp-linear-reencoded"), scores("dp-gaussian")
    for name in ("balanced_accuracy", "knn_balanced_accuracy"):
        assert reencoded[name] > model[name] - 0.03
    assert reencoded["coverage"] < 0.5 * model["coverage"]
    assert reencoded["frechet_distance"] > 2 * model["frechet_distance"]


def test_class_means_lie_along_the_weights_and_rows_have_the_variance_that_unit_norm_leaves() -> None:
    algorithm = DPLinearReencoded(DPLinearReencodedParams(between=0.4), Task(DIM, CLASSES, 2))
    server = algorithm.initial_server(Seeds(0))
    weight, mean = torch.eye(CLASSES, DIM), torch.full((DIM,), 0.25)
    load_parameters(server.model, {"head.weight": weight, "mean": mean})
    made = sampled(algorithm, server)
    apart = made.means - mean
    wanted = weight - weight.mean(0)
    torch.testing.assert_close(apart / apart.norm(), wanted / wanted.norm())
    labels = torch.arange(30_000) % CLASSES
    rows = made.sample(labels, torch.Generator().manual_seed(1)) - mean
    left = 1 - float(mean.square().sum())
    assert float(rows.square().sum(1).mean()) == pytest.approx(left, rel=0.02)
    assert float(apart.square().sum(1).mean()) == pytest.approx(0.4 * left, rel=1e-5)


def test_a_classifier_that_learned_nothing_still_makes_rows() -> None:
    algorithm = DPLinearReencoded(DPLinearReencodedParams(), Task(DIM, CLASSES, 2))
    rows = sampled(algorithm, algorithm.initial_server(Seeds(0))).sample(torch.zeros(5, dtype=torch.long), torch.Generator())
    assert rows.isfinite().all()
    assert rows.shape == (5, DIM)


def sampled(algorithm: DPLinearReencoded, server: Server) -> WhiteGenerator:
    made = algorithm.generator(server)
    assert isinstance(made, WhiteGenerator)
    return made
