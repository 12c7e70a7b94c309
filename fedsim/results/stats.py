"""Rows as settings with means over seeds, and differences between methods, paired over the seeds
that they share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit

from fedsim.errors import check_choice
from fedsim.json_lines import dump
from fedsim.privacy.plan import Claim
from fedsim.results.columns import UNDRAWN, UNVERIFIED, Row, frame_of

EQUAL = 1e-12
"""Numbers that differ by less are the same but for rounding."""
Spread = Literal["ci95", "sd", "range"]
"""How a score varies over seeds: Student-t 95 % confidence interval of the mean, standard
deviation, or least and most.
"""
FEWEST_SEEDS = 3
"""Seeds of a confidence interval that is shown: one of two is 12.7 times as wide as they are apart.
"""
PLACE = ["dataset", "scheme", "alpha", "clients"]
"""What methods are compared at."""
BUDGET = ["epsilon_target", "delta", "unit", "trust"]
METHOD = ["algorithm", "label", "yields", "public"]
_CHANCE = ["seed", "dataset_hash", "partition_hash"]
"""What two rows of a pair have in common by chance."""


@dataclass(frozen=True)
class SeedGroups:
    """Rows of settings: what differs in its seed alone is one.

    Attributes:
        rows: with the number of their ``setting``, ordered by data set, alpha, clients, label and
            epsilon; a label that stands for several parameter sets has the differing parameters
            appended.
        facts: a line a setting: :data:`PLACE`, :data:`METHOD`, :data:`BUDGET`, ``seeds`` (rows in
            its means), how many rows are left out by status, ``claim`` (the weakest of its rows),
            ``scope``.
        spread: what stands beside means.
    """

    rows: pd.DataFrame
    facts: pd.DataFrame
    spread: Spread = "ci95"

    @classmethod
    def of(cls, results: Sequence[Row], spread: Spread = "ci95") -> SeedGroups:
        """The settings of some rows, in any order."""
        check_choice("spread", spread, get_args(Spread))
        rows = frame_of(results)
        given = [row.given_params for row in results]
        rows["label"] = _told_apart(results, given)
        rows["drawn_claim"] = [row.drawn_claim for row in results]
        rows["_given"] = [dump(each) for each in given]
        rows["_evaluation"] = [dump(row.evaluation) for row in results]
        keys = [*PLACE, *METHOD, *BUDGET, "dataset_hash", "public_hash", "_given", "_evaluation"]
        first = {
            name: rows[name].map({value: i for i, value in enumerate(rows[name].unique())})
            for name in ("dataset", "label")
        }
        ranks = rows[["dataset", "alpha", "clients", "scheme", "label", "epsilon_target"]].assign(
            **first
        )
        rows = rows.loc[ranks.sort_values([*ranks]).index]
        rows = rows.assign(setting=rows.groupby(keys, sort=False, dropna=False).ngroup()).drop(
            columns=["_given", "_evaluation"]
        )
        return cls(rows, _facts(rows), spread)

    @cached_property
    def averaged(self) -> pd.DataFrame:
        """The rows that means are of; a seed counts once, the later row of it."""
        return _averaged(self.rows)

    def means(self, names: Sequence[str]) -> pd.DataFrame:
        """A line a setting and column that has values, with :attr:`facts` beside ``measure``,
        ``mean``, ``half``, ``low``, ``high``, ``n``.

        ``half`` is the half-width of the Student-t 95 % confidence interval: missing for a single
        seed, and for equal values, which say that seeds change nothing, not that nothing is
        uncertain. ``low`` and ``high`` are the ends that are shown: of the spread.
        """
        if not len(self.averaged):
            return (
                self.facts.iloc[:0]
                .reset_index()
                .assign(**dict.fromkeys(("measure", "mean", "half", "low", "high", "n"), math.nan))
            )
        by = self.averaged.groupby("setting")[list(names)]
        stats = {
            name: getattr(by, name)().stack() for name in ("mean", "std", "min", "max", "count")
        }
        long = (
            pd.DataFrame(stats).query("count > 0").rename_axis(["setting", "measure"]).reset_index()
        )
        return self.facts.merge(
            with_ends(long.rename(columns={"count": "n"}), self.spread), on="setting"
        )

    def mean(self, name: str) -> pd.Series[float]:
        """The mean of a column by setting."""
        return self.averaged.groupby("setting")[name].mean()

    def reference(self, column: str) -> pd.Series[float]:
        """The mean of a reference by place: over partitions, each the mean of its rows, as not
        every method has a row of each seed.
        """
        by_partition = self.averaged.groupby([*PLACE, "partition_hash"], dropna=False, sort=False)[
            column
        ].mean()
        return by_partition.groupby(level=PLACE, dropna=False, sort=False).mean().dropna()


def with_ends(stats: pd.DataFrame, spread: Spread) -> pd.DataFrame:
    """``mean``, ``std``, ``min``, ``max`` and ``n`` with ``half``, ``low`` and ``high`` in place of
    what these are made of.
    """
    stats = stats.astype(dict.fromkeys(("mean", "std", "min", "max"), "float64") | {"n": "int64"})
    varies = stats["max"] - stats["min"] >= EQUAL
    half = (
        stdtrit(np.maximum(stats["n"] - 1, 1), 0.975) * stats["std"] / np.sqrt(stats["n"])
    ).where(varies & (stats["n"] > 1))
    if spread == "ci95":
        reach = half.where(stats["n"] >= FEWEST_SEEDS)
    else:
        reach = stats["std"].where(half.notna())
    low = stats["mean"] - reach
    high = stats["mean"] + reach
    if spread == "range":
        low = stats["min"].where(half.notna())
        high = stats["max"].where(half.notna())
    return stats.assign(half=half, low=low, high=high).drop(columns=["std", "min", "max"])


def weakest(claims: Sequence[str | None]) -> str | None:
    """The weakest of some claims: a mean is as well founded as the weakest of its rows."""
    weakest_first = (UNVERIFIED, *reversed(get_args(Claim)))
    return next((claim for claim in weakest_first if claim in claims), None)


def _averaged(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["status"] == "ok"].drop_duplicates(["setting", "seed"], keep="last")


def _facts(rows: pd.DataFrame) -> pd.DataFrame:
    by = rows.groupby("setting")
    facts = rows.drop_duplicates("setting").set_index("setting")[[*PLACE, *METHOD, *BUDGET]]
    facts["scope"] = [" and ".join(dict.fromkeys(own.dropna())) or None for _, own in by["scope"]]
    facts["claim"] = [weakest(list(own)) for _, own in by["drawn_claim"]]
    facts["seeds"] = _averaged(rows).groupby("setting").size().reindex(facts.index, fill_value=0)
    for status in UNDRAWN:
        facts[status] = (rows["status"] == status).groupby(rows["setting"]).sum()
    return facts


def _told_apart(rows: Sequence[Row], given: Sequence[Mapping[str, Any]]) -> list[str]:
    """The labels, with what differs between settings that share one appended to it."""
    named = (
        "algorithm",
        "delta",
        "unit",
        "trust",
        "public",
    )  # without a budget there is no delta, unit or trust
    known = [
        {name: row.values[name] for name in named if row.values[name] is not None} for row in rows
    ]
    facts = [{**own, **params} for own, params in zip(known, given, strict=True)]
    held: dict[tuple[str, str], set[str]] = {}
    for row, own in zip(rows, facts, strict=True):
        for name, value in own.items():
            held.setdefault((row.label, name), set()).add(dump(value))
    labels = []
    for row, own in zip(rows, facts, strict=True):
        differing = ", ".join(
            f"{name}={value}" for name, value in own.items() if len(held[row.label, name]) > 1
        )
        labels.append(f"{row.label} ({differing})" if differing else row.label)
    return labels


Compared = Callable[[Mapping[str, Any], Mapping[str, Any]], bool]
"""Whether a difference is wanted, the first setting minus the second; asked in both orders, the
earlier one first.
"""


def same_budget(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two settings have the same epsilon, delta, unit and trust; methods without an epsilon
    have one budget, too.
    """
    return all(
        first[name] == second[name] or (first[name] != first[name] and second[name] != second[name])
        for name in BUDGET
    )


def price_of_privacy(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether the first one is private and the second is not: another method without noise, or the
    same one at epsilon = ∞.
    """
    if not math.isfinite(first["epsilon_target"]) or math.isfinite(second["epsilon_target"]):
        return False
    return math.isnan(second["epsilon_target"]) or first["label"] == second["label"]


def paired_differences(
    settings: SeedGroups, measure: str, compared: Compared = same_budget
) -> pd.DataFrame:
    """Every two methods of one place that are ``compared``, the earlier minus the later, over the 2
    seeds or more that both have.

    Rows are a pair where seed, data and partition are the same.

    Returns:
        A line a difference: ``first`` and ``second`` (settings), ``mean``, ``half``, ``low``,
            ``high``, ``n``, ``p`` of the two-sided
        paired t-test (missing where the differences do not vary), and ``p_holm``, corrected for all
        differences of the place.
    """
    rows = settings.averaged
    if len(rows):
        wide = rows.pivot(index=_CHANCE, columns="setting", values=measure)
    else:
        wide = rows
    facts = settings.facts.loc[
        [number for number in settings.facts.index if number in wide.columns]
    ]
    records = []
    for place, (_, own) in enumerate(facts.groupby(PLACE, sort=False, dropna=False)):
        known: dict[Any, Any] = own.to_dict("index")
        for one, other in combinations(known, 2):
            for first, second in ((one, other), (other, one)):
                if compared(known[first], known[second]):
                    paired = (wide[first] - wide[second]).dropna()
                    if len(paired) > 1:
                        records.append(
                            {"place": place, "first": first, "second": second, **_tested(paired)}
                        )
                    break
    frame = pd.DataFrame(
        records, columns=["place", "first", "second", "mean", "std", "min", "max", "n", "p"]
    )
    frame = with_ends(frame, settings.spread)
    frame["p_holm"] = frame.groupby("place")["p"].transform(
        lambda p: pd.Series(holm(p.dropna()), index=p.dropna().index)
    )
    return frame.drop(columns="place")


def _tested(paired: pd.Series[float]) -> dict[str, float]:
    """Statistics of some differences; p as ``scipy.stats.ttest_rel``'s."""
    n = len(paired)
    mean = paired.mean()
    std = paired.std()
    if paired.max() - paired.min() < EQUAL:
        p = math.nan
    else:
        p = 2 * float(stdtr(n - 1, -abs(mean) * math.sqrt(n) / std))
    return {"mean": mean, "std": std, "min": paired.min(), "max": paired.max(), "n": n, "p": p}


def holm(p: Sequence[float] | pd.Series[float]) -> list[float]:
    """Adjusted p-values, in the order given, whose test at a level keeps the family-wise error rate
    under any dependence.

    Holm (1979), A simple sequentially rejective multiple test procedure, Scandinavian Journal of
    Statistics 6, 65-70.
    """
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    adjusted = np.empty_like(values)
    adjusted[order] = np.maximum.accumulate(
        np.minimum(1.0, (len(values) - np.arange(len(values))) * values[order])
    )
    return [float(value) for value in adjusted]
