"""Estimates that know how noisy they are: without noise they change nothing, with noise they come closer, drowned they tell all alike."""

import pytest
import torch

from fedsim.privacy.statistics.shrinkage import (
    STEPS,
    affordable,
    free_eigenvalues,
    james_stein,
    of_two,
    pooled_and_own,
    relative_covariances,
    shrunk_along,
)
from fedsim.privacy.statistics.spectral import descending, square_root


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


def test_a_group_that_has_little_noise_speaks_for_all_but_where_groups_count_by_their_squares() -> None:
    estimates = torch.randn(10, 20, generator=stream())
    estimates[0] *= 0.01
    noise = torch.tensor([1e-6] + [0.05] * 9)
    kept, cautious = james_stein(estimates.double(), noise.double(), steps=STEPS), james_stein(estimates, noise)
    assert cautious[1:].norm() < 0.1 * estimates[1:].norm()
    assert (kept[1:].norm(dim=1) > 0.9 * estimates[1:].norm(dim=1)).all()


def test_directions_in_which_there_is_nothing_do_not_count() -> None:
    estimates, noise = torch.randn(10, 6, generator=stream()), torch.full((10,), 0.3)
    wide = torch.cat([estimates, torch.zeros(10, 50)], 1)
    torch.testing.assert_close(james_stein(wide, noise, 6)[:, :6], james_stein(estimates, noise))
    assert james_stein(wide, noise).norm() < 0.8 * james_stein(estimates, noise).norm()


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


def test_groups_covariances_keep_what_stands_out_of_noise_and_sampling_and_the_rest_are_as_expected() -> None:
    size, drawn = 6, stream()
    scale, counts = torch.tensor([3.0, 1.0, 1.0, 1.0, 0.5, 0.2]), torch.tensor([2_000.0, 2_000.0, 10.0])
    mixing = torch.randn(3, size, size, generator=drawn)
    expected = mixing @ mixing.mT + torch.eye(size)
    root = square_root(expected)
    rows = [torch.randn(int(n), size, generator=drawn) * (scale if group == 0 else 1) @ root[group] for group, n in enumerate(counts)]
    seconds = 7 * torch.stack([own.T @ own / len(own) for own in rows])
    apart, alike, few = relative_covariances(seconds, expected, counts, std=0.0)
    torch.testing.assert_close(apart, torch.diag(scale.square() / scale.square().mean()), atol=0.25, rtol=0)
    for nothing in (alike, few, *relative_covariances(seconds, expected, counts, std=1e6)):
        assert float((nothing - torch.eye(size)).norm()) < 0.8


def test_a_covariance_of_as_many_directions_as_are_affordable_is_seen_that_well() -> None:
    rows, noise, resolution = 5000.0, 10.0, 0.3
    size = affordable(rows, noise, resolution)
    error = noisy(torch.zeros(size, size, dtype=torch.double), noise * size / rows)
    assert 0.5 * resolution < torch.linalg.eigvalsh(error).max() < 1.3 * resolution


def test_a_diagonal_entry_of_a_covariance_has_twice_the_noise_of_another() -> None:
    second, counts = torch.tensor([1.0, 2.0])[:, None, None], torch.tensor([100.0, 100.0])
    found = pooled_and_own(second, torch.zeros(2, 1), counts, std=0.25 * 100)
    kept = 1 - (2 * 0.25**2 + 2 * 1.5**2 / 100) / 0.5**2
    torch.testing.assert_close(found.flatten(), 1.5 + kept * torch.tensor([-0.5, 0.5]))


def test_of_two_estimates_the_better_known_counts_more_and_the_result_is_known_better_than_either() -> None:
    truth, noise, other = torch.randn(3, 5000, generator=stream()), torch.tensor([0.1, 1.0, 4.0]), torch.tensor([1.0, 1.0, 0.5])
    first = truth + noise.sqrt()[:, None] * torch.randn(truth.shape, generator=stream(1))
    second = truth + other.sqrt()[:, None] * torch.randn(truth.shape, generator=stream(2))
    estimates, expected = of_two(first, noise, second, other)
    error = (estimates - truth).square().mean(1)
    torch.testing.assert_close(error, expected, rtol=0.1, atol=0)
    assert (error < torch.minimum(noise, other)).all()


def test_of_two_estimates_one_without_noise_is_taken_as_it_is_and_two_are_averaged() -> None:
    first, second, noise = torch.zeros(3), torch.ones(3), torch.tensor([0.0, 1.0, 0.0])
    estimates, left = of_two(first, noise, second, torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(estimates, torch.tensor([0.0, 1.0, 0.5]))
    assert left.max() < 1e-20


def test_what_follows_from_some_directions_is_shrunk_by_its_own_signal() -> None:
    stream, size, rows = torch.Generator().manual_seed(0), 8, 60
    onto = torch.diag((torch.arange(size) < 2).float())
    own = torch.stack([torch.eye(size) + torch.diag(scale * (torch.arange(size) >= 2).float()) for scale in (4.0, -0.9)])
    drawn = torch.stack([torch.cov(root @ torch.randn(size, rows, generator=stream)) for root in own.sqrt()])
    counts, means = torch.full((2,), float(rows)), torch.zeros(2, size)
    across = [
        (onto @ (covariances - covariances.mean(0)) @ (torch.eye(size) - onto)).norm()
        for covariances in (pooled_and_own(drawn, means, counts, 0.0), pooled_and_own(drawn, means, counts, 0.0, onto))
    ]
    assert across[1] < 0.6 * across[0]
