"""The closed form's own mathematics; what every algorithm must keep is in tests/kit and tests/test_algorithms.py."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from cells import small_cells
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from baselines.dp_least_squares import DPLeastSquares, DPLeastSquaresParams
from fedsim.methods.messages import Server, Task
from fedsim.methods.one_shot import Rows
from fedsim.privacy.clipping import Norms
from fedsim.privacy.statistics.moments import MOMENT_WEIGHTS
from fedsim.privacy.statistics.outer_products import clipped_statistics, unit_weights
from fedsim.seeds import Seeds
from fedsim.simulation.trial import Outcome, run_trial

DIM, CLASSES = 6, 3


def method(**params: float) -> DPLeastSquares:
    return DPLeastSquares(DPLeastSquaresParams.model_validate(params), Task(DIM, CLASSES, 2))


def classes_apart(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three unequal classes with one wide direction, in a small ball off the origin."""
    stream = torch.Generator().manual_seed(seed)
    y = torch.multinomial(torch.tensor([0.7, 0.2, 0.1]), rows, replacement=True, generator=stream)
    spread = torch.tensor([0.08, 0.02, 0.02, 0.02, 0.02, 0.02])
    means = 0.05 * torch.randn(CLASSES, DIM, generator=stream)
    return 0.3 + means[y] + spread * torch.randn(rows, DIM, generator=stream), y


def receive(algorithm: DPLeastSquares, x: torch.Tensor, y: torch.Tensor, std: dict[str, float], noise: torch.Generator) -> Server:
    """The server after the moments of some rows with noise of that ``std``, the mean being exact."""
    server = Server(torch.nn.Module(), Seeds(0), tensors={"mean": x.mean(0)})
    weights = unit_weights(MOMENT_WEIGHTS)
    sums, _ = clipped_statistics(algorithm.moment_products(Rows(x, y, torch.zeros_like(y)), server.tensors), Norms(1.0, weights=weights))
    noisy = {name: value / weights[name] + std[name] * torch.randn(value.shape, generator=noise) for name, value in sums.items()}
    algorithm.receive_moments(server, noisy, std)
    return server


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0, 100))
def test_one_row_adds_at_most_one_to_all_moments_together(seed: int, scale: float) -> None:
    stream = torch.Generator().manual_seed(seed)
    x, y = scale * torch.randn(10, DIM, generator=stream), torch.randint(CLASSES, (10,), generator=stream)
    products = method().moment_products(Rows(x, y, torch.zeros_like(y)), {"mean": torch.randn(DIM, generator=stream)})
    _, norms = clipped_statistics(products, Norms(1.0, weights=unit_weights(MOMENT_WEIGHTS)))
    assert norms.max() <= 1 + 1e-5


def test_without_noise_it_is_the_discriminant_of_equal_priors() -> None:
    x, y = classes_apart(4000, 0)
    algorithm = method(radius=2.0)
    server = receive(algorithm, x, y, dict.fromkeys(MOMENT_WEIGHTS, 0.0), torch.Generator())
    found = algorithm.classifier(server).probabilities(x)
    known = LinearDiscriminantAnalysis(solver="lsqr", priors=np.full(CLASSES, 1 / CLASSES)).fit(x.double(), y).predict_proba(x.double())
    assert float((found.argmax(1) == torch.from_numpy(known).argmax(1)).float().mean()) > 0.995


def test_noise_in_the_means_favours_no_class_because_it_is_rare() -> None:
    """The mean over draws of a rare class's bias is that without noise: what noise adds to the square is taken off."""
    x, y = classes_apart(4000, 1)
    algorithm, silent = method(radius=1.0), dict.fromkeys(MOMENT_WEIGHTS, 0.0)
    exact = receive(algorithm, x, y, silent, torch.Generator()).tensors["bias"]
    stream = torch.Generator().manual_seed(2)
    drawn = torch.stack([receive(algorithm, x, y, silent | {"class_sums": 20.0}, stream).tensors["bias"] for _ in range(400)])
    error = drawn.std(0) / math.sqrt(len(drawn))
    # the means' noise also moves the covariance, whose part is known on average alone
    assert ((drawn.mean(0) - exact).abs() < 5 * error + 0.05 * exact.abs()).all()
    assert error.max() < 0.2 * exact.abs().max()


def outcome(epsilon: float, **keys: Any) -> tuple[Outcome, Any]:
    prepared = small_cells({"name": "dp-least-squares"}, epsilon=epsilon, dataset={"name": "digits", "limit": 1000}, **keys)
    (trial,), (data,) = prepared.trials, prepared.data.values()
    *_, found = run_trial(trial, data)
    assert isinstance(found, Outcome)
    return found, trial.plan


def test_it_tells_digits_apart_without_noise_and_under_it() -> None:
    assert outcome(math.inf)[0].scores.balanced_accuracy > 0.85
    assert outcome(8.0)[0].scores.balanced_accuracy > 0.5


@pytest.mark.parametrize("trust", ["aggregate", "silo"])
def test_mean_and_moments_share_the_budget(trust: str) -> None:
    found, plan = outcome(4.0, trust=trust)
    assert [release.name for release in plan.releases] == ["mean", "moments"]
    assert [release.relative_noise**-2 for release in plan.releases] == pytest.approx([0.1, 0.9])
    assert found.epsilon_spent == pytest.approx(plan.epsilon_reached)
    assert plan.claim == "proved"
