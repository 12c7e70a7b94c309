"""Estimates that know how noisy they are: without noise they change nothing, with noise they come closer, drowned they tell all alike."""

import pytest
import torch

from fedsim.privacy.statistics.shrinkage import (
    free_eigenvalues,
    james_stein,
    pooled_and_own,
    shrunk_along,
)
from fedsim.privacy.statistics.spectral import descending


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noisy(matrix: torch.Tensor, noise: float) -> torch.Tensor:
    error = noise * torch.randn(matrix.shape, generator=stream(1), dtype=torch.double)
    return matrix + (error + error.T) / 2**0.5


@pytest.mark.parametrize("noise", [0.02, 0.1])
def test_free_eigenvalues_are_closer_to_what_the_covariance_has_along_the_vectors_that_are_seen(noise: float) -> None:
    truth = torch.diag(torch.linspace(3, 0.1, 200, dtype=torch.double).square() / 4)
    values, vectors = descending(noisy(truth, noise))
    along = (vectors * (truth @ vectors)).sum(0)
    estimates = free_eigenvalues(values, noise)
    assert (estimates - along).norm() < 0.5 * (values - along).norm()
    assert (estimates.diff() <= 1e-12).all()


def test_shrunk_means_come_closer_to_the_truth_most_of_all_for_a_rare_class() -> None:
    dim, noise = 200, torch.tensor([0.001, 0.001, 0.001, 0.001, 0.2], dtype=torch.double)
    values = torch.linspace(2, 0.01, dim, dtype=torch.double)
    truth = torch.randn(5, dim, generator=stream(), dtype=torch.double) * (torch.arange(dim) < 10) + 0.3 * (torch.arange(dim) < 20)
    seen = truth + noise.sqrt()[:, None] * torch.randn(5, dim, generator=stream(2), dtype=torch.double)
    before, after = ((means - truth).norm(dim=1) for means in (seen, shrunk_along(seen, noise, values)))
    assert (after <= before).all()
    assert after[-1] < 0.4 * before[-1]


def test_james_stein_keeps_what_stands_out_and_nothing_of_noise_alone() -> None:
    signal = torch.randn(6, 10, generator=stream())
    torch.testing.assert_close(james_stein(signal, torch.zeros(6)), signal)
    assert james_stein(signal, torch.full((6,), 100.0)).abs().max() == 0
    two = james_stein(signal, torch.tensor([0.01] * 5 + [10.0]))
    assert two[5].norm() < 0.2 * signal[5].norm()
    assert two[0].norm() > 0.9 * signal[0].norm()


def test_covariances_keep_what_stands_out_of_the_noise_and_stay_positive() -> None:
    shared, different = 0.1 * torch.eye(4), torch.diag(torch.tensor([0.4, 0.1, 0.1, 0.03]))
    # so many that sampling is nothing
    counts, means = torch.tensor([5e8, 5e8]), torch.zeros(2, 4)
    own = pooled_and_own(torch.stack([different, shared]), means, counts, 0.0)
    torch.testing.assert_close(own, torch.stack([different, shared]), atol=1e-5, rtol=0)
    drowned = pooled_and_own(torch.stack([different, shared]), means, counts, 1e10)
    torch.testing.assert_close(drowned[0], drowned[1])
    torch.testing.assert_close(drowned[0], drowned[0, 0, 0] * torch.eye(4))
    negative = pooled_and_own(torch.stack([-different, 3 * different]), means, counts, 0.0)
    assert torch.linalg.eigvalsh(negative).min() > 0
