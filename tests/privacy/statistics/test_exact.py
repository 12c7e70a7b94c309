"""Exact products and norms: the same in any order of rows and entries, and near the real ones."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import seeded
from torch import Tensor

from fedsim.privacy.statistics.moments import BINS, distance_products
from fedsim.privacy.statistics.outer_products import exact_products, exact_squares


def rows(
    count: int,
    dim: int,
    seed: int,
) -> Tensor:
    stream = seeded(seed)
    scale = 10.0 ** (seed % 7 - 3)
    return scale * torch.randn(
        count,
        dim,
        generator=stream,
    )


some_rows = st.builds(
    rows,
    count=st.integers(1, 70),
    dim=st.sampled_from([1, 3, 64, 385, 1280]),
    seed=st.integers(0, 1000),
)


def fixed_rows(x: Tensor) -> Tensor:
    return rows(9, x.shape[1], 1)


@settings(max_examples=25)
@given(x=some_rows, seed=st.integers(0, 100))
def test_order_of_entries_changes_nothing(x: Tensor, seed: int) -> None:
    fixed = fixed_rows(x)
    order = torch.randperm(
        x.shape[1],
        generator=seeded(seed),
    )
    shuffled = x[:, order]
    assert torch.equal(
        exact_squares(shuffled),
        exact_squares(x),
    )
    assert torch.equal(
        exact_products(shuffled, fixed[:, order]),
        exact_products(x, fixed),
    )


@settings(max_examples=25)
@given(x=some_rows)
def test_other_rows_change_nothing(x: Tensor) -> None:
    fixed = fixed_rows(x)
    products = exact_products(x, fixed)
    squares = exact_squares(x)
    middle = len(x) // 2
    for part in (
        slice(0, 1),
        slice(1, None),
        slice(middle, middle + 1),
    ):
        assert torch.equal(
            exact_products(x[part], fixed),
            products[part],
        )
        assert torch.equal(
            exact_squares(x[part]),
            squares[part],
        )


@settings(max_examples=25)
@given(x=some_rows)
def test_values_are_near_the_real_ones(x: Tensor) -> None:
    x_double = x.double()
    fixed = fixed_rows(x)
    fixed_double = fixed.double()
    norms = x_double.norm(dim=1, keepdim=True)
    lengths = norms * fixed_double.norm(dim=1)
    error = exact_products(x, fixed) - x_double @ fixed_double.T
    assert float((error.abs() / lengths).max()) < 2e-6
    squares = x_double.square().sum(1, keepdim=True)
    torch.testing.assert_close(
        exact_squares(x),
        squares,
        rtol=2e-6,
        atol=0,
    )


def bins_of(x: Tensor) -> Tensor:
    return distance_products(x)["bins"].right.argmax(1)


def test_row_is_in_the_bin_of_its_distance() -> None:
    x = rows(500, 30, 3)
    bins = bins_of(x)
    squares = x.double().square().sum(1)
    largest = 4 * 0.5 ** bins.double()
    assert ((squares <= largest) | (bins == 0)).all()
    assert ((squares > largest / 2) | (bins == BINS - 1)).all()


def test_bins_are_half_an_octave_wide_below_distance_2() -> None:
    x = torch.diag(torch.tensor([1.0, 2.0, 0.5]))
    assert bins_of(x).tolist() == [2, 0, 4]
