"""FedHypeVAE's own mathematics beyond the parts that tests/models covers: meta-codes, synthesis,
diagnostics.
"""

import math
from typing import Any

import pytest
import torch

from algorithms.fedhypevae import FedHypeVAE
from algorithms.hyper_cvae import CODE_SCALE, HyperCVAE, fit_meta_codes
from fedsim.batch import Layout
from fedsim.methods import Batch, Seeds, Task
from fedsim.models.kernel import kernel
from fedsim.models.layers import initial_model

DIM = 6
CLASSES = 3
CLIENTS = 5
PARAMS = FedHypeVAE.Params(latent=2, code=2)


def hyper_model(spread: float) -> HyperCVAE:
    """A model whose generator moves by ``spread`` times the code."""
    model = HyperCVAE(PARAMS, DIM, CLASSES, CLIENTS)
    stream = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=stream))
        (layer,) = model.decoder.modulated()
        for head in (layer.scale, layer.shift):
            head.weight.copy_(spread * torch.randn(head.weight.shape, generator=stream))
    return model


def distance(model: Any, meta: torch.Tensor, codes: torch.Tensor) -> float:
    """Squared MMD, many samples, between the generators' mixtures at ``meta`` and at ``codes``."""
    stream = torch.Generator().manual_seed(9)
    y = torch.arange(1500) % CLASSES

    def sample(at: torch.Tensor) -> torch.Tensor:
        picked = at[torch.randint(len(at), (len(y),), generator=stream)]
        draws = [torch.randn(len(y), 1, size, generator=stream) for size in (PARAMS.latent, DIM)]
        with torch.no_grad():
            return model.generate(picked, y, *draws)[:, 0]

    a = sample(meta)
    b = sample(codes)
    within = [kernel(torch.cdist(s, s).square()).mean() for s in (a, b)]
    return float(sum(within) - 2 * kernel(torch.cdist(a, b).square()).mean())


def test_the_neutral_code_is_closer_to_the_mixture_of_the_clients_than_theirs_are() -> None:
    model = hyper_model(1.0)
    codes = torch.randn(CLIENTS, 2, generator=torch.Generator().manual_seed(1))
    meta = fit_meta_codes(model, codes, 1, 50, Seeds(0))
    assert meta.shape == (1, 2)
    assert distance(model, meta, codes) < min(distance(model, code[None], codes) for code in codes)


def test_client_synthesis_from_codes_without_noise_is_no_theorem() -> None:
    claims = {
        (noised, synthesis): FedHypeVAE(
            FedHypeVAE.Params(noised=noised, synthesis=synthesis), Task(DIM, CLASSES, CLIENTS, unit)
        ).claim()
        for noised, synthesis, unit in (
            ("all", "client", "example"),
            ("shared", "client", "client"),
            ("shared", "neutral", "client"),
        )
    }
    assert claims == {
        ("all", "client"): "proved",
        ("shared", "client"): "heuristic",
        ("shared", "neutral"): "proved",
    }


def random_model(**params: Any) -> tuple[FedHypeVAE, Any, Batch]:
    """An algorithm, a model of one client that is nowhere zero, and rows of all classes with their
    draws.
    """
    algorithm = FedHypeVAE(
        FedHypeVAE.Params(latent=2, code=2, kernel=0, **params), Task(DIM, CLASSES, 1)
    )
    model: Any = initial_model(algorithm.build, Seeds(0), [0])
    stream = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=stream))
    x, draws = (torch.randn(12, size, generator=stream) for size in (DIM, 2))
    return (
        algorithm,
        model,
        Batch(
            x,
            torch.arange(12) % CLASSES,
            {"posterior": draws},
            Layout(torch.zeros(12, dtype=torch.long), 1),
        ),
    )


def generated(
    algorithm: FedHypeVAE, model: Any, batch: Batch, latent: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Means ``[N, d]`` and standard deviations ``[N, d]`` of the rows that standard normal
    ``latent`` ``[N, k]`` are made into.
    """
    code = CODE_SCALE[algorithm.params.form] * model.code(batch.layout)

    def made(observation: torch.Tensor) -> torch.Tensor:
        return model.generate(
            code, batch.y, latent[:, None], observation.expand(len(latent), 1, DIM)
        )[:, 0].detach()

    mean = made(torch.zeros(DIM))
    return mean, made(torch.ones(DIM)) - mean


@pytest.mark.parametrize("prior", ["diagonal", "full"])
def test_the_exact_posterior_is_that_of_the_law_by_which_rows_are_generated(prior: str) -> None:
    algorithm, model, batch = random_model(encoder="posterior", prior=prior)
    prior_mean, prior_root = (
        part.detach()
        for part in model.prior(
            batch.y, CODE_SCALE[algorithm.params.form] * model.code(batch.layout)
        )
    )
    offset, std = generated(algorithm, model, batch, torch.zeros(12, 2))
    map_ = torch.stack(
        [
            generated(algorithm, model, batch, unit.expand(12, 2))[0] - offset
            for unit in torch.eye(2)
        ],
        2,
    )
    with torch.no_grad():
        z, divergence = algorithm.encoded(model, batch, (prior_mean, prior_root))
    for n in range(12):
        # the joint Gaussian of x and of the standard normal that z is made of
        gain = map_[n].T @ torch.linalg.inv(map_[n] @ map_[n].T + torch.diag(std[n] ** 2))
        deviation = torch.linalg.inv(prior_root[n])
        mean = prior_mean[n] + deviation @ gain @ (batch.x[n] - offset[n])
        covariance = deviation @ (torch.eye(2) - gain @ map_[n]) @ deviation.T
        own = torch.distributions.MultivariateNormal(mean, (covariance + covariance.T) / 2)
        # how far the draw is from the mean says nothing but how far the standard normal is from
        # zero
        away = (z[n] - mean) @ torch.linalg.inv(covariance) @ (z[n] - mean)
        assert float(away) == pytest.approx(
            float(batch.draws["posterior"][n].square().sum()), rel=1e-2
        )
        law = torch.distributions.MultivariateNormal(prior_mean[n], deviation @ deviation.T)
        torch.testing.assert_close(
            divergence[n], own.log_prob(z[n]) - law.log_prob(z[n]), rtol=1e-2, atol=1e-2
        )


@pytest.mark.parametrize("prior", ["diagonal", "full"])
def test_with_a_trained_encoder_the_loss_is_the_negative_elbo_in_units_of_the_variance(
    prior: str,
) -> None:
    algorithm, model, batch = random_model(encoder="trained", prior=prior)
    with torch.no_grad():
        parts = algorithm.loss(model, batch)
        mean, log_var = model.encoder(batch.x, batch.y, batch.layout)
        prior_mean, prior_root = model.prior(
            batch.y, CODE_SCALE[algorithm.params.form] * model.code(batch.layout)
        )
    std = (0.5 * log_var).exp()
    z = mean + std * batch.draws["posterior"]
    decoded, noise = generated(
        algorithm, model, batch, (prior_root @ (z - prior_mean)[:, :, None])[:, :, 0]
    )
    likelihood = torch.distributions.Normal(decoded, noise).log_prob(batch.x).sum(1)
    unit = model.observation.variance()
    constant = DIM / 2 * math.log(2 * math.pi)
    torch.testing.assert_close(
        parts["reconstruction"], unit * (-likelihood - constant), rtol=1e-4, atol=1e-4
    )
    posterior = torch.distributions.MultivariateNormal(mean, torch.diag_embed(std**2))
    law = torch.distributions.MultivariateNormal(
        prior_mean, precision_matrix=prior_root.mT @ prior_root
    )
    divergence = torch.distributions.kl_divergence(posterior, law)
    torch.testing.assert_close(parts["kl"], 0.5 * unit * divergence, rtol=1e-4, atol=1e-4)
