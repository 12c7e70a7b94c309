"""Utility against bytes: balanced accuracy over what a client sends and receives, a panel for every partition and epsilon."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from fedsim.report.figures import INK, MUTED, PAPER, SMALL, dress, style
from fedsim.report.lines import Series, caption_of, draw_bars, legend_below, legend_height, look, series_of
from fedsim.results.groups import Group, Interval, grouped
from fedsim.words import setting

COMMUNICATION = "communication"
MEGABYTES = "MB that a client sends and receives"
"""What the axis is called."""
_MOST_COLUMNS = 4
_CAPTION = "line: the best private score for at most so many bytes; a method without ε is named, and stands in every panel"

Point = tuple[float, float]
"""Megabytes that a client sends and receives in a training, and balanced accuracy."""


def draw_communication(groups: Sequence[Group]) -> Figure | None:
    """The figure; None where no row has bytes, or no two methods differ in them. A method that sends nothing has no place on the axis."""
    drawn = [group for group in groups if point_of(group)]
    if len({point[0] for group in drawn if (point := point_of(group))}) < 2:
        return None
    with style():
        return _figure(drawn, [series for series in series_of(groups) if series.label in {group.label for group in drawn}])


def point_of(group: Group) -> Point | None:
    """The mean over seeds; None where nothing is sent, or was counted or scored."""
    megabytes, score = group.client_megabytes, group.mean("balanced_accuracy")
    return (megabytes, score) if megabytes and score is not None else None


def best_so_far(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats with as many bytes or fewer, by bytes."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or point[1] > best[-1][1]:
            best.append(point)
    return best


def _figure(groups: Sequence[Group], series: Sequence[Series]) -> Figure:
    places = grouped(groups, lambda group: group.place)
    panels = [(epsilon, members) for members in places.values() for epsilon in _epsilons(members)]
    columns = min(_MOST_COLUMNS, len(panels))
    lines, width, caption = -(-len(panels) // columns), 0.8 + 2.8 * max(columns, 2), f"{_CAPTION} · {caption_of(groups)}"
    height = 2.4 * lines + legend_height(series, caption, width)
    figure = Figure(figsize=(width, height), layout="constrained", facecolor=PAPER)
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True).flatten()
    for axes, (epsilon, members) in zip(grid, panels, strict=False):
        _panel(axes, [group for group in members if group.epsilon_target in (epsilon, None)], series)
        first = members[0]
        names = (first.dataset, first.scheme) if len(places) > 1 else ()
        title = setting(*names, alpha=first.alpha if len(places) > 1 else None, epsilon=epsilon) or "no method here has an ε"
        axes.tick_params(labelleft=True)
        axes.set_xlabel(MEGABYTES, color=INK, fontsize=SMALL)
        axes.set_title(title, fontsize=9, color=INK, loc="left", parse_math=False)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    grid[0].set_ylabel("balanced accuracy", color=INK, fontsize=SMALL)
    legend_below(figure, caption, series)
    return figure


def _epsilons(groups: Sequence[Group]) -> list[float | None]:
    """The epsilons of a partition's panels, ascending; one panel without where no method has any."""
    return [*sorted({group.epsilon_target for group in groups if group.epsilon_target is not None})] or [None]


def _panel(axes: Axes, groups: Sequence[Group], series: Sequence[Series]) -> None:
    dress(axes, "both", 0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda megabytes, _: f"{megabytes:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=SMALL, length=3)
    best = best_so_far([point for group in groups if group.epsilon_target is not None and (point := point_of(group))])
    axes.plot([x for x, _ in best], [y for _, y in best], color=MUTED, linewidth=0.9, drawstyle="steps-post", zorder=1.5)
    bars: list[tuple[float, Interval, str]] = []
    for method in series:
        for group in (group for group in groups if group.label == method.label):
            point, interval = point_of(group), group.interval("balanced_accuracy")
            if point and interval:
                axes.plot(*point, **look(method) | {"linestyle": "none"})
                bars.append((point[0], interval, method.colour))
                if not method.private:
                    axes.annotate(method.label, point, (5, 3), textcoords="offset points", fontsize=SMALL, color=MUTED, parse_math=False)
    draw_bars(axes, [at for at, _, _ in bars], [bar for _, bar, _ in bars], [colour for _, _, colour in bars], "balanced_accuracy")
