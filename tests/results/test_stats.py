"""Settings, their means over seeds, and differences between methods."""

import math
from typing import Any

import pandas as pd
import pytest
from rows import make_failed, make_row
from scipy.stats import ttest_1samp, ttest_rel

from fedsim.results.columns import Row
from fedsim.results.stats import SeedGroups, Spread, holm, paired_differences, with_ends

GOOD = [0.8, 0.7, 0.9, 0.85]
POOR = [0.5, 0.45, 0.4, 0.62]
OPEN: dict[str, Any] = {
    "epsilon_target": None,
    "delta": None,
    "unit": None,
    "trust": None,
}
"""The budget of a method without privacy."""


def row(cell_id: str = "a", params: Any = None, **fields: Any) -> Row:
    """Return a result of one method."""
    params = params or {"rounds": 3}
    return make_row(
        cell_id=cell_id,
        label="alg",
        params=params,
        **fields,
    )


def method(label: str, values: list[float], start: int = 0, **fields: Any) -> list[Row]:
    """Return one result per seed, with these scores."""
    rows = []
    for seed, value in enumerate(values, start):
        cell_id = f"{label}{seed}{fields}"
        rows.append(
            make_row(
                cell_id=cell_id,
                label=label,
                seed=seed,
                balanced_accuracy=value,
                **fields,
            )
        )
    return rows


def differences(*methods: list[Row]) -> list[dict[Any, Any]]:
    """Return the differences, with the facts of their first setting and both labels."""
    settings = SeedGroups.of([row for rows in methods for row in rows])
    labels = settings.facts["label"]
    records = []
    frame = paired_differences(settings, "balanced_accuracy")
    for difference in frame.to_dict("records"):
        first = difference["first"]
        pair = (labels[first], labels[difference["second"]])
        records.append({**settings.facts.loc[first], **difference, "pair": pair})
    return records


def stats_of(*values: float, spread: Spread = "ci95") -> Any:
    """Return the mean of some values with its ends."""
    stats = pd.Series(values).agg(
        [
            "mean",
            "std",
            "min",
            "max",
            "count",
        ]
    )
    frame = stats.rename({"count": "n"}).to_frame().T
    return with_ends(frame, spread).iloc[0]


def test_confidence_interval_is_students() -> None:
    # Mean 2, s = 1, n = 3: t_{0.975, 2} = 4.302653.
    stats = stats_of(1.0, 2.0, 3.0)
    assert stats["mean"] == 2.0
    assert stats["half"] == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert stats["low"] == pytest.approx(2 - stats["half"])
    assert stats["high"] == pytest.approx(2 + stats["half"])


def test_interval_needs_three_seeds_that_differ() -> None:
    assert math.isnan(stats_of(0.7)["half"])
    assert math.isnan(stats_of(0.7, 0.7, 0.7 + 1e-16)["half"])
    assert math.isnan(stats_of(1.0, 2.0)["low"])


def test_range_is_from_the_smallest_to_the_largest_value() -> None:
    stats = stats_of(1.0, 2.0, spread="range")
    assert stats["low"] == 1.0
    assert stats["high"] == 2.0


def test_difference_is_the_paired_t_test_over_seeds() -> None:
    (found,) = differences(method("good", GOOD), method("poor", POOR))
    expected = ttest_rel(GOOD, POOR)
    low, high = expected.confidence_interval(0.95)
    assert found["pair"] == ("good", "poor")
    assert found["n"] == 4
    assert found["p"] == pytest.approx(expected.pvalue)
    assert found["p_holm"] == pytest.approx(expected.pvalue)
    assert found["low"] == pytest.approx(low)
    assert found["high"] == pytest.approx(high)
    assert found["half"] == pytest.approx((high - low) / 2)


def test_p_value_of_small_differences_is_exact() -> None:
    values = [1e-3, 0.2, 5e-4, 0.0, 1e-4]
    (found,) = differences(method("a", values), method("b", [0.0] * 5))
    assert found["p"] == pytest.approx(ttest_1samp(values, 0.0).pvalue)


def test_holms_correction_is_that_of_a_worked_example() -> None:
    # Sorted: 4 · 0.005, 3 · 0.01, 2 · 0.03, and 0.04, which may not be below 0.06.
    adjusted = holm(
        pd.Series(
            [
                0.01,
                math.nan,
                0.04,
                0.03,
                0.005,
            ]
        )
    )
    expected = [0.03, math.nan, 0.06, 0.06, 0.02]
    assert list(adjusted) == pytest.approx(expected, nan_ok=True)
    assert list(holm(pd.Series([0.6, 0.7]))) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("alpha", 1.0),
        ("clients", 4),
        ("scheme", "iid"),
        ("dataset", "other"),
    ],
)
def test_p_values_are_corrected_within_one_place(name: str, value: Any) -> None:
    place = {name: value}
    found = differences(
        method("good", GOOD),
        method("poor", POOR),
        method("good", GOOD, epsilon_target=4.0),
        method("poor", [0.6, 0.5, 0.8, 0.6], epsilon_target=4.0),
        method("good", GOOD, **place),
        method("poor", POOR, **place),
    )
    here = [difference for difference in found if difference[name] != value]
    (there,) = [difference for difference in found if difference[name] == value]
    assert len(here) == 2
    corrected = holm(pd.Series([found["p"] for found in here]))
    assert [found["p_holm"] for found in here] == list(corrected)
    assert there["p_holm"] == there["p"]


def test_pair_shares_its_seed() -> None:
    (found,) = differences(
        method("good", GOOD),
        method(
            "poor",
            POOR[:3],
            start=1,
        ),
    )
    shared = zip(GOOD[1:], POOR[:3], strict=True)
    assert found["n"] == 3
    assert found["mean"] == pytest.approx(sum(good - poor for good, poor in shared) / 3)
    few = method("poor", POOR[:2], start=3)
    assert not differences(method("good", GOOD), few)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("partition_hash", "other"),
        ("dataset_hash", "other"),
        ("epsilon_target", 4.0),
        ("delta", 1e-5),
        ("unit", "client"),
        ("trust", "silo"),
        ("epsilon_target", None),
    ],
)
def test_pair_shares_partition_data_and_budget(name: str, value: Any) -> None:
    other = method("poor", POOR, **{name: value})
    assert not differences(method("good", GOOD), other)


def test_methods_without_epsilon_have_one_budget() -> None:
    (found,) = differences(
        method("good", GOOD, **OPEN),
        method("poor", POOR, **OPEN),
        method("private", POOR, epsilon_target=math.inf),
    )
    assert found["pair"] == ("good", "poor")


def groups(*rows: Row) -> dict[str, list[str]]:
    """Return the cells of each setting's mean, by label."""
    settings = SeedGroups.of(rows)
    labels = settings.facts["label"]
    cells = {}
    for setting, averaged in settings.averaged.groupby("setting"):
        cells[labels[setting]] = averaged["cell_id"].tolist()
    return cells


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("trust", "aggregate", "silo"),
        ("unit", "example", "client"),
        ("delta", 1e-4, 1e-5),
        ("public", "blood", "organ"),
    ],
)
def test_rows_of_different_budgets_are_never_averaged(name: str, first: Any, second: Any) -> None:
    fields = {name: first}
    others = {name: second, "seed": 1}
    assert groups(row("a", **fields), row("b", **others)) == {
        f"alg ({name}={first})": ["a"],
        f"alg ({name}={second})": ["b"],
    }


def test_rows_of_different_parameters_are_never_averaged() -> None:
    first = row("a", params={"lr": None, "b": 1})
    second = row("b", params={"lr": 0.2, "b": 1}, seed=1)
    assert groups(first, second) == {"alg (lr=None)": ["a"], "alg (lr=0.2)": ["b"]}


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [("dataset_hash", "12", "34"), ("evaluation", {"per_class": 3}, {"per_class": 200})],
)
def test_rows_of_other_data_or_evaluation_are_never_averaged(
    name: str, first: Any, second: Any
) -> None:
    fields = {name: first}
    others = {name: second, "seed": 1}
    settings = SeedGroups.of([row("a", **fields), row("b", **others)])
    assert settings.rows["setting"].nunique() == 2


def test_seed_counts_once_with_its_last_row() -> None:
    assert groups(
        row("a"),
        row("b"),
        row("c", seed=1),
    ) == {"alg": ["b", "c"]}


@pytest.mark.parametrize(
    ("weaker", "fields"),
    [
        ("none", {"claim": "none"}),
        ("heuristic", {"claim": "heuristic"}),
        ("stated", {"claim": "stated"}),
        ("heuristic", {"check": "failed"}),
    ],
)
def test_mean_has_the_weakest_claim_of_its_rows(weaker: str, fields: dict[str, Any]) -> None:
    failed = make_failed(
        cell_id="c",
        label="alg",
        params={"rounds": 3},
        seed=2,
    )
    settings = SeedGroups.of(
        [
            row("a"),
            row(
                "b",
                seed=1,
                **fields,
            ),
            failed,
        ]
    )
    (facts,) = settings.facts.to_dict("records")
    assert facts["claim"] == weaker
    assert facts["scope"] == "joint"
    assert facts["seeds"] == 2
    assert facts["failed"] == 1
