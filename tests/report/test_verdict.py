"""The verdict: mean ranks in all measures, and how often one method beats its rivals."""

import csv
import io
from collections.abc import Mapping
from typing import Any

import pytest
from rows import make_row

from fedsim.plugins.registry import EXTERNAL
from fedsim.report.table import Table
from fedsim.report.verdict import verdict_table
from fedsim.results.columns import Row
from fedsim.results.stats import SeedGroups

RANKS = "Mean rank (1 is best)"
SEEDS = [0.00, 0.01, 0.02, 0.00]
"""What four seeds add to a score."""


def rows_of(
    label: str, scores: list[float], measure: str = "balanced_accuracy", **fields: Any
) -> list[Row]:
    """Return one result per score, at budgets ε = 1, 2, ... and one seed each."""
    defaults = {"accuracy": None, "balanced_accuracy": None}
    return [
        make_row(
            **{
                **defaults,
                "cell_id": f"{label}{epsilon}{measure}{fields}",
                "label": label,
                "epsilon_target": float(epsilon),
                measure: score,
                **fields,
            }
        )
        for epsilon, score in enumerate(scores, start=1)
    ]


def seeds_of(label: str, scores: list[float]) -> list[Row]:
    """Return the results of four seeds, whose scores differ a little."""
    rows = []
    for seed, more in enumerate(SEEDS):
        rows += rows_of(label, [score + more for score in scores], seed=seed)
    return rows


def verdict(*methods: list[Row], **how: Any) -> Table:
    """Return the verdict on some methods."""
    table = verdict_table(SeedGroups.of([row for rows in methods for row in rows]), **how)
    assert table is not None
    return table


def lines(table: Table, block: str = RANKS) -> Mapping[str, list[str]]:
    """Return the texts of a block by method."""
    return {str(name): list(texts) for name, texts in table.texts.loc[block].T.items()}


def ranks(*methods: list[Row]) -> Mapping[str, str]:
    """Return the text of the mean rank of each method in the first measure."""
    found = lines(verdict(*methods, digits=2))
    return {name: texts[0] for name, texts in found.items() if not name.startswith("(")}


# --- mean ranks ---


def test_mean_ranks_are_over_settings() -> None:
    # Ranks of a: 1, 1, 2; of b: 2, 3, 1; of c: 3, 2, 3.
    assert ranks(
        rows_of("a", [0.9, 0.8, 0.5]),
        rows_of("b", [0.8, 0.2, 0.7]),
        rows_of("c", [0.1, 0.5, 0.3]),
    ) == {"a": "1.33", "b": "2.00", "c": "2.67"}


def test_a_setting_is_a_data_set_partition_and_budget() -> None:
    methods = []
    for place in ({"dataset": "x"}, {"alpha": 1.0}, {"clients": 3}):
        methods += [rows_of("a", [0.9, 0.1], **place), rows_of("b", [0.8, 0.2], **place)]
    table = verdict(*methods)
    assert lines(table)["(number of settings)"] == ["6", ""]
    assert lines(table)["a"] == ["1.500", "1.500"]


@pytest.mark.parametrize(
    ("measure", "better", "worse"),
    [
        ("balanced_accuracy", 0.9, 0.8),
        ("accuracy", 0.9, 0.8),
        ("auroc", 0.9, 0.8),
        ("knn_balanced_accuracy", 0.9, 0.8),
        ("coverage", 0.9, 0.8),
        ("frechet_distance", 0.1, 0.2),
        ("real_or_synthetic", 0.6, 0.9),
        ("real_or_synthetic", 0.55, 0.4),
        ("membership_auc", 0.51, 0.6),
    ],
)
def test_measure_is_ranked_in_its_direction(measure: str, better: float, worse: float) -> None:
    assert ranks(
        rows_of("worse", [worse], measure),
        rows_of("better", [better], measure),
    ) == {"better": "1.00", "worse": "2.00"}


def test_last_column_is_the_mean_of_all_ranks() -> None:
    table = verdict(
        rows_of("a", [0.9, 0.1], coverage=0.1),
        rows_of("b", [0.8, 0.2], coverage=0.2),
    )
    assert list(table.texts.columns) == ["balanced", "coverage", "all"]
    assert lines(table)["a"] == ["1.500", "2.000", "1.750"]
    assert lines(table)["b"] == ["1.500", "1.000", "1.250"]


def test_methods_are_ranked_only_in_their_measures() -> None:
    table = verdict(
        rows_of("a", [0.9], coverage=0.1),
        rows_of("b", [0.7], coverage=0.2),
        rows_of("c", [0.8], yields="classifier"),
    )
    assert lines(table)["c (classifier)"] == ["2.000", "", ""]
    assert any(note.endswith("Not ranked in every column: c.") for note in table.notes)
    # By balanced accuracy b is third, but second among the two generators.
    assert lines(table)["b"] == ["3.000", "1.000", "1.500"]


def test_measures_of_different_methods_have_no_overall_rank() -> None:
    table = verdict(
        rows_of("a", [0.9]),
        rows_of("b", [0.8]),
        rows_of("c", [0.9], "coverage"),
        rows_of("d", [0.8], "coverage"),
    )
    assert list(table.texts.columns) == ["balanced", "coverage"]
    assert lines(table)["d"] == ["", "2.000"]


# --- who is not ranked ---


def test_method_that_lacks_a_setting_is_not_ranked() -> None:
    table = verdict(
        rows_of("a", [0.9, 0.9]),
        rows_of("b", [0.7, 0.7]),
        rows_of("c", [0.8]),
    )
    assert lines(table)["a"] == ["1.000", "1.000"]
    assert lines(table)["b"] == ["2.000", "2.000"]
    assert "c" not in lines(table)
    assert any(note.endswith("Not ranked in every column: c.") for note in table.notes)


def test_setting_of_a_single_method_does_not_count() -> None:
    table = verdict(rows_of("a", [0.9, 0.9, 0.9]), rows_of("b", [0.7, 0.7]))
    assert lines(table)["(number of settings)"][0] == "2"


def test_external_samples_are_not_ranked() -> None:
    found = ranks(
        rows_of("a", [0.8]),
        rows_of("b", [0.7]),
        rows_of("external", [0.9], algorithm=EXTERNAL),
    )
    assert list(found) == ["a", "b"]


def test_failed_cells_are_not_ranked() -> None:
    found = ranks(
        rows_of("a", [0.8]),
        rows_of("b", [0.7]),
        rows_of("c", [0.9], status="refuted"),
    )
    assert list(found) == ["a", "b"]


def test_methods_without_budget_are_not_ranked_beside_others() -> None:
    without = [
        make_row(cell_id=label, label=label, epsilon_target=None, balanced_accuracy=0.9)
        for label in ("c", "d")
    ]
    private = [rows_of("a", [0.8]), rows_of("b", [0.7])]
    assert list(ranks(*private, without)) == ["a", "b"]
    assert len(ranks(without)) == 2


def test_single_method_has_no_verdict() -> None:
    assert verdict_table(SeedGroups.of(rows_of("a", [0.8]))) is None
    assert verdict_table(SeedGroups.of([])) is None


def test_methods_without_a_common_setting_have_no_verdict() -> None:
    rows = rows_of("a", [0.8]) + rows_of("b", [0.8], epsilon_target=2.0)
    assert verdict_table(SeedGroups.of(rows)) is None


# --- tests ---


def test_five_settings_have_a_critical_difference() -> None:
    table = verdict(
        rows_of("a", [0.9] * 5),
        rows_of("b", [0.8] * 5),
        rows_of("c", [0.7] * 5),
    )
    # 2.3437 √(3 · 4 / (6 · 5)) = 1.482, and exp(-5) = 0.0067.
    assert lines(table)["(critical difference)"] == ["1.48", ""]
    assert lines(table)["(p of Friedman's test)"] == ["0.00674", ""]
    assert any("Settings of the same data are not independent" in note for note in table.notes)


def test_fewer_settings_say_that_they_are_too_few() -> None:
    table = verdict(rows_of("a", [0.9] * 4), rows_of("b", [0.8] * 4))
    assert "(critical difference)" not in lines(table)
    assert any(note.startswith("With fewer than 5 settings there") for note in table.notes)


# --- won, level, lost ---


def test_first_method_is_compared_with_each_rival() -> None:
    table = verdict(
        seeds_of("ours", [0.5, 0.5]),
        seeds_of("weak", [0.1, 0.2]),
        seeds_of("strong", [0.9, 0.5]),
    )
    assert lines(table, "ours: won/level/lost against") == {
        "weak": ["2/0/0", "2/0/0"],
        "strong": ["0/1/1", "0/1/1"],
    }


def test_wins_and_losses_are_counted_by_measure() -> None:
    weak = [0.10, 0.12, 0.11, 0.15]
    ours = [0.50, 0.49, 0.52, 0.51]
    methods = [
        rows_of(label, [score], seed=seed, coverage=0.5)
        for label, scores in (("ours", ours), ("weak", weak))
        for seed, score in enumerate(scores)
    ]
    table = verdict(*methods)
    assert lines(table, "ours: won/level/lost against") == {"weak": ["1/0/0", "0/1/0", "1/1/0"]}


def test_subject_may_be_any_method() -> None:
    table = verdict(
        seeds_of("ours", [0.5]),
        seeds_of("theirs", [0.1]),
        subject="theirs",
    )
    assert set(lines(table, "theirs: won/level/lost against")) == {"ours"}


def test_one_seed_has_ranks_alone() -> None:
    table = verdict(rows_of("a", [0.9]), rows_of("b", [0.8]))
    assert set(table.texts.index.get_level_values(0)) == {RANKS}


# --- formats ---


def test_csv_has_numbers_of_both_blocks() -> None:
    table = verdict(seeds_of("ours", [0.5]), seeds_of("theirs", [0.1]))
    records = list(csv.DictReader(io.StringIO(table.text("csv"))))
    (rank,) = [
        record
        for record in records
        if record["label"] == "theirs" and record["measure"] == "balanced_accuracy"
    ]
    count, of_all = [record for record in records if record["rival"] == "theirs"]
    assert float(rank["mean_rank"]) == 2.0
    assert float(rank["settings"]) == 1.0
    assert (count["measure"], of_all["measure"]) == ("balanced_accuracy", "all")
    assert [float(count[name]) for name in ("won", "level", "lost")] == [1.0, 0.0, 0.0]


def test_latex_and_markdown_have_both_blocks() -> None:
    table = verdict(seeds_of("ours", [0.5]), seeds_of("theirs", [0.1]))
    assert r"\label{tab:verdict}" in table.text("latex")
    assert "ours: won/level/lost against" in table.text("latex")
    assert "**ours: won/level/lost against**" in table.text("md")
