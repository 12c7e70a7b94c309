"""The figures of a report: a grid of panels with one line per method or epsilon.

Every figure is drawn by :func:`facet` from a frame with one line per point, by matplotlib alone.
The figures are :func:`utility` (a measure against epsilon), :func:`fidelity`,
:func:`communication`, :func:`sites` and :func:`over_parameter`. A method has the same colour and
marker in every figure of a run (:func:`looks`).

Figures are written by :func:`save_figure` and :func:`save_pdf`; the same figure always gives the
same bytes.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from fedsim.errors import UserError, nearest
from fedsim.evaluation.measures import MEASURES
from fedsim.files import replaced
from fedsim.report.tables import (
    claim,
    epsilon_head,
    known_measure,
    most_seeds,
    named,
    placed,
    reference_name,
    spread_words,
)
from fedsim.results.columns import UNVERIFIED, Row
from fedsim.results.stats import PLACE, SeedGroups
from fedsim.words import number, spelled

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
"""The colours of methods, in their order.

The first three are from Okabe and Ito. The others are as far from these and from each other as a
contrast of 3 to the background permits, also for readers who do not tell red from green.
"""
_MARKERS: tuple[Any, ...] = ("o", "s", "^", "D", "v", "P", "X", "p", "<", ">")
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
EPSILON = "privacy budget ε (∞: no noise)"
"""The label of the epsilon axis."""
SCREEN_DPI = 100
"""The resolution, in dots per inch, at which a notebook shows a figure."""
MOST_PANELS = 36
"""The largest number of panels in a figure; further panels are not drawn."""
LEAST_BOUND = 0.01
"""The least epsilon of an audit that is drawn.

Smaller bounds say nothing, and a logarithmic axis has no place for zero.
"""
COSTS = {"bytes": "MB that a client sends and receives", "seconds": "seconds of training"}
"""The costs of a training that ``over`` accepts beside parameters, with the label of their axis."""


@dataclass(frozen=True)
class Look:
    """The look of a line: its name in the legend and matplotlib's properties of a ``Line2D``."""

    name: str
    style: Mapping[str, Any]


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
REFERENCES = {
    name: Look(name, {"color": MUTED, "linewidth": 0.9, "linestyle": dashes, "zorder": 1.5})
    for name, dashes in (
        ("ceiling", "-"),
        ("local-only", (0, (5, 2))),
        ("own classifier alone", (0, (5, 2))),
        ("chance", (0, (1, 2))),
    )
}
"""The look of each reference of a measure, by its name."""


def looks(facts: pd.DataFrame, *, joined: bool = True) -> dict[str, Look]:
    """Return the look of every method, by label.

    The position of a method decides its colour and marker, its claim the dashes. Methods that
    yield a classifier have thin lines with crosses, methods that use public data have stars, and
    a method without an epsilon is a level without markers.

    Args:
        facts: :attr:`SeedGroups.facts`; methods are counted in its order.
        joined: Whether points are joined by lines. If not, every method has markers.
    """
    return {
        label: Look(name, _style(position, facts[facts["label"] == label], joined))
        for position, (label, name) in enumerate(named(facts).items())
    }


def _style(position: int, method: pd.DataFrame, joined: bool) -> dict[str, Any]:
    """Return the style of a method's line.

    Args:
        position: The method's position among all methods.
        method: The method's lines of :attr:`SeedGroups.facts`.
        joined: Whether points are joined by lines.
    """
    word = claim(method)
    # When the colours come round again, the markers move on by one.
    marker = _MARKERS[(position + position // len(SERIES)) % len(_MARKERS)]
    style: dict[str, Any] = {
        "color": SERIES[position % len(SERIES)],
        "linewidth": 1.7,
        "zorder": 3,
        "marker": marker,
        "markersize": 5.2,
        "linestyle": _DASHES.get(word, "-"),
    }
    if method["yields"].iloc[0] == "classifier":
        style["linewidth"] = 0.8
        style["marker"] = "x"
    if method["public"].notna().any():
        style["marker"] = "*"
        style["markersize"] = 8
    if word in _DASHES:
        style["markerfacecolor"] = PAPER
    if not joined:
        style["linestyle"] = "none"
    elif word == "not private":
        style["marker"] = ""
        style["linestyle"] = (0, (6, 2, 1, 2))
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
    finite = list(places.values())
    behind = 0.0
    if finite:
        behind = finite[-1] + max(0.35, 0.45 * (finite[-1] - finite[0]))
    if math.inf in known:
        places[math.inf] = behind
    return places, {place: number(epsilon) for epsilon, place in places.items()}


def facet(
    frame: pd.DataFrame,
    names: tuple[str, str, str, str],
    look: Mapping[str, Look],
    *,
    row: str | None = None,
    labels: tuple[str, str] = ("", ""),
    width: float | None = None,
    ticks: Mapping[float, str] | None = None,
    logarithmic: bool = False,
    shared: bool = True,
) -> Figure:
    """Return a grid of panels, with a line for every value of a column.

    At most :data:`MOST_PANELS` panels are drawn. A row of panels that is too long is broken.

    Args:
        frame: One line per point. Optional columns are ``low`` and ``high``, the ends of its bar,
            and ``bound``, where the tick of an audit is.
        names: Four columns: on the x axis, where a point without a value is a level across the
            panel; on the y axis; the titles, with one panel each; and the lines' names.
        look: The look of each line, by its name.
        row: The column with one row of panels per value; default: all panels are one row.
        labels: The labels of the x axis and the y axis. An empty second one is the row's value.
        width: The width in inches; default: as wide as the report page.
        ticks: The texts of places on the x axis; default: matplotlib's.
        logarithmic: Whether the x axis is logarithmic.
        shared: Whether all panels have one y axis.
    """
    x, y, title, line = names
    panels, panel_rows = _panel_rows(frame, row, title, width)
    columns = max(map(len, panel_rows))
    used = {name: look[name] for name in look if (frame[line] == name).any()}
    with matplotlib.rc_context(STYLE):
        figure = _empty_figure(width, columns, len(panel_rows), list(used.values()))
        grid = figure.subplots(len(panel_rows), columns, squeeze=False, sharey=shared)
        for axes_row, keys, keys_below in zip(grid, panel_rows, [*panel_rows[1:], []], strict=True):
            axes_row[0].set_ylabel(labels[1] or keys[0][0], wrap=True)
            for axes in axes_row[len(keys) :]:
                axes.set_axis_off()
            for axes, key in zip(axes_row, keys, strict=False):
                axes.set_title(key[1], wrap=True)
                _draw_panel(axes, panels[key], (x, y, line), used)
                if logarithmic:
                    axes.set_xscale("log")
                    axes.xaxis.set_major_formatter("{x:g}")
                    axes.xaxis.set_minor_formatter(NullFormatter())
                if ticks:
                    axes.set_xticks([*ticks], [*ticks.values()])
            # Only the lowest panel of a column says what is on the x axis.
            for axes in axes_row[len(keys_below) : len(keys)]:
                axes.set_xlabel(labels[0])
    return figure


def _panel_rows(
    frame: pd.DataFrame, row: str | None, title: str, width: float | None
) -> tuple[dict[Any, pd.DataFrame], list[list[Any]]]:
    """Return the points of each panel, and the panels' keys in the rows in which they are drawn.

    Args:
        frame: One line per point.
        row: The column with one row of panels per value, or None.
        title: The column with one panel per value.
        width: The width of the figure in inches, which limits the panels side by side; None is as
            wide as the page, which has six.

    Returns:
        The points by key (value of ``row``, value of ``title``), and the rows of keys.
    """
    row_values: Any = ""
    if row:
        row_values = frame[row]
    grouped = frame.assign(_row=row_values).groupby(["_row", title], sort=False)
    panels: dict[Any, pd.DataFrame] = dict(iter(grouped))
    by_row: dict[Any, list[Any]] = {}
    for key in islice(panels, MOST_PANELS):
        by_row.setdefault(key[0], []).append(key)
    most_columns = 6
    if width is not None:
        most_columns = max(1, int(width / 2.3))
    columns = min(max(map(len, by_row.values())), most_columns)
    broken = [
        keys[start : start + columns]
        for keys in by_row.values()
        for start in range(0, len(keys), columns)
    ]
    return panels, broken


def _empty_figure(
    width: float | None, columns: int, rows: int, used: Sequence[Look]
) -> NotebookFigure:
    """Return a figure of the size for some panels, with the legend below them.

    Args:
        width: The width in inches, or None for the page.
        columns: The number of panels side by side.
        rows: The number of rows of panels.
        used: The looks of the lines that are drawn.
    """
    size = width or max(3.0 * columns, 9.0)
    legend_columns = max(1, int(size / 2.6))
    panel_height = 3.4
    if width or columns > 2:
        panel_height = 2.3
    legend_height = 0.2 * math.ceil(len(used) / legend_columns)
    height = panel_height * rows + legend_height + 0.3
    figure = NotebookFigure(figsize=(size, height), layout="constrained", facecolor=PAPER)
    legend = figure.legend(
        [Line2D([], [], **line_look.style) for line_look in used],
        [str(position) for position in range(len(used))],
        loc="outside lower left",
        ncols=legend_columns,
        frameon=False,
        fontsize=8.5,
        handlelength=3.2,
    )
    # matplotlib drops labels that begin with an underscore, so the names are set afterwards.
    for text, line_look in zip(legend.get_texts(), used, strict=True):
        text.set_text(line_look.name)
    return figure


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
        levels = line_points[line_points[x].isna()].reindex(columns=[y, "low", "high"])
        for level, low, high in levels.to_numpy():
            _draw_level(axes, level, low, high, style)
        on_axis = line_points.dropna(subset=[x])
        if len(on_axis):
            axes.plot(on_axis[x], on_axis[y], **style)
        bars = on_axis.reindex(columns=[x, "low", "high"]).dropna(subset="low")
        if len(bars):
            axes.vlines(
                bars[x], bars["low"], bars["high"], style["color"], linewidth=1.2, zorder=2.5
            )
        if "bound" in on_axis:
            _draw_bounds(axes, x, y, on_axis.dropna(subset="bound"), style["color"])


def _draw_level(
    axes: Axes, level: float, low: float, high: float, style: Mapping[str, Any]
) -> None:
    """Draw a horizontal line across a panel, and a band from ``low`` to ``high`` unless NaN."""
    colour = style["color"]
    axes.axhline(
        level,
        color=colour,
        linewidth=style["linewidth"],
        linestyle=style["linestyle"],
        zorder=2,
    )
    if not math.isnan(low):
        axes.axhspan(low, high, color=colour, alpha=0.13, linewidth=0, zorder=1)


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
    axes.hlines(audited[y], audited["bound"], audited[x], colour, linewidth=0.8, alpha=0.5)


def caption_of(settings: SeedGroups) -> str:
    """Return what a reader of a figure has to know: budget, spread, and what marks mean.

    Args:
        settings: The results that are drawn.
    """
    facts = settings.facts[settings.facts["seeds"] > 0]
    parts = list(placed(facts)[0])
    budgets = facts.dropna(subset="epsilon_target")[["unit", "trust", "delta"]].drop_duplicates()
    if len(budgets) == 1:
        unit, trust, delta = budgets.to_numpy()[0]
        parts.append(f"{unit}-level ε, trust {trust}, δ = {number(delta)}")
    parts.append(spread_words(settings.spread, most_seeds(facts)))
    if (facts["yields"] == "classifier").any():
        parts.append("thin, crosses: classifiers, which generate no rows")
    if facts["public"].notna().any():
        parts.append("stars: use public data")
    if settings.averaged["audit_epsilon_lower"].notna().any():
        parts.append("ticks: the ε that an audit refutes with a confidence of 95 %")
    return " · ".join(parts)


def _points(settings: SeedGroups, measures: Sequence[str]) -> pd.DataFrame:
    """Return one point per setting and measure that has values.

    Returns:
        The lines of :meth:`SeedGroups.means` with ``at`` (the place of epsilon on its axis) and
        ``place`` (what differs between places, in words). ``low`` and ``high`` are clipped to the
        values that the measure can have.
    """
    means = settings.means(measures).astype({"epsilon_target": "float64"})
    least = {name: measure.least for name, measure in MEASURES.items()}
    most = {name: measure.most for name, measure in MEASURES.items()}
    at, _ = epsilon_axis(means["epsilon_target"])
    return means.assign(
        low=means["low"].clip(lower=means["measure"].map(least)),
        high=means["high"].clip(upper=means["measure"].map(most)),
        at=means["epsilon_target"].map(at),
        place=placed(means)[1],
    )


def utility(
    settings: SeedGroups, measure: str = "balanced_accuracy", width: float | None = None
) -> Figure | None:
    """Return the privacy-utility curves: a measure against epsilon.

    There is a row of panels per data set and number of clients, and a panel per alpha. A tick is
    at the epsilon that an audit refutes, joined to the claim.

    Args:
        settings: The results.
        measure: The name of the measure.
        width: The width in inches; default: as wide as the report page.

    Returns:
        The figure, or None if no result has the measure.

    Raises:
        UserError: There is no such measure.
    """
    points = _points(settings, [known_measure(measure)])
    if points.empty:
        return None
    audits = settings.averaged.groupby("setting")["audit_epsilon_lower"].max().astype("float64")
    bounds = points["setting"].map(audits)
    points["bound"] = np.log10(bounds.where(bounds > LEAST_BOUND))
    points["row"] = points[["dataset", "scheme", "clients"]].astype(str).agg(" ".join, axis=1)
    panels = points.drop_duplicates(PLACE)[[*PLACE, "row", "place"]]
    look = looks(settings.facts)
    labels = set(look)
    for name, column in MEASURES[measure].references:
        line = reference_name(name, labels)
        look[line] = replace(REFERENCES[name], name=line)
        # A merge, unlike a join, also finds places without an alpha.
        levels = settings.reference(column).rename("mean").reset_index().merge(panels, on=PLACE)
        if len(levels):
            points = pd.concat([points, levels.assign(label=line)])
    return facet(
        points,
        ("at", "mean", "place", "label"),
        look,
        row="row",
        labels=(EPSILON, MEASURES[measure].title),
        width=width,
        ticks=epsilon_axis(points["epsilon_target"])[1],
    )


def fidelity(settings: SeedGroups) -> Figure | None:
    """Return how similar synthetic embeddings are to real ones, against epsilon.

    There is a row of panels per place and a panel per measure of fidelity.

    Returns:
        The figure, or None if no result has such a measure.
    """
    titles = {
        name: f"{name.replace('_', ' ')} ({_ideal(measure.best)})"
        for name, measure in MEASURES.items()
        if measure.fidelity
    }
    points = _points(settings, list(titles))
    if points.empty:
        return None
    return facet(
        points.assign(title=points["measure"].map(titles)),
        ("at", "mean", "title", "label"),
        looks(settings.facts),
        row="place",
        labels=(EPSILON, ""),
        ticks=epsilon_axis(points["epsilon_target"])[1],
        shared=False,
    )


def _ideal(best: float | None) -> str:
    """Return in words which value of a measure is the best; None is the value of real data, 1."""
    if best is None:
        return "as real rows: 1"
    words = {math.inf: "higher is better", 0.0: "lower is better"}
    return words.get(best, f"ideal: {best:g}")


def communication(settings: SeedGroups) -> Figure | None:
    """Return balanced accuracy against what a client sends and receives.

    There is a panel per place and epsilon. A method without epsilon is drawn in every panel of its
    place; a method that sends nothing has no place on the logarithmic axis.

    Returns:
        The figure, or None if all methods send equally much.
    """
    cells = settings.averaged
    points = _points(settings, ["balanced_accuracy"])
    costs = _megabytes(cells).groupby(cells["setting"]).mean()
    points = points.assign(cost=points["setting"].map(costs)).query("cost > 0")
    if points["cost"].nunique() < 2:
        return None
    targets = points["epsilon_target"]
    panels = []
    for epsilon in sorted(targets.dropna().unique()) or [math.nan]:
        panel_points = points[targets.isna() | (targets == epsilon)]
        panels.append(panel_points.assign(budget=epsilon_head(epsilon)))
    points = pd.concat(panels).sort_values("setting", kind="stable")
    return facet(
        points.assign(panel=_beside(points["place"], points["budget"])),
        ("cost", "mean", "panel", "label"),
        looks(settings.facts, joined=False),
        row="place",
        labels=(COSTS["bytes"], "balanced accuracy"),
        logarithmic=True,
    )


def _beside(place: pd.Series[str], words: pd.Series[str]) -> pd.Series[str]:
    """Return each place, if there is one to name, followed by some words."""
    return place.where(place == "", place + " · ") + words


def _megabytes(cells: pd.DataFrame) -> pd.Series[float]:
    """Return how many megabytes one client sends and receives in each training."""
    both = cells["uplink_bytes"].astype("float64") + cells["downlink_bytes"].astype("float64")
    return both / cells["clients"].astype("float64") / 1e6


def sites(settings: SeedGroups, clients: pd.DataFrame) -> Figure | None:
    """Return every client as a dot: what its own generator scores against the shared generator.

    There is a panel per method and place. Above the diagonal a client's own generator is better.

    Args:
        settings: The results.
        clients: The evaluations of single clients, by ``cell_id``; may be empty.

    Returns:
        The figure, or None if no client has both scores.
    """
    names = ["shared_balanced_accuracy", "own_balanced_accuracy"]
    if clients.empty or clients[names].isna().any(axis=1).all():
        return None
    scores = settings.averaged[["setting", "cell_id"]].merge(
        clients[["cell_id", "name", *names]], on="cell_id"
    )
    by_client = scores.astype(dict.fromkeys(names, "float64")).groupby(["setting", "name"])
    means = by_client[names].mean().dropna().reset_index()
    points = means.merge(settings.facts, left_on="setting", right_index=True)
    points = points.assign(
        panel=_beside(placed(points)[1], points["label"]),
        budget=points["epsilon_target"].map(epsilon_head),
    )
    look = shades(points["epsilon_target"], marker=".", linestyle="none")
    figure = facet(points, (names[0], names[1], "panel", "budget"), look, labels=("shared", "own"))
    drawn = points[names].to_numpy()
    ends = (drawn.min() - 0.03, drawn.max() + 0.03)
    for axes in figure.axes:
        axes.axline((0.5, 0.5), slope=1, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
        axes.set(xlim=ends, ylim=ends)
    return figure


def over_parameter(
    results: Sequence[Row], over: str, measure: str, width: float | None = None
) -> Figure:
    """Return a measure against a scanned parameter, or against what a training costs.

    There is a panel per place and epsilon. The x axis is logarithmic if the largest value is at
    least ten times the smallest one; texts are equally far apart, in alphabetical order.

    Args:
        results: The results of a run.
        over: The name of a parameter such as ``rounds``, or ``bytes`` or ``seconds``.
        measure: The name of the measure.
        width: The width in inches; default: as wide as the report page.

    Raises:
        UserError: There is no such measure, or no method has the measure at two values of
            ``over``.
    """
    points = _scan_points(results, over, measure)
    if points.empty:
        known = {name for row in results for name in row.params} | {*COSTS}
        hint = nearest(over, ["epsilon", *known])
        if over in known:
            hint = "scan a parameter in the grid, such as scan: {rounds: [...]}"
        raise UserError(
            f"over {over}", "no two cells of a method that have the measure differ in it", hint
        )
    ticks = None
    logarithmic = False
    if all(isinstance(value, int | float) for value in points["at"]):
        least = points["at"].min()
        logarithmic = bool(least > 0 and points["at"].max() >= 10 * least)
    else:
        texts = points["at"].map(spelled)
        places = {text: float(place) for place, text in enumerate(sorted(set(texts)))}
        ticks = {place: text for text, place in places.items()}
        points["at"] = texts.map(places)
    points = points.astype({"at": "float64"}).sort_values("at", kind="stable")
    heads = points["epsilon_target"].map(epsilon_head)
    return facet(
        points.assign(panel=_beside(points["place"], heads)),
        ("at", "mean", "panel", "label"),
        looks(points),
        labels=(COSTS.get(over, over), MEASURES[measure].title),
        width=width,
        ticks=ticks,
        logarithmic=logarithmic,
    )


def _scan_points(results: Sequence[Row], over: str, measure: str) -> pd.DataFrame:
    """Return the points of methods that have a measure at two or more values of a parameter.

    Returns:
        The lines of :func:`_points` with ``at`` (the value of the parameter or cost) and ``label``
        (the method's label without what the scan appended to it). A cost is the mean over seeds.
    """
    rows = [row for row in results if over in COSTS or over in row.params]
    settings = SeedGroups.of(rows)
    cells = settings.averaged
    if over in COSTS:
        costs = {"bytes": _megabytes(cells), "seconds": cells["train_seconds"]}
        at = costs[over].groupby(cells["setting"]).mean()
    else:
        values = cells.get(f"params.{over}", pd.Series(math.nan, cells.index))
        at = values.groupby(cells["setting"]).first()
    lines = {row.cell_id: _line_label(row, over) for row in rows}
    labels = cells["cell_id"].map(lines).groupby(cells["setting"]).first()
    points = _points(settings, [known_measure(measure)])
    points = points.assign(at=points["setting"].map(at), label=points["setting"].map(labels))
    points = points.dropna(subset="at")
    curves = points.groupby([*PLACE, "epsilon_target", "label"], dropna=False)
    return points[curves["at"].transform("nunique") > 1]


def _line_label(row: Row, over: str) -> str:
    """Return a result's label without what a scan appended to it.

    Args:
        row: The result.
        over: The parameter on the x axis, whose value is dropped from the label. If the axis is a
            cost, the values of all parameters are dropped.
    """
    label: str = row.label
    names = [over]
    if over in COSTS:
        names = list(row.params)
    for name in names:
        value = row.params[name]
        label = label.replace(f" {name}={spelled(value)}", "")
        # A scan of [0, 0.5] writes 0 into the label where the result has 0.0.
        if isinstance(value, float) and value.is_integer():
            label = label.replace(f" {name}={spelled(int(value))}", "")
    return label


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
    raise UserError(f"width {width}", "is not a width", "give column, page, or inches from 2 to 20")


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
    with matplotlib.rc_context(STYLE | {"pdf.fonttype": 42}), replaced(path) as part:
        figure.savefig(part, format="pdf", metadata={"CreationDate": None})
    return path
