from __future__ import annotations

import math

import torch
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from fedsim.batch import Layout
from fedsim.models.cvae import Encoder, ObservationNoise, gaussian_nll, kl_normal, sample_posterior

ROWS, DIM, LATENT = 9, 5, 3
stream = torch.Generator().manual_seed(0)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=stream)


def normal(mean: torch.Tensor, log_var: torch.Tensor) -> Independent:
    return Independent(Normal(mean, (0.5 * log_var).exp().expand_as(mean)), 1)


def test_the_likelihood_is_torchs_up_to_the_constant():
    x, decoded, log_var = draw(ROWS, DIM), draw(ROWS, DIM), draw(ROWS, 1)
    right = -normal(decoded, log_var).log_prob(x) - DIM / 2 * math.log(2 * math.pi)
    assert torch.allclose(gaussian_nll(x, decoded, log_var), right, rtol=1e-5)


def test_the_divergence_is_torchs():
    (mean, log_var), prior_mean = (draw(ROWS, LATENT), draw(ROWS, LATENT)), draw(ROWS, LATENT)
    root = draw(ROWS, LATENT, LATENT).tril(-1) + torch.diag_embed(draw(ROWS, LATENT).exp())
    q = MultivariateNormal(mean, torch.diag_embed(log_var.exp()))
    p = MultivariateNormal(prior_mean, precision_matrix=root.mT @ root)
    assert torch.allclose(kl_normal(mean, log_var, prior_mean, root), kl_divergence(q, p), rtol=1e-3)


def test_the_posterior_draw_has_its_mean_and_deviation():
    mean, log_var = draw(1, LATENT).expand(20_000, -1), draw(1, LATENT).expand(20_000, -1)
    z = sample_posterior(mean, log_var, draw(20_000, LATENT))
    assert torch.allclose(z.mean(0), mean[0], atol=0.1)
    assert torch.allclose(z.std(0), (0.5 * log_var[0]).exp(), rtol=0.05)


def test_the_observation_variance_starts_as_asked_and_is_the_same_for_all():
    noise = ObservationNoise(0.3)
    assert torch.allclose(noise(draw(ROWS, DIM)).exp(), torch.full((ROWS, 1), 0.3))


def test_a_cohorts_encoders_are_each_clients_own():
    """Two clients' encoders side by side give what each gives alone."""
    both = Encoder(DIM, 2, [4], LATENT, clients=2)
    with torch.no_grad():
        for parameter in both.parameters():
            parameter.copy_(draw(*parameter.shape))
    x, y, client = draw(ROWS, DIM), torch.arange(ROWS) % 2, torch.tensor([0] * 4 + [1] * 5)
    mean, log_var = both(x, y, Layout(client, 2))
    for index in range(2):
        single = Encoder(DIM, 2, [4], LATENT)
        single.load_state_dict({name: value[index] for name, value in both.state_dict().items()})
        mine = client == index
        alone = single(x[mine], y[mine])
        assert torch.allclose(mean[mine], alone[0], atol=1e-5)
        assert torch.allclose(log_var[mine], alone[1], atol=1e-5)
