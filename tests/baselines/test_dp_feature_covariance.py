"""The preconditioned steps' own mathematics; what every algorithm must keep is in tests/kit and tests/test_algorithms.py."""

import math
from typing import Any

import pytest
import torch
from cells import small_cells
from hypothesis import given, settings
from hypothesis import strategies as st
from released import centred_at
from rows import outcome_and_plan, score_of

from baselines.dp_feature_covariance import LEAST_RIDGE, DPFeatureCovariance, DPFeatureCovarianceParams
from fedsim.methods.messages import Round, Server, Task
from fedsim.methods.one_shot import Rows
from fedsim.privacy.clipping import Norms
from fedsim.privacy.statistics.outer_products import clipped_statistics
from fedsim.runs.prepare import Prepared
from fedsim.seeds import Seeds
from fedsim.training.trial import Outcome

DIM, CLASSES = 6, 3


def method(**params: float) -> DPFeatureCovariance:
    return DPFeatureCovariance(DPFeatureCovarianceParams.model_validate(params), Task(DIM, CLASSES, 2))


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), scale=st.floats(0, 100))
def test_one_row_adds_at_most_one_to_the_second_moment(seed: int, scale: float) -> None:
    stream = torch.Generator().manual_seed(seed)
    x, y = scale * torch.randn(10, DIM, generator=stream), torch.zeros(10, dtype=torch.long)
    products = method().second_products(Rows(x, y, y), centred_at(torch.randn(DIM, generator=stream)))
    _, norms = clipped_statistics(products, Norms(1.0))
    assert norms.max() <= 1 + 1e-5


def preconditioned(second: torch.Tensor, std: float, **params: float) -> Server:
    algorithm = method(**params)
    server = Server(algorithm.build(0), Seeds(0), tensors=centred_at(torch.zeros(DIM)))
    algorithm.receive_second(server, {"second": second}, {"second": std})
    return server


def test_the_preconditioner_is_the_inverse_of_the_second_moment_and_a_ridge_as_large_as_its_noise() -> None:
    values = torch.tensor([100.0, 30.0, 10.0, 3.0, 1.0, -5.0])
    known, std = values.clamp_min(0), 2.0
    ridge = 0.5 * math.sqrt(2 * DIM) * std + LEAST_RIDGE * float(values.sum()) / DIM
    found = preconditioned(torch.diag(values), std, ridge=0.5).tensors["preconditioner"]
    torch.testing.assert_close(found, torch.diag(1 / (known + ridge)))


def test_the_largest_eigenvalue_of_noise_alone_is_one_ridge() -> None:
    dim, std = 300, 1.5
    noise = std * torch.randn(dim, dim, generator=torch.Generator().manual_seed(0))
    largest = float(torch.linalg.eigvalsh((noise + noise.T) / 2).max())
    assert largest == pytest.approx(math.sqrt(2 * dim) * std, rel=0.05)


def test_a_step_goes_along_the_preconditioned_sum() -> None:
    server = preconditioned(torch.diag(torch.arange(1.0, DIM + 1)), 0.0)
    algorithm, sums = method(learning_rate=2.0), torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(0))
    algorithm.server_step(server, Round(0, 2, 0, 0, algorithm.releases()[-1]), {"head.weight": sums})
    torch.testing.assert_close(server.model.get_parameter("head.weight").detach(), -2 * sums @ server.tensors["preconditioner"])


def cells(epsilon: float, **keys: Any) -> Prepared:
    return small_cells({"name": "dp-feature-covariance"}, epsilon=epsilon, dataset={"name": "digits", "limit": 1000}, **keys)


def outcome(epsilon: float, **keys: Any) -> tuple[Outcome, Any]:
    return outcome_and_plan(cells(epsilon, **keys))


def score(epsilon: float) -> float:
    return score_of(cells(epsilon))


def test_it_tells_digits_apart_without_noise_and_under_it() -> None:
    assert score(math.inf) > 0.9
    assert score(8.0) > 0.8


@pytest.mark.parametrize("trust", ["aggregate", "silo"])
def test_coordinates_second_moment_and_steps_share_the_budget(trust: str) -> None:
    found, plan = outcome(4.0, trust=trust)
    assert [(release.name, release.steps) for release in plan.releases] == [
        ("mean", 1),
        ("spread", 1),
        ("second moment", 1),
        ("dp-sgd", 20),
    ]
    shares = [release.steps * (release.sample_rate / release.relative_noise) ** 2 for release in plan.releases]
    assert shares == pytest.approx([0.064, 0.096, 0.2, 0.64])
    assert found.epsilon_spent == pytest.approx(plan.epsilon_reached)
    assert plan.claim == "proved"
