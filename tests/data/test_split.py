import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedsim.data.split import TEST, TRAIN, quarter_for_testing, stratified_rows
from fedsim.errors import UserError


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.data())
def test_stratified_rows_follow_the_label_counts(counts, data):
    y = np.repeat(np.arange(len(counts)), counts)
    size = data.draw(st.integers(len(counts), len(y)))
    rows = stratified_rows(y, size)
    assert len(set(rows.tolist())) == len(rows) == size
    chosen = np.bincount(y[rows], minlength=len(counts))
    assert chosen.min() >= 1
    spare = np.array(counts) - 1
    assert np.all(
        np.abs(chosen - 1 - spare * (size - len(counts)) / max(spare.sum(), 1)) < 1 + 1e-9
    )


@given(st.lists(st.integers(2, 30), min_size=2, max_size=8))
@example([2, 2, 8, 14, 14, 14])
def test_a_quarter_of_every_class_is_for_testing_and_none_is_without_training_rows(counts):
    y = np.repeat(np.arange(len(counts)), counts)
    split = quarter_for_testing(y, tuple("abcdefgh"[: len(counts)]))
    assert set(y[split == TRAIN]) == set(y[split == TEST]) == set(range(len(counts)))
    assert abs((split == TEST).sum() - max(len(y) / 4, len(counts))) < 1
    np.testing.assert_array_equal(split, quarter_for_testing(y, tuple("abcdefgh")))


def test_a_class_with_a_single_row_is_named():
    with pytest.raises(UserError, match="class 'b' has a single lesion; give two at least"):
        quarter_for_testing(np.array([0, 0, 1]), ("a", "b"), "lesion")
