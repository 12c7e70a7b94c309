"""A measure over a scanned parameter, or over what a training costs: rounds, bytes or seconds.

Rounds have no scores: a curve over rounds joins cells that differ in their parameter ``rounds`` alone (``scan: {rounds: [...]}``).
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from fedsim.errors import UserError, nearest
from fedsim.evaluation.measures import MEASURES
from fedsim.report.communication import MEGABYTES
from fedsim.report.figures import INK, PANEL_HEIGHT, PAPER, Y_CHARACTERS, dress, panels_beside, style
from fedsim.report.lines import Series, draw_bars, legend_below, legend_height, look, series_of
from fedsim.results.groups import Group, distinct_labels, group_seeds, grouped
from fedsim.results.rows import Row
from fedsim.words import setting, spelled

COSTS: dict[str, tuple[str, Callable[[Group], float | None]]] = {
    "bytes": (MEGABYTES, lambda group: group.client_megabytes),
    "seconds": ("seconds of training", lambda group: group.mean("train_seconds")),
}
"""What a training costs, by name: what the axis is called, and a group's cost; rounds are a parameter."""
_LOGARITHMIC = 10.0
"""An axis whose last number is so many times the first is logarithmic."""

_MOST_TICKS = 8
"""Values of a parameter that have a tick each."""

Point = tuple[Any, Group]
"""A place on the axis, and what stands there."""
Lines = dict[tuple[Any, ...], list[Point]]
"""The points of a line, by data set, scheme, alpha, clients, epsilon and label."""
EPSILON_PLACE = 4
"""Where epsilon stands in such a key; a panel is named by it even if it is the only one."""


def draw_over(lines: Lines, over: str, measure: str, width: float) -> Figure:
    """A panel for every partition and epsilon, a line for every method, means with 95 % confidence intervals.

    Args:
        lines: of :func:`scanned`, in the order of the legend.
        over: what they are over.
        measure: one of :data:`fedsim.evaluation.measures.MEASURES`.
        width: of the figure, in inches.
    """
    with style():
        return _figure(lines, over, measure, width)


def scanned(rows: Sequence[Row], over: str, measure: str) -> Lines:
    """The points of every line that has two or more, in the axis' order.

    Args:
        rows: of one run or of several.
        over: a parameter of a method, or a key of :data:`COSTS`.
        measure: one of :data:`fedsim.evaluation.measures.MEASURES`.

    Raises:
        UserError: no two cells of a method differ in it.
    """
    points: Lines = {}
    for value, groups in _groups(rows, over):
        for group in groups:
            at = COSTS[over][1](group) if over in COSTS else value
            if at is not None and group.interval(measure):
                key = (*group.place, group.epsilon_target, group.label)
                points.setdefault(key, []).append((at, group))
    lines = {key: sorted(line, key=lambda point: _sortable(point[0])) for key, line in points.items()}
    if lines := {key: line for key, line in lines.items() if len({_sortable(at) for at, _ in line}) > 1}:
        return lines
    known = {name for row in rows for name in row.given_params} | set(COSTS)
    hint = "scan a parameter in the grid, such as scan: {rounds: [...]}" if over in known else nearest(over, ["epsilon", *known])
    raise UserError(f"over {over}", "no two cells of a method that have the measure differ in it", hint)


def _groups(rows: Sequence[Row], over: str) -> list[tuple[Any, list[Group]]]:
    """The rows averaged over seeds, for every value of a parameter; labels are what they are without it."""
    if over in COSTS:
        named = [row.model_copy(update={"label": _without(row, row.given_params)}) for row in rows]
        return [(None, group_seeds(members)) for members in grouped(named, lambda row: spelled(row.given_params)).values()]
    held = [row for row in rows if over in row.given_params]
    left = [
        row.model_copy(
            update={"label": _without(row, [over]), "params": {name: value for name, value in row.given_params.items() if name != over}}
        )
        for row in held
    ]
    left = distinct_labels(left, [spelled(row.given_params) for row in left])
    pairs = grouped(zip(held, left, strict=True), lambda pair: spelled(pair[0].given_params[over])).values()
    return [(members[0][0].given_params[over], group_seeds([row for _, row in members])) for members in pairs]


def _without(row: Row, names: Any) -> str:
    """A row's label without what a scan appended to it for some parameters."""
    label = row.label
    for name in names:
        label = label.replace(f" {name}={spelled(row.given_params[name])}", "")
    return label


def _sortable(value: Any) -> tuple[int, float, str]:
    return (0, float(value), "") if _is_number(value) else (1, 0.0, spelled(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _figure(lines: Lines, over: str, measure: str, width: float) -> Figure:
    series = series_of([group for line in lines.values() for _, group in line])
    panels = _panels(lines)
    columns = min(panels_beside(width), len(panels))
    depth = -(-len(panels) // columns)
    height = legend_height(series, "", width) + PANEL_HEIGHT * depth
    figure = Figure(figsize=(width, height), layout="constrained", facecolor=PAPER)
    grid = figure.subplots(depth, columns, squeeze=False, sharey=True).flatten()
    varied = [len({place[i] for place in panels}) > 1 or i == EPSILON_PLACE for i in range(5)]
    values = list(dict.fromkeys(sorted((_sortable(at) for line in lines.values() for at, _ in line))))
    for axes, (place, keys) in zip(grid, panels.items(), strict=False):
        dataset, scheme, alpha, clients, epsilon = (part if kept else None for part, kept in zip(place, varied, strict=True))
        title = setting(dataset, scheme, alpha=alpha, clients=clients, epsilon=epsilon)
        axes.set_title(title, fontsize=8.5, color=INK, loc="left", parse_math=False)
        _axis(axes, values, over)
        for method in series:
            for key in (key for key in keys if key[-1] == method.label):
                _line(axes, lines[key], method, measure, values)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes in grid[::columns]:
        axes.set_ylabel(textwrap.fill(MEASURES[measure].title, Y_CHARACTERS), color=INK, fontsize=8.5)
    for axes in grid[max(0, len(panels) - columns) : len(panels)]:
        axes.set_xlabel(COSTS[over][0] if over in COSTS else over, color=INK, fontsize=8.5, parse_math=False)
    legend_below(figure, "", series)
    return figure


def _panels(lines: Lines) -> dict[tuple[Any, ...], list[tuple[Any, ...]]]:
    """The lines of every partition and epsilon; a method without epsilon stands in each of its partition's."""
    places = grouped(lines, lambda key: key[:EPSILON_PLACE]).items()
    panels: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    for place, keys in places:
        for epsilon in sorted({key[EPSILON_PLACE] for key in keys if key[EPSILON_PLACE] is not None}) or [None]:
            panels[*place, epsilon] = [key for key in keys if key[EPSILON_PLACE] in (epsilon, None)]
    return panels


def _axis(axes: Axes, values: Sequence[tuple[int, float, str]], over: str) -> None:
    """Numbers where they are, on a logarithmic axis where they reach far; words one after another."""
    dress(axes, "both", 0.8)
    axes.tick_params(colors=INK, labelcolor=INK, labelsize=8, length=3)
    if values[-1][0]:
        axes.set_xticks(range(len(values)), [word or f"{number:g}" for _, number, word in values])
        return
    if values[0][1] > 0 and values[-1][1] >= _LOGARITHMIC * values[0][1]:
        axes.set_xscale("log")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if len(values) <= _MOST_TICKS and over not in COSTS:
        axes.xaxis.set_major_locator(FixedLocator([value for _, value, _ in values]))


def _line(axes: Axes, points: Sequence[Point], method: Series, measure: str, values: Sequence[tuple[int, float, str]]) -> None:
    words = bool(values[-1][0])
    x = [values.index(_sortable(at)) if words else at for at, _ in points]
    intervals = [interval for _, group in points if (interval := group.interval(measure))]
    drawn = look(method) | ({} if method.private else {"linestyle": method.dashes})
    axes.plot(x, [interval.mean for interval in intervals], **drawn)
    draw_bars(axes, x, intervals, [method.colour] * len(x), measure)
