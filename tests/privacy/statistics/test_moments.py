import math

import numpy as np
import pytest
import torch

from fedsim.methods.parameters import rounded
from fedsim.privacy.clipping import Norms
from fedsim.privacy.statistics import moments
from fedsim.privacy.statistics.outer_products import clipped_statistics, unit_weights
from fedsim.seeds import Purpose, Seeds

CLASSES, DIM = 3, 6


def rows(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    stream = Seeds(0).torch(Purpose.SYNTHESIS)
    x = torch.randn(count, DIM, generator=stream) + torch.tensor([3.0, 0, 0, 0, 0, 0])
    return x / x.norm(dim=1, keepdim=True), torch.arange(count) % CLASSES


def released(products: moments.Products, weights: dict[str, float]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    return clipped_statistics(products, Norms(1.0, weights=unit_weights(weights)))


@pytest.mark.parametrize("name", ["mean", "moments"])
def test_every_example_changes_a_release_by_at_most_one(name: str) -> None:
    x, y = rows(40)
    mean = x.mean(0)

    def sums(keep: torch.Tensor) -> dict[str, torch.Tensor]:
        kept, labels = x[keep], y[keep]
        if name == "mean":
            return released(moments.mean_products(kept), moments.MEAN_WEIGHTS)[0]
        r = moments.in_unit_ball((kept - mean) / 0.2)
        return released(moments.moment_products(r, labels, CLASSES), moments.MOMENT_WEIGHTS)[0]

    everyone = torch.arange(40)
    whole = sums(everyone)
    changes = []
    for removed in range(40):
        part = sums(everyone[everyone != removed])
        changes.append(math.sqrt(sum(float((whole[k] - part[k]).square().sum()) for k in whole)))
    assert max(changes) <= 1 + 1e-5
    assert max(changes) > 0.5  # the bound is used, not just kept


def test_without_noise_the_moments_are_those_of_the_rows() -> None:
    x, y = rows(300)
    r = moments.in_unit_ball((x - x.mean(0)) / 2.0)
    sums, _ = released(moments.moment_products(r, y, CLASSES), moments.MOMENT_WEIGHTS)
    weights = unit_weights(moments.MOMENT_WEIGHTS)
    exact = {name: value / weights[name] for name, value in rounded(sums).items()}
    estimates = moments.gaussians(exact, dict.fromkeys(weights, 0.0))
    means = torch.stack([r[y == c].mean(0) for c in range(CLASSES)])
    within = np.cov((r - means[y]).numpy().T, bias=True)
    torch.testing.assert_close(estimates.means, means, atol=1e-5, rtol=0)
    np.testing.assert_allclose(estimates.covariance.numpy(), within, atol=1e-5)


def test_the_rows_squared_norm_is_seen_where_noise_is_small_and_believed_where_it_is_large() -> None:
    x, y = rows(300)
    r = moments.in_unit_ball((x - x.mean(0)) / 2.0)
    sums = {name: product.left.T @ product.right for name, product in moments.moment_products(r, y, CLASSES).items()}
    std = {"class_sums": 0.0, "class_counts": 0.0}
    seen, believed = float(r.square().sum(1).mean()), 0.9
    traces = []
    for noise in (0.0, 5.0, 500.0):
        noisy = sums | {"second": sums["second"] + noise * torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(0))}
        estimates = moments.gaussians(noisy, std | {"second": noise}, torch.tensor(believed))
        traces.append(float(estimates.second.trace()))
        unseen = moments.gaussians(noisy, std | {"second": noise})
        torch.testing.assert_close(off_diagonal(estimates.second), off_diagonal(unseen.second))
        variance = DIM * (noise / len(x)) ** 2
        weight = moments.PRIOR_ERROR**2 / (moments.PRIOR_ERROR**2 + variance)
        assert traces[-1] == pytest.approx(weight * float(unseen.second.trace()) + (1 - weight) * believed, abs=1e-4)
    assert traces[0] == pytest.approx(seen, abs=1e-5)
    assert seen < traces[1] < believed
    assert traces[2] == pytest.approx(believed, abs=0.05)


def off_diagonal(matrix: torch.Tensor) -> torch.Tensor:
    return matrix - torch.diag(matrix.diag())


def test_principal_directions_rebuild_the_covariance_and_its_trace() -> None:
    root = torch.randn(DIM, DIM, generator=Seeds(1).torch(Purpose.SYNTHESIS))
    covariance = root @ root.T
    basis, within, rest = moments.principal(covariance, 0.0, DIM - 2)
    assert basis.shape == (DIM, DIM - 2)
    torch.testing.assert_close(torch.trace(covariance), within.trace() + DIM * rest, rtol=1e-4, atol=0)
    torch.testing.assert_close(covariance @ basis, basis @ within, rtol=1e-3, atol=1e-3)


def clients() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    stream = torch.Generator().manual_seed(5)
    means, client = 0.1 * torch.randn(4, 30, generator=stream), torch.arange(4).repeat_interleave(400)
    return 0.02 * torch.randn(len(client), 30, generator=stream) + means[client], client, means


def client_means(std: float) -> torch.Tensor:
    """Means of four clients, from sums with noise of ``std``."""
    x, client, _ = clients()
    stream, weights = torch.Generator().manual_seed(6), unit_weights(moments.CLIENT_WEIGHTS)
    sums = released(moments.client_mean_products(x, client, 4), moments.CLIENT_WEIGHTS)[0]
    noisy = [(value + std * torch.randn(value.shape, generator=stream)) / weights[name] for name, value in rounded(sums).items()]
    return moments.client_means(*noisy, {name: std / weight for name, weight in weights.items()})


def test_client_means_without_noise_are_each_clients_mean() -> None:
    torch.testing.assert_close(client_means(0.0), clients()[2], atol=0.01, rtol=0)


def test_clients_that_do_not_differ_get_like_estimates_however_few_rows_some_of_them_have() -> None:
    stream, counts = torch.Generator().manual_seed(7), torch.tensor([[900.0], [600.0], [300.0], [3.0]])
    mean, std = torch.ones(1280) / 1280**0.5, {"client_sums": 8.0, "client_counts": 20.0}
    sums = counts * mean + std["client_sums"] * torch.randn(4, 1280, generator=stream)
    estimates = moments.client_means(sums, counts, std)
    assert (estimates - estimates.mean(0)).square().sum(1).max() < 0.01
    assert (estimates - mean).square().sum(1).max() < 1.2 * 8.0**2 * 1280 / float(counts.square().sum())


@pytest.mark.parametrize("noise", [0.0, 3.0, 300.0])
def test_a_released_mean_is_shrunk_by_its_noise_and_knows_how_far_off_it_is(noise: float) -> None:
    stream, true = torch.Generator().manual_seed(0), torch.full((1000,), 0.02)
    estimates = []
    for _ in range(40):
        drawn = noise * torch.randn(1, 1000, generator=stream)
        estimates.append(moments.released_mean({"sum": 300 * true[None] + drawn, "count": torch.tensor([[300.0]])}, {"sum": noise}))
    off = sum(float((estimate.mean - true).square().sum()) for estimate in estimates) / len(estimates)
    assert off == pytest.approx(sum(float(estimate.error) for estimate in estimates) / len(estimates), rel=0.35, abs=1e-9)
    assert off <= 1.2 * float(true.square().sum())
    assert sum(float(estimate.squared) for estimate in estimates) / len(estimates) == pytest.approx(
        float(true.square().sum()), rel=0.05 + noise / 10
    )


def test_noise_in_their_counts_does_not_set_clients_apart_that_are_alike() -> None:
    stream, mean = torch.Generator().manual_seed(8), torch.ones(300) / 300**0.5
    counts, std = torch.full((20, 1), 500.0), {"client_sums": 0.5, "client_counts": 60.0}
    sums = counts * mean + std["client_sums"] * torch.randn(20, 300, generator=stream)
    noisy = counts + std["client_counts"] * torch.randn(20, 1, generator=stream)
    estimates = moments.client_means(sums, noisy, std)
    raw = sums / noisy
    assert (estimates - estimates.mean(0)).square().sum() < 0.5 * (raw - raw.mean(0)).square().sum()


def test_noise_in_class_means_does_not_narrow_the_covariance_within_classes() -> None:
    stream, dim, counts = torch.Generator().manual_seed(0), 2000, torch.tensor([100.0, 300.0, 600.0])
    means, noise = torch.randn(3, dim, generator=stream) / dim**0.5, torch.tensor([4.0, 1.0, 0.5]) / dim
    second = torch.eye(dim) / dim + (means.T * (counts / 1000)) @ means
    noisy = means + noise.sqrt()[:, None] * torch.randn(3, dim, generator=stream)
    assert float(moments.within(second, noisy, noise, counts).trace()) == pytest.approx(1, abs=0.15)
    assert float(moments.within(second, noisy, torch.zeros(3), counts).trace()) < 0.2
