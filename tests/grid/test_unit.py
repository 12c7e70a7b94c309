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

BY_WRITER = {"column": "writer"}


def cells(path: Path, *algorithms: Any, unit: Any = BY_WRITER, **keys: Any) -> Prepared:
    dataset = {"npz": str(path), "overlap": "keep"}
    return small_cells(*algorithms, dataset=dataset, unit=unit, **keys)


def test_clients_share_no_writer_if_writers_are_units(tmp_path: Path) -> None:
    prepared = cells(digits_of_writers(tmp_path), quick("dp-gaussian"))
    (trial,) = prepared.trials
    writers = prepared.data[trial.data_key].columns["writer"]
    writers_of_clients = [len(set(writers[rows].tolist())) for rows in trial.partition.rows]
    assert trial.train_groups == len(set(writers.tolist()))
    assert trial.train_groups == sum(writers_of_clients)
    assert trial.train_groups < trial.train_rows
    assert trial.task.unit == "group"
    assert trial.plan.unit == "group"
    assert trial.cell.unit_name == "writer"
    for spec in trial.cohorts():
        assert spec.groups is not None


def test_all_algorithms_get_a_partition_that_keeps_units(tmp_path: Path) -> None:
    together = cells(digits_of_writers(tmp_path), quick("dp-gaussian"), "local-only")
    private, local_only = together.trials
    assert private.partition.fingerprint == local_only.partition.fingerprint


def test_partition_may_keep_groups_that_are_not_units(tmp_path: Path) -> None:
    path = digits_of_writers(tmp_path)
    (as_units,) = cells(path, "local-only").trials
    partition = {"together": "writer"}
    (kept,) = cells(path, "local-only", unit="example", partition=partition).trials
    (apart,) = cells(path, "local-only", unit="example").trials
    assert kept.partition.fingerprint == as_units.partition.fingerprint
    assert kept.cohorts()[0].groups is None
    assert apart.cell.cell_id != as_units.cell.cell_id


@pytest.mark.parametrize(("word", "column"), [("patient", "patient"), ("group", "NAME")])
def test_unit_that_is_a_bare_word_is_refused(word: str, column: str) -> None:
    with pytest.raises(UserError) as caught:
        load_grid({"algorithms": ["dp-gaussian"], "unit": word})
    assert str(caught.value) == (
        f"unit: '{word}' is not a unit; give example or client, or give unit: {{column: {column}}} "
        "to protect all rows with one value of that column together"
    )


def test_unknown_unit_column_is_reported(tmp_path: Path) -> None:
    path = digits_of_writers(tmp_path)
    message = "unit: the data set has no column 'writers'; did you mean 'writer'"
    with pytest.raises(UserError, match=message):
        cells(path, quick("dp-gaussian"), unit={"column": "writers"})


def test_unit_with_training_and_test_rows_is_reported(tmp_path: Path) -> None:
    path = digits_of_writers(tmp_path, writer=np.arange(450) % 449)
    message = "unit: 1 values of writer have both training and test rows, such as '0'; for images"
    with pytest.raises(UserError, match=message):
        cells(path, quick("dp-gaussian"))
