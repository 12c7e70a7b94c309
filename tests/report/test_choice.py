import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fedsim.report.choice import chosen_figure, chosen_groups, chosen_table, pooled_rows
from rows import add_rows
from scipy.stats import ttest_rel

from fedsim.errors import UserError
from fedsim.results.columns import Row

MakeRow = Callable[..., Row]
SCORES = {"good": (0.8, 0.7, 0.9), "poor": (0.5, 0.45, 0.4), "other": (0.6, 0.61, 0.62)}


@pytest.fixture
def rows(row: MakeRow) -> list[Row]:
    return [
        row(cell_id=f"{label}{seed}", label=label, seed=seed, balanced_accuracy=value, macro_f1=1 - value)
        for label, values in SCORES.items()
        for seed, value in enumerate(values)
    ]


def labels(rows: list[Row], **asked: Any) -> list[str]:
    return [group.label for group in chosen_groups(rows, **asked)]


def test_methods_are_chosen_by_label_pattern_or_list_and_stand_as_given_by_score_or_by_name(rows: list[Row]) -> None:
    assert labels(rows) == ["good", "poor", "other"]
    assert labels(rows, methods=["other", "goo*"]) == labels(rows, methods=["other,good"]) == ["other", "good"]
    assert labels(rows, order="best") == ["good", "other", "poor"]
    assert labels(rows, order="best", measure="macro_f1") == ["poor", "other", "good"]
    assert labels(rows, order="name") == ["good", "other", "poor"]


def test_a_label_with_a_comma_is_one_method(row: MakeRow) -> None:
    assert labels([row(label="a,b"), row(cell_id="c", label="c")], methods=["a,b"]) == ["a,b"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"methods": ["goood"]}, "methods: there is no method 'goood'; did you mean 'good'"),
        ({"measure": "balanced"}, "measure: there is no measure 'balanced'"),
        ({"order": "worst"}, "order: there is no order 'worst'; known: best, given, name"),
    ],
)
def test_what_is_not_there_is_named(rows: list[Row], asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        chosen_groups(rows, **asked)


def test_one_pair_is_one_paired_test_of_any_measure(rows: list[Row]) -> None:
    table = chosen_table(chosen_groups(rows, "macro_f1"), "macro_f1", pair=("other", "good"))
    (line,) = table.blocks[0].lines
    assert (line.label, table.columns) == ("other − good", ("ε = 1",))
    assert line.p[0] == pytest.approx(ttest_rel(SCORES["other"], SCORES["good"]).pvalue)
    assert line.intervals[0] is not None
    assert line.intervals[0].mean == pytest.approx(0.19)


def test_private_methods_are_tested_against_those_without_noise(row: MakeRow) -> None:
    budgets = {"dp": (1.0, math.inf), "open": (None,)}
    rows = [
        row(cell_id=f"{label}{epsilon}{seed}", label=label, epsilon_target=epsilon, seed=seed, balanced_accuracy=0.5 + 0.1 * seed)
        for label, epsilons in budgets.items()
        for epsilon in epsilons
        for seed in range(2)
    ]
    table = chosen_table(chosen_groups(rows), table="private")
    assert [line.label for line in table.blocks[0].lines] == ["dp − dp at ε = ∞", "dp − open"]
    assert table.columns == ("ε = 1",)
    pair = chosen_table(chosen_groups(rows), pair=("dp", "open"))
    assert [line.label for line in pair.blocks[0].lines] == ["dp − open"]


def test_rows_of_several_folders_stand_in_one_table_and_are_paired_by_seed(tmp_path: Path, rows: list[Row]) -> None:
    for name, label in (("a", "good"), ("b", "poor"), ("c", "good")):
        add_rows(tmp_path / name, *(each for each in rows if each.label == label))
    pooled = pooled_rows([tmp_path / name for name in "abc"])
    assert len(pooled) == 6  # a cell that two folders have counts once
    assert chosen_table(chosen_groups(pooled), pair=("good", "poor")).blocks[0].lines[0].intervals[0] is not None


@pytest.mark.parametrize(("field", "value"), [("evaluation", {"per_class": 5}), ("dataset_hash", "other")])
def test_rows_that_were_judged_in_another_way_or_on_other_data_are_in_no_mean_with_these(
    tmp_path: Path, row: MakeRow, field: str, value: Any
) -> None:
    add_rows(tmp_path / "a", row())
    add_rows(tmp_path / "b", row(cell_id="b", seed=1, **{field: value}))
    with pytest.raises(UserError, match=rf"'fedhypevae' on digits differs in {field} from that of .*a, so one mean would mix them"):
        pooled_rows([tmp_path / "a", tmp_path / "b"])


def test_an_empty_table_and_an_unknown_one_are_mistakes(rows: list[Row]) -> None:
    groups = chosen_groups(rows)
    with pytest.raises(UserError, match="there is nothing to show of coverage"):
        chosen_table(groups, "coverage")
    with pytest.raises(UserError, match="there is no table 'result'; did you mean 'results'"):
        chosen_table(groups, table="result")
    with pytest.raises(UserError, match="pair: there is no method 'goood'"):
        chosen_table(groups, pair=("goood", "poor"))


def test_a_figure_for_a_column_is_as_wide_as_asked_and_has_no_caption(rows: list[Row]) -> None:
    figure = chosen_figure(rows, methods=["good", "poor"], width=3.35)
    assert figure.get_figwidth() == 3.35
    names = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert names == ["good", "poor"]
    assert [legend.get_title().get_text() for legend in figure.legends] == [""]
