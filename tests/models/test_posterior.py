import math

import pytest
import torch

from fedsim.models.cvae import inverse_root, linear_posterior, posterior_spread
from fedsim.seeds import Purpose, Seeds

CLIENTS, CLASSES, DIM, SIZE, ROWS = 2, 3, 7, 4, 30


def test_the_draw_has_the_posterior_mean_and_covariance_of_the_joint_gaussian() -> None:
    stream = Seeds(0).torch(Purpose.META)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=stream, dtype=torch.float64)

    linear, scales = normal(DIM, SIZE), 1 + 0.3 * normal(CLIENTS, DIM)
    prior_mean = normal(CLIENTS, CLASSES, SIZE)
    prior_root = 0.5 * normal(CLIENTS, CLASSES, SIZE, SIZE).tril(-1) + torch.diag_embed((0.5 * normal(CLIENTS, CLASSES, SIZE)).exp())
    residual, variance = normal(ROWS, DIM), torch.tensor(0.5, dtype=torch.float64)
    client, label = torch.arange(ROWS) % CLIENTS, torch.arange(ROWS) % CLASSES

    def draw(noise: torch.Tensor) -> torch.Tensor:
        return drawn(noise)[0]

    def drawn(noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        group = torch.stack([client, label])
        root = posterior_spread(linear, scales, prior_root, variance)
        mean, deviation, density = linear_posterior(residual, group, linear, scales, (prior_mean, prior_root), variance, root, noise)
        return mean + deviation, density

    mean = draw(torch.zeros(ROWS, SIZE, dtype=torch.float64))
    roots = torch.stack([draw(torch.eye(SIZE, dtype=torch.float64)[j].expand(ROWS, SIZE)) - mean for j in range(SIZE)], 2)
    for n in range(ROWS):
        # Conditioning of the joint Gaussian of (z, x), written the other way round: through the covariance of x.
        a = scales[client[n], :, None] * linear
        prior = torch.linalg.inv(prior_root[client[n], label[n]].T @ prior_root[client[n], label[n]])
        gain = prior @ a.T @ torch.linalg.inv(a @ prior @ a.T + variance * torch.eye(DIM, dtype=torch.float64))
        start = prior_mean[client[n], label[n]]
        torch.testing.assert_close(mean[n], start + gain @ (residual[n] - a @ start))
        torch.testing.assert_close(roots[n] @ roots[n].T, prior - gain @ a @ prior)

    noise = normal(ROWS, SIZE)
    z, density = drawn(noise)
    for n in range(ROWS):
        exact = torch.distributions.MultivariateNormal(mean[n], roots[n] @ roots[n].T).log_prob(z[n])
        torch.testing.assert_close(density[n], exact + SIZE / 2 * math.log(2 * math.pi))


def test_the_root_of_an_inverse_is_that_and_no_matrix_passes_that_has_none() -> None:
    square = torch.randn(3, 5, 5, generator=Seeds(0).torch(Purpose.META), dtype=torch.float64)
    precision = square @ square.mT + torch.eye(5, dtype=torch.float64)
    root = inverse_root(precision)
    torch.testing.assert_close(root @ root.mT, torch.linalg.inv(precision))
    with pytest.raises(ValueError, match="not positive definite"):
        inverse_root(-precision)
