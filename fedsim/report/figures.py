"""Pictures of settings: a grid of panels, a line a method or an epsilon, on matplotlib's own layout."""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from fedsim.errors import UserError, nearest
from fedsim.evaluation.measures import MEASURES
from fedsim.files import replaced
from fedsim.report.tables import claim, epsilon_head, known_measure, named, placed, spread_words
from fedsim.results.columns import Row
from fedsim.results.stats import PLACE, Settings
from fedsim.words import number, spelled

INK, MUTED, GRID_COLOUR, PAPER = "#1c2430", "#6b7281", "#e4e7ec", "#ffffff"
# Three of Okabe and Ito's, then seven as far from these and each other as a contrast of 3 to the paper lets them be, for red-green blind
# readers too.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#c86ba0", "#6b3a00", "#3d9bd8", "#a3123f", "#7650dd", "#5a6b00", "#1b1f5e")
_MARKERS: tuple[Any, ...] = ("o", "s", "^", "D", "v", "P", "X", "p", "<", ">")
_CROSSES: tuple[Any, ...] = ("x", "+", "1", "2", "3", "4", "|", "_", (5, 2), (8, 2))
"""Markers of classifiers."""
_STARS: tuple[Any, ...] = tuple((points, 1, 0) for points in (5, 4, 6, 8, 7, 9, 10, 11, 12, 13))
"""Markers of methods that use public data: stars, by their points."""
_DASHES = {"stated": (0, (4, 2)), "heuristic": (0, (4, 2)), "none": (0, (1, 1.5)), "refuted": (0, (1, 1.5))}
_LEVELS = ((0, (6, 2, 1, 2)), (0, (2, 2)), (0, (9, 3)))
WIDTHS = {"column": 3.35, "page": 7.0}
"""Inches of a two-column paper's column (8.5 cm), and of both."""
LEAST_BOUND = 0.01
"""Bounds of audits below it say nothing, and a logarithmic axis has no place for them."""
COSTS = {"bytes": "MB that a client sends and receives", "seconds": "seconds of training"}
"""What a training costs, by what ``over`` calls it, and what the axis is called."""


@dataclass(frozen=True)
class Look:
    """How a line is drawn."""

    name: str
    style: Mapping[str, Any]
    level: bool = False
    """Whether it has no place on the x axis and is a line across."""


@contextmanager
def style() -> Iterator[None]:
    """The font; text becomes outlines, so that a figure looks the same on a machine without it."""
    known = {"font.family": "DejaVu Sans", "font.size": 9, "svg.fonttype": "path", "svg.hashsalt": "fedsim", "axes.axisbelow": True}
    known |= {"axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": MUTED, "axes.grid": True, "grid.color": GRID_COLOUR}
    known |= {"text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.titlesize": 9, "axes.labelsize": 8.5}
    known |= {"text.parse_math": False, "xtick.labelsize": 8.5, "ytick.labelsize": 8.5, "axes.titlelocation": "left"}
    with matplotlib.rc_context(known):
        yield


def looks(facts: pd.DataFrame) -> dict[str, Look]:
    """Every method's look, by label in their order: colour and marker by its number, dashes and hollow markers by its claim.

    Methods that yield a classifier are thin with crosses, those that use public data have stars, one without epsilon is a level.
    """
    names, found = named(facts), {}
    for position, (label, own) in enumerate(facts.groupby("label", sort=False)):
        word, public, thin = claim(own), own["public"].notna().any(), own["yields"].iloc[0] == "classifier"
        # where colours come round again, markers and dashes move on
        colour, turn = SERIES[position % len(SERIES)], position + position // len(SERIES)
        level = word == "not private"
        found[str(label)] = Look(
            "\n".join(textwrap.wrap(names[str(label)], 38)),
            {
                "color": colour,
                "linewidth": 0.8 if thin else 1.7,
                "linestyle": _LEVELS[turn % len(_LEVELS)] if level else _DASHES.get(word, "-"),
                "marker": (_STARS if public else _CROSSES if thin else _MARKERS)[turn % len(_MARKERS)],
                "markersize": 8 if public else 5.2,
                "markerfacecolor": PAPER if word in _DASHES and word != "stated" else colour,
                "fillstyle": "left" if word == "stated" else "full",
                "markerfacecoloralt": PAPER,
                "zorder": 3,
            },
            level,
        )
    return found


def shades(epsilons: pd.Series[float]) -> dict[float, Look]:
    """A shade for every epsilon, the darkest for the largest; grey for a method without one."""
    given = sorted(epsilons.dropna().unique())
    colours = matplotlib.colormaps["plasma_r"](np.linspace(0.15, 1.0, max(2, len(given))))[-len(given) :]
    found = {
        epsilon: Look(epsilon_head(epsilon), {"color": colour, "linewidth": 1.3}) for epsilon, colour in zip(given, colours, strict=True)
    }
    return found | ({math.nan: Look("no ε", {"color": MUTED, "linewidth": 1.3})} if epsilons.isna().any() else {})


def epsilon_axis(epsilons: pd.Series[float]) -> tuple[dict[float, float], dict[float, str]]:
    """Where each epsilon stands, log10 and infinity a gap behind the largest; and the texts of these places."""
    given = sorted(epsilons.dropna().unique())
    finite = [math.log10(epsilon) for epsilon in given if math.isfinite(epsilon)]
    gap = max(0.35, 0.45 * (finite[-1] - finite[0])) if finite else 0.0
    at = {epsilon: math.log10(epsilon) if math.isfinite(epsilon) else (finite[-1] + gap if finite else 0.0) for epsilon in given}
    return at, {place: number(epsilon) for epsilon, place in at.items()}


def facet(
    points: pd.DataFrame,
    look: Mapping[Any, Look],
    *,
    line: str,
    caption: str = "",
    width: float | None = None,
    joined: bool = True,
    square: bool = False,
    ticks: Mapping[float, str] | None = None,
    logarithmic: bool = False,
    levels: pd.DataFrame | None = None,
    shared: bool = True,
    widest: int = 4,
    most: int = 20,
) -> Figure:
    """A grid of panels, a line for every value of ``line``.

    Args:
        points: a line a point: ``x``, ``y``, ``low`` and ``high`` (ends of a bar, or missing), ``x_label``, ``y_label``, ``row``: its line
            of panels, of which a long one is broken, and ``column``: the title of its panel; without ``x`` a level.
        look: by the values of ``line``.
        line: the column whose values are lines.
        caption: what a reader has to know when the picture stands alone.
        width: in inches; default: as in the page.
        joined: whether points are joined.
        square: whether both axes are alike, with the diagonal.
        ticks: texts of places on the x axis; default: matplotlib's.
        logarithmic: whether the x axis is.
        levels: a line a reference: ``row``, ``column``, ``name``, ``y``.
        shared: whether all panels have one y axis.
        widest: how many panels stand beside each other in a page.
        most: how many panels are drawn.
    """
    panels = dict(iter(points.groupby(["row", "column"], sort=False)))
    lines = _broken([*panels], widest if width is None else max(1, int(width / 2.3)), most)
    columns, drawn = max(map(len, lines)), sum(map(len, lines))
    caption += f" · {drawn} of {len(panels)} panels are drawn" if drawn < len(panels) else ""
    size = width or max(0.4 + (2.7 if columns > 4 else 3.4 if columns > 1 else 4.6) * columns, 6.0)
    height = 2.1 if width else 2.5 if columns > 1 else 3.4
    used = {key: each for key, each in look.items() if _of(points, line, key).any()}
    across = max(1, min(len(used), int(15 * size / (max(len(part) for each in used.values() for part in each.name.split("\n")) + 8))))
    wrapped = textwrap.wrap(caption, int(17 * size)) if width is None else []
    height = height * len(lines) + 0.3 + 0.2 * math.ceil(len(used) / across) + 0.15 * len(wrapped)
    with style():
        figure = Figure(figsize=(size, height), layout="constrained", facecolor=PAPER)
        grid = figure.subplots(len(lines), columns, squeeze=False, sharey=shared)
        shown = {key: axes for cells, own in zip(grid, lines, strict=True) for key, axes in zip(own, cells, strict=False)}
        for axes in {*grid.flat} - {*shown.values()}:
            axes.set_axis_off()
        for key, axes in shown.items():
            _panel(axes, panels[key], used, line, joined=joined)
            axes.set_title(textwrap.fill(key[1], 44))
            axes.set_xlabel(panels[key]["x_label"].iloc[0])
            axes.tick_params(labelleft=True)
            if levels is not None:  # chance may be far below what is drawn
                reached = levels.query("row == @key[0] and column == @key[1] and name != 'chance'")["y"]
                axes.update_datalim([(axes.get_xlim()[0], level) for level in reached], updatex=False)
                axes.autoscale_view(scalex=False)
            if ticks:
                axes.set_xticks([*ticks], [*ticks.values()])
            if logarithmic:
                axes.set_xscale("log")
                axes.xaxis.set_major_formatter("{x:g}")
                axes.xaxis.set_minor_formatter(NullFormatter())
            if square:
                axes.axline((0.5, 0.5), slope=1, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
                ends = points[["x", "y"]].min(axis=None) - 0.03, points[["x", "y"]].max(axis=None) + 0.03
                axes.set(xlim=ends, ylim=ends)
        for cells, own in zip(grid, lines, strict=True):
            cells[0].set_ylabel(textwrap.fill(panels[own[0]]["y_label"].iloc[0], 30))
        for (row, column), axes in shown.items() if levels is not None else ():
            _levels(axes, levels[(levels["row"] == row) & (levels["column"] == column)])
        _legend(figure, used, across, "\n".join(wrapped), joined=joined)
    return figure


def _broken(panels: Sequence[tuple[str, str]], widest: int, most: int) -> list[list[tuple[str, str]]]:
    """Panels in lines of about equal length, a line or several for every row; ``most`` of them, in whole lines."""
    lines: list[list[tuple[str, str]]] = []
    for row in dict.fromkeys(row for row, _ in panels):
        own = [panel for panel in panels if panel[0] == row]
        even = math.ceil(len(own) / math.ceil(len(own) / widest))
        lines += [own[at : at + even] for at in range(0, len(own), even)]
    return [line for i, line in enumerate(lines) if i == 0 or sum(map(len, lines[: i + 1])) <= most]


def _dot(look: Look) -> dict[str, Any]:
    """A point without a line."""
    return {"linestyle": "none", "marker": look.style.get("marker", "o"), "markersize": look.style.get("markersize", 4)}


def _of(points: pd.DataFrame, line: str, key: Any) -> pd.Series[bool]:
    """Which points are of a line; an epsilon may be missing."""
    return points[line].isna() if pd.isna(key) else points[line] == key


def _panel(axes: Axes, points: pd.DataFrame, look: Mapping[Any, Look], line: str, *, joined: bool) -> None:
    for key, each in look.items():
        own = points[_of(points, line, key)]
        if not len(own):
            continue
        kept = {**each.style, **({} if joined else _dot(each))}
        placed_ = own.dropna(subset=["x"])
        for level in own[own["x"].isna()].itertuples():
            axes.axhline(level.y, **{name: each.style[name] for name in ("color", "linewidth", "linestyle")}, zorder=2)
            if level.low == level.low:
                axes.axhspan(level.low, level.high, color=each.style["color"], alpha=0.13, linewidth=0, zorder=1)
        axes.plot(placed_["x"], placed_["y"], **kept)
        barred = placed_.dropna(subset=["low"])
        axes.vlines(barred["x"], barred["low"], barred["high"], each.style["color"], linewidth=1.2, zorder=2.5)
        if "bound" in placed_:
            refuted = placed_[placed_["bound"].notna()]
            drawn = {"color": each.style["color"], "marker": "|", "markersize": 6, "linestyle": "none", "zorder": 2.6}
            axes.plot(refuted["bound"], refuted["y"], **drawn)
            axes.hlines(refuted["y"], refuted["bound"], refuted["x"], each.style["color"], linewidth=0.8, alpha=0.5)


def _levels(axes: Axes, levels: pd.DataFrame) -> None:
    """References by name right of a panel, names apart; one that is far below what is drawn is an arrow there."""
    dashes = {"ceiling": "-", "local-only": (0, (5, 2)), "chance": (0, (1, 2))}
    (low, high), above = axes.get_ylim(), -math.inf
    for level in levels.sort_values("y").itertuples():
        if below := level.y < low:
            axes.set_ylim(low, high)
        else:
            axes.axhline(level.y, color=MUTED, linewidth=0.9, linestyle=dashes.get(str(level.name), (0, (1, 2))), zorder=1.5)
        above = max(level.y, low, above + 0.07 * (high - low))
        text = f"{level.name} {level.y:.2f}{' ↓' if below else ''}"
        axes.annotate(text, (1, above), (3, 0), axes.get_yaxis_transform(), "offset points", va="center", fontsize=8, color=MUTED)


def _legend(figure: Figure, look: Mapping[Any, Look], across: int, caption: str, *, joined: bool) -> None:
    plain = {"marker": ""} if joined else {}
    handles = [
        Line2D([], [], **{**each.style, **(plain if each.level else {}), **({} if joined else _dot(each))}) for each in look.values()
    ]
    # matplotlib drops labels that begin with an underscore, so names come after
    legend = figure.legend(
        handles,
        [str(position) for position in range(len(handles))],
        loc="outside lower left",
        ncols=across,
        frameon=False,
        fontsize=8.5,
        handlelength=3.2,
        title=caption,
        title_fontsize=8,
        alignment="left",
    )
    legend.get_title().set_color(MUTED)
    for text, each in zip(legend.get_texts(), look.values(), strict=True):
        text.set_text(each.name)


def caption_of(settings: Settings, *more: str) -> str:
    """What a reader has to know when the picture stands alone."""
    facts = settings.facts[settings.facts["seeds"] > 0]
    budgets = {f"{f.unit}-level ε, trust {f.trust}, δ = {number(f.delta)}" for f in facts.dropna(subset=["epsilon_target"]).itertuples()}
    thin = "thin, crosses: classifiers, which generate no rows" if (facts["yields"] == "classifier").any() else ""
    stars = "stars: use public data" if facts["public"].notna().any() else ""
    parts = [*placed(facts)[0], *(budgets if len(budgets) == 1 else ()), spread_words(settings.spread, facts["seeds"].max())]
    return " · ".join(filter(None, [*parts, thin, stars, *more]))


def _points(settings: Settings, measures: Sequence[str]) -> pd.DataFrame:
    """A line a setting and measure that has values, with where its mean stands; bars end where the measure does."""
    means = settings.means(measures).astype({"epsilon_target": "float64"})
    least, most = ({name: getattr(measure, end) for name, measure in MEASURES.items()} for end in ("least", "most"))
    low, high = means["low"].clip(lower=means["measure"].map(least)), means["high"].clip(upper=means["measure"].map(most))
    return means.assign(y=means["mean"], low=low, high=high, place=placed(means)[1])


def utility(settings: Settings, measure: str = "balanced_accuracy", width: float | None = None) -> Figure | None:
    """The privacy-utility curves: a measure against epsilon, a line of panels a data set and number of clients, a panel an alpha.

    A tick is at the epsilon that an audit refutes, joined to the claim. None where no row that is ok has the measure.
    """
    points = _points(settings, [known_measure(measure)])
    if not len(points):
        return None
    at, ticks = epsilon_axis(points["epsilon_target"])
    bound = points["setting"].map(settings.averaged.groupby("setting")["audit_epsilon_lower"].max().astype("float64"))
    points["x"], points["bound"] = points["epsilon_target"].map(at), np.log10(bound.where(bound > LEAST_BOUND))
    points["row"] = points[["dataset", "scheme", "clients"]].astype(str).agg(" ".join, axis=1)
    label = "privacy budget ε (∞: no noise)" if math.inf in at else "privacy budget ε"
    points = points.assign(column=points["place"], x_label=label, y_label=MEASURES[measure].title)
    panels = points.drop_duplicates(PLACE).set_index(PLACE)[["row", "column"]]
    known = {name: column for name, column in MEASURES[measure].references if settings.averaged[column].notna().any()}
    levels = [settings.reference(column).rename("y").to_frame().join(panels).assign(name=name) for name, column in known.items()]
    more = "ticks: the ε that an audit refutes with a confidence of 95 %" if points["bound"].notna().any() else ""
    how: dict[str, Any] = {"caption": caption_of(settings, more), "width": width, "ticks": ticks}
    return facet(points, looks(settings.facts), line="label", levels=pd.concat(levels) if levels else None, **how)


def fidelity(settings: Settings) -> Figure | None:
    """How like real rows synthetic ones are, against epsilon: a line of panels a place, a panel a number that says so."""
    shown = [name for name, measure in MEASURES.items() if measure.fidelity]
    points = _points(settings, shown)
    if not len(points):
        return None
    at, ticks = epsilon_axis(points["epsilon_target"])
    titles = {name: f"{MEASURES[name].short} ({_ideal(MEASURES[name].best)})" for name in shown}
    points = points.assign(x=points["epsilon_target"].map(at), row=points["place"], column=points["measure"].map(titles))
    points = points.assign(x_label="privacy budget ε", y_label=points["place"])
    of = "in the test rows' leading directions, means over classes of more than 5 test rows; real or synthetic: whole rows"
    how: dict[str, Any] = {"caption": caption_of(settings, of), "ticks": ticks, "shared": False, "widest": len(shown)}
    return facet(points, looks(settings.facts), line="label", **how)


def _ideal(best: float | None) -> str:
    words = {None: "as real rows: 1", math.inf: "higher is better", 0.0: "lower is better"}
    return words.get(best, f"ideal: {best:g}" if best is not None else "")


def communication(settings: Settings) -> Figure | None:
    """Balanced accuracy against what a client sends and receives, a panel a place and epsilon; what sends nothing has no place."""
    rows = settings.averaged
    points = _points(settings, ["balanced_accuracy"])
    points = points.assign(x=points["setting"].map(_megabytes(rows).groupby(rows["setting"]).mean())).query("x > 0")
    if points["x"].nunique() < 2:
        return None
    epsilons = sorted(points["epsilon_target"].dropna().unique()) or [math.nan]
    # a method without epsilon stands in each panel
    panels = [points[points["epsilon_target"].isna() | (points["epsilon_target"] == e)].assign(column=epsilon_head(e)) for e in epsilons]
    points = pd.concat(panels).sort_values("setting", kind="stable")
    points["row"], points["column"] = points["place"], _beside(points["place"], points["column"])
    points = points.assign(x_label=COSTS["bytes"], y_label="balanced accuracy")
    return facet(points, looks(settings.facts), line="label", caption=caption_of(settings), joined=False, logarithmic=True)


def _beside(place: pd.Series[str], words: pd.Series[str]) -> pd.Series[str]:
    return place.where(place == "", place + " · ") + words


def _megabytes(rows: pd.DataFrame) -> pd.Series[float]:
    """What a client sends and receives in a training."""
    both = rows["uplink_bytes"].astype("float64") + rows["downlink_bytes"].astype("float64")
    return both / rows["clients"].astype("float64") / 1e6


def sites(settings: Settings, clients: pd.DataFrame) -> Figure | None:
    """Every client judged by itself, a dot each: the shared generator to the right, its own upwards; a panel a method and place."""
    names = {"shared_balanced_accuracy": "x", "own_balanced_accuracy": "y"}
    if not len(clients) or clients[[*names]].isna().any(axis=1).all():
        return None
    rows = settings.averaged[["setting", "cell_id"]].merge(clients[["cell_id", "name", *names]].rename(columns=names), on="cell_id")
    dots = rows.astype({"x": "float64", "y": "float64"}).groupby(["setting", "name"])[["x", "y"]].mean().dropna().reset_index()
    points = dots.merge(settings.facts, left_on="setting", right_index=True).assign(low=math.nan, high=math.nan, row="")
    points = points.assign(column=_beside(placed(points)[1], points["label"]), x_label="shared", y_label="own")
    caption = (
        "a dot: one client on its own test rows, the mean over seeds; above the line its own generator serves it better than the shared one"
    )
    return facet(points, shades(points["epsilon_target"]), line="epsilon_target", caption=caption, joined=False, square=True)


def over_parameter(results: Sequence[Row], over: str, measure: str, width: float | None = None) -> Figure:
    """A measure over a scanned parameter, or over what a training costs: ``bytes`` or ``seconds``; a panel a place and epsilon.

    Rounds have no scores: a curve over rounds joins cells that differ in their parameter ``rounds`` alone.

    Raises:
        UserError: no two cells of a method that have the measure differ in it.
    """
    plain = {
        row.cell_id: _without(row, [*row.params] if over in COSTS else [over]) for row in results if over in COSTS or over in row.params
    }
    settings = Settings.of([row for row in results if row.cell_id in plain])
    rows = settings.averaged
    costs = {"bytes": _megabytes, "seconds": lambda rows: rows["train_seconds"]}
    rows = rows.assign(at=costs[over](rows) if over in COSTS else rows.get(f"params.{over}", math.nan), line=rows["cell_id"].map(plain))
    by = rows.groupby("setting")
    points = _points(settings, [known_measure(measure)]).drop(columns="label")
    points = points.assign(
        at=points["setting"].map(by["at"].mean() if over in COSTS else by["at"].first()), label=points["setting"].map(by["line"].first())
    )
    points = points.dropna(subset=["at"])
    points = points[points.groupby([*PLACE, "epsilon_target", "label"], dropna=False)["at"].transform("nunique") > 1]
    if not len(points):
        known = {name for row in results for name in row.params} | {*COSTS}
        hint = "scan a parameter in the grid, such as scan: {rounds: [...]}" if over in known else nearest(over, ["epsilon", *known])
        raise UserError(f"over {over}", "no two cells of a method that have the measure differ in it", hint)
    ticks, numeric = None, points["at"].map(lambda value: isinstance(value, int | float)).all()
    if not numeric:
        ticks = dict(enumerate(sorted(set(map(spelled, points["at"])))))
        points["at"] = points["at"].map(spelled).map({text: place for place, text in ticks.items()})
    points = points.astype({"at": "float64"}).sort_values("at", kind="stable").rename(columns={"at": "x"})
    words = _beside(points["place"], points["epsilon_target"].map(epsilon_head))
    points = points.assign(x_label=COSTS.get(over, over), y_label=MEASURES[measure].title, row="", column=words)
    wide = bool(numeric and points["x"].min() > 0 and points["x"].max() >= 10 * points["x"].min())
    return facet(points, looks(points), line="label", width=width, ticks=ticks, logarithmic=wide)


def _without(row: Row, names: Sequence[str]) -> str:
    """A row's label without what a scan appended to it for some parameters."""
    label = row.label
    for name in names:
        label = label.replace(f" {name}={spelled(row.params[name])}", "")
    return label


def inches(width: str) -> float:
    """A width of a figure: ``column``, ``page``, or inches.

    Raises:
        UserError: it is none of these.
    """
    try:
        value = WIDTHS[width] if width in WIDTHS else float(width)
    except ValueError:
        value = math.nan
    if not 2 <= value <= 20:
        raise UserError(f"width {width}", "is not a width", "give column, page, or inches from 2 to 20")
    return value


def save_figure(figure: Figure, folder: Path, name: str) -> bytes:
    """Write ``name.png`` (200 dpi) and ``name.svg`` into ``folder``, each the same bytes for the same figure. Returns the SVG."""
    text = io.BytesIO()
    with style(), warnings.catch_warnings():
        # a name in a script that the font lacks is boxes here, and right in the page's tables
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.set_dpi(200)
        with replaced(folder / f"{name}.png") as part:
            FigureCanvasAgg(figure).print_png(part)
        figure.set_layout_engine("none")  # computed once
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})
    with replaced(folder / f"{name}.svg") as part:
        part.write_bytes(text.getvalue())
    return text.getvalue()


def save_pdf(figure: Figure, path: Path) -> Path:
    """Write a figure as PDF, its text as text in embedded fonts, at once; the same figure gives the same bytes."""
    with style(), matplotlib.rc_context({"pdf.fonttype": 42}), replaced(path) as part:
        FigureCanvasPdf(figure).print_pdf(part, metadata={"CreationDate": None})
    return path
