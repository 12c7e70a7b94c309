"""The prototypes' own mathematics; what every algorithm must keep is in tests/kit and tests/test_algorithms.py."""

import math
from typing import Any

import pytest
import torch
from cells import small_cells
from hypothesis import given, settings
from hypothesis import strategies as st
from released import centred_at
from rows import outcome_and_plan, score_of

from baselines.dp_prototypes import PROTOTYPE_WEIGHTS, DPPrototypes, DPPrototypesParams
from fedsim.methods.messages import Server, Task
from fedsim.methods.one_shot import Rows
from fedsim.privacy.clipping import Norms
from fedsim.privacy.statistics.outer_products import clipped_statistics, unit_weights
from fedsim.runs.prepare import Prepared
from fedsim.seeds import Seeds
from fedsim.training.trial import Outcome

DIM, CLASSES = 500, 3


def method() -> DPPrototypes:
    return DPPrototypes(DPPrototypesParams(), Task(DIM, CLASSES, 2))


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), scale=st.floats(0, 100))
def test_one_row_adds_at_most_one_to_sums_and_counts_together(seed: int, scale: float) -> None:
    stream = torch.Generator().manual_seed(seed)
    x, y = scale * torch.randn(10, DIM, generator=stream), torch.randint(CLASSES, (10,), generator=stream)
    products = method().class_products(Rows(x, y, torch.zeros_like(y)), centred_at(torch.randn(DIM, generator=stream)))
    _, norms = clipped_statistics(products, Norms(1.0, weights=unit_weights(PROTOTYPE_WEIGHTS)))
    assert norms.max() <= 1 + 1e-5


def prototypes(std: float, counts: torch.Tensor) -> torch.Tensor:
    """Along the first three axes, of classes with ``counts`` rows whose means are 0.5 long, from sums with noise of that ``std``."""
    server = Server(torch.nn.Module(), Seeds(0), tensors=centred_at(torch.zeros(DIM)))
    sums = 0.5 * counts * torch.eye(CLASSES, DIM) + std * torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(0))
    method().receive_prototypes(server, {"sums": sums, "counts": counts}, {"sums": std, "counts": 0.0})
    return server.tensors["prototypes"]


def test_without_noise_prototypes_have_length_one_and_a_row_goes_to_the_nearest_angle() -> None:
    counts = torch.tensor([[1000.0], [100.0], [10.0]])
    found = prototypes(0.0, counts)
    torch.testing.assert_close(found, torch.eye(CLASSES, DIM))
    algorithm, mean = method(), torch.full((DIM,), 0.1)
    server = Server(torch.nn.Module(), Seeds(0), tensors=centred_at(mean) | {"prototypes": found})
    rows = mean + torch.tensor([[0.1], [1.0], [3.0]]) * (torch.eye(CLASSES, DIM) + 0.4 * torch.eye(CLASSES, DIM).roll(1, 0))
    assert algorithm.classifier(server).probabilities(rows).argmax(1).tolist() == [0, 1, 2]


def test_a_rare_class_keeps_its_reach_under_noise() -> None:
    """Along its own axis every prototype is one long, though noise makes that of the rare class three times as long as its signal."""
    counts = torch.tensor([[1000.0], [100.0], [20.0]])
    found = prototypes(1.3, counts)
    assert found.diagonal().tolist() == pytest.approx([1, 1, 1], abs=0.35)
    assert found.norm(dim=1)[2] > 2.5


def cells(epsilon: float, **keys: Any) -> Prepared:
    return small_cells({"name": "dp-prototypes"}, epsilon=epsilon, dataset={"name": "digits", "limit": 1000}, **keys)


def outcome(epsilon: float, **keys: Any) -> tuple[Outcome, Any]:
    return outcome_and_plan(cells(epsilon, **keys))


def score(epsilon: float) -> float:
    return score_of(cells(epsilon))


def test_it_tells_digits_apart_without_noise_and_under_it() -> None:
    assert score(math.inf) > 0.8
    assert score(4.0) > 0.6


@pytest.mark.parametrize("trust", ["aggregate", "silo"])
def test_coordinates_and_prototypes_share_the_budget(trust: str) -> None:
    found, plan = outcome(4.0, trust=trust)
    assert [release.name for release in plan.releases] == ["mean", "spread", "prototypes"]
    assert [release.relative_noise**-2 for release in plan.releases] == pytest.approx([0.064, 0.096, 0.84])
    assert found.epsilon_spent == pytest.approx(plan.epsilon_reached)
    assert plan.claim == "proved"
