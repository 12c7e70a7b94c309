import math

import numpy as np
import pytest
import torch

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


@pytest.mark.parametrize("name", ["mean", "moments", "class moments"])
def test_every_example_changes_a_release_by_at_most_one(name: str) -> None:
    x, y = rows(40)
    mean = x.mean(0)

    def sums(keep: torch.Tensor) -> dict[str, torch.Tensor]:
        kept, labels = x[keep], y[keep]
        if name == "mean":
            return released(moments.mean_products(kept), moments.MEAN_WEIGHTS)[0]
        r = moments.centred(kept, mean, 0.2)
        if name == "moments":
            return released(moments.moment_products(r, labels, CLASSES), moments.MOMENT_WEIGHTS)[0]
        basis, means = torch.eye(DIM)[:, :4], torch.zeros(CLASSES, DIM)
        return released(moments.class_moment_products(r, labels, means, basis), {"class_second": 1.0})[0]

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
    r = moments.centred(x, x.mean(0), 2.0)
    sums, _ = released(moments.moment_products(r, y, CLASSES), moments.MOMENT_WEIGHTS)
    weights = unit_weights(moments.MOMENT_WEIGHTS)
    exact = {name: value / weights[name] for name, value in sums.items()}
    found = moments.gaussians(exact["class_sums"], exact["class_counts"], exact["second"], dict.fromkeys(weights, 0.0))
    means = torch.stack([r[y == c].mean(0) for c in range(CLASSES)])
    within = np.cov((r - means[y]).numpy().T, bias=True)
    torch.testing.assert_close(found.means, means, atol=1e-5, rtol=0)
    np.testing.assert_allclose(found.covariance.numpy(), within, atol=1e-5)
    torch.testing.assert_close(moments.shrunk_means(found), means, atol=1e-4, rtol=0)


def test_principal_directions_rebuild_the_covariance_and_its_trace() -> None:
    root = torch.randn(DIM, DIM, generator=Seeds(1).torch(Purpose.SYNTHESIS))
    covariance = root @ root.T
    basis, within, rest = moments.principal(covariance, 0.0, DIM - 2)
    assert basis.shape == (DIM, DIM - 2)
    torch.testing.assert_close(torch.trace(covariance), within.trace() + DIM * rest, rtol=1e-4, atol=0)
    torch.testing.assert_close(covariance @ basis, basis @ within, rtol=1e-3, atol=1e-3)


def test_shrinking_brings_noisy_class_means_closer_to_the_truth() -> None:
    stream = Seeds(2).torch(Purpose.NOISE)
    dim, classes, std = 200, 5, 20.0
    truth = torch.zeros(classes, dim)
    truth[:, :5] = torch.randn(classes, 5, generator=stream) * 0.3
    counts = torch.full((classes, 1), 200.0)
    second = 1000 * (truth.T @ truth / classes + torch.diag(torch.cat([torch.full((5,), 0.05), torch.full((dim - 5,), 1e-4)])))
    noisy = truth * counts + std * torch.randn(classes, dim, generator=stream)
    found = moments.gaussians(noisy, counts, second, dict.fromkeys(moments.MOMENT_WEIGHTS, std))
    assert (moments.shrunk_means(found) - truth).norm() < 0.5 * (found.means - truth).norm()


def test_class_covariances_keep_what_stands_out_of_the_noise_and_nothing_else() -> None:
    size, counts = 4, torch.tensor([500.0, 500.0])
    shared = 0.1 * torch.eye(size)
    different = torch.diag(torch.tensor([0.4, 0.1, 0.1, 0.01]))
    sums = torch.stack([different, shared]) * counts[:, None, None]
    own = moments.class_covariances(sums.flatten(0, 1), counts, shared, 0.0)
    torch.testing.assert_close(own[0], different)
    drowned = moments.class_covariances(sums.flatten(0, 1), counts, shared, 1e4)
    torch.testing.assert_close(drowned, shared.expand(2, size, size))


def shifted_clients(clients: int = 4, rows: int = 400, dim: int = 30) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    stream = torch.Generator().manual_seed(5)
    gains = (0.5 * torch.randn(clients, dim, generator=stream)).exp()
    means = 0.1 * torch.randn(clients, dim, generator=stream)
    client = torch.arange(clients).repeat_interleave(rows)
    x = 0.02 * torch.randn(len(client), dim, generator=stream) * gains[client] + means[client]
    return x, client, means, gains / gains.mean(0)


def client_moments(std: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Means and gains of the shifted clients, from sums with noise of ``std``."""
    x, client, _, _ = shifted_clients()
    stream, weights = torch.Generator().manual_seed(6), unit_weights(moments.CLIENT_WEIGHTS)

    def noisy(products: moments.Products, of: dict[str, float]) -> list[torch.Tensor]:
        sums = released(products, of)[0]
        return [(value + std * torch.randn(value.shape, generator=stream)) / unit_weights(of)[name] for name, value in sums.items()]

    means, counts = moments.client_means(
        *noisy(moments.client_mean_products(x, client, 4), weights), {name: std / weight for name, weight in weights.items()}
    )
    r = moments.centred(x, means[client], 1.0)
    (spreads,) = noisy(moments.client_spread_products(r, client, 4), {"client_spreads": 1.0})
    return means, moments.client_gains(spreads, counts, std)


def test_client_moments_without_noise_are_each_clients_mean_and_gains() -> None:
    _, _, means, gains = shifted_clients()
    found = client_moments(0.0)
    torch.testing.assert_close(found[0], means, atol=0.01, rtol=0)
    torch.testing.assert_close(found[1], gains, atol=0, rtol=0.2)


def test_client_moments_drowned_in_noise_tell_all_clients_alike() -> None:
    means, gains = client_moments(1e4)
    assert (gains - 1).abs().mean() < 0.2
    assert (means - means.mean(0)).norm() < 0.3 * means.norm()


@pytest.mark.parametrize("name", ["means", "spreads"])
def test_one_row_changes_the_client_moments_by_at_most_one(name: str) -> None:
    x, client, means, _ = shifted_clients()
    x[7], x[7, 3] = 0, 1.0

    def sums(kept: torch.Tensor) -> list[torch.Tensor]:
        if name == "means":
            return list(released(moments.client_mean_products(x[kept], client[kept], 4), moments.CLIENT_WEIGHTS)[0].values())
        r = moments.centred(x[kept], means[client[kept]], 0.2)
        return list(released(moments.client_spread_products(r, client[kept], 4), {"client_spreads": 1.0})[0].values())

    everyone = torch.arange(len(x))
    change = [a - b for a, b in zip(sums(everyone), sums(everyone[everyone != 7]), strict=True)]
    assert 0.5 < torch.cat([part.flatten() for part in change]).norm() <= 1 + 1e-5
