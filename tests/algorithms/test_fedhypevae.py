"""FedHypeVAE's own mathematics beyond the parts that tests/models covers."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cells import one_cell, quick
from streams import seeded
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from algorithms import hyper_cvae
from algorithms.fedhypevae import FedHypeVAE
from algorithms.hyper_cvae import (
    CODE_SCALE,
    MOST_PAIRS,
    NETWORKS,
    HyperCVAE,
    HyperGenerator,
    fit_meta_codes,
)
from fedsim.batch import Layout
from fedsim.methods import Batch, Seeds, Task, Unit
from fedsim.models.kernel import kernel, kernel_score
from fedsim.models.layers import initial_model
from fedsim.training.rounds import RoundRecord
from fedsim.training.trial import Outcome, run_trial

DIM = 6
CLASSES = 3
CLIENTS = 5
ROWS = 12
PARAMS = FedHypeVAE.Params(latent=2, code=2)


def fill(
    model: torch.nn.Module,
    scale: float,
    stream: torch.Generator,
) -> None:
    """Replace all parameters by random numbers, so that none is zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=stream))


@pytest.fixture
def hyper_model() -> HyperCVAE:
    """A model whose generator moves with the code."""
    model = HyperCVAE(PARAMS, DIM, CLASSES, CLIENTS)
    stream = seeded(0)
    fill(model, 0.3, stream)
    (layer,) = model.decoder.modulated()
    for head in (layer.scale, layer.shift):
        fill(head, 1.0, stream)
    return model


def sample_at(
    model: HyperCVAE,
    codes: Tensor,
    stream: torch.Generator,
) -> Tensor:
    """1,500 rows of all classes at codes that are drawn uniformly."""
    y = torch.arange(1500) % CLASSES
    picked = codes[torch.randint(len(codes), (len(y),), generator=stream)]
    latent = torch.randn(
        len(y),
        1,
        PARAMS.latent,
        generator=stream,
    )
    observation = torch.randn(len(y), 1, DIM, generator=stream)
    with torch.no_grad():
        return model.generate(picked, y, latent, observation)[:, 0]


def mean_kernel(a: Tensor, b: Tensor) -> float:
    return float(kernel(torch.cdist(a, b).square()).mean())


def distance(
    model: HyperCVAE,
    first: Tensor,
    second: Tensor,
) -> float:
    """The squared MMD between the generators' mixtures at two sets of codes."""
    stream = seeded(9)
    a = sample_at(model, first, stream)
    b = sample_at(model, second, stream)
    return mean_kernel(a, a) + mean_kernel(b, b) - 2 * mean_kernel(a, b)


def test_the_neutral_code_is_closer_to_all_than_any_clients_code(
    hyper_model: HyperCVAE,
) -> None:
    codes = torch.randn(
        CLIENTS,
        2,
        generator=seeded(1),
    )
    meta = fit_meta_codes(hyper_model, codes, 1, 50, Seeds(0))
    assert meta.shape == (1, 2)
    of_clients = [distance(hyper_model, code[None], codes) for code in codes]
    assert distance(hyper_model, meta, codes) < min(of_clients)


def test_rows_of_a_generator_do_not_depend_on_blocks(
    hyper_model: HyperCVAE,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    codes = torch.randn(CLIENTS, 2, generator=seeded(1))
    generator = HyperGenerator(hyper_model, codes, codes)
    labels = torch.arange(20) % CLASSES
    together = generator.sample(labels, seeded(2))
    monkeypatch.setattr(hyper_cvae, "PRIOR_INPUTS_AT_ONCE", 7 * hyper_model.prior.inputs)
    in_blocks = generator.sample(labels, seeded(2))
    torch.testing.assert_close(in_blocks, together)
    assert generator.sample(labels[:0], torch.Generator()).shape == (0, DIM)


@pytest.mark.parametrize(
    ("noised", "synthesis", "unit", "claim"),
    [
        ("all", "client", "example", "proved"),
        ("shared", "client", "client", "heuristic"),
        ("shared", "neutral", "client", "proved"),
    ],
)
def test_client_synthesis_from_codes_without_noise_is_not_proved(
    noised: str, synthesis: str, unit: Unit, claim: str
) -> None:
    params = FedHypeVAE.Params(noised=noised, synthesis=synthesis)
    assert FedHypeVAE(params, Task(DIM, CLASSES, CLIENTS, unit)).claim() == claim


@dataclass
class OneClient:
    """An algorithm with a model of one client that is nowhere zero, and a batch of all classes."""

    algorithm: FedHypeVAE
    model: Any
    batch: Batch

    @property
    def code(self) -> Tensor:
        """The scaled code of every row's client."""
        return CODE_SCALE["default"] * self.model.code(self.batch.layout)

    def prior(self) -> tuple[Tensor, Tensor]:
        """The mean ``[N, k]`` and the root of the precision ``[N, k, k]`` of every row's prior."""
        with torch.no_grad():
            return self.model.prior(self.batch.y, self.code)

    def generated(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation ``[N, d]`` of the rows that standard normal ``[N, k]`` become."""
        observation = torch.stack(
            [torch.zeros(ROWS, DIM), torch.ones(ROWS, DIM)],
            1,
        )
        twice = latent[:, None].expand(-1, 2, -1)
        with torch.no_grad():
            made = self.model.generate(
                self.code,
                self.batch.y,
                twice,
                observation,
            )
        return made[:, 0], made[:, 1] - made[:, 0]


def one_client(**params: Any) -> OneClient:
    usual = FedHypeVAE.Params.model_validate({"latent": 2, "code": 2, "kernel": 0, **params})
    algorithm = FedHypeVAE(usual, Task(DIM, CLASSES, 1))
    model = initial_model(algorithm.build, Seeds(0), [0])
    stream = seeded(0)
    fill(model, 0.5, stream)
    x = torch.randn(ROWS, DIM, generator=stream)
    draws = {
        name: torch.randn(ROWS, *shape, generator=stream)
        for name, shape in algorithm.draws().items()
    }
    layout = Layout(torch.zeros(ROWS, dtype=torch.long), 1)
    return OneClient(
        algorithm,
        model,
        Batch(x, torch.arange(ROWS) % CLASSES, draws, layout),
    )


def gaussian(
    mean: Tensor,
    covariance: Tensor,
) -> MultivariateNormal:
    return MultivariateNormal(
        mean,
        (covariance + covariance.T) / 2,
    )


@pytest.mark.parametrize("prior", ["diagonal", "full"])
@pytest.mark.parametrize("pairs", [MOST_PAIRS, 0], ids=["from a table", "by row"])
def test_the_exact_posterior_is_that_of_the_generated_rows(
    pairs: int,
    prior: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hyper_cvae, "MOST_PAIRS", pairs)
    client = one_client(encoder="posterior", prior=prior)
    prior_mean, prior_root = client.prior()
    offset, std = client.generated(torch.zeros(ROWS, 2))
    columns = [client.generated(unit.expand(ROWS, 2))[0] - offset for unit in torch.eye(2)]
    linear = torch.stack(columns, 2)
    with torch.no_grad():
        z, divergence = client.algorithm.encoded(
            client.model, client.batch, (prior_mean, prior_root)
        )
    for n in range(ROWS):
        # The joint Gaussian of x and of the standard normal that z is made of.
        marginal = linear[n] @ linear[n].T + torch.diag(std[n] ** 2)
        gain = linear[n].T @ torch.linalg.inv(marginal)
        deviation = torch.linalg.inv(prior_root[n])
        mean = prior_mean[n] + deviation @ gain @ (client.batch.x[n] - offset[n])
        covariance = deviation @ (torch.eye(2) - gain @ linear[n]) @ deviation.T
        # The draw is as far from the mean as its standard normal is from zero.
        away = (z[n] - mean) @ torch.linalg.inv(covariance) @ (z[n] - mean)
        squared_draw = float(client.batch.draws["posterior"][n].square().sum())
        assert float(away) == pytest.approx(squared_draw, rel=1e-2)
        posterior = gaussian(mean, covariance)
        of_prior = gaussian(
            prior_mean[n],
            deviation @ deviation.T,
        )
        expected = posterior.log_prob(z[n]) - of_prior.log_prob(z[n])
        torch.testing.assert_close(
            divergence[n],
            expected,
            rtol=1e-2,
            atol=1e-2,
        )


def test_posterior_of_several_clients_is_the_same_from_a_table_and_by_row(
    hyper_model: HyperCVAE,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = seeded(4)
    client = torch.tensor([0, 0, 1, 3, 3, 3, 4])  # the third client has no row
    batch = Batch(
        torch.randn(len(client), DIM, generator=stream),
        torch.tensor([2, 0, 1, 1, 0, 2, 2]),
        {},
        Layout(client, CLIENTS),
    )
    noise = torch.randn(len(client), PARAMS.latent, generator=stream)
    from_table = hyper_model.posterior(batch, noise)
    monkeypatch.setattr(hyper_cvae, "MOST_PAIRS", 0)
    torch.testing.assert_close(hyper_model.posterior(batch, noise), from_table)


@pytest.mark.parametrize("prior", ["diagonal", "full"])
def test_with_a_trained_encoder_the_loss_is_the_scaled_negative_elbo(prior: str) -> None:
    client = one_client(encoder="trained", prior=prior)
    batch = client.batch
    prior_mean, prior_root = client.prior()
    with torch.no_grad():
        parts = client.algorithm.loss(client.model, batch)
        mean, log_var = client.model.encoder(
            batch.x,
            batch.y,
            batch.layout,
        )
    std = (0.5 * log_var).exp()
    z = mean + std * batch.draws["posterior"]
    latent = (prior_root @ (z - prior_mean)[:, :, None])[:, :, 0]
    log_likelihood = Normal(*client.generated(latent)).log_prob(batch.x).sum(1)
    constant = DIM / 2 * math.log(2 * math.pi)
    posterior = MultivariateNormal(mean, torch.diag_embed(std**2))
    of_prior = MultivariateNormal(
        prior_mean,
        precision_matrix=prior_root.mT @ prior_root,
    )
    divergence = kl_divergence(posterior, of_prior)
    variance = client.model.observation.variance()
    expected = {
        "reconstruction": variance * (-log_likelihood - constant),
        "kl": 0.5 * variance * divergence,
    }
    torch.testing.assert_close(
        dict(parts),
        expected,
        rtol=1e-4,
        atol=1e-4,
    )


def steps_with_a_kernel_score(**params: Any) -> list[int]:
    """The noisy steps of a short training whose loss has a kernel score."""
    trial, data, _ = one_cell(quick("fedhypevae", rounds=7, **params), epsilon=4.0)
    records = [item.values for item in run_trial(trial, data) if isinstance(item, RoundRecord)]
    steps = [values for values in records if values["release"] == "dp-sgd"]
    return [step for step, values in enumerate(steps) if "loss_kernel" in values]


@pytest.mark.parametrize(
    ("params", "steps"),
    [
        ({}, [0]),
        ({"kernel_every": 3}, [0, 3, 6]),
        ({"kernel_every": 3, "kernel": 0}, []),
    ],
)
def test_every_kth_step_has_the_kernel_score(params: dict[str, Any], steps: list[int]) -> None:
    assert steps_with_a_kernel_score(**params) == steps


def test_the_kernel_score_weighs_kernel_in_the_mean_of_the_steps() -> None:
    client = one_client(kernel=0.5, kernel_every=4)
    draws = client.batch.draws
    with torch.no_grad():
        generated = client.model.generate(
            client.code,
            client.batch.y,
            draws["prior"],
            draws["observation"],
        )
        part = client.algorithm.loss(client.model, client.batch)["kernel"]
    score = kernel_score(client.batch.x, generated[:, 0], generated[:, 1])
    torch.testing.assert_close(part / 4, 0.5 * score)


def test_the_paper_has_its_mmd_in_every_round() -> None:
    assert FedHypeVAE.Params(form="paper").kernel_every == 1
    with pytest.raises(ValueError, match="precondition: 0 and kernel_every: 1; leave them out"):
        FedHypeVAE.Params(form="paper", kernel_every=2)


def trained_and_first_codes(epsilon: float, **params: Any) -> tuple[Tensor | None, Tensor]:
    """The codes that leave the clients after a short training, and those that they start from."""
    trial, data, algorithm = one_cell(quick("fedhypevae", **params), epsilon=epsilon)
    *_, outcome = run_trial(trial, data)
    assert isinstance(outcome, Outcome)
    model: Any = initial_model(algorithm.build, Seeds(0), range(trial.cell.clients))
    return outcome.state.get("codes.code.weight"), model.code.weight.detach()


@pytest.mark.parametrize("params", [{"noised": "shared"}, {"form": "paper"}])
def test_trained_codes_without_noise_leave_clients_at_infinite_epsilon(
    params: dict[str, Any],
) -> None:
    trained, first = trained_and_first_codes(math.inf, **params)
    assert trained is not None
    assert not torch.allclose(trained, first)


@pytest.mark.parametrize("params", [{"noised": "shared"}, {"form": "paper"}])
def test_trained_codes_without_noise_stay_at_clients_under_privacy(
    params: dict[str, Any],
) -> None:
    assert trained_and_first_codes(4.0, **params)[0] is None


@pytest.mark.parametrize(
    ("params", "scope"),
    [
        ({}, "joint"),
        ({"noised": "shared"}, "hypernetwork"),
        ({"noised": "shared", "code": 0}, "shared"),
    ],
)
def test_scope_names_a_hypernetwork_only_where_there_is_one(
    params: dict[str, Any], scope: str
) -> None:
    algorithm = FedHypeVAE(FedHypeVAE.Params(**params), Task(DIM, CLASSES, CLIENTS))
    assert algorithm.scope() == scope


def test_per_example_form_has_the_networks_of_the_paper() -> None:
    literal = FedHypeVAE.Params(form="paper")
    per_example = FedHypeVAE.Params(form="per-example")
    for name in NETWORKS:
        assert getattr(per_example, name) == getattr(literal, name)


@pytest.mark.parametrize("form", ["paper", "per-example"])
def test_a_given_parameter_replaces_the_default_of_a_form(form: str) -> None:
    params = FedHypeVAE.Params(form=form, latent=3, noised="all")
    assert params.latent == 3
    assert params.noised == "all"
    assert params.hyper_hidden == NETWORKS["hyper_hidden"]


@pytest.mark.parametrize(
    ("params", "unit", "claim"),
    [
        ({}, "example", "heuristic"),
        ({}, "group", "heuristic"),
        ({}, "client", "proved"),
        ({"noised": "all"}, "example", "proved"),
    ],
)
def test_per_example_form_is_heuristic_for_examples(
    params: dict[str, Any], unit: Unit, claim: str
) -> None:
    form = FedHypeVAE.Params(form="per-example", **params)
    assert FedHypeVAE(form, Task(DIM, CLASSES, CLIENTS, unit)).claim() == claim


def test_per_example_form_clips_examples_and_samples_them() -> None:
    form = FedHypeVAE.Params(form="per-example", sample_rate=0.1)
    algorithm = FedHypeVAE(form, Task(DIM, CLASSES, CLIENTS, "example"))
    (release,) = algorithm.releases()
    assert not algorithm.clips_clients()
    assert algorithm.sensitivity() == form.clip
    assert release.sample_rate == 0.1
