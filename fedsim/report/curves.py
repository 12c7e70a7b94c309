"""Privacy-utility curves: a measure against epsilon, a panel for every partition, a line for every method."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedsim.evaluation.measures import MEASURES
from fedsim.report.figures import INK, MUTED, PANEL_HEIGHT, PAPER, SMALL, Y_CHARACTERS, name_level, panels_beside, strokes, style
from fedsim.report.lines import (
    Axis,
    Series,
    caption_of,
    draw_methods,
    ends_of,
    frame,
    legend_below,
    legend_height,
    series_of,
    shift_of,
    x_label,
)
from fedsim.report.tables import EVERYWHERE, reference, same_everywhere, shown_once
from fedsim.results.groups import Group, grouped
from fedsim.words import setting

CURVES = "privacy_utility"
_DASHES: dict[str, Any] = {"ceiling": "-", "local-only": (0, (5, 2)), "chance": (0, (1, 2))}
_Y_LABELS = {"balanced_accuracy": "balanced accuracy on real test data"}
_WIDEST = 4
LEAST_BOUND = 0.01
"""Bounds of audits below it are not drawn: they say nothing, and a logarithmic axis has no place for them."""


def draw_curves(groups: Sequence[Group], measure: str = "balanced_accuracy", width: float | None = None) -> Figure | None:
    """The figure of a measure; None where no row with the status ok has it. With a ``width`` in inches it has no caption: a paper has one.

    Overspent and failed rows are in no group's mean, so they are never drawn. A method whose epsilon is not a theorem is dashed with open
    markers and named so, one whose author alone states a theorem is dashed with half open ones; a method without epsilon is a level.
    Methods that yield a classifier are thin, with crosses for markers.
    Points are means over seeds; bars (bands for levels) are the groups' spread, within what the measure can be. Where all methods of a
    place have the same numbers at another one, they are drawn once.
    A tick under a point is at the epsilon that an audit refutes.
    """
    drawn = [group for group in groups if group.interval(measure)]
    if not drawn:
        return None
    with style():
        return _figure(drawn, measure, width)


def _figure(groups: Sequence[Group], measure: str, given: float | None) -> Figure:
    everywhere = same_everywhere(groups, [measure])
    layout = _layout(shown_once(groups, everywhere), _WIDEST if given is None else panels_beside(given))
    columns = max(len(line) for line in layout)
    bounds = [bound for group in groups if (bound := _bound(group)) is not None]
    series, axis, levels = series_of(groups), replace(Axis.of(groups), lowest=min(bounds, default=math.inf)), _levels(layout, measure)
    width = given or 0.1 + 3.2 * columns
    short = " (of short forms, see audit_params of the rows)" if any(row.audit_params for group in groups for row in group.rows) else ""
    ticks = f"ticks: the ε that an audit refutes with a confidence of 95 %{short}" if bounds else ""
    begins = f"the y axis begins at {levels[0]:.2g}, see the strokes through it" if levels[0] > 0 else ""
    once = f"{', '.join(sorted(everywhere))}: the same at {EVERYWHERE}, so pale where repeated" if everywhere else ""
    caption = caption_of(groups, " · ".join(filter(None, (ticks, begins, once)))) if given is None else ""
    height = (2.75 if given is None else PANEL_HEIGHT) * len(layout) + legend_height(series, caption, width)
    figure = Figure(figsize=(width, height), layout="constrained", facecolor=PAPER)
    grid = figure.subplots(len(layout), columns, squeeze=False)
    first = {group.label: group for group in reversed(groups)}
    for line, cells in zip(layout, grid, strict=True):
        for axes, panel in zip(cells, line, strict=False):
            axes.set_ylim(*levels)
            pale = {group.label for group in panel if group.label in everywhere and _place(group) != _place(first[group.label])}
            _panel(axes, panel, series, axis, measure, pale)
            _title(axes, panel, groups, everywhere)
            axes.set_xlabel(x_label(axis), color=INK, fontsize=8.5)
        for axes in cells[len(line) :]:
            axes.set_axis_off()
        label = _Y_LABELS.get(measure, MEASURES[measure].title)
        cells[0].set_ylabel(textwrap.fill(label, 40 if given is None else Y_CHARACTERS), color=INK, fontsize=8.5)
    legend_below(figure, caption, series)
    return figure


def _place(group: Group) -> tuple[object, ...]:
    return group.alpha, group.clients


def _layout(groups: Sequence[Group], widest: int) -> list[list[list[Group]]]:
    """Panels in lines: a line for every (data set, scheme, clients), a panel for every alpha; long lines are broken."""
    lines = grouped(groups, lambda group: (group.dataset, group.scheme, group.clients)).values()
    broken = []
    for line in lines:
        members = list(grouped(line, lambda group: group.alpha).values())
        width = math.ceil(len(members) / math.ceil(len(members) / widest))
        broken += [members[start : start + width] for start in range(0, len(members), width)]
    return broken


def _levels(layout: Sequence[Sequence[Sequence[Group]]], measure: str) -> tuple[float, float]:
    """Ends of the common y axis: what is drawn of methods and of the references but chance; from 0 where that is near."""
    panels = [panel for line in layout for panel in line]
    references = [name for reference, name in MEASURES[measure].references if reference != _FAR]
    values = [level for panel in panels for name in references if (level := reference(panel, name)) is not None]
    for group in (group for panel in panels for group in panel):
        if interval := group.interval(measure):
            values += [interval.mean, *ends_of(interval, measure)]
    low, high = min(values), max(values)
    margin = 0.06 * max(high - low, 0.1)
    return min(low, 0.0) if low < _NEAR * high else low - margin, high + margin


_FAR = "chance"
"""A reference that the y axis does not reach down to: its name says where it is."""
_NEAR = 0.3
"""A y axis whose least is below this share of its most begins at 0."""


def _panel(axes: Axes, groups: Sequence[Group], series: Sequence[Series], axis: Axis, measure: str, pale: Collection[str]) -> None:
    frame(axes, axis)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    if axes.get_ylim()[0] > 0:
        strokes(axes, 0, 0.035, axes.transAxes, 90)
    _reference_lines(axes, groups, measure)
    draw_methods(axes, groups, series, axis, measure, pale)
    for method in series:
        if method.private and method.label not in pale:
            own = [group for group in groups if group.label == method.label]
            _bounds(axes, own, method.colour, axis, shift_of(method, series, axis), measure)


def _bound(group: Group) -> float | None:
    """The largest epsilon that audits refute, where it is drawn."""
    bound = group.largest("audit_epsilon_lower")
    return None if bound is None or bound < LEAST_BOUND else bound


def _bounds(axes: Axes, groups: Sequence[Group], colour: str, axis: Axis, shift: float, measure: str) -> None:
    """What audits refute: a tick under each point, at the largest refuted epsilon, and a thin line to the claim."""
    low, high = axes.get_ylim()
    for group in groups:
        bound, interval = _bound(group), group.interval(measure)
        if bound is None or interval is None or group.epsilon_target is None:
            continue
        y, ends = interval.mean - 0.02 * (high - low), [axis.position(bound) + shift, axis.position(group.epsilon_target) + shift]
        axes.plot(ends, [y, y], color=colour, linewidth=0.8, alpha=0.6, zorder=2.4, gid="audit")
        axes.plot(ends[:1], [y], color=colour, marker="|", markersize=6, markeredgewidth=1.4, linestyle="none", zorder=2.6)


def _reference_lines(axes: Axes, groups: Sequence[Group], measure: str) -> None:
    references = ((name, reference(groups, column)) for name, column in MEASURES[measure].references)
    levels = [(value, name, _DASHES.get(name, "-")) for name, value in references if value is not None]
    above = -math.inf
    low, high = axes.get_ylim()
    for value, name, dash in sorted(levels, key=lambda level: level[0]):
        below = value < low
        if not below:
            axes.axhline(value, color=MUTED, linewidth=0.9, linestyle=dash, zorder=1.5)
        # Names of lines that lie close together are moved apart.
        above = max(value, low, above + 0.08 * (high - low))
        name_level(axes, f"{name} {value:.2f}{' ↓' if below else ''}", above, SMALL, 3)


def _title(axes: Axes, panel: Sequence[Group], groups: Sequence[Group], everywhere: Collection[str]) -> None:
    group = panel[0]
    names = [getattr(group, name) for name in ("dataset", "scheme") if len({getattr(other, name) for other in groups}) > 1]
    clients = group.clients if len({other.clients for other in groups}) > 1 else None
    place = setting(*names, alpha=group.alpha, clients=clients)
    if all(other.label in everywhere for other in panel):
        place = setting(*names, EVERYWHERE)
    axes.set_title(place, fontsize=9.5, color=INK, loc="left", y=1.0, parse_math=False)
