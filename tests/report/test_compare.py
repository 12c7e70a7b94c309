from pathlib import Path
from typing import Any

import pytest
from rows import add_lines, add_rows, changed, make_failed, make_row

from fedsim.errors import UserError
from fedsim.report.compare import Comparison, Records, compare, compare_folders
from fedsim.results.columns import Row

VERSIONS = {"fedsim": "0.1.0", "torch": "2.13.0"}


def rows_of(*seeds: int, **fields: Any) -> list[Row]:
    """A row a seed."""
    return [make_row(**{"cell_id": f"{seed}", "seed": seed, "versions": VERSIONS, "source": "1a"} | fields) for seed in seeds]


def rounds_of(*seeds: int, **fields: Any) -> list[dict[str, Any]]:
    """Two rounds a cell."""
    return [
        {"cell_id": f"{seed}", "round": t, "sampled": seed + t, "noise": 7 * t, "loss": 0.5} | fields for seed in seeds for t in range(2)
    ]


def compared(first: Records, second: Records) -> Comparison:
    return compare(("one", "other"), first, second)


def test_a_run_that_was_computed_again_is_equal_whatever_its_wall_time_and_ids() -> None:
    again = [changed(row, seconds=9.0, cell_id=f"again{row.cell_id}") for row in rows_of(0, 1)]
    rounds = [record | {"cell_id": f"again{record['cell_id']}"} for record in rounds_of(0, 1)]
    found = compared((rows_of(0, 1), rounds_of(0, 1)), (again, rounds))
    assert found.equal
    assert found.matched[["change", "rounds", "differ"]].to_numpy().tolist() == [[0.0, True, ""]] * 2


def test_scores_that_moved_are_told_row_by_row() -> None:
    first = rows_of(0, balanced_accuracy=0.5) + rows_of(1, balanced_accuracy=0.6)
    second = rows_of(0, balanced_accuracy=0.6) + rows_of(1, balanced_accuracy=0.3)
    found = compared((first, []), (second, []))
    assert found.matched["change"].tolist() == pytest.approx([0.1, -0.3])
    assert found.matched["differ"].tolist() == ["balanced_accuracy, share_of_ceiling"] * 2
    assert not found.equal


def test_the_last_bit_counts() -> None:
    found = compared((rows_of(0, balanced_accuracy=0.3), []), (rows_of(0, balanced_accuracy=0.1 + 0.2), []))
    assert not found.equal


@pytest.mark.parametrize("other", [{"sampled": 1}, {"noise": 1}])
def test_other_samples_or_other_noise_are_a_difference_even_where_scores_are_equal(other: dict[str, int]) -> None:
    found = compared((rows_of(0, 1), rounds_of(0, 1)), (rows_of(0, 1), rounds_of(0) + rounds_of(1, **other)))
    assert found.matched["rounds"].tolist() == [True, False]
    assert not found.equal


def test_rounds_that_are_missing_are_a_difference_and_other_diagnostics_are_none() -> None:
    assert not compared((rows_of(0), rounds_of(0)), (rows_of(0), rounds_of(0)[:1])).equal
    assert not compared((rows_of(0), rounds_of(0)), (rows_of(0), [])).equal
    assert not compared((rows_of(0, 1), rounds_of(0)), (rows_of(0, 1), rounds_of(0, noise=1))).equal
    assert compared((rows_of(0), rounds_of(0)), (rows_of(0), rounds_of(0, loss=0.4))).equal


@pytest.mark.parametrize(
    "other",
    [
        *({"label": "other"}, {"dataset": "other"}, {"scheme": "iid"}, {"alpha": 1.0}, {"clients": 4}, {"epsilon_target": 4.0}),
        *({"delta": 1e-5}, {"unit": "client"}, {"trust": "silo"}, {"params": {"rounds": 41}}, {"unseen": "a site"}),
    ],
)
def test_rows_of_another_setting_are_no_match(other: dict[str, Any]) -> None:
    found = compared((rows_of(0), []), (rows_of(0, **other), []))
    assert found.matched.empty
    assert [len(rows) for rows in found.only] == [1, 1]
    assert not found.equal


def test_seeds_that_one_run_lacks_are_told_and_the_rest_is_compared() -> None:
    found = compared((rows_of(0, 1), []), (rows_of(1, 2), []))
    assert [[row.seed for row in rows] for rows in found.only] == [[0], [2]]
    assert found.matched[["rounds", "differ"]].to_numpy().tolist() == [[True, ""]]
    assert not found.equal


def test_other_code_and_other_versions_are_told_once_and_are_no_equality() -> None:
    other = {"source": "2b", "judged": "3c", "counted_by": "4d", "versions": VERSIONS | {"torch": "2.14.0"}}
    found = compared((rows_of(0, 1), []), (rows_of(0, 1, **other), []))
    code = ["source of fedhypevae: 1a → 2b", "code that judged: none → 3c", "code that counted ε: none → 4d"]
    assert found.provenance == [*code, "torch: 2.13.0 → 2.14.0"]
    assert found.rows_equal
    assert not found.equal


def test_a_cell_that_failed_in_one_run_has_no_change_of_score() -> None:
    found = compared((rows_of(0), []), ([make_failed(seed=0, versions=VERSIONS, source="1a")], []))
    assert found.matched["change"].isna().all()
    assert {"status", "error", "balanced_accuracy"} <= set(found.matched["differ"][0].split(", "))


def folder_with(path: Path, rows: list[Row], rounds: list[dict[str, Any]]) -> Path:
    add_rows(path, *rows)
    add_lines(path / "rounds.jsonl", rounds)
    return path


def test_folders_are_compared_and_what_differs_is_printed(tmp_path: Path) -> None:
    one = folder_with(tmp_path / "a", rows_of(0, 1), rounds_of(0, 1))
    same = folder_with(tmp_path / "b", rows_of(0, 1), rounds_of(0, 1))
    assert repr(compare_folders(one, same)).startswith("equal to the last bit: everything (2 rows)")
    other = folder_with(tmp_path / "c", [*rows_of(0), *rows_of(2), *rows_of(1, balanced_accuracy=0.25)], rounds_of(0, 1))
    text = repr(compare_folders(one, other))
    for words in (f"only in {other}: fedhypevae · digits", "1 of 2 shared rows (1 row)", "-0.25", "balanced_accuracy"):
        assert words in text


def test_two_runs_that_share_nothing_or_a_folder_without_results_are_mistakes(tmp_path: Path) -> None:
    first, second = (folder_with(tmp_path / f"{seed}", rows_of(seed), []) for seed in (0, 1))
    with pytest.raises(UserError, match="no setting and seed is in both"):
        compare_folders(first, second)
    with pytest.raises(UserError, match="there are no results here"):
        compare_folders(first, tmp_path / "none")
    assert not (tmp_path / "none").exists()
