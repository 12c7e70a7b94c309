from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsim.models.kernel import kernel, kernel_features, kernel_frequencies, kernel_score

DIM, DATA = 6, 40


def unit_rows(rows: int, seed: int) -> torch.Tensor:
    x = torch.randn(rows, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x / x.norm(dim=1, keepdim=True)


def test_the_kernel_is_one_at_distance_zero_and_falls():
    values = kernel(torch.linspace(0, 4, 20))
    assert values[0] == 1
    assert (values.diff() < 0).all()


def test_the_score_is_per_example():
    x, first, second = unit_rows(5, 0), unit_rows(5, 1), unit_rows(5, 2)
    whole = kernel_score(x, first, second)
    alone = torch.cat([kernel_score(x[i : i + 1], first[i : i + 1], second[i : i + 1]) for i in range(5)])
    assert torch.allclose(whole, alone, atol=1e-12)


def exact_mmd2(x: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    """MMD^2 between the empirical distributions of ``x`` and ``made``, diagonals included: all expectations are finite sums."""

    def mean(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return kernel((a[:, None] - b[None]).square().sum(-1)).mean()

    return mean(x, x) + mean(made, made) - 2 * mean(x, made)


def test_its_expected_gradient_is_mmds():
    """A generator that is uniform on a few points: the expectation over its draws is a sum over all pairs, without sampling error."""
    x, points = unit_rows(DATA, 0), unit_rows(7, 1).requires_grad_(True)
    pairs = torch.cartesian_prod(torch.arange(7), torch.arange(7))
    scores = [kernel_score(row.expand(len(pairs), -1), points[pairs[:, 0]], points[pairs[:, 1]]).mean() for row in x]
    (found,) = torch.autograd.grad(torch.stack(scores).mean(), points)
    (right,) = torch.autograd.grad(exact_mmd2(x, points), points)
    assert torch.allclose(found, right, rtol=1e-9, atol=1e-12)


def test_sampled_scores_have_mmds_gradient_on_average():
    """A generator that shifts Gaussian rows: the mean over draws meets MMD^2's gradient within five standard errors, which are small."""
    stream = torch.Generator().manual_seed(2)
    x = unit_rows(DATA, 0) + 0.5
    shift = torch.zeros(DIM, dtype=torch.float64, requires_grad=True)
    gradients = []
    for _ in range(400):
        draws = 0.3 * torch.randn(2, DATA, DIM, generator=stream, dtype=torch.float64)
        score = kernel_score(x, draws[0] + shift, draws[1] + shift).mean()
        gradients.append(torch.autograd.grad(score, shift)[0])
    found = torch.stack(gradients)
    many = 0.3 * torch.randn(3000, DIM, generator=stream, dtype=torch.float64)
    (right,) = torch.autograd.grad(-2 * kernel((x[:, None] - (many + shift)[None]).square().sum(-1)).mean(), shift)
    error = found.std(0) / len(found) ** 0.5
    assert (error < 0.02 * right.norm()).all()
    assert ((found.mean(0) - right).abs() < 5 * error + 0.01 * right.norm()).all()


def test_features_give_the_kernel_and_the_mmd_of_two_samples():
    a, b = unit_rows(40, 3), unit_rows(50, 4) * 0.5
    frequencies = kernel_frequencies(DIM, 10_000, torch.Generator().manual_seed(5))
    features = [kernel_features(rows.float(), frequencies) for rows in (a, b)]
    exact = kernel(torch.cdist(a, b).square())
    assert (features[0] @ features[1].T - exact).abs().max() < 0.04
    mmd2 = kernel(torch.cdist(a, a).square()).mean() + kernel(torch.cdist(b, b).square()).mean() - 2 * exact.mean()
    assert mmd2 > 0.05
    assert float((features[0].mean(0) - features[1].mean(0)).square().sum()) == pytest.approx(float(mmd2), abs=0.01)


def test_frequencies_of_one_stream_are_the_same():
    one, again, other = (kernel_frequencies(3, 8, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@given(scale=st.floats(0, 100), count=st.integers(1, 40), seed=st.integers(0, 100))
def test_features_have_norm_one_whatever_the_row_is(scale: float, count: int, seed: int):
    frequencies = kernel_frequencies(DIM, count, torch.Generator().manual_seed(seed))
    norms = kernel_features(scale * unit_rows(5, seed).float(), frequencies).norm(dim=1)
    assert torch.allclose(norms, torch.ones(5), atol=1e-5)
