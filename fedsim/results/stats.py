"""Means of results over seeds, and differences between methods.

Results that differ only in their seed form one setting. Two methods are compared on pairs of
results that share seed, data and partition.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit

from fedsim.errors import check_choice
from fedsim.grid.models import Published
from fedsim.json_lines import dump
from fedsim.privacy.plan import Claim
from fedsim.results.columns import UNDRAWN, UNVERIFIED, Row, frame_of

EQUAL = 1e-12
"""Two scores that differ by less than this differ only by rounding."""
Spread = Literal["ci95", "sd", "range"]
"""The kinds of spread that are shown beside a mean over seeds.

``ci95`` is the Student-t 95 % confidence interval of the mean, ``sd`` the standard deviation, and
``range`` the smallest and the largest value.
"""
FEWEST_SEEDS = 3
"""The fewest seeds for which a confidence interval is shown.

With two seeds the interval is 12.7 times as wide as their difference.
"""
PLACE = ["dataset", "scheme", "alpha", "clients"]
"""The columns that are equal for methods that are compared."""
BUDGET = ["epsilon_target", "delta", "unit", "trust"]
"""The columns of a privacy budget."""
METHOD = ["algorithm", "label", "yields", "public"]
"""The columns that describe a method."""
_PAIRED_BY = ["seed", "dataset_hash", "partition_hash"]
"""The columns that two results of a pair share: what is random, apart from the method."""
_TOLD_APART_BY = ("algorithm", "delta", "unit", "trust", "public")
"""The columns, beside parameters, in which results with one label may differ."""
_STATISTICS = {
    "mean": "mean",
    "std": "std",
    "min": "min",
    "max": "max",
    "n": "count",
}
"""The statistics of which the ends of a spread are made, with their names in pandas."""
_TYPES = {**dict.fromkeys(_STATISTICS, "float64"), "n": "int64"}
"""The types of these statistics, which pandas does not know if there are no values."""


@dataclass(frozen=True)
class SeedGroups:
    """Results grouped into settings; the results of one setting differ only in their seed.

    Attributes:
        rows: The results with the number of their ``setting``, ordered by data set, alpha, clients,
            scheme, label and ε. If a label stands for several parameter sets, the parameters that
            differ are appended to it.
        facts: One line per setting, by its number: :data:`PLACE`, :data:`METHOD`, :data:`BUDGET`,
            ``scope``, ``claim`` (the weakest of its results), ``seeds`` (how many results its means
            include), ``claim_refuted`` (whether an audit refutes the claim of a result), and how
            many results are left out, by status.
        spread: What is shown beside means.
        published: The published numbers that tables and curves show beside the results. No
            statistic includes them.
    """

    rows: pd.DataFrame
    facts: pd.DataFrame
    spread: Spread = "ci95"
    published: Sequence[Published] = ()

    @classmethod
    def of(
        cls,
        results: Sequence[Row],
        spread: Spread = "ci95",
        published: Sequence[Published] = (),
    ) -> SeedGroups:
        """Group results, which may be in any order, into settings.

        Raises:
            UserError: There is no such ``spread``.
        """
        check_choice("spread", spread, get_args(Spread))
        params = [row.given_params for row in results]
        rows = frame_of(results)
        rows["label"] = _distinct_labels(results, params)
        rows["drawn_claim"] = [row.drawn_claim for row in results]
        rows["claim_refuted"] = [row.refuted for row in results]
        rows["_params"] = [dump(values) for values in params]
        rows["_evaluation"] = [dump(row.evaluation) for row in results]
        keys = [*PLACE, *METHOD, *BUDGET, "dataset_hash", "public_hash", "_params", "_evaluation"]
        rows = rows.loc[_order_of(rows)]
        setting = rows.groupby(keys, sort=False, dropna=False).ngroup()
        rows = rows.assign(setting=setting).drop(columns=["_params", "_evaluation"])
        return cls(rows, _facts(rows), spread, published)

    @cached_property
    def averaged(self) -> pd.DataFrame:
        """Return the results that means include; of one seed's results only the last counts."""
        finished = self.rows[self.rows["status"] == "ok"]
        return finished.drop_duplicates(["setting", "seed"], keep="last")

    def means(self, names: Sequence[str]) -> pd.DataFrame:
        """Return one line per setting and column that has values, with the setting's facts.

        Each line has ``measure`` (the name of the column), ``mean``, ``half``, ``low``, ``high``
        and ``n``. ``half`` is the half-width of the Student-t 95 % confidence interval. It is
        missing for a single seed and for equal values, because equal values do not show that the
        mean is certain. ``low`` and ``high`` are the ends of the spread.

        Args:
            names: The columns.
        """
        values = self.averaged.groupby("setting")[list(names)]
        statistics = {
            name: getattr(values, function)().stack() for name, function in _STATISTICS.items()
        }
        lines = pd.DataFrame(statistics).query("n > 0").astype(_TYPES)
        lines = lines.rename_axis(["setting", "measure"]).reset_index()
        return self.facts.merge(with_ends(lines, self.spread), on="setting")

    def mean(self, name: str) -> pd.Series[float]:
        """Return the mean of a column, by setting."""
        return self.averaged.groupby("setting")[name].mean()

    def reference(self, column: str) -> pd.Series[float]:
        """Return the mean of a reference's column, by place.

        The mean is taken within each partition first, so that all partitions count alike even if
        some methods lack a seed.
        """
        by_partition = self.averaged.groupby(
            [*PLACE, "partition_hash"],
            dropna=False,
            sort=False,
        )
        means = by_partition[column].mean()
        return means.groupby(level=PLACE, dropna=False, sort=False).mean().dropna()


def _order_of(rows: pd.DataFrame) -> pd.Index[Any]:
    """Return the index of results in the order in which settings are shown.

    Data sets and labels are ordered by their first result, everything else by value.
    """
    columns = ["dataset", "alpha", "clients", "scheme", "label", "epsilon_target"]
    ranks = rows[columns].copy()
    for name in ("dataset", "label"):
        ranks[name] = pd.factorize(rows[name])[0]
    return ranks.sort_values(columns).index


def with_ends(stats: pd.DataFrame, spread: Spread) -> pd.DataFrame:
    """Return statistics with ``half``, ``low`` and ``high``, without ``std``, ``min`` and ``max``.

    Args:
        stats: A frame with ``mean``, ``std``, ``min``, ``max`` and ``n``.
        spread: What ``low`` and ``high`` are the ends of.
    """
    n = stats["n"]
    std = stats["std"]
    has_spread = (n > 1) & (stats["max"] - stats["min"] >= EQUAL)
    quantile = stdtrit(np.maximum(n - 1, 1), 0.975)
    half = (quantile * std / np.sqrt(n)).where(has_spread)
    reach = std.where(has_spread)
    if spread == "ci95":
        reach = half.where(n >= FEWEST_SEEDS)
    low = stats["mean"] - reach
    high = stats["mean"] + reach
    if spread == "range":
        low = stats["min"].where(has_spread)
        high = stats["max"].where(has_spread)
    return stats.drop(columns=["std", "min", "max"]).assign(
        half=half,
        low=low,
        high=high,
    )


def weakest(claims: Sequence[str | None]) -> str | None:
    """Return the weakest of some claims, which is the claim of a mean over their results."""
    weakest_first = (UNVERIFIED, *reversed(get_args(Claim)))
    return next((claim for claim in weakest_first if claim in claims), None)


def _facts(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one line of facts per setting; see :class:`SeedGroups`."""
    by_setting = rows.groupby("setting")
    facts = rows.drop_duplicates("setting").set_index("setting")
    facts = facts[[*PLACE, *METHOD, *BUDGET]]
    facts["scope"] = [
        " and ".join(scopes.dropna().unique()) or None for _, scopes in by_setting["scope"]
    ]
    facts["claim"] = [weakest(list(claims)) for _, claims in by_setting["drawn_claim"]]
    facts["claim_refuted"] = by_setting["claim_refuted"].any()
    facts["seeds"] = rows["seed"].where(rows["status"] == "ok").groupby(rows["setting"]).nunique()
    for status in UNDRAWN:
        facts[status] = (rows["status"] == status).groupby(rows["setting"]).sum()
    return facts


def _distinct_labels(rows: Sequence[Row], params: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the label of each result; if several settings share one, their differences follow it.

    Args:
        rows: The results.
        params: The parameters of each result, without those that a search chose.
    """
    traits_of_rows = []
    values_of: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row, given_params in zip(rows, params, strict=True):
        # Without a budget there is no delta, unit or trust.
        known = {name: row.values[name] for name in _TOLD_APART_BY if row.values[name] is not None}
        traits = {**known, **given_params}
        traits_of_rows.append(traits)
        for name, value in traits.items():
            values_of[row.label, name].add(dump(value))
    labels = []
    for row, traits in zip(rows, traits_of_rows, strict=True):
        differing = [
            f"{name}={value}"
            for name, value in traits.items()
            if len(values_of[row.label, name]) > 1
        ]
        label = row.label
        if differing:
            label += f" ({', '.join(differing)})"
        labels.append(label)
    return labels


Facts = Mapping[str, Any]
"""The facts of one setting, by name; see :class:`SeedGroups`."""
Compared = Callable[[Facts, Facts], bool]
"""A function that says whether to compare two settings, as the first minus the second.

It gets the facts of the earlier setting first. If it says no, it is asked again in the other order.
"""


def same_budget(first: Facts, second: Facts) -> bool:
    """Return whether two settings have the same ε, δ, unit and trust.

    All methods without ε have the same budget.
    """
    return dump([first[name] for name in BUDGET]) == dump([second[name] for name in BUDGET])


def price_of_privacy(first: Facts, second: Facts) -> bool:
    """Return whether the first setting is private and the second a counterpart that is not.

    The counterpart is any method without ε, or the same method at ε = ∞.
    """
    if not math.isfinite(first["epsilon_target"]) or math.isfinite(second["epsilon_target"]):
        return False
    return math.isnan(second["epsilon_target"]) or first["label"] == second["label"]


def paired_differences(
    settings: SeedGroups, measure: str, compared: Compared = same_budget
) -> pd.DataFrame:
    """Return the differences between settings of one place over the seeds that both have.

    Two results form a pair if seed, data and partition are the same. A difference needs two pairs.

    Args:
        settings: The settings.
        measure: The column to compare.
        compared: Which two settings to compare. Default: those with the same budget.

    Returns:
        One line per difference: ``first`` and ``second`` (the settings), ``mean`` (first minus
        second), ``half``, ``low``, ``high``, ``n``, ``p`` of the two-sided paired t-test (missing
        if the differences do not vary), and ``p_holm``, which is corrected for all differences of
        the place.
    """
    scores = settings.averaged.pivot(
        index=_PAIRED_BY,
        columns="setting",
        values=measure,
    )
    scored = settings.facts.loc[scores.columns]
    records = []
    for place, first, second in _compared_pairs(scored, compared):
        differences = (scores[first] - scores[second]).dropna()
        if len(differences) > 1:
            statistics = differences.agg(**_STATISTICS)
            records.append({"place": place, "first": first, "second": second, **statistics})
    columns = ["place", "first", "second", *_STATISTICS]
    frame = pd.DataFrame(records, columns=columns).astype(_TYPES)
    # This is the p-value of scipy.stats.ttest_rel.
    t = frame["mean"].abs() * np.sqrt(frame["n"]) / frame["std"]
    frame["p"] = 2 * stdtr(frame["n"] - 1, -t)
    frame = with_ends(frame, settings.spread)
    frame["p"] = frame["p"].where(frame["half"].notna())
    frame["p_holm"] = frame.groupby("place")["p"].transform(holm)
    return frame.drop(columns="place")


def _compared_pairs(facts: pd.DataFrame, compared: Compared) -> Iterator[tuple[int, Any, Any]]:
    """Yield the pairs of settings to compare: the number of their place, and both settings."""
    places = facts.groupby(PLACE, sort=False, dropna=False)
    for place, (_, at_place) in enumerate(places):
        facts_of: dict[Any, Any] = at_place.to_dict("index")
        for earlier, later in combinations(facts_of, 2):
            if compared(facts_of[earlier], facts_of[later]):
                yield place, earlier, later
            elif compared(facts_of[later], facts_of[earlier]):
                yield place, later, earlier


def holm(p: pd.Series[float]) -> pd.Series[float]:
    """Return Holm's adjusted p-values; missing ones stay missing and do not count.

    Rejecting those below a level keeps the family-wise error rate at that level, whatever the
    dependence between tests. Holm (1979), A simple sequentially rejective multiple test procedure,
    Scandinavian Journal of Statistics 6, 65-70.
    """
    ascending = p.dropna().sort_values(kind="stable")
    remaining = np.arange(len(ascending), 0, -1)
    return (ascending * remaining).clip(upper=1.0).cummax().reindex(p.index)
