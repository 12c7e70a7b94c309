"""The tables of paired differences: a line for every two methods, a column for every epsilon."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fedsim.evaluation.measures import MEASURES
from fedsim.report.tables import Line, ResultsTable, TableBlock, by_place, decimal, epsilon_heads, epsilons
from fedsim.results.groups import Group
from fedsim.results.paired import Difference, paired_differences, price_of_privacy, same_budget

COMPARED = ("balanced_accuracy", "client_balanced_accuracy")
"""Measures whose differences are shown."""
_NOTES = (
    "first method minus second, mean over the seeds that both have ± half-width of the Student-t 95 % confidence interval, not corrected",
    "p: two-sided paired t-test, Holm-corrected for all differences of one place in this table; none where the differences do not vary",
)


def difference_tables(groups: Sequence[Group]) -> list[ResultsTable]:
    """A table for every compared measure that two methods share on 2 seeds or more."""
    tables = (difference_table(groups, measure) for measure in COMPARED)
    return [table for table in tables if table.blocks]


def difference_table(
    groups: Sequence[Group],
    measure: str = "balanced_accuracy",
    digits: int = 3,
    compared: Callable[[Group, Group], bool] = same_budget,
) -> ResultsTable:
    """Differences of a measure, Holm-corrected over every block; ``compared`` chooses which."""
    common, members = by_place(groups)
    blocks = {place: paired_differences(block, lambda row: row.value(measure), compared) for place, block in members.items()}
    shown = [difference for differences in blocks.values() for difference in differences]
    columns = epsilons([difference.first for difference in shown])
    seeds = max((difference.interval.count for difference in shown), default=0)
    return ResultsTable(
        title=" · ".join((f"{MEASURES[measure].title}, paired differences", *common)),
        columns=epsilon_heads(columns),
        blocks=tuple(
            TableBlock(place, (), _lines(differences, columns, seeds, digits)) for place, differences in blocks.items() if differences
        ),
        notes=(
            *_NOTES,
            f"over {seeds} seeds" + (", or as many as n says" if any(difference.interval.count < seeds for difference in shown) else ""),
        ),
        heads=("difference",),
        name=f"{measure}-differences",
        digits=digits,
    )


def chosen_pair(first: str, second: str) -> Callable[[Group, Group], bool]:
    """Which groups compare two methods, given by their labels: those of one budget, and those without noise of the second one."""

    def compared(one: Group, other: Group) -> bool:
        return (one.label, other.label) == (first, second) and (same_budget(one, other) or price_of_privacy(one, other))

    return compared


def _lines(differences: Sequence[Difference], columns: Sequence[float | None], seeds: int, digits: int) -> tuple[Line, ...]:
    by_label: dict[str, dict[float | None, Difference]] = {}
    for difference in differences:
        second = difference.second
        without = difference.first.label == second.label and second.epsilon_target == math.inf
        label = f"{difference.first.label} − {f'{second.label} at ε = ∞' if without else second.label}"
        by_label.setdefault(label, {})[difference.first.epsilon_target] = difference
    return tuple(
        Line(
            label,
            "",
            tuple(_value(cells[column], seeds, digits) if column in cells else "" for column in columns),
            tuple(cells[column].interval if column in cells else None for column in columns),
            tuple(cells[column].p_holm if column in cells else None for column in columns),
        )
        for label, cells in by_label.items()
    )


def p_words(p: float) -> str:
    """A p-value to three decimals."""
    return "p<0.001" if p < 0.001 else f"p={p:.3f}"


def _value(difference: Difference, seeds: int, digits: int) -> str:
    tested = "" if difference.p_holm is None else f" {p_words(difference.p_holm)}"
    missing = f" (n={difference.interval.count})" if difference.interval.count < seeds else ""
    beside = difference.interval.beside
    spread = "" if beside is None else f"±{decimal(beside, digits)}"
    return f"{difference.interval.mean:+.{digits}f}{spread}{tested}{missing}"
