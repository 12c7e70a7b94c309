"""Released coordinates: what one example can change, and what they are without noise."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import seeded
from torch import Tensor

from fedsim.methods.coordinates import SPREAD_WEIGHTS, Coordinates, coordinate_statistics
from fedsim.methods.messages import Server, Tensors
from fedsim.methods.one_shot import Rows, Statistic
from fedsim.methods.parameters import rounded
from fedsim.privacy.clipping import Norms
from fedsim.privacy.statistics.outer_products import clipped_statistics, unit_weights
from fedsim.seeds import Seeds

DIM = 12
MEAN, SPREAD = coordinate_statistics(0.2)


def unit_rows(
    spread: float,
    steep: float = 1.0,
    count: int = 2000,
) -> Tensor:
    """Return rows of unit norm about a mean, ``spread`` from it.

    Each direction has ``steep`` times the standard deviation of the next.
    """
    stream = seeded(0)
    deviations = steep ** -torch.arange(float(DIM))
    draws = torch.randn(count, DIM, generator=stream)
    x = spread * draws * deviations / deviations.norm()
    x[:, -1] += 1
    return torch.nn.functional.normalize(x)


def clipped_sums(
    statistic: Statistic,
    x: Tensor,
    released: Tensors,
) -> Tensors:
    """Return the weighted sums of a statistic, as clients send them without noise."""
    labels = torch.zeros(len(x), dtype=torch.long)
    products = statistic.products(
        Rows(x, labels, labels),
        released,
    )
    norms = Norms(
        1.0,
        weights=unit_weights(statistic.weights),
    )
    sums, _ = clipped_statistics(products, norms)
    return sums


def coordinates_of(x: Tensor) -> Coordinates:
    """Return the coordinates that the server computes after both releases, without noise."""
    server = Server(torch.nn.Module(), Seeds(0))
    for statistic in (MEAN, SPREAD):
        weights = unit_weights(statistic.weights)
        sums = rounded(clipped_sums(statistic, x, server.tensors))
        exact = {name: value / weights[name] for name, value in sums.items()}
        statistic.receive(
            server,
            exact,
            dict.fromkeys(weights, 0.0),
        )
    return Coordinates(server.tensors)


@pytest.mark.parametrize(
    "statistic",
    [MEAN, SPREAD],
    ids=lambda statistic: statistic.name,
)
@settings(max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    scale=st.floats(0, 100),
)
def test_no_row_changes_a_release_by_more_than_one(
    statistic: Statistic,
    seed: int,
    scale: float,
) -> None:
    stream = seeded(seed)
    x = scale * torch.randn(8, DIM, generator=stream)
    released = {"mean": torch.randn(DIM, generator=stream)}
    whole = clipped_sums(statistic, x, released)
    rest = clipped_sums(statistic, x[1:], released)
    changes = [(whole[name] - rest[name]).flatten() for name in whole]
    assert float(torch.cat(changes).norm()) <= 1 + 1e-5


def test_row_at_the_centre_is_in_the_histogram_alone() -> None:
    mean = torch.randn(
        DIM,
        generator=seeded(0),
    )
    sums = clipped_sums(
        SPREAD,
        mean[None],
        {"mean": mean},
    )
    assert not sums["second"].any()
    weight = unit_weights(SPREAD_WEIGHTS)["bins"]
    assert float(sums["bins"].sum()) == pytest.approx(weight)


@pytest.mark.parametrize("spread", [1e-3, 1e-2, 0.1, 1.0])
@pytest.mark.parametrize("steep", [1.0, 1.5])
def test_coordinates_have_about_unit_norm_for_any_spectrum(
    spread: float,
    steep: float,
) -> None:
    x = unit_rows(spread, steep)
    r = coordinates_of(x).of_rows(x)
    squared_norms = r.square().sum(1)
    assert 0.5 <= float(squared_norms.mean()) <= 2


def test_coordinates_and_rows_are_inverse() -> None:
    x = unit_rows(0.1, 1.5)
    coordinates = coordinates_of(x)
    again = coordinates.rows(coordinates.of_rows(x))
    torch.testing.assert_close(again, x, atol=1e-5, rtol=1e-4)
