"""The classifier's own mathematics."""

from typing import Any

import pytest
import torch

from baselines.dp_linear import DPLinear, DPLinearParams
from fedsim.methods import Seeds, Task, load_parameters

DIM, CLASSES = 6, 3


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
