"""Privacy-utility curves: a measure against epsilon, a panel for every partition, a line for every method."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from fedsim.evaluation.measures import MEASURES
from fedsim.report.figures import INK, MUTED, PAPER, name_level, style
from fedsim.report.lines import Axis, Series, caption_of, draw_methods, frame, legend_below, legend_lines, series_of, shift_of, x_label
from fedsim.report.tables import reference
from fedsim.results.groups import Group
from fedsim.words import setting

CURVES = "privacy_utility"
_DASHES: dict[str, Any] = {"ceiling": "-", "local-only": (0, (5, 2)), "chance": (0, (1, 2))}
_Y_LABELS = {"balanced_accuracy": "balanced accuracy on real test data"}
_SHARE = 1.2
"""An axis that ends above it is not one of shares."""
_WIDEST = 4
LEAST_BOUND = 0.01
"""Bounds of audits below it are not drawn: they say nothing, and a logarithmic axis has no place for them."""


def draw_curves(groups: Sequence[Group], measure: str = "balanced_accuracy") -> Figure | None:
    """The figure of a measure; None where no row with the status ok has it.

    Overspent and failed rows are in no group's mean, so they are never drawn. A method whose epsilon is not a theorem is dashed with open
    markers and named so, one whose author alone states a theorem is dashed with half open ones; a method without epsilon is a level.
    Methods that yield a classifier are thin, with crosses for markers.
    Points are means over seeds, bars (bands for levels) Student-t 95 % confidence intervals, which a single seed does not have.
    A tick under a point is at the epsilon that an audit refutes.
    """
    drawn = [group for group in groups if group.interval(measure)]
    if not drawn:
        return None
    with style():
        return _figure(drawn, measure)


def _figure(groups: Sequence[Group], measure: str) -> Figure:
    layout = _layout(groups)
    columns = max(len(line) for line in layout)
    bounds = [bound for group in groups if (bound := _bound(group)) is not None]
    series, axis, levels = series_of(groups), replace(Axis.of(groups), lowest=min(bounds, default=math.inf)), _levels(layout, measure)
    width = 1.0 + 3.1 * max(columns, 1.35)
    names = legend_lines(series, width)
    figure = Figure(figsize=(width, 0.95 + 0.2 * names + 2.65 * len(layout)), layout="constrained", facecolor=PAPER)
    grid = figure.subplots(len(layout), columns, squeeze=False)
    for depth, line in enumerate(layout):
        for position, axes in enumerate(grid[depth]):
            if position >= len(line):
                axes.set_axis_off()
                continue
            axes.set_ylim(*levels)
            _panel(axes, line[position], series, axis, measure)
            _title(axes, line[position][0], groups)
            axes.tick_params(labelleft=position == 0)
            if position == 0:
                axes.set_ylabel(_Y_LABELS.get(measure) or textwrap.fill(MEASURES[measure].title, 40), color=INK, fontsize=8.5)
            if depth == len(layout) - 1 or position >= len(layout[depth + 1]):
                axes.set_xlabel(x_label(axis), color=INK, fontsize=8.5)
    short = " (of short forms, see audit_params of the rows)" if any(row.audit_params for group in groups for row in group.rows) else ""
    ticks = f"ticks: the ε that an audit refutes with a confidence of 95 %{short}" if bounds else ""
    legend_below(figure, caption_of(groups, ticks), series)
    return figure


def _layout(groups: Sequence[Group]) -> list[list[list[Group]]]:
    """Panels in lines: a line for every (data set, scheme, clients), a panel for every alpha; long lines are broken."""
    lines: dict[tuple[object, ...], dict[float | None, list[Group]]] = {}
    for group in groups:
        lines.setdefault((group.dataset, group.scheme, group.clients), {}).setdefault(group.alpha, []).append(group)
    broken = []
    for panels in lines.values():
        members = list(panels.values())
        width = math.ceil(len(members) / math.ceil(len(members) / _WIDEST))
        broken += [members[start : start + width] for start in range(0, len(members), width)]
    return broken


def _levels(layout: Sequence[Sequence[Sequence[Group]]], measure: str) -> tuple[float, float]:
    """Ends of the common y axis: all that is drawn, each panel's references included; from 0 unless that wastes much of the picture."""
    panels = [panel for line in layout for panel in line]
    values = [level for panel in panels for _, name in MEASURES[measure].references if (level := reference(panel, name)) is not None]
    intervals = [interval for panel in panels for group in panel if (interval := group.interval(measure))]
    for interval in intervals:
        spread = interval.half_width or 0.0
        values += [interval.mean - spread, interval.mean + spread]
    # a share does not exceed 1, a distance may
    low, high = max(0.0, min(values)), min(max(1.0, *(interval.mean for interval in intervals)), max(values))
    margin = 0.06 * max(high - low, 0.1)
    return 0.0 if low < 0.25 else low - margin, high + margin


def _panel(axes: Axes, groups: Sequence[Group], series: Sequence[Series], axis: Axis, measure: str) -> None:
    frame(axes, axis)
    if axes.get_ylim()[1] <= _SHARE:
        axes.yaxis.set_major_locator(MultipleLocator(0.2))
    _reference_lines(axes, groups, measure)
    draw_methods(axes, groups, series, axis, measure)
    for method in series:
        if method.private:
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
        axes.axhline(value, color=MUTED, linewidth=0.9, linestyle=dash, zorder=1.5)
        # Names of lines that lie close together are moved apart.
        above = max(value, above + 0.075 * (high - low))
        name_level(axes, f"{name} {value:.2f}", above, 7.5, 3)


def _title(axes: Axes, group: Group, groups: Sequence[Group]) -> None:
    names = [getattr(group, name) for name in ("dataset", "scheme") if len({getattr(other, name) for other in groups}) > 1]
    clients = group.clients if len({other.clients for other in groups}) > 1 else None
    axes.set_title(setting(*names, alpha=group.alpha, clients=clients), fontsize=9.5, color=INK, loc="left", y=1.0, parse_math=False)
