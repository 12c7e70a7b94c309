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
    return [
        make_row(
            **{"cell_id": f"{seed}", "seed": seed, "versions": VERSIONS, "source": "1a"} | fields
        )
        for seed in seeds
    ]


def rounds_of(*seeds: int, **fields: Any) -> list[dict[str, Any]]:
    """Two rounds a cell."""
    return [
        {"cell_id": f"{seed}", "round": t, "sampled": seed + t, "noise": 7 * t, "loss": 0.5}
        | fields
        for seed in seeds
        for t in range(2)
    ]


def compared(first: Records, second: Records) -> Comparison:
    return compare(("one", "other"), first, second)


def test_repeated_run_is_equal_whatever_its_times_and_ids() -> None:
    again = [
        changed(
            row,
            seconds=9.0,
            cell_id=f"again{row.cell_id}",
        )
        for row in rows_of(0, 1)
    ]
    rounds = [
        record | {"cell_id": f"again{record['cell_id']}"} for record in rounds_of(0, 1, loss=0.4)
    ]
    found = compared((rows_of(0, 1), rounds_of(0, 1)), (again, rounds))
    assert found.equal
    assert (
        found.matched[["change", "rounds", "differ"]].to_numpy().tolist() == [[0.0, True, ""]] * 2
    )


def test_every_score_that_differs_by_one_bit_is_named() -> None:
    first = rows_of(0, balanced_accuracy=0.5) + rows_of(1, balanced_accuracy=0.3)
    second = rows_of(0, balanced_accuracy=0.6) + rows_of(1, balanced_accuracy=0.1 + 0.2)
    found = compared((first, []), (second, []))
    assert found.matched["change"].tolist() == pytest.approx([0.1, 0.0])
    assert found.matched["differ"].tolist() == ["balanced_accuracy, share_of_ceiling"] * 2
    failed = compared(
        (rows_of(0), []), ([make_failed(seed=0, versions=VERSIONS, source="1a")], [])
    ).matched
    assert failed["change"].isna().all()
    assert {"status", "error", "balanced_accuracy"} <= set(failed["differ"][0].split(", "))


@pytest.mark.parametrize(
    "other", [rounds_of(0, sampled=5), rounds_of(0, noise=1), rounds_of(0)[:1], []]
)
def test_rounds_are_equal_if_samples_and_noise_are(other: list[dict[str, Any]]) -> None:
    assert compared(
        (rows_of(0), rounds_of(0)),
        (rows_of(0), other),
    ).matched["rounds"].tolist() == [False]


@pytest.mark.parametrize(
    "other",
    [
        {"label": "other"},
        {"dataset": "other"},
        {"scheme": "iid"},
        {"alpha": 1.0},
        {"clients": 4},
        {"epsilon_target": 4.0},
        {"delta": 1e-5},
        {"unit": "client"},
        {"trust": "silo"},
        {"params": {"rounds": 41}},
        {"unseen": "a site"},
        {"seed": 1},
    ],
)
def test_rows_of_another_setting_or_seed_are_no_match(other: dict[str, Any]) -> None:
    found = compared((rows_of(0), []), (rows_of(0, **other), []))
    assert (len(found.matched), [len(rows) for rows in found.only], found.equal) == (
        0,
        [1, 1],
        False,
    )


def test_other_code_and_versions_are_named_once_and_not_equal() -> None:
    other = {
        "source": "2b",
        "evaluation_source": "3c",
        "counted_by": "4d",
        "versions": VERSIONS | {"torch": "2.14.0"},
    }
    found = compared((rows_of(0, 1), []), (rows_of(0, 1, **other), []))
    code = [
        "code of fedhypevae differs: 1a in the first run, 2b in the second",
        "code that evaluated differs: none in the first run, 3c in the second",
        "code that counted ε differs: none in the first run, 4d in the second",
    ]
    torch = "torch differs: 2.13.0 in the first run, 2.14.0 in the second"
    assert found.provenance == [*code, torch]
    assert (found.rows_equal, found.equal) == (True, False)


def folder_with(path: Path, rows: list[Row]) -> Path:
    add_rows(path, *rows)
    add_lines(path / "rounds.jsonl", rounds_of(0, 1))
    return path


def test_comparison_of_folders_prints_what_differs(
    tmp_path: Path,
) -> None:
    one, same = (folder_with(tmp_path / name, rows_of(0, 1)) for name in "ab")
    equal = repr(compare_folders(one, same))
    assert equal.startswith("Equal to the last bit: everything (2 results)")
    other = folder_with(
        tmp_path / "c", [*rows_of(0), *rows_of(2), *rows_of(1, balanced_accuracy=0.25)]
    )
    text = repr(compare_folders(one, other))
    for words in (
        f"only in {other}: fedhypevae · digits",
        "1 of 2 shared results (1 result)",
        "-0.25",
        "balanced_accuracy",
    ):
        assert words in text
    with pytest.raises(UserError, match="have no result of the same setting and seed"):
        compare_folders(one, folder_with(tmp_path / "d", rows_of(3)))
    with pytest.raises(UserError, match="there are no results here"):
        compare_folders(one, tmp_path / "none")
