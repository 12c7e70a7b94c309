"""A grid's unit: an example, a client, or the rows of a client that share a value of a column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cells import digits_of_writers, quick, small_cells

from fedsim.errors import UserError
from fedsim.grid.read import load_grid
from fedsim.runs.prepare import Prepared


def cells(path: Path, *algorithms: Any, **keys: Any) -> Prepared:
    return small_cells(
        *algorithms,
        dataset={"npz": str(path), "overlap": "keep"},
        **{"unit": {"column": "writer"}, **keys},
    )


def test_a_writers_digits_are_one_unit_that_no_client_shares(tmp_path: Path) -> None:
    prepared = cells(digits_of_writers(tmp_path), quick("dp-gaussian"))
    (trial,) = prepared.trials
    writers = prepared.data[trial.data_key].columns["writer"]
    held = [set(writers[rows].tolist()) for rows in trial.partition.rows]
    assert (
        sum(map(len, held)) == len(set(writers.tolist())) == trial.train_groups < trial.train_rows
    )
    assert (trial.task.unit, trial.plan.unit, trial.cell.unit_name) == ("group", "group", "writer")
    assert all(spec.groups is not None for spec in trial.cohorts())


def test_every_algorithm_has_the_partition_that_keeps_units_together(tmp_path: Path) -> None:
    path = digits_of_writers(tmp_path)
    together = cells(path, quick("dp-gaussian"), "local-only")
    assert len({trial.partition.fingerprint for trial in together.trials}) == 1
    by_example = cells(
        path, quick("dp-gaussian"), "local-only", unit="example", partition={"together": "writer"}
    )
    assert by_example.trials[0].partition.fingerprint == together.trials[0].partition.fingerprint
    assert by_example.trials[0].cohorts()[0].groups is None
    apart = cells(path, "local-only", unit="example")
    assert apart.trials[0].cell.cell_id != together.trials[1].cell.cell_id


@pytest.mark.parametrize("word", ["patient", "group"])
def test_a_unit_that_is_a_word_is_shown_as_a_column(word: str) -> None:
    with pytest.raises(UserError) as caught:
        load_grid({"algorithms": ["dp-gaussian"], "unit": word})
    assert str(caught.value) == (
        f"unit: '{word}' is not a unit; give example, client, or for the rows that share a value "
        f"of a column: unit: {{column: {'NAME' if word == 'group' else word}}}"
    )


def test_a_writer_with_training_and_test_rows_or_no_such_column_is_reported(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="unit: the data set has no column 'writers'; did you mean 'writer'"
    ):
        cells(digits_of_writers(tmp_path), quick("dp-gaussian"), unit={"column": "writers"})
    path = digits_of_writers(tmp_path, writer=np.arange(450) % 200)
    with pytest.raises(
        UserError, match=r"unit: .* values of writer have both training and test rows"
    ):
        cells(path, quick("dp-gaussian"))
