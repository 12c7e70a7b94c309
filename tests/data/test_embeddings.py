import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedsim.data.embeddings import Embeddings, unit_norm
from fedsim.errors import UserError, at

X = np.random.default_rng(0).standard_normal((12, 3)).astype(np.float32)
Y = np.arange(12) % 3
HALF = np.repeat([0, 2], 6)
SITES = np.arange(12)


def embeddings(name="toy", x=X, y=Y, split=HALF, **more):
    return Embeddings.from_arrays(name, x, y, split, **more)


def with_values(values):
    """X with these values in the second column, by row."""
    x = X.copy()
    for row, value in values.items():
        x[row, 1] = value
    return x


def test_rows_go_where_the_split_says():
    split = np.array([0, 0, 0, 1, 2, 2, 0, 0, 0, 1, 2, 1])
    data = embeddings(split=split, columns={"site": SITES})
    assert data.columns["site"].tolist() == [0, 1, 2, 6, 7, 8]
    np.testing.assert_array_equal(data.x_train, X[[0, 1, 2, 6, 7, 8]])
    np.testing.assert_array_equal(data.x_test, X[[4, 5, 10]])
    assert data.dim == 3
    assert data.classes == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": X[:, 0]}, "x has shape [12]"),
        (
            {"x": with_values({9: np.nan, 5: np.inf})},
            "NaN, infinite or too large for float32: 2 in all, the first in row 5",
        ),
        ({"y": Y[:5]}, "y has shape [5]"),
        ({"y": Y.astype(float)}, "y has dtype float64"),
        ({"y": Y + 1}, "labels of the training rows are 1, 2, 3; number the classes 0 .. 2"),
        ({"y": Y * 0}, "all training rows have one label"),
        ({"y": np.where(HALF == 0, Y, 3)}, "label 3 occurs in test rows (the first is row "),
        ({"split": np.full(12, 2)}, "there is no training row"),
        ({"split": np.arange(12)}, "has the value 3 in split"),
    ],
)
def test_a_wrong_array_is_named(changes, message):
    with pytest.raises(UserError) as caught, at("rows.npz"):
        embeddings(**changes)
    assert message in str(caught.value)
    assert caught.value.where == "rows.npz"


def test_the_fingerprint_does_not_depend_on_the_name():
    assert embeddings().fingerprint == embeddings("another name").fingerprint


def test_the_fingerprint_follows_every_part_of_the_content():
    different = [
        embeddings(),
        embeddings(x=with_values({0: 7})),
        embeddings(y=np.roll(Y, 1)),
        embeddings(columns={"site": SITES}),
        embeddings(columns={"site": np.append(SITES[:-1], 7)}),
    ]
    assert len({data.fingerprint for data in different}) == len(different)


finite_rows = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


@given(finite_rows)
def test_every_row_has_unit_norm_or_is_zero(x):
    norms = np.linalg.norm(unit_norm(x).astype(np.float64), axis=1)
    np.testing.assert_allclose(norms, (x != 0).any(axis=1), atol=1e-5)
