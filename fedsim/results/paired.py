"""Differences between methods, paired over the seeds that they share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean, stdev

from scipy.special import stdtr

from fedsim.results.groups import EQUAL, Group, Interval, grouped
from fedsim.results.rows import Row

PLACE_FIELDS = ("dataset", "scheme", "alpha", "clients")
_BUDGET = ("epsilon_target", "delta", "unit", "trust")


@dataclass(frozen=True)
class Difference:
    """One method's measure minus another's, at one place and budget.

    Attributes:
        first: whose measure is the minuend.
        second: whose is taken away.
        interval: mean and half-width of the Student-t 95 % confidence interval over the seeds that both have, at least 2; not corrected for
            how many differences there are.
        p: of the two-sided paired t-test; None where the differences do not vary, which a t-test says nothing about.
        p_holm: ``p``, corrected by Holm's procedure for all differences of the place.
    """

    first: Group
    second: Group
    interval: Interval
    p: float | None
    p_holm: float | None = None


def same_budget(first: Group, second: Group) -> bool:
    """Whether two methods have the same epsilon, delta, unit and trust; methods without an epsilon have one budget, too."""
    return all(getattr(first, name) == getattr(second, name) for name in _BUDGET)


def price_of_privacy(first: Group, second: Group) -> bool:
    """Whether the first one is private and the second is not: another method without noise, or the same one at epsilon = ∞."""
    if not _is_private(first) or _is_private(second):
        return False
    return second.epsilon_target is None or first.label == second.label


def _is_private(group: Group) -> bool:
    return group.epsilon_target is not None and math.isfinite(group.epsilon_target)


def paired_differences(
    groups: Sequence[Group],
    value: Callable[[Row], float | None],
    compared: Callable[[Group, Group], bool] = same_budget,
) -> list[Difference]:
    """Every two methods of one place that are ``compared``, the earlier minus the later, over the seeds that both have.

    Rows are a pair where seed, data and partition are the same. Two methods that share fewer than 2 seeds give nothing.

    Args:
        groups: as ``group_seeds`` gives them, of any places.
        value: a row's measure; None where it has none.
        compared: whether a difference is wanted, the first minus the second; asked in both orders, the earlier one first.
    """
    places = grouped(groups, lambda group: tuple(getattr(group, name) for name in PLACE_FIELDS))
    return [difference for members in places.values() for difference in _corrected(list(_differences(members, value, compared)))]


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given, whose test at a level keeps the family-wise error rate under any dependence.

    Holm (1979), A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6, 65-70.
    """
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, position in enumerate(sorted(range(len(p)), key=lambda position: p[position])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[position]))
        adjusted[position] = largest
    return adjusted


def paired_t_test(differences: Sequence[float]) -> float | None:
    """Two-sided p-value for a mean of 0 of at least 2 differences, as ``scipy.stats.ttest_rel``'s; None where they do not vary."""
    spread = stdev(differences)
    if spread < EQUAL:
        return None
    n = len(differences)
    return 2 * float(stdtr(n - 1, -abs(fmean(differences)) * math.sqrt(n) / spread))


def _differences(
    groups: Iterable[Group], value: Callable[[Row], float | None], compared: Callable[[Group, Group], bool]
) -> Iterator[Difference]:
    """Those of one place, uncorrected."""
    for one, other in combinations(groups, 2):
        if compared(one, other):
            first, second = one, other
        elif compared(other, one):
            first, second = other, one
        else:
            continue
        others = {_draw(row): score for row in second.rows if (score := value(row)) is not None}
        paired = [score - others[_draw(row)] for row in first.rows if _draw(row) in others and (score := value(row)) is not None]
        if len(paired) > 1:
            yield Difference(first, second, Interval.of(paired), paired_t_test(paired))


def _draw(row: Row) -> tuple[object, ...]:
    """What two rows of a pair have in common by chance."""
    return row.seed, row.dataset_hash, row.partition_hash


def _corrected(differences: Sequence[Difference]) -> list[Difference]:
    adjusted = iter(holm([difference.p for difference in differences if difference.p is not None]))
    return [difference if difference.p is None else replace(difference, p_holm=next(adjusted)) for difference in differences]
