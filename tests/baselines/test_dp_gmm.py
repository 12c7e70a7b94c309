"""The mixtures' own mathematics."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from released import centred_at

from baselines.dp_gmm import DPGMM, DPGMMParams, MixtureGenerator
from fedsim.methods.messages import Server, Task, Tensors
from fedsim.methods.one_shot import OneShot, Rows
from fedsim.methods.parameters import rounded
from fedsim.methods.products import Stretched
from fedsim.privacy.clipping import Norms
from fedsim.privacy.statistics import mixture
from fedsim.privacy.statistics.outer_products import clipped_statistics, unit_weights
from fedsim.seeds import Purpose, Seeds

DIM, CLASSES = 6, 2


def planted(rows: int, apart: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Two components a class, ``apart`` from each other along axis 1 (class 0: 3 to 1) or 2 (class 1: 1 to 1)."""
    stream = torch.Generator().manual_seed(0)
    y = torch.arange(rows) % CLASSES
    second = torch.rand(rows, generator=stream) < torch.tensor([0.25, 0.5])[y]
    x = 0.03 * torch.randn(rows, DIM, generator=stream)
    x[:, 0] += torch.where(y == 0, 0.1, -0.1)
    x[torch.arange(rows), 1 + y] += torch.where(second, apart, 0.0)
    return x, y


def without_noise(algorithm: OneShot, x: torch.Tensor, y: torch.Tensor) -> Server:
    server = algorithm.initial_server(Seeds(0))
    for statistic in algorithm.statistics():
        weights = unit_weights(statistic.weights)
        for _ in range(statistic.steps):
            products = statistic.products(Rows(x, y, torch.zeros_like(y)), algorithm.broadcast(server))
            sums, norms = clipped_statistics(products, Norms(1.0, weights=weights))
            assert norms.max() <= 1 + 1e-5
            statistic.receive(server, {name: value / weights[name] for name, value in rounded(sums).items()}, dict.fromkeys(weights, 0.0))
    return server


def test_without_noise_it_finds_two_planted_components() -> None:
    x, y = planted(4000, 0.3)
    algorithm = DPGMM(DPGMMParams(components=2, em_steps=10, radius=4.0), Task(DIM, CLASSES, 1))
    made = algorithm.generator(without_noise(algorithm, x, y))
    assert isinstance(made, Stretched)
    mixed = made.generator
    assert isinstance(mixed, MixtureGenerator)
    means = made.chart.rows(made.unit * mixed.components.means).view(CLASSES, 2, DIM)
    for label, axis, small in ((0, 1, 0.25), (1, 2, 0.5)):
        found = means[label, :, axis].sort().values
        assert found.tolist() == pytest.approx([0.0, 0.3], abs=0.03)
        assert float(mixed.shares[label].min()) == pytest.approx(small, abs=0.05)
    basis = made.chart.apart(made.unit * mixed.components.basis.T)
    within = basis.T @ mixed.components.covariance @ basis
    assert within.diagonal().max() < 0.1 * 0.3**2  # the scatter between components is out of the covariance


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), scale=st.floats(0, 100), components=st.integers(1, 4), std=st.floats(0, 50))
def test_responsibilities_sum_to_one_and_a_row_adds_at_most_one(seed: int, scale: float, components: int, std: float) -> None:
    stream = torch.Generator().manual_seed(seed)
    x, y = scale * torch.randn(20, DIM, generator=stream), torch.randint(CLASSES, (20,), generator=stream)
    algorithm = DPGMM(DPGMMParams(components=components), Task(DIM, CLASSES, 1))
    root = torch.randn(4, 4, generator=stream)
    covariance = root @ root.T + 1e-3 * torch.eye(4)
    told: Tensors = centred_at(torch.randn(DIM, generator=stream)) | {"class_means": torch.randn(CLASSES, DIM, generator=stream)}
    told |= {"basis": torch.linalg.qr(torch.randn(DIM, 4, generator=stream)).Q}
    told |= mixture.start(torch.randn(CLASSES, components, 4, generator=stream), covariance, 2.0)
    # after a step so noisy that nothing of it need make sense
    sums, counts = (
        std * torch.randn(CLASSES * components, 4, generator=stream),
        std * torch.randn(CLASSES * components, 1, generator=stream),
    )
    told |= mixture.maximise(sums, counts, told["shares"], dict.fromkeys(mixture.WEIGHTS, std))
    told |= {"covariance": covariance, "class_counts": torch.ones(CLASSES)}
    whitening = mixture.whitening(covariance, mixture.scatter(told["offsets"], told["shares"], told["class_counts"]))
    u = mixture.residuals(x, y, told["class_means"], told["basis"])
    belongs = mixture.responsibilities(u, y, told["offsets"], told["shares"], whitening)
    assert torch.allclose(belongs.sum(1), torch.ones(20), atol=1e-5)
    products = algorithm.component_products(Rows(x, y, torch.zeros_like(y)), told)
    _, norms = clipped_statistics(products, Norms(1.0, weights=unit_weights(mixture.WEIGHTS)))
    assert norms.max() <= 1 + 1e-5


def test_the_m_step_keeps_class_means_and_shrinks_pure_noise_away() -> None:
    stream = Seeds(0).torch(Purpose.META)
    std = {name: 20.0 / weight for name, weight in unit_weights(mixture.WEIGHTS).items()}
    sums, counts = std["component_sums"] * torch.randn(20, 300, generator=stream), torch.full((20, 1), 500.0)
    found = mixture.maximise(sums, counts, torch.full((10, 2), 0.5), std)
    assert torch.allclose((found["shares"].unsqueeze(2) * found["offsets"]).sum(1), torch.zeros(10, 300), atol=1e-6)
    assert found["offsets"].square().mean() < 0.25 * (std["component_sums"] / 500) ** 2
