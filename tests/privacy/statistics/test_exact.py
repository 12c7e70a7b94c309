"""Exact products and norms: equal to what integers give, in any order, and near the real ones."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.privacy.statistics.moments import BINS, distance_products
from fedsim.privacy.statistics.outer_products import exact_products, exact_squares


def rows(count: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) * 10.0 ** (
        seed % 7 - 3
    )


@settings(max_examples=25)
@given(
    count=st.integers(1, 70), dim=st.sampled_from([1, 3, 64, 385, 1280]), seed=st.integers(0, 1000)
)
def test_a_rows_products_and_norm_depend_neither_on_other_rows_nor_on_the_order_of_its_entries(
    count: int, dim: int, seed: int
) -> None:
    x = rows(count, dim, seed)
    fixed = rows(9, dim, seed + 1)
    order = torch.randperm(dim, generator=torch.Generator().manual_seed(seed))
    products = exact_products(x, fixed)
    squares = exact_squares(x)
    assert torch.equal(exact_products(x[:, order], fixed[:, order]), products)
    assert torch.equal(exact_squares(x[:, order]), squares)
    for part in (slice(0, 1), slice(1, None), slice(count // 2, count // 2 + 1)):
        assert torch.equal(exact_products(x[part], fixed), products[part])
        assert torch.equal(exact_squares(x[part]), squares[part])
    lengths = x.double().norm(dim=1, keepdim=True) * fixed.double().norm(dim=1)
    assert float(((products - x.double() @ fixed.double().T).abs() / lengths).max()) < 2e-6
    torch.testing.assert_close(squares[:, 0], x.double().square().sum(1), rtol=2e-6, atol=0)


def test_a_row_is_in_the_bin_of_its_distance() -> None:
    x = rows(500, 30, 3)
    bins = distance_products(x)["bins"].right.argmax(1)
    squares = x.double().square().sum(1)
    assert (squares <= 4 * 0.5 ** bins.double()).logical_or(bins == 0).all()
    assert (squares > 2 * 0.5 ** bins.double()).logical_or(bins == BINS - 1).all()
    assert distance_products(torch.tensor([[1.0, 0, 0], [0, 2.0, 0], [0, 0, 0.5]]))[
        "bins"
    ].right.argmax(1).tolist() == [2, 0, 4]
