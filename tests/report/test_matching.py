from typing import Any

import pytest
from fedsim.report.comparison import RunRecords, compare
from rows import make_failed, make_row

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


def test_a_run_that_was_computed_again_is_equal_whatever_its_wall_time_and_ids() -> None:
    again = [row.model_copy(update={"seconds": 9.0, "cell_id": f"again{row.cell_id}"}) for row in rows_of(0, 1)]
    rounds = [record | {"cell_id": f"again{record['cell_id']}"} for record in rounds_of(0, 1)]
    found = compare(RunRecords(rows_of(0, 1), rounds_of(0, 1)), RunRecords(again, rounds))
    assert found.equal
    (matched,) = found.matched
    assert (matched.seeds, matched.mean, matched.largest, matched.same_rounds, matched.fields) == (2, 0.0, 0.0, True, ())


def test_scores_that_moved_are_told_by_their_mean_and_the_largest_absolute_one() -> None:
    first = rows_of(0, balanced_accuracy=0.5) + rows_of(1, balanced_accuracy=0.6)
    second = rows_of(0, balanced_accuracy=0.6) + rows_of(1, balanced_accuracy=0.3)
    found = compare(RunRecords(first, []), RunRecords(second, []))
    (matched,) = found.matched
    assert (matched.mean, matched.largest) == pytest.approx((-0.1, 0.3))
    assert (matched.fields, matched.same_rounds, found.equal) == (("balanced_accuracy", "share_of_ceiling"), None, False)


def test_the_last_bit_counts() -> None:
    found = compare(RunRecords(rows_of(0, balanced_accuracy=0.3), []), RunRecords(rows_of(0, balanced_accuracy=0.1 + 0.2), []))
    assert not found.equal


@pytest.mark.parametrize("other", [{"sampled": 1}, {"noise": 1}])
def test_other_samples_or_other_noise_are_a_difference_even_where_scores_are_equal(other: dict[str, int]) -> None:
    found = compare(RunRecords(rows_of(0, 1), rounds_of(0, 1)), RunRecords(rows_of(0, 1), rounds_of(0) + rounds_of(1, **other)))
    assert [each.same_rounds for each in found.matched] == [False]
    assert not found.equal


def test_rounds_that_are_missing_are_a_difference_and_other_diagnostics_are_none() -> None:
    assert not compare(RunRecords(rows_of(0), rounds_of(0)), RunRecords(rows_of(0), rounds_of(0)[:1])).equal
    assert not compare(RunRecords(rows_of(0), rounds_of(0)), RunRecords(rows_of(0), [])).equal
    assert not compare(RunRecords(rows_of(0, 1), rounds_of(0)), RunRecords(rows_of(0, 1), rounds_of(0, noise=1))).equal
    assert compare(RunRecords(rows_of(0), rounds_of(0)), RunRecords(rows_of(0), rounds_of(0, loss=0.4))).equal


@pytest.mark.parametrize(
    "other",
    [
        *({"label": "other"}, {"dataset": "other"}, {"scheme": "iid"}, {"alpha": 1.0}, {"clients": 4}, {"epsilon_target": 4.0}),
        *({"delta": 1e-5}, {"unit": "client"}, {"trust": "silo"}, {"params": {"rounds": 41}}, {"unseen": "a site"}),
    ],
)
def test_rows_of_another_setting_are_no_match(other: dict[str, Any]) -> None:
    found = compare(RunRecords(rows_of(0), []), RunRecords(rows_of(0, **other), []))
    assert found.matched == []
    assert [len(rows) for rows in found.only] == [1, 1]
    assert not found.equal


def test_seeds_that_one_run_lacks_are_told_and_the_rest_is_compared() -> None:
    found = compare(RunRecords(rows_of(0, 1), []), RunRecords(rows_of(1, 2), []))
    assert [[row.seed for row in rows] for rows in found.only] == [[0], [2]]
    assert [(each.seeds, each.equal) for each in found.matched] == [(1, True)]
    assert not found.equal


def test_other_code_and_other_versions_are_told_once_and_are_no_equality() -> None:
    other = {"source": "2b", "judged": "3c", "counted_by": "4d", "versions": VERSIONS | {"torch": "2.14.0"}}
    found = compare(RunRecords(rows_of(0, 1), []), RunRecords(rows_of(0, 1, **other), []))
    code = [("source of fedhypevae", "1a", "2b"), ("code that judged", "none", "3c"), ("code that counted ε", "none", "4d")]
    assert found.provenance == [*code, ("torch", "2.13.0", "2.14.0")]
    assert all(each.equal for each in found.matched)
    assert not found.equal


def test_a_cell_that_failed_in_one_run_has_no_change_of_score() -> None:
    found = compare(RunRecords(rows_of(0), []), RunRecords([make_failed(seed=0, versions=VERSIONS, source="1a")], []))
    (matched,) = found.matched
    assert (matched.mean, matched.largest) == (None, None)
    assert {"status", "error", "balanced_accuracy"} <= set(matched.fields)
