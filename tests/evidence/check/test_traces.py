"""What a training may not leave behind in what it was given."""

import numpy as np
import pytest
from numpy.typing import NDArray

from fedsim.evidence.check.subject import Subject, subject
from fedsim.evidence.check.traces import data_untouched


@pytest.fixture
def trained() -> Subject:
    made = subject("broken.tiny:Tiny", [], "example", "silo", quick=True)
    assert data_untouched(made).passed
    return made


def changed(array: NDArray[np.float32] | NDArray[np.int64]) -> None:
    array.flags.writeable = True
    array[:] = array[::-1].copy()


def test_test_rows_that_change_after_the_training_began_are_seen(trained: Subject) -> None:
    changed(trained.data.x_test)
    verdict = data_untouched(trained)
    assert (verdict.passed, verdict.reason) == (False, "the data set has changed in memory")


def test_a_partition_that_changes_is_seen(trained: Subject) -> None:
    changed(trained.trial.partition.rows[0])
    verdict = data_untouched(trained)
    assert (verdict.passed, verdict.reason) == (False, "the partition has changed in memory")
