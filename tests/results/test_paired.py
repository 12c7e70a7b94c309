import math
from typing import Any

import pytest
from rows import make_row
from scipy.stats import ttest_1samp, ttest_rel

from fedsim.results.columns import Row
from fedsim.results.stats import Settings, holm, paired_differences

GOOD, POOR = [0.8, 0.7, 0.9, 0.85], [0.5, 0.45, 0.4, 0.62]


def method(label: str, values: list[float], start: int = 0, **fields: Any) -> list[Row]:
    """A row a seed."""
    return [
        make_row(cell_id=f"{label}{seed}{fields}", label=label, seed=seed, balanced_accuracy=value, **fields)
        for seed, value in enumerate(values, start)
    ]


def differences(rows: list[Row]) -> list[dict[Any, Any]]:
    """The differences, with the facts of their first setting."""
    settings = Settings.of(rows)
    names, found = settings.facts["label"], paired_differences(settings, "balanced_accuracy").to_dict("records")
    return [{**settings.facts.loc[each["first"]], **each, "pair": (names[each["first"]], names[each["second"]])} for each in found]


def test_a_difference_is_the_paired_t_test_of_the_seeds() -> None:
    (found,) = differences([*method("good", GOOD), *method("poor", POOR)])
    assert (found["pair"], found["n"]) == (("good", "poor"), 4)
    expected = ttest_rel(GOOD, POOR)
    low, high = expected.confidence_interval(0.95)
    assert (found["p"], found["p_holm"]) == pytest.approx((expected.pvalue, expected.pvalue))
    assert (found["low"], found["high"], found["half"]) == pytest.approx((low, high, (high - low) / 2))


@pytest.mark.parametrize("values", [[0.1, 0.2], [0.3, 0.3000001, 0.29], [1e-3, 0.2, 5e-4, 0.0, 1e-4]])
def test_the_p_value_is_that_of_scipy(values: list[float]) -> None:
    (found,) = differences([*method("a", values), *method("b", [0.0] * len(values))])
    assert found["p"] == pytest.approx(ttest_1samp(values, 0.0).pvalue)


def test_differences_that_do_not_vary_have_no_p_value_and_count_in_no_family() -> None:
    rows = [*method("a", [0.8, 0.7]), *method("b", [0.5, 0.4]), *method("c", [0.8, 0.3])]
    found = {each["pair"]: each for each in differences(rows)}
    assert math.isnan(found["a", "b"]["p"])
    assert math.isnan(found["a", "b"]["p_holm"])
    tested = [found["a", "c"], found["b", "c"]]
    assert [each["p_holm"] for each in tested] == holm([each["p"] for each in tested])


def test_holms_correction_is_that_of_a_worked_example() -> None:
    # sorted: 4 · 0.005, 3 · 0.01, 2 · 0.03, and 0.04, which may not be below 0.06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("place", [{"alpha": 1.0}, {"clients": 4}, {"scheme": "iid"}, {"dataset": "other"}])
def test_p_values_are_corrected_over_the_budgets_and_pairs_of_one_place_alone(place: dict[str, Any]) -> None:
    one = [*method("good", GOOD), *method("poor", POOR), *method("good", GOOD, epsilon_target=4.0)]
    one += method("poor", [0.6, 0.5, 0.8, 0.6], epsilon_target=4.0)
    other = [*method("good", GOOD, **place), *method("poor", POOR, **place)]
    found = differences([*one, *other])
    ((name, value),) = place.items()
    here, there = ([each for each in found if (each[name] == value) == moved] for moved in (False, True))
    assert [each["p_holm"] for each in here] == holm([each["p"] for each in here])
    assert [each["p_holm"] for each in there] == [each["p"] for each in there]
    assert (len(here), len(there)) == (2, 1)


def test_seeds_that_one_method_lacks_are_left_out_and_one_shared_seed_gives_nothing() -> None:
    (found,) = differences([*method("good", GOOD), *method("poor", POOR[:3], start=1)])
    assert found["n"] == 3
    assert found["mean"] == pytest.approx(sum(a - b for a, b in zip(GOOD[1:], POOR[:3], strict=True)) / 3)
    assert differences([*method("good", GOOD), *method("poor", POOR[:2], start=3)]) == []


def test_seeds_on_other_partitions_or_data_are_no_pair() -> None:
    assert differences([*method("good", GOOD), *method("poor", POOR, partition_hash="other")]) == []
    assert differences([*method("good", GOOD), *method("poor", POOR, dataset_hash="other")]) == []


@pytest.mark.parametrize(
    "budget", [{"epsilon_target": 4.0}, {"delta": 1e-5}, {"unit": "client"}, {"trust": "silo"}, {"epsilon_target": None}]
)
def test_methods_under_other_budgets_are_no_pair(budget: dict[str, Any]) -> None:
    assert differences([*method("good", GOOD), *method("poor", POOR, **budget)]) == []


def test_methods_without_an_epsilon_are_compared_with_each_other() -> None:
    open_ = {"epsilon_target": None, "delta": None, "unit": None, "trust": None}
    rows = [*method("good", GOOD, **open_), *method("poor", POOR, **open_), *method("private", POOR, epsilon_target=math.inf)]
    assert [each["pair"] for each in differences(rows)] == [("good", "poor")]
