"""Estimates that know how noisy they are: without noise they change nothing, with noise they come
closer, drowned they tell all alike.
"""

import torch

from fedsim.privacy.statistics.shrinkage import james_stein, pooled_and_own


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_james_stein_keeps_what_stands_out_and_nothing_of_noise_alone() -> None:
    signal = torch.randn(6, 10, generator=stream())
    torch.testing.assert_close(james_stein(signal, torch.zeros(6)), signal)
    assert james_stein(signal, torch.full((6,), 100.0)).abs().max() == 0
    two = james_stein(signal, torch.tensor([0.01] * 5 + [10.0]))
    assert two[5].norm() < 0.2 * signal[5].norm()
    assert two[0].norm() > 0.9 * signal[0].norm()


def test_covariances_keep_what_stands_out_of_the_noise_and_stay_positive() -> None:
    shared = 0.1 * torch.eye(4)
    different = torch.diag(torch.tensor([0.4, 0.1, 0.1, 0.03]))
    # so many that sampling is nothing
    counts = torch.tensor([5e8, 5e8])
    means = torch.zeros(2, 4)
    own = pooled_and_own(torch.stack([different, shared]), means, counts, 0.0)
    torch.testing.assert_close(own, torch.stack([different, shared]), atol=1e-5, rtol=0)
    drowned = pooled_and_own(torch.stack([different, shared]), means, counts, 1e10)
    torch.testing.assert_close(drowned[0], drowned[1])
    torch.testing.assert_close(drowned[0], drowned[0, 0, 0] * torch.eye(4))
    negative = pooled_and_own(torch.stack([-different, 3 * different]), means, counts, 0.0)
    assert torch.linalg.eigvalsh(negative).min() > 0
