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


def row(cell_id: str = "a", **fields: Any) -> Row:
    return make_row(**{"cell_id": cell_id, "label": "alg", "params": {"rounds": 3}, **fields})


def method(label: str, values: list[float], start: int = 0, **fields: Any) -> list[Row]:
    """A row a seed."""
    return [
        make_row(
            cell_id=f"{label}{seed}{fields}",
            label=label,
            seed=seed,
            balanced_accuracy=value,
            **fields,
        )
        for seed, value in enumerate(values, start)
    ]


def differences(rows: list[Row]) -> list[dict[Any, Any]]:
    """The differences, with the facts of their first setting."""
    settings = SeedGroups.of(rows)
    names = settings.facts["label"]
    found = paired_differences(settings, "balanced_accuracy").to_dict("records")
    return [
        {
            **settings.facts.loc[each["first"]],
            **each,
            "pair": (names[each["first"]], names[each["second"]]),
        }
        for each in found
    ]


def stats_of(*values: float, spread: Spread = "ci95") -> Any:
    stats = pd.Series(values).agg(["mean", "std", "min", "max", "count"]).rename({"count": "n"})
    return with_ends(stats.to_frame().T, spread).iloc[0]


def test_the_interval_is_students() -> None:
    # Mean 2, s = 1, n = 3: t_{0.975, 2} = 4.302653.
    stats = stats_of(1.0, 2.0, 3.0)
    assert (stats["mean"], stats["half"]) == (2.0, pytest.approx(4.302653 / math.sqrt(3), rel=1e-6))
    assert (stats["low"], stats["high"]) == pytest.approx((2 - stats["half"], 2 + stats["half"]))
    assert math.isnan(stats_of(0.7)["half"])
    assert math.isnan(stats_of(0.7, 0.7, 0.7 + 1e-16)["half"])
    assert math.isnan(stats_of(1.0, 2.0)["low"])
    assert tuple(stats_of(1.0, 2.0, spread="range")[["low", "high"]]) == (1.0, 2.0)


def test_a_difference_is_the_paired_t_test_of_the_seeds() -> None:
    (found,) = differences([*method("good", GOOD), *method("poor", POOR)])
    assert (found["pair"], found["n"]) == (("good", "poor"), 4)
    expected = ttest_rel(GOOD, POOR)
    low, high = expected.confidence_interval(0.95)
    assert (found["p"], found["p_holm"]) == pytest.approx((expected.pvalue, expected.pvalue))
    assert (found["low"], found["high"], found["half"]) == pytest.approx(
        (low, high, (high - low) / 2)
    )
    (found,) = differences(
        [*method("a", values := [1e-3, 0.2, 5e-4, 0.0, 1e-4]), *method("b", [0.0] * 5)]
    )
    assert found["p"] == pytest.approx(ttest_1samp(values, 0.0).pvalue)


def test_holms_correction_is_that_of_a_worked_example() -> None:
    # sorted: 4 · 0.005, 3 · 0.01, 2 · 0.03, and 0.04, which may not be below 0.06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert (holm([0.6, 0.7]), holm([])) == ([1.0, 1.0], [])


@pytest.mark.parametrize(
    "place", [{"alpha": 1.0}, {"clients": 4}, {"scheme": "iid"}, {"dataset": "other"}]
)
def test_p_values_are_corrected_over_the_budgets_and_pairs_of_one_place_alone(
    place: dict[str, Any],
) -> None:
    one = [*method("good", GOOD), *method("poor", POOR), *method("good", GOOD, epsilon_target=4.0)]
    one += method("poor", [0.6, 0.5, 0.8, 0.6], epsilon_target=4.0)
    found = differences([*one, *method("good", GOOD, **place), *method("poor", POOR, **place)])
    ((name, value),) = place.items()
    here, there = (
        [each for each in found if (each[name] == value) == moved] for moved in (False, True)
    )
    assert [each["p_holm"] for each in here] == holm([each["p"] for each in here])
    assert [each["p_holm"] for each in there] == [each["p"] for each in there]
    assert (len(here), len(there)) == (2, 1)


def test_a_pair_shares_seed_partition_data_and_budget() -> None:
    (found,) = differences([*method("good", GOOD), *method("poor", POOR[:3], start=1)])
    assert (found["n"], found["mean"]) == (
        3,
        pytest.approx(sum(a - b for a, b in zip(GOOD[1:], POOR[:3], strict=True)) / 3),
    )
    assert differences([*method("good", GOOD), *method("poor", POOR[:2], start=3)]) == []
    others: list[dict[str, Any]] = [
        {"partition_hash": "other"},
        {"dataset_hash": "other"},
        {"epsilon_target": 4.0},
        {"delta": 1e-5},
    ]
    for fields in [*others, {"unit": "client"}, {"trust": "silo"}, {"epsilon_target": None}]:
        assert differences([*method("good", GOOD), *method("poor", POOR, **fields)]) == []
    open_ = {"epsilon_target": None, "delta": None, "unit": None, "trust": None}
    rows = [
        *method("good", GOOD, **open_),
        *method("poor", POOR, **open_),
        *method("private", POOR, epsilon_target=math.inf),
    ]
    assert [each["pair"] for each in differences(rows)] == [("good", "poor")]


def groups(*rows: Row) -> dict[str, list[str]]:
    """The cells of each setting's mean, by label."""
    settings = SeedGroups.of(rows)
    return {
        settings.facts["label"][setting]: own["cell_id"].tolist()
        for setting, own in settings.averaged.groupby("setting")
    }


@pytest.mark.parametrize(
    ("field", "one", "other"),
    [
        ("trust", "aggregate", "silo"),
        ("unit", "example", "client"),
        ("delta", 1e-4, 1e-5),
        ("public", "blood", "organ"),
    ],
)
def test_rows_of_different_parameters_or_budgets_are_told_apart_and_never_averaged(
    field: str, one: Any, other: Any
) -> None:
    assert groups(row("a", **{field: one}), row("b", **{field: other}, seed=1)) == {
        f"alg ({field}={one})": ["a"],
        f"alg ({field}={other})": ["b"],
    }
    found = groups(
        row("a", params={"lr": None, "b": 1}), row("b", params={"lr": 0.2, "b": 1}, seed=1)
    )
    assert found == {"alg (lr=None)": ["a"], "alg (lr=0.2)": ["b"]}


@pytest.mark.parametrize(
    ("field", "one", "other"),
    [("dataset_hash", "12", "34"), ("evaluation", {"per_class": 3}, {"per_class": 200})],
)
def test_rows_of_data_of_other_content_or_of_another_evaluation_are_never_averaged(
    field: str, one: Any, other: Any
) -> None:
    assert (
        SeedGroups.of([row("a", **{field: one}), row("b", **{field: other}, seed=1)])
        .rows["setting"]
        .nunique()
        == 2
    )


def test_a_seed_counts_once_with_its_last_row() -> None:
    assert groups(row("a"), row("b"), row("c", seed=1)) == {"alg": ["b", "c"]}


@pytest.mark.parametrize(
    ("worse", "fields"),
    [
        ("none", {"claim": "none"}),
        ("heuristic", {"claim": "heuristic"}),
        ("stated", {"claim": "stated"}),
        ("heuristic", {"check": "failed"}),
    ],
)
def test_a_mean_has_the_weakest_claim_of_its_rows(worse: str, fields: dict[str, Any]) -> None:
    failed = make_failed(cell_id="c", label="alg", params={"rounds": 3}, seed=2)
    (facts,) = SeedGroups.of([row("a"), row("b", seed=1, **fields), failed]).facts.to_dict(
        "records"
    )
    assert [facts[name] for name in ("claim", "scope", "seeds", "failed")] == [worse, "joint", 2, 1]
