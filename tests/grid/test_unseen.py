from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cells import SITES, digits_of_sites, quick, small_cells

from fedsim.errors import UserError
from fedsim.runs.prepare import Prepared

BY_SITE = {"scheme": "column", "column": "site"}


def cells(
    path: Path,
    unseen: str,
    clients: int = 2,
    partition: dict[str, Any] = BY_SITE,
    **evaluation: Any,
) -> Prepared:
    asked = {"per_class": 10, "unseen": unseen, **evaluation}
    return small_cells(
        quick("dp-gaussian"),
        dataset={"npz": str(path), "overlap": "keep"},
        partition=partition,
        clients=clients,
        evaluation=asked,
    )


def test_each_leaves_every_site_out_in_turn(tmp_path: Path) -> None:
    prepared = cells(digits_of_sites(tmp_path), "each")
    assert [trial.cell.evaluation.unseen for trial in prepared.trials] == list(SITES)
    assert len({trial.cell.cell_id for trial in prepared.trials}) == 3
    for trial in prepared.trials:
        unseen = trial.cell.evaluation.unseen
        data = prepared.data[trial.data_key]
        sites = data.columns["site"]
        seen = [set(sites[rows].tolist()) for rows in trial.partition.rows]
        assert seen == [{site} for site in SITES if site != unseen]
        assert set(data.test_columns["site"]) == {unseen}
        assert trial.train_rows == len(sites)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"unseen": "sout"},
            "evaluation.unseen: column 'site' of '.*' has no value 'sout'; did you mean 'south'",
        ),
        (
            {"unseen": "south", "clients": 3},
            "clients.*is 3, but .* one client for each of the 2 values of column 'site'",
        ),
        (
            {"unseen": "south", "partition": {"scheme": "iid"}},
            "scheme 'iid' has no sites; give partition",
        ),
    ],
)
def test_a_site_that_cannot_be_left_out_is_reported(
    tmp_path: Path,
    keys: dict[str, Any],
    said: str,
) -> None:
    with pytest.raises((UserError, ValueError), match=said):
        cells(digits_of_sites(tmp_path), **keys)


def test_a_site_without_test_rows_cannot_be_unseen(tmp_path: Path) -> None:
    path = digits_of_sites(tmp_path)
    with np.load(path, allow_pickle=False) as file:
        kept = (file["split"] == 0) | (file["site"] != "south")
        held = {name: file[name][kept] for name in file.files}
    np.savez(path, **held)
    with pytest.raises(UserError, match="no test row has site 'south'"):
        cells(path, "south")
