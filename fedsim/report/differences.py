"""The tables of paired differences: a line for every two methods, a column for every epsilon."""

from __future__ import annotations

from collections.abc import Sequence

from fedsim.evaluation.measures import MEASURES
from fedsim.report.tables import Line, ResultsTable, TableBlock, by_place, epsilon_heads, epsilons
from fedsim.results.groups import Group
from fedsim.results.paired import Difference, paired_differences

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


def difference_table(groups: Sequence[Group], measure: str = "balanced_accuracy") -> ResultsTable:
    """Differences of a measure, Holm-corrected over every block."""
    common, members = by_place(groups)
    blocks = {place: paired_differences(block, lambda row: row.value(measure)) for place, block in members.items()}
    shown = [difference for differences in blocks.values() for difference in differences]
    columns = epsilons([difference.first for difference in shown])
    seeds = max((difference.interval.count for difference in shown), default=0)
    return ResultsTable(
        title=" · ".join((f"{MEASURES[measure].title}, paired differences", *common)),
        columns=epsilon_heads(columns),
        blocks=tuple(TableBlock(place, (), _lines(differences, columns, seeds)) for place, differences in blocks.items() if differences),
        notes=(
            *_NOTES,
            f"over {seeds} seeds" + (", or as many as n says" if any(difference.interval.count < seeds for difference in shown) else ""),
        ),
        heads=("difference",),
    )


def _lines(differences: Sequence[Difference], columns: Sequence[float | None], seeds: int) -> tuple[Line, ...]:
    by_label: dict[str, dict[float | None, Difference]] = {}
    for difference in differences:
        by_label.setdefault(f"{difference.first.label} − {difference.second.label}", {})[difference.first.epsilon_target] = difference
    return tuple(
        Line(label, "", tuple(_value(cells[column], seeds) if column in cells else "" for column in columns))
        for label, cells in by_label.items()
    )


def _value(difference: Difference, seeds: int) -> str:
    p = difference.p_holm
    tested = "" if p is None else " p<0.001" if p < 0.001 else f" p={p:.3f}"
    missing = f" (n={difference.interval.count})" if difference.interval.count < seeds else ""
    half_width = difference.interval.half_width
    spread = "" if half_width is None else f"±{half_width:.3f}"
    return f"{difference.interval.mean:+.3f}{spread}{tested}{missing}"
