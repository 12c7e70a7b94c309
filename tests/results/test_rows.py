"""What a row holds of an error."""

from pathlib import Path

import pytest
from cells import small_cells
from rows import add_rows, make_row

from fedsim.results.lines import MOST_MESSAGE, MOST_TRACEBACK, RowError, training_line
from fedsim.results.run import read_results
from fedsim.results.store import ResultStore


def test_an_error_of_megabytes_is_told_by_its_message_s_beginning_and_its_traceback_s_end() -> None:
    error = RowError(type="ValueError", message="a" + "b" * 5_000_000, traceback="c" * 5_000_000 + "d")
    assert error.message.startswith("ab")
    assert len(error.message) < MOST_MESSAGE + 100
    assert "4998001 characters more" in error.message
    assert error.traceback.endswith("cd")
    assert len(error.traceback) < MOST_TRACEBACK + 100
    assert RowError.model_validate(error.model_dump()) == error


def test_a_score_is_a_number(tmp_path: Path) -> None:
    add_rows(tmp_path, make_row(balanced_accuracy=float("nan")))
    with pytest.raises(ValueError, match="cell a: balanced_accuracy is not a number"):
        read_results(tmp_path).rows


@pytest.mark.usefixtures("folder")
def test_an_error_that_names_a_path_that_is_not_utf_8_can_be_written_and_read() -> None:
    error = RowError(type="ValueError", message="cannot read a\udcffb", traceback="File a\udcffb")
    (trial,) = small_cells("dp-gaussian").trials
    ResultStore("run").append("trainings", [training_line(trial, error, {})])
    (row,) = read_results("run").rows
    assert row.status == "failed"
    assert row.error == {"type": "ValueError", "message": "cannot read a?b", "traceback": "File a?b"}
