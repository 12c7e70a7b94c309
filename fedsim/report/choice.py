"""What a paper shows of one run or of several: one table or figure, of one measure, of chosen methods in a chosen order."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, get_args

from matplotlib.figure import Figure

from fedsim.errors import UserError, nearest
from fedsim.evaluation.measures import MEASURES
from fedsim.report.curves import draw_curves
from fedsim.report.differences import chosen_pair, difference_table
from fedsim.report.figures import WIDTHS
from fedsim.report.scans import draw_over, scanned
from fedsim.report.sites import MOST_SITES, SITES, site_tables
from fedsim.report.tables import BEST_VALUES, ResultsTable, results_table
from fedsim.results.folder import RunFolder
from fedsim.results.grid_rows import grid_rows
from fedsim.results.groups import Group, Spread, group_seeds
from fedsim.results.paired import price_of_privacy
from fedsim.results.rows import Row

Order = Literal["given", "best", "name"]
"""Of methods: as asked for or as in the grid; the best mean first; by name."""
TABLES: dict[str, Callable[[Sequence[Group], str, int], ResultsTable]] = {
    "results": results_table,
    "differences": difference_table,
    "private": lambda groups, measure, digits: _price_table(groups, measure, digits),
}
"""The tables by name: scores, paired differences at one budget, and private methods minus those without noise."""


def pooled_rows(folders: Sequence[Path | str]) -> list[Row]:
    """The rows of the grids of some run folders; a cell that several have counts once.

    Raises:
        UserError: a folder has no results, or cells that a table would show as one were judged in different ways.
    """
    rows: dict[str, Row] = {}
    settings: dict[tuple[object, ...], tuple[Path | str, Row]] = {}
    for folder in folders:
        RunFolder(Path(folder)).check()
        for row in grid_rows(folder):
            rows.setdefault(row.cell_id, row)
            setting = row.dataset, row.scheme, row.alpha, row.clients, row.label, row.epsilon_target
            where, other = settings.setdefault(setting, (folder, row))
            for name in ("evaluation", "dataset_hash"):
                if getattr(other, name) != getattr(row, name):
                    what = f"'{row.label}' on {row.dataset} differs in {name} from that of {where}, so one mean would mix them"
                    raise UserError(str(folder), what, "show the two runs one by one, or judge both alike and give data sets names")
    return list(rows.values())


def chosen_groups(
    rows: Sequence[Row],
    measure: str = "balanced_accuracy",
    methods: Sequence[str] | None = None,
    order: Order = "given",
    spread: Spread = "ci95",
) -> list[Group]:
    """Rows averaged over seeds, those of some methods.

    Args:
        rows: of one run or of several.
        measure: one of :data:`fedsim.evaluation.measures.MEASURES`.
        methods: labels, or patterns such as ``fedhypevae*``; None: all.
        order: of the methods within each place.
        spread: what stands beside means over seeds.

    Raises:
        UserError: there is no such measure, method or order.
    """
    _known("measure", measure, MEASURES)
    groups = group_seeds(rows, spread)
    labels = _chosen_labels(groups, measure, methods, order)
    places = list(dict.fromkeys(group.place for group in groups))
    return sorted(
        (group for group in groups if group.label in labels), key=lambda group: (places.index(group.place), labels.index(group.label))
    )


def chosen_table(
    groups: Sequence[Group],
    measure: str = "balanced_accuracy",
    table: str = "results",
    digits: int = 3,
    pair: tuple[str, str] | None = None,
    clients: Sequence[Mapping[str, Any]] = (),
) -> ResultsTable:
    """One table.

    Args:
        groups: of :func:`chosen_groups`.
        measure: what it shows.
        table: one of :data:`TABLES`.
        digits: behind the decimal point.
        pair: two labels: the table of their differences, the first minus the second, at one budget and against the second without noise.
        clients: lines of clients, for the table by site.

    Raises:
        UserError: there is no such table or method, or nothing to show.
    """
    _known("table", table, (*TABLES, SITES))
    if table == SITES:
        if by_site := site_tables(groups, clients, digits):
            return by_site[0]
        why = f"no row that is ok has scores by site, or there are more than {MOST_SITES} sites"
        raise UserError("table sites", why, "give evaluation: {per_client: true} or {unseen: each}")
    if pair is not None:
        for label in pair:
            _known("pair", label, {group.label for group in groups})
        shown = difference_table(groups, measure, digits, chosen_pair(*pair))
    else:
        shown = TABLES[table](groups, measure, digits)
    if not any(value for block in shown.blocks for line in block.lines for value in line.values):
        why = "no two rows share a seed twice" if "differences" in shown.name else "no row that is ok has it"
        raise UserError("measure", f"there is nothing to show of {measure}: {why}", "look at status and scores in results.jsonl")
    return shown


def chosen_figure(
    rows: Sequence[Row],
    measure: str = "balanced_accuracy",
    methods: Sequence[str] | None = None,
    order: Order = "given",
    over: str = "epsilon",
    width: float | None = None,
    spread: Spread = "ci95",
) -> Figure:
    """One figure: the privacy-utility curves, or the measure over a scanned parameter, ``bytes`` or ``seconds``.

    Args:
        rows: of one run or of several.
        measure: as for :func:`chosen_groups`, as are ``methods`` and ``order``.
        methods: which.
        order: of the methods.
        over: what the x axis is.
        width: in inches; None: as in the page.
        spread: what bars are.

    Raises:
        UserError: there is no such measure or method, or nothing to draw.
    """
    if over != "epsilon":
        _known("measure", measure, MEASURES)
        lines = scanned(rows, over, measure)
        labels = _chosen_labels([group for line in lines.values() for _, group in line], measure, methods, order)
        chosen = {
            key: [(at, replace(group, spread=spread)) for at, group in line]
            for label in labels
            for key, line in lines.items()
            if key[-1] == label
        }
        return draw_over(chosen, over, measure, width or WIDTHS["page"])
    figure = draw_curves(chosen_groups(rows, measure, methods, order, spread), measure, width)
    if figure is None:
        raise UserError("measure", f"no row that is ok has a {measure}", "look at status and scores in results.jsonl")
    return figure


def _chosen_labels(groups: Sequence[Group], measure: str, methods: Sequence[str] | None, order: Order) -> list[str]:
    """The labels of some methods in an order."""
    _known("order", order, get_args(Order))
    labels = list(dict.fromkeys(group.label for group in groups))
    if methods is not None:
        labels = list(dict.fromkeys(label for name in methods for label in _matching(name, labels)))
    if order == "name":
        return sorted(labels)
    if order == "best":
        return sorted(labels, key=lambda label: _badness([group for group in groups if group.label == label], measure))
    return labels


def _price_table(groups: Sequence[Group], measure: str, digits: int) -> ResultsTable:
    table = difference_table(groups, measure, digits, price_of_privacy)
    return replace(
        table, name=f"{measure}-differences-private", title=table.title.replace("paired differences", "price of privacy, paired")
    )


def _matching(name: str, labels: Sequence[str]) -> Iterator[str]:
    """The labels that a name, a pattern, or several of these with commas between mean."""
    for part in [name] if name in labels else name.split(","):
        matching = [part] if part in labels else [label for label in labels if fnmatchcase(label, part.strip())]
        if not matching:
            raise UserError("methods", f"there is no method '{part}'", nearest(part, labels))
        yield from matching


def _known(option: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise UserError(option, f"there is no {'method' if option == 'pair' else option} '{name}'", nearest(name, known))


def _badness(groups: Sequence[Group], measure: str) -> float:
    """What the best method has least of: the distance of its mean from the best value."""
    means = [mean for group in groups if (mean := group.mean(measure)) is not None]
    best = BEST_VALUES.get(measure, math.inf)
    if not means or best is None:
        return math.inf
    return -fmean(means) if best == math.inf else abs(fmean(means) - best)
