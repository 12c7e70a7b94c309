"""Released coordinates: what one row can change, what they are without noise, and that they follow
rows wherever these are.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.methods.coordinates import SPREAD_WEIGHTS, Coordinates, coordinate_statistics
from fedsim.methods.messages import Server, Tensors
from fedsim.methods.one_shot import Rows
from fedsim.methods.parameters import rounded
from fedsim.privacy.clipping import Norms
from fedsim.privacy.statistics.outer_products import clipped_statistics, unit_weights
from fedsim.seeds import Seeds

DIM = 12


def unit_rows(spread: float, steep: float = 1.0, count: int = 2000) -> torch.Tensor:
    """Unit rows about a mean, ``spread`` from it; each direction has ``steep`` times the standard
    deviation of the next.
    """
    stream = torch.Generator().manual_seed(0)
    deviations = steep ** -torch.arange(float(DIM))
    x = spread * torch.randn(count, DIM, generator=stream) * deviations / deviations.norm()
    x[:, -1] += 1
    return torch.nn.functional.normalize(x)


def sums_of(
    x: torch.Tensor, released: Tensors
) -> list[tuple[dict[str, torch.Tensor], torch.Tensor]]:
    labels = torch.zeros(len(x), dtype=torch.long)
    found = []
    for statistic in coordinate_statistics(0.2):
        if statistic.name == "mean" or "mean" in released:
            weights = unit_weights(statistic.weights)
            found.append(
                clipped_statistics(
                    statistic.products(Rows(x, labels, labels), released),
                    Norms(1.0, weights=weights),
                )
            )
    return found


def released(x: torch.Tensor, std: float = 0.0) -> Tensors:
    """What the server knows of rows after both releases, with noise of ``std`` on the sum of the
    second moment.
    """
    server = Server(torch.nn.Module(), Seeds(0))
    labels = torch.zeros(len(x), dtype=torch.long)
    stream = torch.Generator().manual_seed(1)
    for statistic in coordinate_statistics(0.2):
        weights = unit_weights(statistic.weights)
        sums, _ = clipped_statistics(
            statistic.products(Rows(x, labels, labels), server.tensors), Norms(1.0, weights=weights)
        )
        exact = {name: value / weights[name] for name, value in rounded(sums).items()}
        noise = {name: std if name == "second" else 0.0 for name in weights}
        noisy = {
            name: value + noise[name] * torch.randn(value.shape, generator=stream)
            for name, value in exact.items()
        }
        statistic.receive(server, noisy, noise)
    return server.tensors


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), scale=st.floats(0, 100))
def test_no_row_changes_a_release_by_more_than_one(seed: int, scale: float) -> None:
    stream = torch.Generator().manual_seed(seed)
    x = scale * torch.randn(8, DIM, generator=stream)
    mean = torch.randn(DIM, generator=stream)
    for whole, fewer in zip(
        sums_of(x, {"mean": mean}), sums_of(x[1:], {"mean": mean}), strict=True
    ):
        change = math.sqrt(
            sum(float((whole[0][name] - fewer[0][name]).square().sum()) for name in whole[0])
        )
        assert change <= 1 + 1e-5
    # a row that is its centre has no direction, and is in the histogram alone
    alone = sums_of(mean[None], {"mean": mean})[1][0]
    assert float(alone["second"].abs().max()) == 0
    assert float(alone["bins"].sum()) == pytest.approx(unit_weights(SPREAD_WEIGHTS)["bins"])


@pytest.mark.parametrize("spread", [1e-3, 1e-2, 0.1, 1.0])
@pytest.mark.parametrize("steep", [1.0, 1.5])
def test_coordinates_have_about_unit_norm_for_any_spectrum(spread: float, steep: float) -> None:
    x = unit_rows(spread, steep)
    r = Coordinates(released(x)).of_rows(x)
    assert 0.5 <= float(r.square().sum(1).mean()) <= 2


def test_coordinates_and_rows_are_inverse() -> None:
    x = unit_rows(0.1, 1.5)
    coordinates = Coordinates(released(x))
    torch.testing.assert_close(coordinates.rows(coordinates.of_rows(x)), x, atol=1e-5, rtol=1e-4)
