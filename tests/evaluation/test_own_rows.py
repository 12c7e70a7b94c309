import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cells import quick, small_cells
from rows import clients, joined, ran
from sites import SITES, digits_of_sites

from fedsim.data.embeddings import Embeddings
from fedsim.errors import UserError
from fedsim.evaluation.references import local_only
from fedsim.evaluation.scores import probe_predictions, scores_of
from fedsim.evaluation.weights import TRIED_WEIGHTS, held_out_weight
from fedsim.models.linear import fit_linear
from fedsim.models.probe import fit_probe, strengths
from fedsim.partition.own_rows import own_rows
from fedsim.results.columns import Row
from fedsim.runs.prepare import Prepared

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

    def by_themselves(strength: float) -> tuple[float, ...]:
        clients = zip(trial.partition.rows, found.rows, strict=True)
        return tuple(floor_of(data, rows, test, strength) for rows, test in clients)

    floor = local_only(data, trial.partition, trial.cell.partition, None).clients
    assert floor == max(map(by_themselves, strengths(data.dim)), key=sum)


def floor_of(data: Embeddings, rows: np.ndarray, test: np.ndarray, strength: float) -> float:
    """Balanced accuracy on some test rows of a balanced probe of some training rows."""
    probe = fit_probe(data.x_train[rows], data.y_train[rows], strength, balanced=True)
    return scores_of(probe_predictions(probe, data.x_test[test], data.y_test[test], data.classes)).balanced_accuracy


def test_a_client_with_one_row_has_nothing_to_choose_its_weight_on() -> None:
    x, y = np.eye(3, 4, dtype=np.float32), np.arange(3)
    shared = fit_linear(x, y, 3, 1.0)
    assert held_out_weight(x[:1], y[:1], shared, 3, 1.0) == 0
    assert held_out_weight(x[:2], y[:2], shared, 3, 1.0) in TRIED_WEIGHTS


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
        ({"scheme": "column-dirichlet", "column": "sites"}, 4, "no column 'sites' .*; did you mean 'site'"),
        ({"scheme": "column", "column": "gaps"}, 3, "column 'gaps' has no value in 2 training rows; give every row one"),
        ({"scheme": "column-dirichlet", "column": "site", "min_size": 50}, 6, r"rows for \d clients of 50 rows at least"),
    ],
)
def test_a_division_by_sites_that_cannot_be_is_told(tmp_path: Path, partition: dict[str, Any], clients: int, said: str) -> None:
    path = changed(digits_of_sites(tmp_path), lambda of: {"gaps": np.where(np.arange(len(of["y"])) < 2, np.nan, 1.0)})
    with pytest.raises(UserError, match=said):
        cells(path, partition, clients=clients)


def changed(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    """The file, with other arrays."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    np.savez(path, **arrays | change(arrays))
    return path


def moved(site: str, part: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A site's rows of one part of the split become validation rows, which nobody reads."""
    return lambda of: {"split": np.where((of["site"] == site) & (of["split"] == part), 1, of["split"])}


def judged(path: Path, name: str = "dp-gaussian", **keys: Any) -> tuple[Row, list[dict[str, Any]]]:
    """The row and the clients' lines of a cell by site."""
    evaluation = {"per_class": 10, "per_client": True, "personal": "synthetic"}
    prepared = small_cells(
        quick(name), dataset={"npz": str(path), "overlap": "keep"}, partition=BY_SITE, evaluation=evaluation, **{"clients": 3, **keys}
    )
    (trial,), (data,) = prepared.trials, prepared.data.values()
    ended = (*ran(prepared, trial), None, local_only(data, trial.partition, trial.cell.partition, 0.1))
    return joined(trial, *ended), clients(trial, *ended)


def test_test_rows_of_a_site_that_no_client_holds_are_told_in_the_row(tmp_path: Path) -> None:
    row, lines = judged(changed(digits_of_sites(tmp_path), moved("west", 0)), clients=2)
    assert row.tested is not None
    assert re.fullmatch(r"the test rows with its site; \d+ test rows are of no client's site", row.tested)
    assert [line["name"] for line in lines] == ["north", "south"]
    assert row.client_balanced_accuracy is not None


def test_where_a_split_leaves_no_site_a_test_row_scores_of_clients_are_empty_and_the_row_says_why(tmp_path: Path) -> None:
    path = changed(digits_of_sites(tmp_path), lambda of: {"site": np.where(of["split"] == 2, "elsewhere", of["site"])})
    row, lines = judged(path)
    assert row.balanced_accuracy is not None
    assert [getattr(row, name) for name in ("client_balanced_accuracy", "client_spread", "personal_accuracy")] == [None] * 3
    assert row.tested == "the test rows with its site; 150 test rows are of no client's site"
    assert {line["reason"] for line in lines} == {"it has no test row"}


@pytest.mark.parametrize("name", ["dp-gaussian", "local-only"])
def test_a_site_that_lacks_a_class_or_has_one_alone_is_judged(tmp_path: Path, name: str) -> None:
    def without(of: dict[str, Any]) -> dict[str, Any]:
        kept = (of["split"] == 2) | ~(((of["site"] == "south") & (of["y"] != 3)) | ((of["site"] == "north") & (of["y"] == 5)))
        return {key: values[kept] for key, values in of.items()}

    row, lines = judged(changed(digits_of_sites(tmp_path), without), name)
    assert row.status == "ok"
    assert all(0 <= line["own_balanced_accuracy"] <= 1 for line in lines)
    # whoever knows one class alone finds one of all of them
    south = lines[1]
    assert south["name"] == "south"
    assert south["local_only_balanced_accuracy"] < 0.2


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
