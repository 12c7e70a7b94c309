"""Pictures of settings: a grid of panels, a line a method or an epsilon, on matplotlib's own
layout.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
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
    named,
    placed,
    reference_name,
    spread_words,
)
from fedsim.results.columns import UNVERIFIED, Row
from fedsim.results.stats import PLACE, SeedGroups
from fedsim.words import number, spelled

INK = "#1c2430"
MUTED = "#6b7281"
GRID_COLOUR = "#e4e7ec"
PAPER = "#ffffff"
# Three of Okabe and Ito's, then seven as far from these and each other as a contrast of 3 to the
# paper lets them be, for red-green blind
# readers too.
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
_MARKERS: tuple[Any, ...] = ("o", "s", "^", "D", "v", "P", "X", "p", "<", ">")
_DASHES = {
    "stated": (0, (4, 2)),
    "heuristic": (0, (4, 2)),
    "none": (0, (1, 1.5)),
    "refuted": (0, (1, 1.5)),
    UNVERIFIED: (0, (1, 1.5)),
}
WIDTHS = {"column": 3.35, "page": 7.0}
"""Inches of a two-column paper's column (8.5 cm), and of both."""
EPSILON = "privacy budget ε (∞: no noise)"
SCREEN_DPI = 100
"""Dots an inch at which a notebook shows a figure."""
MOST_PANELS = 36
"""So many panels a figure has at most."""
LEAST_BOUND = 0.01
"""Bounds of audits below it say nothing, and a logarithmic axis has no place for them."""
COSTS = {"bytes": "MB that a client sends and receives", "seconds": "seconds of training"}
"""What a training costs, by what ``over`` calls it, and what the axis is called."""


@dataclass(frozen=True)
class Look:
    """How a line is drawn, and what the legend calls it."""

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
"""Text becomes outlines, so that a figure looks the same on a machine without the font."""
REFERENCES = {
    name: Look(name, {"color": MUTED, "linewidth": 0.9, "linestyle": dashes, "zorder": 1.5})
    for name, dashes in (
        ("ceiling", "-"),
        ("local-only", (0, (5, 2))),
        ("own classifier alone", (0, (5, 2))),
        ("chance", (0, (1, 2))),
    )
}
"""How each reference of a measure is drawn, by its name."""


def looks(facts: pd.DataFrame, *, joined: bool = True) -> dict[str, Look]:
    """Every method's look, by label in their order: colour and marker by its number, dashes by its
    claim.

    Methods that yield a classifier are thin with crosses, those that use public data have stars,
    one without epsilon is a level. Points that are not ``joined`` have no lines.
    """
    names = named(facts)
    found = {}
    for position, (label, own) in enumerate(facts.groupby("label", sort=False)):
        word = claim(own)
        public = own["public"].notna().any()
        thin = own["yields"].iloc[0] == "classifier"
        # where colours come round again, markers move on
        turn = position + position // len(SERIES)
        level = joined and word == "not private"
        if public:
            marker = "*"
        elif thin:
            marker = "x"
        else:
            marker = _MARKERS[turn % len(_MARKERS)]
        style: dict[str, Any] = {
            "color": SERIES[position % len(SERIES)],
            "linewidth": 0.8 if thin else 1.7,
            "zorder": 3,
        }
        style |= {
            "marker": "" if level else marker,
            "markersize": 8 if public else 5.2,
            "linestyle": _DASHES.get(word, "-"),
        }
        if level:
            style |= {"linestyle": (0, (6, 2, 1, 2))}
        if word in _DASHES:
            style |= {"markerfacecolor": PAPER}
        found[str(label)] = Look(
            names[str(label)], style if joined else style | {"linestyle": "none"}
        )
    return found


def shades(epsilons: pd.Series[float], **style: Any) -> dict[str, Look]:
    """A shade for every epsilon, by :func:`epsilon_head`, the darkest for the largest; grey for a
    method without one.
    """
    given = sorted(epsilons.dropna().unique())
    colours = matplotlib.colormaps["plasma_r"](np.linspace(1.0, 0.15, max(2, len(given))))[
        : len(given)
    ][::-1]
    known = {
        epsilon_head(epsilon): colour for epsilon, colour in zip(given, colours, strict=True)
    } | {epsilon_head(math.nan): MUTED}
    return {
        name: Look(name, {"color": colour, "linewidth": 1.3, **style})
        for name, colour in known.items()
    }


def epsilon_axis(epsilons: pd.Series[float]) -> tuple[dict[float, float], dict[float, str]]:
    """Where each epsilon stands, log10 and infinity a gap behind the largest; and the texts of
    these places.
    """
    given = sorted(epsilons.dropna().unique())
    finite = [math.log10(epsilon) for epsilon in given if math.isfinite(epsilon)]
    if finite:
        gap = max(0.35, 0.45 * (finite[-1] - finite[0]))
    else:
        gap = 0.0
    at = {
        epsilon: math.log10(epsilon)
        if math.isfinite(epsilon)
        else (finite[-1] + gap if finite else 0.0)
        for epsilon in given
    }
    return at, {place: number(epsilon) for epsilon, place in at.items()}


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
    """A grid of at most :data:`MOST_PANELS` panels, a line for every value of a column.

    Args:
        frame: a line a point; ``low`` and ``high`` are the ends of its bar, ``bound`` is where an
            audit's tick is, each if there is one.
        names: the columns on the x axis, where a point without a value is a level across the panel,
            and on the y axis; that of titles, a panel each; and that whose values are lines.
        look: by the values of that column.
        row: the column whose values are lines of panels of their own, a long one broken; default:
            all panels are one.
        labels: of the x axis and the y axis; without the latter it is the row.
        width: in inches; default: as in the page.
        ticks: texts of places on the x axis; default: matplotlib's.
        logarithmic: whether the x axis is.
        shared: whether all panels have one y axis.
    """
    x, y, panel, line = names
    frame = frame.assign(_row=frame[row] if row else "")
    panels: dict[Any, pd.DataFrame] = dict(iter(frame.groupby(["_row", panel], sort=False)))
    rows: dict[Any, list[tuple[Any, Any]]] = {}
    for key in islice(panels, MOST_PANELS):
        rows.setdefault(key[0], []).append(key)
    columns = min(max(map(len, rows.values())), 6 if width is None else max(1, int(width / 2.3)))
    lines = [own[at : at + columns] for own in rows.values() for at in range(0, len(own), columns)]
    used = {name: each for name, each in look.items() if (frame[line] == name).any()}
    size = width or max(3.0 * columns, 9.0)
    across = max(1, int(size / 2.6))
    with matplotlib.rc_context(STYLE):
        height = (
            (2.3 if width or columns > 2 else 3.4) * len(lines)
            + 0.2 * math.ceil(len(used) / across)
            + 0.3
        )
        figure = NotebookFigure(figsize=(size, height), layout="constrained", facecolor=PAPER)
        grid = figure.subplots(len(lines), columns, squeeze=False, sharey=shared)
        for cells, own, below in zip(grid, lines, [*lines[1:], []], strict=True):
            cells[0].set_ylabel(labels[1] or own[0][0], wrap=True)
            for axes in cells[len(own) :]:
                axes.set_axis_off()
            for position, (axes, key) in enumerate(zip(cells, own, strict=False)):
                axes.set_title(key[1], wrap=True)
                axes.set_xlabel(labels[0] if position >= len(below) else "")
                _panel(axes, panels[key], (x, y, line), used)
                if logarithmic:
                    axes.set_xscale("log")
                    axes.xaxis.set_major_formatter("{x:g}")
                    axes.xaxis.set_minor_formatter(NullFormatter())
                if ticks:
                    axes.set_xticks([*ticks], [*ticks.values()])
        handles = [Line2D([], [], **each.style) for each in used.values()]
        # matplotlib drops labels that begin with an underscore, so names come after
        how: dict[str, Any] = {
            "loc": "outside lower left",
            "ncols": across,
            "frameon": False,
            "fontsize": 8.5,
            "handlelength": 3.2,
        }
        legend = figure.legend(handles, [*map(str, range(len(handles)))], **how)
        for text, each in zip(legend.get_texts(), used.values(), strict=True):
            text.set_text(each.name)
    return figure


def _panel(
    axes: Axes, points: pd.DataFrame, names: tuple[str, str, str], look: Mapping[str, Look]
) -> None:
    x, y, line = names
    for name, own in points.groupby(line, sort=False):
        each = look[str(name)].style
        level = own[own[x].isna()]
        placed_ = own.dropna(subset=[x])
        colour = each["color"]
        for at, low, high in level.reindex(columns=[y, "low", "high"]).to_numpy():
            axes.axhline(
                at, color=colour, linewidth=each["linewidth"], linestyle=each["linestyle"], zorder=2
            )
            axes.axhspan(
                low, high, color=colour, alpha=0.13, linewidth=0, zorder=1
            ) if low == low else None
        if len(placed_):
            axes.plot(placed_[x], placed_[y], **each)
        if "low" in placed_ and len(barred := placed_.dropna(subset="low")):
            axes.vlines(barred[x], barred["low"], barred["high"], colour, linewidth=1.2, zorder=2.5)
        if "bound" in placed_ and len(refuted := placed_.dropna(subset="bound")):
            axes.plot(
                refuted["bound"],
                refuted[y],
                color=colour,
                marker="|",
                markersize=6,
                linestyle="none",
                zorder=2.6,
            )
            axes.hlines(refuted[y], refuted["bound"], refuted[x], colour, linewidth=0.8, alpha=0.5)


def caption_of(settings: SeedGroups) -> str:
    """What a reader of a figure has to know."""
    facts = settings.facts[settings.facts["seeds"] > 0]
    budgets = (
        facts.dropna(subset="epsilon_target")[["unit", "trust", "delta"]]
        .drop_duplicates()
        .to_numpy()
    )
    budget = [
        f"{unit}-level ε, trust {trust}, δ = {number(delta)}" for unit, trust, delta in budgets
    ]
    if (facts["yields"] == "classifier").any():
        thin = "thin, crosses: classifiers, which generate no rows"
    else:
        thin = ""
    if facts["public"].notna().any():
        stars = "stars: use public data"
    else:
        stars = ""
    parts = [
        *placed(facts)[0],
        *(budget if len(budget) == 1 else ()),
        spread_words(settings.spread, facts["seeds"].max()),
    ]
    if settings.averaged["audit_epsilon_lower"].notna().any():
        audits = "ticks: the ε that an audit refutes with a confidence of 95 %"
    else:
        audits = ""
    return " · ".join(filter(None, [*parts, thin, stars, audits]))


def _points(settings: SeedGroups, measures: Sequence[str]) -> pd.DataFrame:
    """A line a setting and measure that has values, with where its mean stands; bars end where the
    measure does.
    """
    means = settings.means(measures).astype({"epsilon_target": "float64"})
    least, most = (
        {name: getattr(measure, end) for name, measure in MEASURES.items()}
        for end in ("least", "most")
    )
    low = means["low"].clip(lower=means["measure"].map(least))
    high = means["high"].clip(upper=means["measure"].map(most))
    at, _ = epsilon_axis(means["epsilon_target"])
    return means.assign(
        low=low, high=high, at=means["epsilon_target"].map(at), place=placed(means)[1]
    )


def utility(
    settings: SeedGroups, measure: str = "balanced_accuracy", width: float | None = None
) -> Figure | None:
    """The privacy-utility curves: a measure against epsilon, a line of panels a data set and number
    of clients, a panel an alpha.

    A tick is at the epsilon that an audit refutes, joined to the claim. None where no row that is
    ok has the measure.
    """
    points = _points(settings, [known_measure(measure)])
    if not len(points):
        return None
    bound = points["setting"].map(
        settings.averaged.groupby("setting")["audit_epsilon_lower"].max().astype("float64")
    )
    points["bound"] = np.log10(bound.where(bound > LEAST_BOUND))
    points["row"] = points[["dataset", "scheme", "clients"]].astype(str).agg(" ".join, axis=1)
    panels = points.drop_duplicates(PLACE)[[*PLACE, "row", "place"]]
    look = looks(settings.facts)
    labels = set(look)
    for name, column in MEASURES[measure].references:
        line = reference_name(name, labels)
        look[line] = replace(REFERENCES[name], name=line)
        # a merge, not a join, finds places without an alpha
        levels = (
            settings.reference(column)
            .rename("mean")
            .reset_index()
            .merge(panels, on=PLACE)
            .assign(label=line)
        )
        if len(levels):
            points = pd.concat([points, levels])
    how: dict[str, Any] = {
        "ticks": epsilon_axis(points["epsilon_target"])[1],
        "labels": (EPSILON, MEASURES[measure].title),
    }
    return facet(points, ("at", "mean", "place", "label"), look, row="row", width=width, **how)


def fidelity(settings: SeedGroups) -> Figure | None:
    """How like real rows synthetic ones are, against epsilon: a line of panels a place, a panel a
    number that says so.
    """
    shown = [name for name, measure in MEASURES.items() if measure.fidelity]
    points = _points(settings, shown)
    if not len(points):
        return None
    titles = {name: f"{name.replace('_', ' ')} ({_ideal(MEASURES[name].best)})" for name in shown}
    points = points.assign(title=points["measure"].map(titles))
    how: dict[str, Any] = {"ticks": epsilon_axis(points["epsilon_target"])[1], "shared": False}
    return facet(
        points,
        ("at", "mean", "title", "label"),
        looks(settings.facts),
        row="place",
        labels=(EPSILON, ""),
        **how,
    )


def _ideal(best: float | None) -> str:
    words = {None: "as real rows: 1", math.inf: "higher is better", 0.0: "lower is better"}
    return words.get(best, f"ideal: {best:g}" if best is not None else "")


def communication(settings: SeedGroups) -> Figure | None:
    """Balanced accuracy against what a client sends and receives, a panel a place and epsilon; what
    sends nothing has no place.
    """
    rows = settings.averaged
    points = _points(settings, ["balanced_accuracy"])
    points = points.assign(
        cost=points["setting"].map(_megabytes(rows).groupby(rows["setting"]).mean())
    ).query("cost > 0")
    if points["cost"].nunique() < 2:
        return None
    epsilons = sorted(points["epsilon_target"].dropna().unique()) or [math.nan]
    # a method without epsilon stands in each panel
    panels = [
        points[points["epsilon_target"].isna() | (points["epsilon_target"] == e)].assign(
            budget=epsilon_head(e)
        )
        for e in epsilons
    ]
    points = pd.concat(panels).sort_values("setting", kind="stable")
    points = points.assign(panel=_beside(points["place"], points["budget"]))
    how: dict[str, Any] = {"row": "place", "labels": (COSTS["bytes"], "balanced accuracy")}
    look = looks(settings.facts, joined=False)
    return facet(points, ("cost", "mean", "panel", "label"), look, logarithmic=True, **how)


def _beside(place: pd.Series[str], words: pd.Series[str]) -> pd.Series[str]:
    return place.where(place == "", place + " · ") + words


def _megabytes(rows: pd.DataFrame) -> pd.Series[float]:
    """What a client sends and receives in a training."""
    both = rows["uplink_bytes"].astype("float64") + rows["downlink_bytes"].astype("float64")
    return both / rows["clients"].astype("float64") / 1e6


def sites(settings: SeedGroups, clients: pd.DataFrame) -> Figure | None:
    """Every client judged by itself, a dot each: the shared generator to the right, its own
    upwards; a panel a method and place.
    """
    names = ["shared_balanced_accuracy", "own_balanced_accuracy"]
    if not len(clients) or clients[names].isna().any(axis=1).all():
        return None
    rows = settings.averaged[["setting", "cell_id"]].merge(
        clients[["cell_id", "name", *names]], on="cell_id"
    )
    dots = (
        rows.astype(dict.fromkeys(names, "float64"))
        .groupby(["setting", "name"])[names]
        .mean()
        .dropna()
        .reset_index()
    )
    points = dots.merge(settings.facts, left_on="setting", right_index=True)
    points = points.assign(
        panel=_beside(placed(points)[1], points["label"]),
        budget=points["epsilon_target"].map(epsilon_head),
    )
    look = shades(points["epsilon_target"], marker=".", linestyle="none")
    figure = facet(points, (names[0], names[1], "panel", "budget"), look, labels=("shared", "own"))
    both = points[names].to_numpy()
    for axes in figure.axes:
        axes.axline((0.5, 0.5), slope=1, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
        axes.set(xlim=(ends := (both.min() - 0.03, both.max() + 0.03)), ylim=ends)
    return figure


def over_parameter(
    results: Sequence[Row], over: str, measure: str, width: float | None = None
) -> Figure:
    """A measure over a scanned parameter, such as ``rounds``, or a training's ``bytes`` or
    ``seconds``; a panel a place and epsilon.
    """
    kept = [row for row in results if over in COSTS or over in row.params]
    settings = SeedGroups.of(kept)
    rows = settings.averaged
    costs = {"bytes": _megabytes(rows), "seconds": rows["train_seconds"]}
    scanned = {
        row.cell_id: _without(row, [*row.params] if over in COSTS else [over]) for row in kept
    }
    rows = rows.assign(
        at=costs[over] if over in COSTS else rows.get(f"params.{over}", math.nan),
        line=rows["cell_id"].map(scanned),
    )
    by = rows[["setting", "at", "line"]].groupby("setting")
    if over in COSTS:
        at = by["at"].mean()
    else:
        at = by["at"].first()
    points = _points(settings, [known_measure(measure)])
    points = points.assign(
        at=points["setting"].map(at), label=points["setting"].map(by["line"].first())
    ).dropna(subset="at")
    points = points[
        points.groupby([*PLACE, "epsilon_target", "label"], dropna=False)["at"].transform("nunique")
        > 1
    ]
    if not len(points):
        known = {name for row in results for name in row.params} | {*COSTS}
        if over in known:
            hint = "scan a parameter in the grid, such as scan: {rounds: [...]}"
        else:
            hint = nearest(over, ["epsilon", *known])
        raise UserError(
            f"over {over}", "no two cells of a method that have the measure differ in it", hint
        )
    ticks = None
    numeric = all(isinstance(value, int | float) for value in points["at"])
    if not numeric:
        texts = points["at"].map(spelled)
        ticks = {float(place): text for place, text in enumerate(sorted(set(texts)))}
        points["at"] = texts.map({text: place for place, text in ticks.items()})
    points = points.astype({"at": "float64"}).sort_values("at", kind="stable")
    points = points.assign(
        panel=_beside(points["place"], points["epsilon_target"].map(epsilon_head))
    )
    wide = bool(
        numeric and points["at"].min() > 0 and points["at"].max() >= 10 * points["at"].min()
    )
    how: dict[str, Any] = {
        "labels": (COSTS.get(over, over), MEASURES[measure].title),
        "width": width,
        "ticks": ticks,
        "logarithmic": wide,
    }
    return facet(points, ("at", "mean", "panel", "label"), looks(points), **how)


def _without(row: Row, names: Sequence[str]) -> str:
    """A row's label without what a scan appended to it for some parameters."""
    label: str = row.label
    for name in names:
        value = row.params[name]
        label = label.replace(f" {name}={spelled(value)}", "")
        # a scan of [0, 0.5] writes 0 into the label where the row has 0.0
        if isinstance(value, float) and value.is_integer():
            label = label.replace(f" {name}={spelled(int(value))}", "")
    return label


def inches(width: str) -> float:
    """A width of a figure: ``column``, ``page``, or inches."""
    with suppress(ValueError):
        if 2 <= (value := WIDTHS.get(width) or float(width)) <= 20:
            return value
    raise UserError(f"width {width}", "is not a width", "give column, page, or inches from 2 to 20")


class NotebookFigure(Figure):
    """A matplotlib figure that a notebook shows also where no ``%matplotlib inline`` was run."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """A PNG at twice the resolution, and the size at which it is shown."""
        picture = io.BytesIO()
        with matplotlib.rc_context(STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            self.savefig(picture, format="png", dpi=2 * SCREEN_DPI)
        inches = self.get_size_inches()
        size = {"width": round(SCREEN_DPI * inches[0]), "height": round(SCREEN_DPI * inches[1])}
        return picture.getvalue(), size


def save_figure(figure: Figure, path: Path) -> bytes:
    """Write an SVG, the same bytes for the same figure, and return it; with a suffix ``.png`` also
    that, of 200 dpi.
    """
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # a name in a script that the font lacks is boxes here, and right in the page's tables
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        if path.suffix == ".png":
            with replaced(path) as part:
                figure.savefig(part, format="png", dpi=200)
            figure.set_layout_engine("none")  # it is laid out
        figure.savefig(text := io.BytesIO(), format="svg", metadata={"Date": None})
    with replaced(path.with_suffix(".svg")) as part:
        part.write_bytes(text.getvalue())
    return text.getvalue()


def save_pdf(figure: Figure, path: Path) -> Path:
    """Write a figure as PDF, its text as text in embedded fonts, at once; the same figure gives the
    same bytes.
    """
    with matplotlib.rc_context(STYLE | {"pdf.fonttype": 42}), replaced(path) as part:
        figure.savefig(part, format="pdf", metadata={"CreationDate": None})
    return path
