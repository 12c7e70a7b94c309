"""Mean ranks of methods over settings, and how often one method beats another.

The statistics are those of Demšar (2006), Statistical comparisons of classifiers over multiple
data sets, Journal of Machine Learning Research 7, 1-30.
"""

from __future__ import annotations

import math

import pandas as pd

from fedsim.results.stats import EQUAL, Facts, SeedGroups, paired_differences, same_budget

FEWEST_SETTINGS = 5
"""The fewest settings for which differences of mean ranks are tested."""


def ranks_of(losses: pd.DataFrame) -> pd.DataFrame:
    """Rank the methods in each setting, and return their mean ranks over settings.

    In each setting the smallest loss has rank 1, and equal losses share the mean of their ranks.

    Args:
        losses: One line per setting and one column per method, named ``label``, without gaps. A
            smaller loss is better.

    Returns:
        One line per method, the best one first, with ``label`` and ``mean_rank``. Three further
        columns have one value for all lines: ``settings`` (the number of settings), ``friedman_p``
        (the p-value of Friedman's test that all methods are equal) and ``critical_difference``. The
        last two are NaN for fewer than :data:`FEWEST_SETTINGS` settings. ``friedman_p`` is also NaN
        for two methods, and if all methods are level in every setting.
    """
    from scipy.stats import friedmanchisquare

    settings, methods = losses.shape
    friedman_p = math.nan
    difference = math.nan
    if settings >= FEWEST_SETTINGS:
        difference = critical_difference(methods, settings)
        is_varied = losses.nunique(axis="columns") > 1
        if methods > 2 and is_varied.any():
            friedman_p = friedmanchisquare(*losses.to_numpy().T).pvalue
    means = losses.rank(axis="columns").mean().sort_values(kind="stable")
    return means.reset_index(name="mean_rank").assign(
        settings=settings,
        friedman_p=friedman_p,
        critical_difference=difference,
    )


def critical_difference(methods: int, settings: int) -> float:
    """Return the smallest difference of mean ranks that Nemenyi's test finds at 5 %.

    It is q √(k (k + 1) / (6 N)) for k methods and N independent settings. Here q is the 95 %
    quantile of the studentized range of k groups with infinite degrees of freedom, divided by √2
    (Demšar 2006, section 3.2.2).
    """
    from scipy.stats import studentized_range

    quantile = studentized_range.ppf(0.95, methods, math.inf)
    # Here 12 stands for 6, because the quantile is not yet divided by √2.
    return float(quantile * math.sqrt(methods * (methods + 1) / (12 * settings)))


def outcomes(losses: SeedGroups, measure: str, subject: str) -> pd.DataFrame:
    """Count the settings in which one method won, was level and lost against each rival.

    A setting is level if the 95 % interval of its paired difference over seeds contains 0. A
    setting with fewer than two common seeds does not count. If the differences of all seeds are
    equal, the interval is that one value.

    Args:
        losses: The results, in which smaller values of the measure are better.
        measure: The column to compare.
        subject: The label of the method.

    Returns:
        One line per rival: ``rival`` (its label), ``won``, ``level`` and ``lost``.
    """

    def is_compared(first: Facts, second: Facts) -> bool:
        is_of_subject = first["label"] == subject != second["label"]
        return is_of_subject and same_budget(first, second)

    differences = paired_differences(losses, measure, is_compared)
    # Equal differences have no half-width. Up to rounding the interval is their value.
    half = differences["half"].fillna(EQUAL)
    is_won = differences["mean"] < -half
    is_lost = differences["mean"] > half
    by_setting = pd.DataFrame(
        {
            "rival": differences["second"].map(losses.facts["label"]),
            "won": is_won,
            "level": ~(is_won | is_lost),
            "lost": is_lost,
        }
    )
    return by_setting.groupby("rival", sort=False).sum().reset_index()
