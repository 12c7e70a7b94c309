"""How figures look: colours and markers of methods, panels, axes, legends, and files.

:func:`facet` draws a figure from a frame with one line per point; other figures fill
:func:`blank_panels`. A method has the same colour and marker in every figure of every run
(:func:`looks`). :func:`save_figure` and :func:`save_pdf` write figures, and the same figure gives
the same bytes.
"""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from fedsim.errors import UserError
from fedsim.files import replaced
from fedsim.report.names import claims, epsilon_head, named
from fedsim.results.columns import UNVERIFIED
from fedsim.words import number

INK = "#1c2430"
"""The colour of text."""
MUTED = "#6b7281"
"""The colour of axes, references and whatever else should stay behind the results."""
GRID_COLOUR = "#e4e7ec"
"""The colour of grid lines."""
PAPER = "#ffffff"
"""The colour of the background."""
SERIES = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#c86ba0",
    "#6b3a00",
    "#3d9bd8",
    "#a3123f",
    "#7650dd",
    "#5a6b00",
    "#1b1f5e",
)
"""The colours of methods.

The first three are from Okabe and Ito. The others are as far from these and from each other as a
contrast of 3 to the background permits, also for readers who do not tell red from green.
"""
MARKERS: tuple[Any, ...] = ("o", "s", "^", "D", "v", "P", "X", "p", "<", ">")
"""The markers of generators."""
CROSSES: tuple[Any, ...] = ("x", "+", "1", "2", "3", "4", "x", "+", "1", "2")
"""The markers of classifiers."""
FIXED_LOOKS = {
    "fedhypevae": (0, 0),
    "fedhypevae-warm": (1, 1),
    "fedhypevae-sites": (8, 5),
    "fedhypevae, mixture": (5, 5),
    "fedhypevae, own codes": (7, 6),
    "fedhypevae, scope hypernetwork": (8, 3),
    "fedhypevae, form: paper": (1, 2),
    "fedhypevae, trained encoder": (2, 7),
    "fedhypevae-warm, subspace": (6, 8),
    "dp-gaussian": (2, 2),
    "dp-gaussian, subspace": (5, 4),
    "dp-gmm": (3, 3),
    "dp-merf": (9, 6),
    "dp-cgan": (3, 7),
    "dp-flow": (8, 7),
    "dp-cvae": (7, 3),
    "dp-prototypes": (6, 4),
    "dp-fedpft": (0, 9),
    "fedpft": (5, 9),
    "fedavg-cvae": (9, 9),
    "weight-noise": (4, 8),
    "private-evolution": (4, 4),
    "dp-lda": (5, 0),
    "dp-linear": (6, 1),
    "dp-linear, re-encoded": (6, 5),
    "dp-feature-covariance": (7, 2),
    "dp-least-squares": (8, 4),
    "dp-least-squares, subspace": (7, 5),
    "dp-scaffold": (9, 5),
    "dp-fedavg-linear": (4, 0),
    "fedavg-linear": (4, 1),
    "dp-ditto": (0, 2),
    "ditto": (0, 3),
    "local-only": (9, 3),
    "centralised": (1, 4),
    "fedlambda": (3, 5),
}
"""The positions in SERIES and MARKERS of shipped methods and of variants in the benchmarks."""
_DASHES = {
    "stated": (0, (4, 2)),
    "heuristic": (0, (4, 2)),
    "none": (0, (1, 1.5)),
    "refuted": (0, (1, 1.5)),
    UNVERIFIED: (0, (1, 1.5)),
}
"""The dashes of a line whose epsilon is not proved, by its claim."""
WIDTHS = {"column": 3.35, "page": 7.0}
"""The width in inches of one column (8.5 cm) and of both columns of a paper with two columns."""
SCREEN_DPI = 100
"""The resolution, in dots per inch, at which a notebook shows a figure."""
MOST_PANELS = 36
"""The largest number of panels in a figure; further panels are not drawn."""
NEAR = 0.4
"""A reference further from the data than this share of their range is written, not drawn."""
DODGE = 0.012
"""The distance of methods at one epsilon, as a share of the axis."""
LEGEND_SIZE = 8.0
"""The font size of a legend, in points, in a figure as wide as a page."""
LETTER = 0.52
"""The width of an average letter, as a share of the font size."""


@dataclass(frozen=True)
class Look:
    """The look of a line.

    Attributes:
        name: Its name in the legend.
        style: The properties of matplotlib's ``Line2D``.
        reference: Whether it is a reference, which the y axis need not cover.
    """

    name: str
    style: Mapping[str, Any]
    reference: bool = False


STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "svg.fonttype": "path",
    "svg.hashsalt": "fedsim",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "grid.color": GRID_COLOUR,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.titlesize": 9,
    "axes.labelsize": 8.5,
    "text.parse_math": False,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "axes.titlelocation": "left",
}
"""The matplotlib settings of every figure.

Text becomes outlines, so that a figure looks the same on a machine without the font.
"""
REFERENCE_DASHES: dict[str, Any] = {
    "ceiling": "-",
    "local-only": (0, (5, 2)),
    "own classifier alone": (0, (5, 2)),
    "chance": (0, (1, 2)),
}
"""The dashes of each reference of a measure, by its name."""


def reference_look(reference: str, name: str) -> Look:
    """Return the look of a reference, with the name that a legend gives it."""
    dashes = REFERENCE_DASHES[reference]
    style = {"color": MUTED, "linewidth": 0.9, "linestyle": dashes, "zorder": 1.5}
    return Look(name, style, reference=True)


def published_look(name: str, position: int) -> Look:
    """Return the look of a published number: a hollow mark in the colour of text, without a line.

    Args:
        name: The name that a legend gives it, in several lines if it does not fit into a column.
        position: Its position among the published numbers, which decides the mark.
    """
    style = {
        "color": INK,
        "linestyle": "none",
        "marker": MARKERS[position % len(MARKERS)],
        "markersize": 7,
        "markerfacecolor": "none",
    }
    return Look(textwrap.fill(name, 60), style)


def looks(facts: pd.DataFrame, *, joined: bool = True) -> dict[str, Look]:
    """Return the look of every method, by label.

    The label decides colour and marker, and the claim the dashes. Methods that yield a classifier
    have thin lines with crosses. A method without an epsilon is a horizontal line without markers
    if points are joined.

    Args:
        facts: :attr:`SeedGroups.facts`.
        joined: Whether points are joined by lines. If not, every method has markers.
    """
    names = named(facts)
    numbers = look_numbers(names)
    words = claims(facts)
    classifiers = set(facts["label"][facts["yields"] == "classifier"])
    found = {}
    for label, name in names.items():
        style = _style(*numbers[label], words[label], is_classifier=label in classifiers)
        if not joined:
            style["linestyle"] = "none"
        elif words[label] == "not private":
            style |= {"marker": "", "linestyle": (0, (6, 2, 1, 2))}
        found[label] = Look(name, style)
    return found


def look_numbers(labels: Collection[str]) -> dict[str, tuple[int, int]]:
    """Return the numbers of colour and marker of each method, by label.

    Those of shipped methods are fixed (:data:`FIXED_LOOKS`). The letters of any other label decide
    its colour, and its length the marker. If another method of the same figure has that colour,
    this one gets the next free colour.
    """
    found = {label: FIXED_LOOKS[label] for label in labels if label in FIXED_LOOKS}
    for label in labels:
        if label not in found:
            found[label] = _free_look(label, found.values())
    return found


def _free_look(label: str, used: Collection[tuple[int, int]]) -> tuple[int, int]:
    """Return the numbers of colour and marker of a method without fixed ones.

    Args:
        label: The label of the method.
        used: The numbers of other methods of the figure.
    """
    first = sum(map(ord, label))
    every_look = [
        ((first + shift) % len(SERIES), (len(label) + shift // len(SERIES)) % len(MARKERS))
        for shift in range(len(SERIES) * len(MARKERS))
    ]
    used_colours = {colour for colour, _ in used}
    return min(every_look, key=lambda look: (look[0] in used_colours, look in used))


def _style(colour: int, marker: int, word: str, *, is_classifier: bool) -> dict[str, Any]:
    """Return the style of a method's line.

    Args:
        colour: The number of its colour.
        marker: The number of its marker.
        word: What its epsilons rest on, see :func:`fedsim.report.names.claims`.
        is_classifier: Whether the method yields a classifier.
    """
    style: dict[str, Any] = {
        "color": SERIES[colour],
        "linewidth": 1.6,
        "zorder": 3,
        "marker": MARKERS[marker],
        "markersize": 5,
        "linestyle": _DASHES.get(word, "-"),
    }
    if is_classifier:
        style |= {"linewidth": 0.8, "marker": CROSSES[marker], "markersize": 6}
    if word in _DASHES:
        style["markerfacecolor"] = PAPER
    return style


def shades(epsilons: pd.Series[float], **style: Any) -> dict[str, Look]:
    """Return a look for every epsilon, by :func:`epsilon_head`: the larger, the darker.

    Args:
        epsilons: The epsilons, in any order; NaN stands for a method without one, which is grey.
        style: Further properties of all lines.
    """
    heads = [epsilon_head(epsilon) for epsilon in sorted(epsilons.dropna().unique())]
    scale = matplotlib.colormaps["plasma_r"](np.linspace(1.0, 0.15, max(2, len(heads))))
    colours = dict(zip(heads, scale[: len(heads)][::-1], strict=True))
    colours[epsilon_head(math.nan)] = MUTED
    return {
        head: Look(head, {"color": colour, "linewidth": 1.3, **style})
        for head, colour in colours.items()
    }


def epsilon_axis(epsilons: pd.Series[float]) -> tuple[dict[float, float], dict[float, str]]:
    """Return where epsilons are on a logarithmic axis.

    Args:
        epsilons: The epsilons, in any order; NaN is left out.

    Returns:
        The place of each epsilon, its log10, with infinity a gap behind the largest finite one;
        and the text of the tick at each place.
    """
    known = sorted(epsilons.dropna().unique())
    places = {epsilon: math.log10(epsilon) for epsilon in known if math.isfinite(epsilon)}
    if math.inf in known:
        finite = [*places.values()] or [0.0]
        places[math.inf] = finite[-1] + max(0.35, 0.45 * (finite[-1] - finite[0]))
    return places, {place: number(epsilon) for epsilon, place in places.items()}


def side_by_side(points: pd.DataFrame, ticks: Mapping[float, str]) -> pd.Series[float]:
    """Return the places ``at`` of points, shifted so that methods at one epsilon do not overlap.

    Args:
        points: One line per point, with ``at`` and ``label``.
        ticks: The ticks of the axis, by place, in ascending order; there is at least one.
    """
    labels = points.dropna(subset="at")["label"].unique()
    span = (max(ticks) - min(ticks)) or 1.0
    # Points of many methods stay closer to their own tick than to the next one.
    most_step = np.diff([*ticks, math.inf]).min() / (2 * len(labels))
    step = min(DODGE * span, most_step)
    shifts = step * (np.arange(len(labels)) - (len(labels) - 1) / 2)
    return points["at"] + points["label"].map(dict(zip(labels, shifts, strict=True)))


def facet(
    frame: pd.DataFrame,
    names: tuple[str, str, str, str],
    look: Mapping[str, Look],
    *,
    row: str | None = None,
    title: str = "",
    labels: tuple[str, str] = ("", ""),
    width: float | None = None,
    ticks: Mapping[float, str] | None = None,
    logarithmic: bool = False,
    shared: bool = True,
) -> Figure:
    """Return a grid of panels, with a line for every value of a column.

    At most :data:`MOST_PANELS` panels are drawn. A row of panels that is too long is broken. If
    there are references, the y axis covers the data; a reference far away is written at its edge.

    Args:
        frame: One line per point. Optional columns are ``low`` and ``high``, the ends of its bar,
            and ``bound``, where the tick of an audit is.
        names: Four columns: on the x axis, where a point without a value is a level across the
            panel; on the y axis; the titles, with one panel each; and the lines' names.
        look: The look of each line, by its name.
        row: The column with one row of panels per value; default: all panels are one row.
        title: The title of the whole figure.
        labels: The labels of the x axis and the y axis. An empty second one is the row's value.
        width: The width in inches; default: as wide as the report page.
        ticks: The texts of places on the x axis; default: matplotlib's.
        logarithmic: Whether the x axis is logarithmic.
        shared: Whether all panels have one y axis.
    """
    x, y, panel_title, line = names
    far = _far_references(frame, y, frame[line].map(look))
    panels, panel_rows = _panel_rows(frame, row, panel_title, width)
    columns = max(map(len, panel_rows))
    used = [each for name, each in look.items() if (frame[line][far == 0] == name).any()]
    with matplotlib.rc_context(STYLE):
        figure = _empty_figure(
            title,
            width,
            columns,
            len(panel_rows),
            used,
        )
        letters = _letters(figure.get_figwidth() / columns - 0.6, 9)
        grid = figure.subplots(
            len(panel_rows),
            columns,
            squeeze=False,
            sharey=shared,
        )
        for axes_row, keys, keys_below in zip(
            grid,
            panel_rows,
            [*panel_rows[1:], []],
            strict=True,
        ):
            axes_row[0].set_ylabel(textwrap.fill(labels[1] or keys[0][0], 32))
            for axes in axes_row[len(keys) :]:
                axes.set_axis_off()
            for axes, key in zip(axes_row, keys, strict=False):
                axes.set_title(textwrap.fill(key[1], letters))
                points = panels[key]
                side = far[points.index]
                _draw_panel(axes, points[side == 0], (x, y, line), look)
                _write_references(axes, points, side, y, line)
                if logarithmic:
                    _make_logarithmic(axes)
                if ticks:
                    axes.set_xticks([*ticks], [*ticks.values()])
                    _break_axis(axes, ticks)
            # Only the lowest panel of a column says what is on the x axis.
            for axes in axes_row[len(keys_below) : len(keys)]:
                axes.set_xlabel(labels[0])
        if far.any():
            _make_room(grid[0, 0], far, frame[panel_title])
    return figure


def _far_references(frame: pd.DataFrame, y: str, look: pd.Series[Any]) -> pd.Series[int]:
    """Return -1 for references far below the data, 1 for those far above it, and else 0.

    Args:
        frame: One line per point, with distinct numbers as its index.
        y: The column on the y axis.
        look: The look of each point.
    """
    is_reference = look.map(lambda each: each.reference).astype(bool)
    data = frame[~is_reference].reindex(columns=[y, "low", "high"])
    low = float(data.min().min())
    high = float(data.max().max())
    reach = NEAR * max(high - low, 0.05)
    above = (frame[y] > high + reach).astype(int)
    below = (frame[y] < low - reach).astype(int)
    return (above - below).where(is_reference, 0)


def _make_logarithmic(axes: Axes) -> None:
    """Make the x axis of a panel logarithmic, with ticks at 1, 2 and 5 times a power of ten."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def _write_references(
    axes: Axes, points: pd.DataFrame, side: pd.Series[int], y: str, line: str
) -> None:
    """Write the names and values of far references at the lower and upper edge of a panel.

    Args:
        axes: The panel.
        points: The panel's points, see :func:`facet`.
        side: On which side of the data each point is, see :func:`_far_references`.
        y: The column on the y axis.
        line: The column with the names.
    """
    for this_side, edge, arrow, alignment in ((-1, 0, "↓", "bottom"), (1, 1, "↑", "top")):
        far = points[side == this_side]
        lines = [
            f"{arrow} {name} {level:.3f}" for name, level in zip(far[line], far[y], strict=True)
        ]
        axes.annotate(
            "\n".join(lines),
            (1, edge),
            xytext=(0, -2 * this_side),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="right",
            va=alignment,
            fontsize=7.5,
            color=MUTED,
        )


def _make_room(axes: Axes, far: pd.Series[int], panel: pd.Series[str]) -> None:
    """Make room for the names of references at the edges of panels that share their y axis.

    Args:
        axes: One of the panels.
        far: On which side of the data each point is, see :func:`_far_references`.
        panel: The panel of each point.
    """
    low, high = axes.get_ylim()
    lines = {side: (far == side).groupby(panel).sum().max() for side in (-1, 1)}
    height = 0.08 * (high - low)
    axes.set_ylim(low - height * lines[-1], high + height * lines[1])


def _break_axis(axes: Axes, ticks: Mapping[float, str]) -> None:
    """Mark that the x axis is broken between the largest finite epsilon and infinity."""
    *finite, last = ticks
    if not finite or ticks[last] != "∞":
        return
    middle = (finite[-1] + last) / 2
    reach = 0.006 * (last - finite[0])
    axes.plot(
        [middle - reach, middle + reach],
        [0, 0],
        transform=axes.get_xaxis_transform(),
        marker=[(-0.5, -1), (0.5, 1)],
        markersize=9,
        color=MUTED,
        linestyle="none",
        clip_on=False,
        zorder=5,
    )


def _panel_rows(
    frame: pd.DataFrame, row: str | None, title: str, width: float | None
) -> tuple[dict[Any, pd.DataFrame], list[list[Any]]]:
    """Return the points of each panel, and the panels' keys in the rows in which they are drawn.

    Args:
        frame: One line per point.
        row: The column with one row of panels per value, or None.
        title: The column with one panel per value.
        width: The width of the figure in inches, which limits the panels side by side; None is the
            width of the report's page, which has room for six.

    Returns:
        The points by key (value of ``row``, value of ``title``), and the rows of keys.
    """
    with_row = frame.assign(_row=frame[row] if row else "")
    grouped = with_row.groupby(["_row", title], sort=False)
    panels: dict[Any, pd.DataFrame] = dict(iter(grouped))
    by_row: dict[Any, list[Any]] = {}
    for key in islice(panels, MOST_PANELS):
        by_row.setdefault(key[0], []).append(key)
    most_columns = 6
    if width is not None:
        most_columns = max(1, int(width / 2.3))
    columns = min(max(map(len, by_row.values())), most_columns)
    rows_of_keys = [
        keys[start : start + columns]
        for keys in by_row.values()
        for start in range(0, len(keys), columns)
    ]
    return panels, rows_of_keys


def _letters(inches: float, size: float) -> int:
    """Return how many letters of a font size fit into a width."""
    return max(8, int(72 * inches / (LETTER * size)))


def _empty_figure(
    title: str, width: float | None, columns: int, rows: int, used: Sequence[Look]
) -> NotebookFigure:
    """Return a figure of the size for some panels, with its title and the legend below them.

    Args:
        title: The title.
        width: The width in inches, or None for the width of the report's page.
        columns: The number of panels side by side.
        rows: The number of rows of panels.
        used: The looks of the lines that are drawn.
    """
    figure_width = width or max(3.0 * columns, 9.0)
    names = [line_look.name for line_look in used]
    # The legend of a figure of less than 5 inches has smaller text.
    font_size = min(LEGEND_SIZE, figure_width + 3)
    legend_columns = _legend_columns(names, _letters(figure_width, font_size))
    panel_height = 3.4
    if width or columns > 2:
        panel_height = 2.3
    title_lines = textwrap.wrap(title, _letters(figure_width, 9.5))
    legend_rows = math.ceil(len(used) / legend_columns)
    height = panel_height * rows + 0.18 * (legend_rows + len(title_lines)) + 0.2
    figure = NotebookFigure(
        figsize=(figure_width, height),
        layout="constrained",
        facecolor=PAPER,
    )
    if title:
        figure.suptitle(
            "\n".join(title_lines),
            x=0.01,
            ha="left",
            fontsize=9.5,
            weight="bold",
        )
    legend = figure.legend(
        [Line2D([], [], **line_look.style) for line_look in used],
        [str(position) for position in range(len(used))],
        loc="outside lower left",
        ncols=legend_columns,
        frameon=False,
        fontsize=font_size,
        handlelength=2.4,
        columnspacing=1.2,
        labelspacing=0.3,
    )
    # matplotlib drops labels that begin with an underscore, so the names are set afterwards.
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)
    return figure


def _legend_columns(names: Sequence[str], letters: int) -> int:
    """Return the largest number of columns in which a legend fits into a number of letters."""
    # The handle, its distance from the text, and the distance to the next column, in letters.
    beside = 4.4 / LETTER
    for columns in range(len(names), 1, -1):
        rows = math.ceil(len(names) / columns)
        widest = [
            max(map(len, names[start : start + rows])) for start in range(0, len(names), rows)
        ]
        if sum(widest) + beside * len(widest) <= letters:
            return len(widest)
    return 1


def blank_panels(
    count: int, columns: int, size: tuple[float, float], **options: Any
) -> tuple[Figure, list[Any]]:
    """Return a figure with a number of empty panels.

    Args:
        count: The number of panels.
        columns: The number of panels side by side.
        size: The width and height of the figure in inches.
        options: Further arguments of ``Figure.subplots``.
    """
    figure = Figure(figsize=size, layout="constrained", facecolor=PAPER)
    rows = math.ceil(count / columns)
    axes = list(
        figure.subplots(
            rows,
            columns,
            squeeze=False,
            **options,
        ).flat
    )
    for surplus in axes[count:]:
        surplus.set_axis_off()
    return figure, axes[:count]


def _draw_panel(
    axes: Axes, points: pd.DataFrame, names: tuple[str, str, str], look: Mapping[str, Look]
) -> None:
    """Draw the lines of a panel.

    Args:
        axes: Where they are drawn.
        points: The panel's points, see :func:`facet`.
        names: The columns on the x axis and on the y axis, and the column with the lines' names.
        look: The look of each line, by its name.
    """
    x, y, line = names
    for name, line_points in points.groupby(line, sort=False):
        style = look[str(name)].style
        colour = style["color"]
        levels = line_points[line_points[x].isna()].reindex(columns=[y, "low", "high"])
        for level, low, high in levels.to_numpy():
            axes.axhline(
                level,
                color=colour,
                linewidth=style["linewidth"],
                linestyle=style["linestyle"],
                zorder=2,
            )
            if not math.isnan(low):
                axes.axhspan(
                    low,
                    high,
                    color=colour,
                    alpha=0.13,
                    linewidth=0,
                    zorder=1,
                )
        on_axis = line_points.dropna(subset=[x])
        if len(on_axis):
            axes.plot(on_axis[x], on_axis[y], **style)
        bars = on_axis.reindex(columns=[x, "low", "high"]).dropna(subset="low")
        if len(bars):
            axes.vlines(
                bars[x],
                bars["low"],
                bars["high"],
                colour,
                linewidth=1.2,
                zorder=2.5,
            )
        if "bound" in on_axis:
            _draw_bounds(
                axes,
                x,
                y,
                on_axis.dropna(subset="bound"),
                colour,
            )


def _draw_bounds(axes: Axes, x: str, y: str, audited: pd.DataFrame, colour: str) -> None:
    """Draw a tick at the epsilon that an audit refutes, joined to the point of the claim."""
    if audited.empty:
        return
    axes.plot(
        audited["bound"],
        audited[y],
        color=colour,
        marker="|",
        markersize=6,
        linestyle="none",
        zorder=2.6,
    )
    axes.hlines(
        audited[y],
        audited["bound"],
        audited[x],
        colour,
        linewidth=0.8,
        alpha=0.5,
    )


def inches(width: str) -> float:
    """Return the width of a figure in inches.

    Args:
        width: ``column``, ``page``, or a number of inches from 2 to 20.

    Raises:
        UserError: It is none of these.
    """
    with suppress(ValueError):
        value = WIDTHS.get(width) or float(width)
        if 2 <= value <= 20:
            return value
    raise UserError(
        f"width {width}",
        "is not a width",
        "give column, page, or inches from 2 to 20",
    )


@contextmanager
def _drawing() -> Iterator[None]:
    """Set fedsim's style, and ignore that the font lacks a character of a user's text.

    Such a character is a box in the figure. It is right in the tables of the page.
    """
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


class NotebookFigure(Figure):
    """A matplotlib figure that a notebook shows also where no ``%matplotlib inline`` was run."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """Return a PNG at twice the resolution, and the size in pixels at which it is shown."""
        picture = io.BytesIO()
        with _drawing():
            self.savefig(picture, format="png", dpi=2 * SCREEN_DPI)
        width, height = SCREEN_DPI * self.get_size_inches()
        return picture.getvalue(), {"width": round(width), "height": round(height)}


def save_figure(figure: Figure, path: Path) -> bytes:
    """Write a figure as SVG, and also as PNG (200 dpi) if the path ends in ``.png``.

    Args:
        figure: The figure. After a PNG its layout is fixed.
        path: Where it is written; the SVG has the suffix ``.svg`` in any case.

    Returns:
        The SVG, the same bytes for the same figure.
    """
    svg = io.BytesIO()
    with _drawing():
        if path.suffix == ".png":
            with replaced(path) as part:
                figure.savefig(part, format="png", dpi=200)
            # The figure is laid out now; a second layout would move it.
            figure.set_layout_engine("none")
        figure.savefig(svg, format="svg", metadata={"Date": None})
    with replaced(path.with_suffix(".svg")) as part:
        part.write_bytes(svg.getvalue())
    return svg.getvalue()


def save_pdf(figure: Figure, path: Path) -> Path:
    """Write a figure as PDF, with its text as text in embedded fonts; return the path.

    The same figure gives the same bytes. The file is replaced at once or not at all.
    """
    with _drawing(), matplotlib.rc_context({"pdf.fonttype": 42}), replaced(path) as part:
        figure.savefig(
            part,
            format="pdf",
            metadata={"CreationDate": None},
        )
    return path
