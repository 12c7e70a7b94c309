from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cells import quick, small_cells
from sites import SITES, digits_of_sites

from fedsim.errors import UserError
from fedsim.evaluation.own_rows import own_rows
from fedsim.simulation.preflight import Prepared

HAM = Path(__file__).parents[3] / "shared" / "data" / "ham10000_sites_effnetlite0.npz"
BY_SITE = {"scheme": "column", "column": "site"}


def cells(path: Path, partition: dict[str, Any] = BY_SITE, **keys: Any) -> Prepared:
    return small_cells(quick("dp-gaussian"), dataset={"npz": str(path), "overlap": "keep"}, partition=partition, **{"clients": 3, **keys})


def test_a_sites_client_is_judged_on_the_sites_own_test_rows(tmp_path: Path) -> None:
    prepared = cells(digits_of_sites(tmp_path))
    (trial,), (data,) = prepared.trials, prepared.data.values()
    found = own_rows(data, trial.partition, trial.cell.partition)
    assert found.names == SITES
    assert found.words == "the test rows with its site"
    for name, rows in zip(SITES, found.rows, strict=True):
        assert set(data.test_columns["site"][rows]) == {name}
    assert sorted(np.concatenate(found.rows)) == list(range(len(data.y_test)))


def test_several_clients_of_one_site_share_its_test_rows(tmp_path: Path) -> None:
    prepared = cells(digits_of_sites(tmp_path), {"scheme": "column-dirichlet", "column": "site"}, clients=6)
    (trial,), (data,) = prepared.trials, prepared.data.values()
    found = own_rows(data, trial.partition, trial.cell.partition)
    held = [set(data.columns["site"][rows]) for rows in trial.partition.rows]
    assert all(len(sites) == 1 for sites in held)
    assert [{name.split()[0]} for name in found.names] == held
    assert len(set(found.names)) == 6
    assert [held.count({name}) for name in SITES] == [2, 3, 1]


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


@pytest.mark.parametrize(
    ("partition", "clients", "said"),
    [
        ({"scheme": "column", "column": "site"}, 4, "column 'site' has 3 values, so 3 clients, not 4"),
        ({"scheme": "column-dirichlet", "column": "site"}, 2, "column 'site' has 3 values, more than 2 clients"),
        ({"scheme": "column-dirichlet", "column": "sites"}, 4, "no column 'sites'; did you mean 'site'"),
        ({"scheme": "column-dirichlet", "column": "site", "min_size": 50}, 6, r"rows for \d clients of 50 rows at least"),
    ],
)
def test_a_division_by_sites_that_cannot_be_is_told(tmp_path: Path, partition: dict[str, Any], clients: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        cells(digits_of_sites(tmp_path), partition, clients=clients)


@pytest.mark.skipif(not HAM.exists(), reason="HAM10000's embeddings are not beside the checkout")
def test_ham10000s_hospitals_are_judged_on_their_own_lesions() -> None:
    prepared = cells(HAM, clients=4)
    (trial,), (data,) = prepared.trials, prepared.data.values()
    found = own_rows(data, trial.partition, trial.cell.partition)
    assert found.names == ("rosendahl", "vidir_modern", "vidir_molemax", "vienna_dias")
    for client, rows in enumerate(found.rows):
        own = set(data.columns["site"][trial.partition.rows[client]])
        assert set(data.test_columns["site"][rows]) == own == {found.names[client]}
        held = set(data.columns["lesion_id"][trial.partition.rows[client]])
        assert not held & set(data.test_columns["lesion_id"][rows])
