from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cells import SITES, digits_of_sites, one_cell, quick, small_cells
from rows import entry_of, joined, lines_of, ran

from fedsim.evaluation.scores import local_only
from fedsim.partition.partition import own_rows
from fedsim.results.columns import Row


def keys_of_sites(path: Path) -> dict[str, Any]:
    """Keys of a grid whose three clients are the sites of a file."""
    return {
        "dataset": {"npz": str(path), "overlap": "keep"},
        "partition": {"scheme": "column", "column": "site"},
        "clients": 3,
    }


def test_a_sites_client_is_evaluated_on_the_sites_own_test_rows(tmp_path: Path) -> None:
    keys = keys_of_sites(digits_of_sites(tmp_path))
    trial, data, _ = one_cell(quick("dp-gaussian"), **keys)
    own = own_rows(data, trial.partition, trial.cell.partition)
    assert own.names == SITES
    assert own.words == "the test rows with its site"
    for name, rows in zip(SITES, own.rows, strict=True):
        assert set(data.test_columns["site"][rows]) == {name}
    assert sorted(np.concatenate(own.rows)) == list(range(len(data.y_test)))


@pytest.mark.parametrize(
    ("scheme", "first_rows", "words"),
    [
        ("iid", [0, 1, 2, 3], "all test rows"),
        ("feature-shift", [0, 4, 8, 12], "one of 4 test rows, as the client sees them"),
    ],
)
def test_without_sites_a_client_is_evaluated_on_what_it_sees(
    scheme: str, first_rows: list[int], words: str
) -> None:
    prepared = small_cells(
        quick("dp-gaussian"),
        partition={"scheme": scheme},
    )
    (trial,) = prepared.trials
    *_, data = prepared.data.values()
    own = own_rows(data, trial.partition, trial.cell.partition)
    assert own.rows[0][:4].tolist() == first_rows
    assert own.words == words


def read_sites(folder: Path) -> dict[str, np.ndarray]:
    with np.load(digits_of_sites(folder), allow_pickle=False) as file:
        return dict(file)


def evaluated(
    folder: Path,
    arrays: dict[str, np.ndarray],
) -> tuple[Row, list[dict[str, Any]]]:
    """The row and the clients' lines of a cell by site."""
    path = folder / "changed.npz"
    np.savez(path, **arrays)
    prepared = small_cells(
        quick("dp-gaussian"),
        evaluation={"per_class": 10, "per_client": True, "personal": "synthetic"},
        **keys_of_sites(path),
    )
    (trial,) = prepared.trials
    (data,) = prepared.data.values()
    local = local_only(
        data,
        trial.partition,
        trial.cell.partition,
        0.1,
    )
    ended = (*ran(prepared, trial), None, local)
    lines = replace(
        lines_of(trial, *ended),
        entries=[entry_of(trial)],
    )
    return joined(trial, *ended), lines.clients()


def test_client_scores_are_empty_if_sites_have_no_test_rows(tmp_path: Path) -> None:
    arrays = read_sites(tmp_path)
    arrays["site"] = np.where(
        arrays["split"] == 2,
        "elsewhere",
        arrays["site"],
    )
    row, lines = evaluated(tmp_path, arrays)
    assert row.balanced_accuracy is not None
    assert row.client_balanced_accuracy is None
    assert row.client_spread is None
    assert row.personal_accuracy is None
    assert row.tested == "the test rows with its site; 150 test rows are of no client's site"
    assert {line["reason"] for line in lines} == {"it has no test row"}


def test_a_site_that_lacks_a_class_or_has_one_alone_is_evaluated(tmp_path: Path) -> None:
    arrays = read_sites(tmp_path)
    y = arrays["y"]
    lacking = (arrays["site"] == "north") & (y == 5)
    alone = (arrays["site"] == "south") & (y != 3)
    kept = (arrays["split"] == 2) | ~(lacking | alone)
    row, lines = evaluated(
        tmp_path,
        {name: values[kept] for name, values in arrays.items()},
    )
    assert row.status == "ok"
    assert all(0 <= line["own_balanced_accuracy"] <= 1 for line in lines)
    # A client that knows one class alone is right in one of all classes.
    assert lines[1]["name"] == "south"
    assert lines[1]["local_only_balanced_accuracy"] < 0.2
