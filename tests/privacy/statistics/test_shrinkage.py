"""Estimates that take noise into account.

Without noise they change nothing; noise alone leaves nothing.
"""

import pytest
import torch
from streams import seeded
from torch import Tensor
from torch.testing import assert_close

from fedsim.privacy.statistics import spectral
from fedsim.privacy.statistics.shrinkage import james_stein, pooled_and_own

SIGNAL = torch.randn(
    6,
    10,
    generator=seeded(0),
)


def test_james_stein_keeps_estimates_without_noise() -> None:
    assert_close(james_stein(SIGNAL, torch.zeros(6)), SIGNAL)


def test_james_stein_keeps_nothing_of_noise_alone() -> None:
    assert james_stein(SIGNAL, torch.full((6,), 100.0)).abs().max() == 0


def test_james_stein_shrinks_noisy_groups_more() -> None:
    shrunk = james_stein(SIGNAL, torch.tensor([0.01] * 5 + [10.0]))
    kept = shrunk.norm(dim=1) / SIGNAL.norm(dim=1)
    assert kept[5] < 0.2
    assert kept[0] > 0.9


SHARED = 0.1 * torch.eye(4)
DIFFERENT = torch.diag(torch.tensor([0.4, 0.1, 0.1, 0.03]))


def shrunk_covariances(second: list[Tensor], std: float) -> Tensor:
    """Return the estimates for so many rows that the sampling error is nothing."""
    return pooled_and_own(
        torch.stack(second),
        torch.zeros(2, 4),
        torch.tensor([5e8, 5e8]),
        std,
    )


def test_covariances_without_noise_are_kept() -> None:
    kept = shrunk_covariances([DIFFERENT, SHARED], 0.0)
    assert_close(
        kept,
        torch.stack([DIFFERENT, SHARED]),
        atol=1e-5,
        rtol=0,
    )


def test_covariances_of_noise_alone_are_one_multiple_of_the_identity() -> None:
    first, second = shrunk_covariances([DIFFERENT, SHARED], 1e10)
    assert_close(first, second)
    assert_close(first, first[0, 0] * torch.eye(4))


def test_covariances_stay_positive() -> None:
    estimates = shrunk_covariances([-DIFFERENT, 3 * DIFFERENT], 0.0)
    assert torch.linalg.eigvalsh(estimates).min() > 0


def test_covariances_do_not_depend_on_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    together = shrunk_covariances([DIFFERENT, SHARED], 1e6)
    monkeypatch.setattr(spectral, "NUMBERS_AT_ONCE", 1)
    assert_close(shrunk_covariances([DIFFERENT, SHARED], 1e6), together)


def test_second_moments_stay_as_they_are() -> None:
    second = torch.stack([DIFFERENT, SHARED])
    before = second.clone()
    pooled_and_own(second, torch.ones(2, 4), torch.ones(2), 0.1)
    assert torch.equal(second, before)
