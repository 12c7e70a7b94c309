from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsim.models.kernel import kernel, kernel_features, kernel_frequencies, kernel_score

DIM = 6
DATA = 40


def unit_rows(rows: int, seed: int) -> torch.Tensor:
    x = torch.randn(rows, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x / x.norm(dim=1, keepdim=True)


def exact_mmd2(x: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    """MMD^2 between the empirical distributions of ``x`` and ``made``, diagonals included: all
    expectations are finite sums.
    """

    def mean(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return kernel((a[:, None] - b[None]).square().sum(-1)).mean()

    return mean(x, x) + mean(made, made) - 2 * mean(x, made)


def test_its_expected_gradient_is_mmds():
    """A generator that is uniform on a few points: the expectation over its draws is a sum over all
    pairs, without sampling error.
    """
    x = unit_rows(DATA, 0)
    points = unit_rows(7, 1).requires_grad_(True)
    pairs = torch.cartesian_prod(torch.arange(7), torch.arange(7))
    scores = [
        kernel_score(row.expand(len(pairs), -1), points[pairs[:, 0]], points[pairs[:, 1]]).mean()
        for row in x
    ]
    (found,) = torch.autograd.grad(torch.stack(scores).mean(), points)
    (right,) = torch.autograd.grad(exact_mmd2(x, points), points)
    assert torch.allclose(found, right, rtol=1e-9, atol=1e-12)


def test_features_give_the_kernel_and_the_mmd_of_two_samples():
    a = unit_rows(40, 3)
    b = unit_rows(50, 4) * 0.5
    frequencies = kernel_frequencies(DIM, 10_000, torch.Generator().manual_seed(5))
    features = [kernel_features(rows.float(), frequencies) for rows in (a, b)]
    exact = kernel(torch.cdist(a, b).square())
    assert (features[0] @ features[1].T - exact).abs().max() < 0.04
    mmd2 = (
        kernel(torch.cdist(a, a).square()).mean()
        + kernel(torch.cdist(b, b).square()).mean()
        - 2 * exact.mean()
    )
    assert mmd2 > 0.05
    assert float((features[0].mean(0) - features[1].mean(0)).square().sum()) == pytest.approx(
        float(mmd2), abs=0.01
    )


@given(scale=st.floats(0, 100), count=st.integers(1, 40), seed=st.integers(0, 100))
def test_features_have_norm_one_whatever_the_row_is(scale: float, count: int, seed: int):
    frequencies = kernel_frequencies(DIM, count, torch.Generator().manual_seed(seed))
    norms = kernel_features(scale * unit_rows(5, seed).float(), frequencies).norm(dim=1)
    assert torch.allclose(norms, torch.ones(5), atol=1e-5)
