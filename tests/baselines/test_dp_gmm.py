"""The mixtures' own mathematics."""

import pytest
import torch
from exact import rows_of, server_of
from streams import seeded
from torch import Tensor

from baselines.dp_gaussian import DPGMM, DPGMMParams, MixtureGenerator
from fedsim.methods import Coordinates, Task, mixture

DIM = 6
CLASSES = 2
APART = 0.3
RADIUS = 4.0


def planted(rows: int) -> tuple[Tensor, Tensor]:
    """Two components per class, apart along axis 1 (class 0, 3 to 1) or 2 (class 1, 1 to 1)."""
    stream = seeded(0)
    numbers = torch.arange(rows)
    y = numbers % CLASSES
    shares = torch.tensor([0.25, 0.5])[y]
    second = torch.rand(rows, generator=stream) < shares
    x = 0.03 * torch.randn(
        rows,
        DIM,
        generator=stream,
    )
    x[:, 0] += torch.where(y == 0, 0.1, -0.1)
    x[numbers, 1 + y] += torch.where(second, APART, 0.0)
    return x, y


@pytest.fixture(scope="module")
def fitted() -> tuple[MixtureGenerator, Coordinates]:
    """The mixture of exact statistics, and the coordinates that it is in."""
    params = DPGMMParams(
        components=2,
        em_steps=10,
        radius=RADIUS,
    )
    algorithm = DPGMM(params, Task(DIM, CLASSES, 1))
    server = server_of(algorithm, rows_of(*planted(4000)))
    generator = algorithm.generator(server).generator  # type: ignore[attr-defined]
    assert isinstance(generator, MixtureGenerator)
    return generator, Coordinates(server.tensors)


@pytest.mark.parametrize(
    ("label", "axis", "share"),
    [
        (0, 1, 0.25),
        (1, 2, 0.5),
    ],
)
def test_without_noise_it_finds_two_planted_components(
    fitted: tuple[MixtureGenerator, Coordinates],
    label: int,
    axis: int,
    share: float,
) -> None:
    generator, coordinates = fitted
    means = coordinates.rows(RADIUS * generator.components.means)
    means = means.view(CLASSES, 2, DIM)
    positions = means[label, :, axis].sort().values
    assert positions.tolist() == pytest.approx(
        [0.0, APART],
        abs=0.03,
    )
    smaller_share = float(generator.shares[label].min())
    assert smaller_share == pytest.approx(share, abs=0.05)


def test_the_scatter_between_components_is_not_in_the_covariance(
    fitted: tuple[MixtureGenerator, Coordinates],
) -> None:
    generator, coordinates = fitted
    components = generator.components
    basis = coordinates.apart(RADIUS * components.basis.T)
    within = basis.T @ components.covariance @ basis
    assert within.diagonal().max() < 0.1 * APART**2


def test_shares_that_leave_nothing_for_the_moments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"add up to 1\.1"):
        DPGMMParams(coordinates_share=0.5, em_share=0.6)


def test_classes_without_a_kept_direction_have_their_means_alone() -> None:
    std = {
        "component_sums": 1.0,
        "component_counts": 1.0,
    }
    estimates = mixture.maximise(
        torch.zeros(CLASSES * 3, 0),
        torch.full((CLASSES * 3, 1), 5.0),
        3,
        std,
    )
    assert estimates["offsets"].shape == (CLASSES, 3, 0)
