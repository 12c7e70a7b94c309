"""The mixtures' own mathematics."""

import pytest
import torch

from baselines.dp_gaussian import DPGMM, DPGMMParams, MixtureGenerator
from fedsim.methods import (
    Coordinates,
    Norms,
    OneShot,
    Rows,
    Seeds,
    Server,
    Task,
    clipped_statistics,
    rounded,
    unit_weights,
)

DIM = 6
CLASSES = 2


def planted(rows: int, apart: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Two components a class, ``apart`` from each other along axis 1 (class 0: 3 to 1) or 2 (class
    1: 1 to 1).
    """
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
            products = statistic.products(
                Rows(x, y, torch.zeros_like(y)), algorithm.broadcast(server)
            )
            sums, norms = clipped_statistics(products, Norms(1.0, weights=weights))
            assert norms.max() <= 1 + 1e-5
            statistic.receive(
                server,
                {name: value / weights[name] for name, value in rounded(sums).items()},
                dict.fromkeys(weights, 0.0),
            )
    return server


def test_without_noise_it_finds_two_planted_components() -> None:
    x, y = planted(4000, 0.3)
    algorithm = DPGMM(DPGMMParams(components=2, em_steps=10, radius=4.0), Task(DIM, CLASSES, 1))
    server = without_noise(algorithm, x, y)
    mixed = algorithm.generator(server).generator
    chart = Coordinates(server.tensors)  # type: ignore[attr-defined]
    assert isinstance(mixed, MixtureGenerator)
    means = chart.rows(4.0 * mixed.components.means).view(CLASSES, 2, DIM)
    for label, axis, small in ((0, 1, 0.25), (1, 2, 0.5)):
        found = means[label, :, axis].sort().values
        assert found.tolist() == pytest.approx([0.0, 0.3], abs=0.03)
        assert float(mixed.shares[label].min()) == pytest.approx(small, abs=0.05)
    basis = chart.apart(4.0 * mixed.components.basis.T)
    within = basis.T @ mixed.components.covariance @ basis
    assert (
        within.diagonal().max() < 0.1 * 0.3**2
    )  # the scatter between components is out of the covariance
