import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedsim.data.split import TEST, TRAIN, quarter_for_testing, stratified_rows
from fedsim.errors import UserError

NAMES = tuple("abcdefgh")


@given(
    st.lists(
        st.integers(1, 30),
        min_size=1,
        max_size=8,
    ),
    st.data(),
)
def test_stratified_rows_follow_the_label_counts(counts, data):
    classes = len(counts)
    y = np.repeat(np.arange(classes), counts)
    size = data.draw(st.integers(classes, len(y)))
    rows = stratified_rows(y, size)
    chosen = np.bincount(y[rows], minlength=classes)
    spare = np.array(counts) - 1
    expected = 1 + spare * (size - classes) / max(spare.sum(), 1)
    assert len(set(rows.tolist())) == size
    assert chosen.min() >= 1
    assert np.abs(chosen - expected).max() < 1 + 1e-9


@given(
    st.lists(
        st.integers(2, 30),
        min_size=2,
        max_size=8,
    )
)
@example([2, 2, 8, 14, 14, 14])
def test_a_quarter_is_for_testing_and_every_class_is_on_both_sides(counts):
    classes = len(counts)
    labels = set(range(classes))
    y = np.repeat(np.arange(classes), counts)
    split = quarter_for_testing(y, NAMES)
    tested = np.count_nonzero(split == TEST)
    assert set(y[split == TRAIN]) == labels
    assert set(y[split == TEST]) == labels
    assert abs(tested - max(len(y) / 4, classes)) < 1
    np.testing.assert_array_equal(
        split,
        quarter_for_testing(y, NAMES),
    )


def test_a_class_with_a_single_row_is_named():
    message = "class 'b' has a single lesion; add another lesion of this class"
    with pytest.raises(UserError, match=message):
        quarter_for_testing(
            np.array([0, 0, 1]),
            ("a", "b"),
            "lesion",
        )
