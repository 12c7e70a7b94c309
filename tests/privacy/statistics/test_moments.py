import numpy as np
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
