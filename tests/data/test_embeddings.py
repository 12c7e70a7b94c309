import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedsim.data.embeddings import Embeddings, unit_norm
from fedsim.errors import UserError, at


def arrays(rows=12, dim=3, classes=3):
    x = np.random.default_rng(0).standard_normal((rows, dim)).astype(np.float32)
    return {
        "x": x,
        "y": np.arange(rows) % classes,
        "split": np.where(np.arange(rows) < rows // 2, 0, 2),
    }


def made(**changes):
    return Embeddings.from_arrays("toy", **(arrays() | changes))


def with_value(x, row, value):
    x = x.copy()
    x[row, 1] = value
    return x


def test_rows_go_where_the_split_says():
    given = arrays() | {"split": np.array([0, 0, 0, 1, 2, 2, 0, 0, 0, 1, 2, 1])}
    data = Embeddings.from_arrays("toy", **given, columns={"site": np.arange(12)})
    assert data.columns["site"].tolist() == [0, 1, 2, 6, 7, 8]
    np.testing.assert_array_equal(data.x_train, given["x"][[0, 1, 2, 6, 7, 8]])
    np.testing.assert_array_equal(data.x_test, given["x"][[4, 5, 10]])
    assert (data.dim, data.classes) == (3, 3)


X = arrays()["x"]
Y = arrays()["y"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": X[:, 0]}, "x has shape [12]"),
        (
            {"x": with_value(with_value(X, 9, np.nan), 5, np.inf)},
            "x has 2 NaN or infinite values, or beyond float32, the first in row 5",
        ),
        ({"y": Y[:5]}, "y has shape [5]"),
        ({"y": Y.astype(float)}, "y has dtype float64"),
        ({"y": Y + 1}, "labels of the training rows are 1, 2, 3; number the classes 0 .. 2"),
        ({"y": Y * 0}, "all training rows have one label"),
        ({"y": np.where(np.arange(12) < 6, Y, 3)}, "no training row has label 3, test rows have"),
        ({"split": np.full(12, 2)}, "there is no training row"),
        ({"split": np.arange(12)}, "split has the value 3"),
    ],
)
def test_a_wrong_array_is_named(changes, message):
    with pytest.raises(UserError) as caught, at("here"):
        made(**changes)
    assert message in str(caught.value)
    assert caught.value.where == "here"


def test_the_fingerprint_follows_the_content_only():
    same = [made(), Embeddings.from_arrays("another name", **arrays())]
    others = [
        made(x=with_value(X, 0, 7)),
        made(y=np.roll(Y, 1)),
        made(columns={"site": Y}),
        made(columns={"site": np.append(Y[:-1], 7)}),
    ]
    assert len({data.fingerprint for data in same}) == 1
    assert len({data.fingerprint for data in [*same, *others]}) == 1 + len(others)


finite_rows = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


@given(finite_rows)
def test_every_row_has_unit_norm_or_is_zero(x):
    norms = np.linalg.norm(unit_norm(x).astype(np.float64), axis=1)
    np.testing.assert_allclose(norms, (x != 0).any(axis=1), atol=1e-5)
