from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from cells import SITES, digits_of_sites, quick, small_cells
from rows import entry_of, joined, lines_of, ran

from fedsim.evaluation.scores import local_only
from fedsim.partition.partition import own_rows
from fedsim.results.columns import Row
from fedsim.runs.prepare import Prepared

BY_SITE = {"scheme": "column", "column": "site"}


def cells(path: Path, partition: dict[str, Any] = BY_SITE, **keys: Any) -> Prepared:
    return small_cells(
        quick("dp-gaussian"),
        dataset={"npz": str(path), "overlap": "keep"},
        partition=partition,
        **{"clients": 3, **keys},
    )


def test_a_sites_client_is_evaluated_on_the_sites_own_test_rows(tmp_path: Path) -> None:
    prepared = cells(digits_of_sites(tmp_path))
    (trial,), (data,) = prepared.trials, prepared.data.values()
    found = own_rows(data, trial.partition, trial.cell.partition)
    assert found.names == SITES
    assert found.words == "the test rows with its site"
    for name, rows in zip(SITES, found.rows, strict=True):
        assert set(data.test_columns["site"][rows]) == {name}
    assert sorted(np.concatenate(found.rows)) == list(range(len(data.y_test)))


def test_without_sites_all_test_rows_count_and_under_feature_shift_those_that_are_seen() -> None:
    for partition, first, words in (
        ({"scheme": "iid"}, list(range(8)), "all test rows"),
        ({"scheme": "feature-shift"}, [0, 4, 8], "every 4th test row, as the client sees it"),
    ):
        prepared = small_cells(quick("dp-gaussian"), partition=partition)
        (trial,), (*_, data) = prepared.trials, prepared.data.values()
        found = own_rows(data, trial.partition, trial.cell.partition)
        assert found.rows[0].tolist()[: len(first)] == first
        assert found.words == words


def changed(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    """The file, with other arrays."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    np.savez(path, **arrays | change(arrays))
    return path


def evaluated(path: Path) -> tuple[Row, list[dict[str, Any]]]:
    """The row and the clients' lines of a cell by site."""
    prepared = cells(
        path, evaluation={"per_class": 10, "per_client": True, "personal": "synthetic"}
    )
    (trial,), (data,) = prepared.trials, prepared.data.values()
    ended = (
        *ran(prepared, trial),
        None,
        local_only(data, trial.partition, trial.cell.partition, 0.1),
    )
    return joined(trial, *ended), replace(
        lines_of(trial, *ended), entries=[entry_of(trial)]
    ).clients()


def test_where_a_split_leaves_no_site_a_test_row_scores_of_clients_are_empty_and_the_row_says_why(
    tmp_path: Path,
) -> None:
    path = changed(
        digits_of_sites(tmp_path),
        lambda of: {"site": np.where(of["split"] == 2, "elsewhere", of["site"])},
    )
    row, lines = evaluated(path)
    assert row.balanced_accuracy is not None
    assert [
        getattr(row, name)
        for name in ("client_balanced_accuracy", "client_spread", "personal_accuracy")
    ] == [None] * 3
    assert row.tested == "the test rows with its site; 150 test rows are of no client's site"
    assert {line["reason"] for line in lines} == {"it has no test row"}


def test_a_site_that_lacks_a_class_or_has_one_alone_is_evaluated(tmp_path: Path) -> None:
    def without(of: dict[str, Any]) -> dict[str, Any]:
        kept = (of["split"] == 2) | ~(
            ((of["site"] == "south") & (of["y"] != 3)) | ((of["site"] == "north") & (of["y"] == 5))
        )
        return {key: values[kept] for key, values in of.items()}

    row, lines = evaluated(changed(digits_of_sites(tmp_path), without))
    assert row.status == "ok"
    assert all(0 <= line["own_balanced_accuracy"] <= 1 for line in lines)
    # whoever knows one class alone finds one of all of them
    south = lines[1]
    assert south["name"] == "south"
    assert south["local_only_balanced_accuracy"] < 0.2
