"""Mean ranks, their tests, and how often a method beats its rivals."""

import math
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rows import make_row

from fedsim.results.ranks import critical_difference, outcomes, ranks_of
from fedsim.results.stats import SeedGroups

DEMSAR = {
    "C4.5": "763 599 954 628 882 936 661 583 775 1000 940 619 972 957",
    "C4.5+m": "768 591 971 661 888 931 668 583 838 1000 962 666 981 978",
    "C4.5+cf": "771 590 968 654 886 916 609 563 866 1000 965 614 975 946",
    "C4.5+m+cf": "798 569 967 657 898 931 685 625 875 1000 962 669 974.9 970",
}
"""Table 6 of Demšar (2006): the AUC of four methods on 14 data sets, in thousandths.

The third digit after the decimal point hides which of two methods is better on the set voting.
"""


def losses_of(scores: dict[str, list[float]]) -> pd.DataFrame:
    """Return losses by setting and method, given scores of which larger ones are better."""
    return -pd.DataFrame(scores).rename_axis(columns="label")


def demsar() -> pd.DataFrame:
    """Return the ranks of Demšar's example."""
    scores = {label: [float(text) for text in texts.split()] for label, texts in DEMSAR.items()}
    return ranks_of(losses_of(scores)).set_index("label")


def method(label: str, values: list[float], **fields: Any) -> list[Any]:
    """Return one result per seed, with these losses."""
    return [
        make_row(
            cell_id=f"{label}{seed}{fields}",
            label=label,
            seed=seed,
            balanced_accuracy=value,
            **fields,
        )
        for seed, value in enumerate(values)
    ]


def outcomes_of(*methods: list[Any], subject: str = "ours") -> dict[str, list[int]]:
    """Return how often the subject won, was level and lost, by rival."""
    settings = SeedGroups.of([row for rows in methods for row in rows])
    counts = outcomes(settings, "balanced_accuracy", subject)
    return {rival: list(numbers) for rival, *numbers in counts.itertuples(index=False)}


# --- mean ranks ---


def test_mean_ranks_are_those_of_demsars_example() -> None:
    ranks = demsar()
    assert ranks["mean_rank"].round(3).to_dict() == {
        "C4.5+m+cf": 1.964,
        "C4.5+m": 2.0,
        "C4.5+cf": 2.893,
        "C4.5": 3.143,
    }
    assert set(ranks["settings"]) == {14}


def test_best_method_comes_first() -> None:
    assert list(demsar().index) == ["C4.5+m+cf", "C4.5+m", "C4.5+cf", "C4.5"]


def test_equal_scores_share_the_mean_of_their_ranks() -> None:
    # Ranks 1, 2.5, 2.5 and then 3, 1.5, 1.5.
    ranks = ranks_of(
        losses_of(
            {
                "a": [0.9, 0.1],
                "b": [0.5, 0.8],
                "c": [0.5, 0.8],
            }
        )
    )
    assert ranks["mean_rank"].tolist() == [2.0, 2.0, 2.0]


@given(
    st.lists(
        st.lists(st.integers(-50, 50), min_size=3, max_size=3),
        min_size=1,
        max_size=8,
    )
)
def test_monotone_change_of_scores_keeps_mean_ranks(scores: list[list[int]]) -> None:
    losses = pd.DataFrame(
        scores,
        columns=pd.Index(["a", "b", "c"], name="label"),
        dtype=float,
    )
    changed = losses.map(lambda loss: math.exp(loss / 10) + loss**3)
    before = ranks_of(losses)
    after = ranks_of(changed)
    pd.testing.assert_frame_equal(before, after)


# --- tests of mean ranks ---


def test_critical_difference_is_that_of_demsars_example() -> None:
    # 2.569 √(4 · 5 / (6 · 14)) = 1.2535
    assert demsar()["critical_difference"].iloc[0] == pytest.approx(1.2535, abs=5e-4)


@pytest.mark.parametrize(
    ("methods", "quantile"),
    [
        (2, 1.960),
        (3, 2.343),
        (5, 2.728),
        (10, 3.164),
    ],
)
def test_critical_difference_has_demsars_quantiles(methods: int, quantile: float) -> None:
    difference = critical_difference(methods, settings=12)
    scale = math.sqrt(methods * (methods + 1) / (6 * 12))
    assert difference / scale == pytest.approx(quantile, abs=1e-3)


def equal_rankings(settings: int) -> pd.DataFrame:
    """The ranks of three methods that are in the same order in every setting."""
    losses = {
        "a": [0.9] * settings,
        "b": [0.6] * settings,
        "c": [0.3] * settings,
    }
    return ranks_of(losses_of(losses))


def test_friedmans_p_of_five_equal_rankings() -> None:
    # Three methods: χ² = N (k - 1) = 10 with two degrees of freedom.
    ranks = equal_rankings(5)
    assert ranks["friedman_p"].iloc[0] == pytest.approx(math.exp(-5))


def test_fewer_than_five_settings_have_no_tests() -> None:
    ranks = equal_rankings(4)
    assert ranks["mean_rank"].tolist() == [1.0, 2.0, 3.0]
    assert ranks["critical_difference"].isna().all()
    assert ranks["friedman_p"].isna().all()


def test_equal_methods_have_no_friedman_test() -> None:
    ranks = ranks_of(losses_of({label: [0.5] * 6 for label in "abc"}))
    assert ranks["friedman_p"].isna().all()


def test_two_methods_have_no_friedman_test() -> None:
    ranks = ranks_of(losses_of({"a": [0.5] * 6, "b": [0.4] * 6}))
    assert ranks["friedman_p"].isna().all()
    assert ranks["critical_difference"].iloc[0] == pytest.approx(1.96 / math.sqrt(6), abs=1e-3)


# --- won, level, lost ---


def test_clear_difference_over_seeds_is_won_or_lost() -> None:
    ours = method("ours", [0.10, 0.11, 0.12, 0.10])
    theirs = method("theirs", [0.50, 0.52, 0.51, 0.53])
    assert outcomes_of(ours, theirs) == {"theirs": [1, 0, 0]}
    assert outcomes_of(ours, theirs, subject="theirs") == {"ours": [0, 0, 1]}


def test_difference_within_the_noise_of_seeds_is_level() -> None:
    ours = method("ours", [0.1, 0.5, 0.2, 0.4])
    theirs = method("theirs", [0.2, 0.3, 0.4, 0.3])
    assert outcomes_of(ours, theirs) == {"theirs": [0, 1, 0]}


def test_each_budget_is_a_setting() -> None:
    ours = [0.10, 0.11, 0.12, 0.10]
    theirs = [0.50, 0.52, 0.51, 0.53]
    assert outcomes_of(
        method("ours", ours),
        method("theirs", theirs),
        method("ours", ours, epsilon_target=4.0),
        method("theirs", theirs, epsilon_target=4.0),
    ) == {"theirs": [2, 0, 0]}


def test_outcome_is_that_of_the_interval() -> None:
    # The mean difference is 0.1, and its 95 % interval is 0.0780 (s = 0.0490, t = 3.1824).
    ours = method("ours", [0.10, 0.14, 0.10, 0.12])
    assert outcomes_of(ours, method("theirs", [0.20, 0.18, 0.26, 0.22])) == {"theirs": [1, 0, 0]}
    assert outcomes_of(ours, method("nearer", [0.17, 0.15, 0.23, 0.19])) == {"nearer": [0, 1, 0]}


def test_differences_that_are_equal_over_seeds_count() -> None:
    ours = method("ours", [0.1, 0.2])
    assert outcomes_of(ours, method("worse", [0.2, 0.3])) == {"worse": [1, 0, 0]}
    assert outcomes_of(ours, method("equal", [0.1, 0.2])) == {"equal": [0, 1, 0]}


def test_rival_without_two_common_seeds_is_not_counted() -> None:
    assert outcomes_of(method("ours", [0.1, 0.2]), method("theirs", [0.3])) == {}
