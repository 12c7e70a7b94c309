"""The kernel score has the gradient of MMD^2, and random features estimate the kernel."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from streams import seeded
from torch import Tensor

from fedsim.models.kernel import kernel, kernel_features, kernel_frequencies, kernel_score

DIM = 6


def unit_rows(rows: int, seed: int) -> Tensor:
    stream = seeded(seed)
    x = torch.randn(
        rows,
        DIM,
        generator=stream,
        dtype=torch.float64,
    )
    return torch.nn.functional.normalize(x)


def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
    differences = a[:, None] - b[None]
    return kernel(differences.square().sum(-1)).mean()


def mmd2(x: Tensor, made: Tensor) -> Tensor:
    """Return MMD^2 between two empirical distributions, diagonals included."""
    return mean_kernel(x, x) + mean_kernel(made, made) - 2 * mean_kernel(x, made)


def test_expected_gradient_of_the_score_is_that_of_mmd2() -> None:
    """The generator is uniform on a few points, so its expectation is a sum over all pairs."""
    x = unit_rows(40, 0)
    points = unit_rows(7, 1).requires_grad_(True)
    first, second = torch.cartesian_prod(
        torch.arange(7),
        torch.arange(7),
    ).T
    scores = []
    for row in x:
        score = kernel_score(
            row.expand(len(first), -1),
            points[first],
            points[second],
        )
        scores.append(score.mean())
    (gradient,) = torch.autograd.grad(
        torch.stack(scores).mean(),
        points,
    )
    (expected,) = torch.autograd.grad(
        mmd2(x, points),
        points,
    )
    assert torch.allclose(
        gradient,
        expected,
        rtol=1e-9,
        atol=1e-12,
    )


def features(rows: Tensor, count: int, seed: int = 5) -> Tensor:
    frequencies = kernel_frequencies(
        DIM,
        count,
        seeded(seed),
    )
    return kernel_features(rows.float(), frequencies)


def test_features_estimate_the_kernel_and_mmd2() -> None:
    a = unit_rows(40, 3)
    b = unit_rows(50, 4) * 0.5
    of_a = features(a, 10_000)
    of_b = features(b, 10_000)
    exact = kernel(torch.cdist(a, b).square())
    difference = of_a.mean(0) - of_b.mean(0)
    estimate = difference.square().sum()
    assert (of_a @ of_b.T - exact).abs().max() < 0.04
    expected = float(mmd2(a, b))
    assert expected > 0.05
    assert float(estimate) == pytest.approx(expected, abs=0.01)


@given(
    scale=st.floats(0, 100),
    count=st.integers(1, 40),
    seed=st.integers(0, 100),
)
def test_features_have_norm_one_for_any_row(
    scale: float,
    count: int,
    seed: int,
) -> None:
    rows = scale * unit_rows(5, seed)
    norms = features(rows, count, seed).norm(dim=1)
    assert torch.allclose(
        norms,
        torch.ones(5),
        atol=1e-5,
    )
