"""Diagnostics of the rounds: losses, norms, clipping, noise and agreement of clients; from real data without noise, so not private."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import dropwhile
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator
from matplotlib.transforms import ScaledTranslation
from numpy.typing import NDArray

from fedsim.report.figures import (
    GRID_COLOUR,
    INK,
    MUTED,
    PAPER,
    SMALL,
    dress,
    name_epsilons,
    name_level,
    shades,
    short_ticks,
    show_all,
    style,
)
from fedsim.results.groups import Group, group_seeds
from fedsim.results.rows import Row

DIAGNOSTICS = "diagnostics"
DIAGNOSTICS_NOT_PRIVATE = "These are computed from the real data without noise: diagnostics, not private, not to be released."
_POINTS = 200
"""At most so many points of a line: more than a panel has pixels to show apart."""
_COLUMNS = 5
_QUANTILES = ("gradient_norm_5", "gradient_norm_25", "gradient_norm_50", "gradient_norm_75", "gradient_norm_95")
_LOSS_TITLES = {"loss_kl": "loss: weighted KL", "loss_kernel": "loss: kernel score", "loss_lipschitz": "loss: Lipschitz"}


@dataclass(frozen=True)
class RoundPanel:
    """What one panel shows: columns of the round frame, each a line (the second one dashed), and how its y axis is scaled."""

    title: str
    columns: tuple[str, ...]
    scale: Literal["free", "fraction", "log"] = "free"
    band: tuple[str, str] | None = None
    reference: Literal["clip", "equal"] | None = None


_PANELS = (
    RoundPanel("KL, nats an example", ("kl",)),
    RoundPanel("norm before clipping", ("gradient_norm_50",), band=("gradient_norm_5", "gradient_norm_95"), reference="clip"),
    RoundPanel("clipped fraction", ("clipped_fraction",), "fraction"),
    RoundPanel("noise norm / signal norm", ("noise_to_signal",), "log", reference="equal"),
    RoundPanel("generated norms (– – prior)", ("generated_decoder_norm", "generated_prior_norm")),
    RoundPanel("cross-client MMD²", ("cross_client_mmd",)),
)


def settings(rows: Iterable[Row]) -> list[Group]:
    """The rows as groups over seeds, whatever their status: a cell that failed or overspent has rounds that show why."""
    return group_seeds(row.model_copy(update={"status": "ok"}) for row in rows)


def round_frame(groups: Sequence[Group], records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """The round records of some settings as numbers: a line for every cell and round, in their order.

    Rounds that are not the training itself are left out: a warm start's messages are no gradients and have no loss.

    Args:
        groups: what ``settings`` gave; records of other cells are left out.
        records: what ``ResultStore.rounds`` gave.

    Returns:
        Columns ``cell_id``, ``round``, ``group`` (position in ``groups``), ``label``, ``epsilon`` (NaN: the method has none), the
        numbers that are drawn and every loss (NaN where missing), ``noise_to_signal``, the per-example gradient norm's quantiles
        ``gradient_norm_5`` … ``gradient_norm_95``, and ``position`` and ``rounds``, which count each cell's lines.
    """
    owner = {row.cell_id: position for position, group in enumerate(groups) for row in group.rows}
    known = [record for record in records if record["cell_id"] in owner and record.get("main", True)]
    numbers = {name: _numbers([record.get(name) for record in known]) for name in _columns(known)}
    frame = pd.DataFrame(numbers, dtype="float64")
    frame[list(_QUANTILES)] = np.array([_quantiles(record) for record in known], dtype="float64").reshape(-1, len(_QUANTILES))
    frame.insert(0, "cell_id", [record["cell_id"] for record in known])
    frame["group"] = frame["cell_id"].map(owner)
    frame["label"] = [groups[owner[record["cell_id"]]].label for record in known]
    frame["epsilon"] = pd.Series([groups[owner[record["cell_id"]]].epsilon_target for record in known], dtype="float64")
    frame["noise_to_signal"] = frame["noise_norm"] / frame["signal_norm"]
    cells = frame.groupby("cell_id", sort=False)["round"]
    frame["position"], frame["rounds"] = cells.cumcount(), cells.transform("size")
    return frame


@dataclass(frozen=True)
class Rounds:
    """The rounds of a grid's cells: their settings, the records, and the numbers of these as a frame (:func:`round_frame`)."""

    groups: list[Group]
    records: list[Mapping[str, Any]]
    frame: pd.DataFrame

    @classmethod
    def of(cls, rows: Iterable[Row], records: Iterable[Mapping[str, Any]]) -> Rounds:
        """The rounds of some rows, whatever their status, by what ``ResultStore.rounds`` gave."""
        groups, records = settings(rows), list(records)
        return cls(groups, records, round_frame(groups, records))


def _columns(records: Sequence[Mapping[str, Any]]) -> list[str]:
    drawn = [column for panel in _PANELS for column in panel.columns if column not in (*_QUANTILES, "noise_to_signal")]
    names = dict.fromkeys(["round", "signal_norm", "noise_norm", *drawn])
    # most records have the same names
    shapes = dict.fromkeys(map(tuple, records))
    return list(names | dict.fromkeys(name for shape in shapes for name in shape if name.startswith("loss_")))


def _numbers(values: Sequence[object]) -> NDArray[np.float64]:
    """What is a number; NaN for the rest."""
    with suppress(TypeError, ValueError):
        if (numbers := np.array(values, dtype=np.float64)).ndim == 1:  # else all of them are lists, as long as each other
            return numbers
    return np.array([value if isinstance(value, int | float) else math.nan for value in values], dtype=np.float64)


def _quantiles(record: Mapping[str, Any]) -> list[float]:
    quantiles = record.get("gradient_norm_quantiles")
    return quantiles if isinstance(quantiles, list) and len(quantiles) == len(_QUANTILES) else [math.nan] * len(_QUANTILES)


def draw_diagnostics(rounds: Rounds) -> Figure | None:
    """A block of panels for every method over its rounds, a line for every epsilon; None where there is nothing to draw.

    Lines are means over the cells of a method and epsilon: seeds and places. A method is drawn when it has two rounds or more of
    some number; values that are not finite are left out, and so is a ratio of noise to signal that is 0, on the log scale.
    """
    groups, frame = rounds.groups, rounds.frame
    losses = [str(name) for name in frame if str(name).startswith("loss_")]
    panels = [*(RoundPanel(_loss_title(name), (name,)) for name in losses), *_PANELS]
    methods = [
        Method(label, curves, _clips(label, groups))
        for label in dict.fromkeys(group.label for group in groups)
        if (curves := _means(frame[frame["label"] == label])) is not None
    ]
    panels = [panel for panel in panels if any(method.has(panel) for method in methods)]
    methods = [method for method in methods if any(method.has(panel) for panel in panels)]
    if not methods:
        return None
    with style():
        return _figure(methods, panels)


@dataclass(frozen=True)
class Method:
    """A method's label, its mean curves by epsilon (None: it has no epsilon), and its clip norms."""

    label: str
    curves: Mapping[float | None, pd.DataFrame]
    clips: tuple[float, ...]

    def has(self, panel: RoundPanel) -> bool:
        """Whether there is a line to draw: two points or more."""
        return any(curve[column].count() > 1 for curve in self.curves.values() for column in panel.columns)


def _loss_title(name: str) -> str:
    return _LOSS_TITLES.get(name, f"loss: {name.removeprefix('loss_').replace('_', ' ')}")


def _clips(label: str, groups: Sequence[Group]) -> tuple[float, ...]:
    clips = {row.clip for group in groups if group.label == label for row in group.rows}
    return tuple(sorted(clip for clip in clips if clip is not None and math.isfinite(clip)))


def _means(frame: pd.DataFrame) -> dict[float | None, pd.DataFrame] | None:
    """Mean over cells by epsilon and round; neighbouring rounds of a long run share a point."""
    if frame.empty:
        return None
    numbers = frame.drop(columns=["cell_id", "label"]).replace([math.inf, -math.inf], math.nan)
    # Infinity is a budget here, not a value that went wrong.
    numbers["epsilon"] = frame["epsilon"]
    numbers["noise_to_signal"] = numbers["noise_to_signal"].where(numbers["noise_to_signal"] > 0)
    width = math.ceil((numbers["round"].max() - numbers["round"].min() + 1) / _POINTS)
    means = numbers.groupby(["epsilon", numbers["round"] // width], dropna=False).mean()
    levels = means.index.get_level_values(0)
    budgets = sorted(levels.dropna().unique())
    curves: dict[float | None, pd.DataFrame] = {float(epsilon): means[levels == epsilon] for epsilon in budgets}
    return curves | ({None: means[levels.isna()]} if levels.isna().any() else {})


_WIDTH, _LEFT, _TOP, _BOTTOM = 11.6, 0.58, 0.4, 0.75
_MARK = 2.5
_HEAD, _LINE, _PITCH, _AXES = 0.36, 1.5, 2.2, (1.66, 0.98)
"""Sizes in inches: fixed places are drawn at once, where a layout engine would take seconds for a hundred panels."""


def _figure(methods: Sequence[Method], panels: Sequence[RoundPanel]) -> Figure:
    rows = [panels[start : start + _COLUMNS] for start in range(0, len(panels), _COLUMNS)]
    blocks = [(method, _lines(method, rows)) for method in methods]
    height = _TOP + _BOTTOM + sum(_HEAD + _LINE * len(lines) for _, lines in blocks)
    figure = Figure(figsize=(_WIDTH, height), facecolor=PAPER)
    colours = shades(epsilon for method in methods for epsilon in method.curves)
    top = height - _TOP
    for method, lines in blocks:
        label = method.label if len(method.label) <= _LONGEST else f"{method.label[: _LONGEST - 1]}…"
        figure.text(0.12 / _WIDTH, (top - 0.16) / height, label, color=INK, fontsize=10.5, fontweight="bold", va="center", parse_math=False)
        top -= _HEAD
        for line in lines:
            for position, panel in enumerate(line):
                if method.has(panel):
                    left, bottom = _LEFT + _PITCH * position, top - 0.2 - _AXES[1]
                    axes = figure.add_axes((left / _WIDTH, bottom / height, _AXES[0] / _WIDTH, _AXES[1] / height))
                    _draw(axes, panel, method, colours)
            top -= _LINE
    handles = [Line2D([], [], linewidth=2, color=colour) for colour in colours.values()]
    name_epsilons(figure, colours, handles, (0.12 / _WIDTH, 1 - 0.1 / height))
    caption = "\n".join(textwrap.fill(part, _CHARACTERS) for part in _CAPTION.split("\n"))
    figure.text(0.12 / _WIDTH, 0.08 / height, caption, color=MUTED, fontsize=7.5, va="bottom", linespacing=1.4)
    return figure


def _lines(method: Method, rows: Sequence[Sequence[RoundPanel]]) -> list[list[RoundPanel]]:
    """The rows of panels that a method has, each from the first panel that it has on."""
    begun = (list(dropwhile(lambda panel: not method.has(panel), row)) for row in rows)
    return [row for row in begun if row]


_LONGEST, _CHARACTERS = 130, 180
_CAPTION = (
    "Line: mean over the cells of one method and ε, that is over seeds and places (data set, α, number of clients); values that are not "
    "finite are left out. Norm before clipping: of an example's gradient (DP-SGD) or a client's update (local training): median, band 5 "
    "to 95 %, clip norm C. Dotted: noise as large as signal. Generated norms: of decoder (solid) and prior (dashed), mean over the first "
    f"ten clients. Where lines reach far apart, the y axis is logarithmic above the smallest.\n{DIAGNOSTICS_NOT_PRIVATE}"
)


def _draw(axes: Axes, panel: RoundPanel, method: Method, colours: Mapping[float | None, str]) -> None:
    _frame(axes, panel)
    for epsilon, curve in method.curves.items():
        for column, dash in zip(panel.columns, ("-", (0, (4, 2))), strict=False):
            axes.plot(curve["round"], curve[column], color=colours[epsilon], linewidth=1.2, linestyle=dash, zorder=3)
        if panel.band is not None:
            low, high = (curve[column] for column in panel.band)
            axes.fill_between(curve["round"], low, high, color=colours[epsilon], alpha=0.15, linewidth=0)
    _scale(axes, panel, method)
    if panel.reference == "clip":
        for clip in method.clips:
            axes.axhline(clip, color=MUTED, linewidth=0.7, zorder=2)
            name_level(axes, "C", clip, SMALL, 2)
    if panel.reference == "equal":
        axes.axhline(1, color=MUTED, linewidth=0.9, linestyle=(0, (1, 2)), zorder=2)
    _ticks(axes)


def _frame(axes: Axes, panel: RoundPanel) -> None:
    dress(axes, "y", 0.7)
    axes.set_title(panel.title, fontsize=8.5, color=INK, loc="left", pad=4, y=1.0, parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))


def _ticks(axes: Axes) -> None:
    """Ticks, their texts and the grid, as few artists: matplotlib's own, seven a tick, take most of the time of a hundred panels."""
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
    scale = axes.figure.dpi_scale_trans
    looks: list[dict[str, Any]] = [{"ha": "center", "va": "top"}, {"ha": "right", "va": "center_baseline"}]
    for across, (axis, place) in enumerate(((axes.xaxis, axes.get_xaxis_transform()), (axes.yaxis, axes.get_yaxis_transform()))):
        low, high = axis.get_view_interval()
        ticks = [tick for tick in axis.get_majorticklocs() if low <= tick <= high]
        along, away = np.eye(2)[across], -np.eye(2)[1 - across]
        ends = [tick * along for tick in ticks]
        x, y = away * (_MARK + 2) / 72
        beside = place + ScaledTranslation(x, y, scale)
        for end, text in zip(ends, axis.get_major_formatter().format_ticks(ticks), strict=True):
            axes.text(end[0], end[1], text, transform=beside, fontsize=SMALL, color=INK, **looks[across])
        marks = [(end, end + away * _MARK / 72 / _AXES) for end in ends]
        axes.add_artist(LineCollection(marks, colors=MUTED, linewidths=0.8, transform=place, clip_on=False))
        axis.set_visible(False)
    grid = [(end, end - away) for end in ends]
    axes.add_artist(LineCollection(grid, colors=GRID_COLOUR, linewidths=0.7, transform=place, zorder=0.5))
    below = axes.transAxes + ScaledTranslation(0, -13 / 72, scale)
    axes.text(1, 0, "round", transform=below, fontsize=SMALL, color=MUTED, ha="right", va="top")


def _scale(axes: Axes, panel: RoundPanel, method: Method) -> None:
    lines = [curve[column].dropna() for curve in method.curves.values() for column in panel.columns]
    values = pd.concat(lines)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    if panel.scale == "fraction":
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_locator(FixedLocator([0, 0.5, 1]))
    elif panel.scale == "log":
        low, high = math.floor(math.log10(values.min())), math.ceil(math.log10(values.max()))
        axes.set_yscale("log")
        # Whole decades, so that there are ticks.
        axes.set_ylim(10**low, 10 ** max(high, low + 1))
        axes.yaxis.set_major_locator(LogLocator(numticks=5))
    else:
        show_all(axes, [line.to_numpy() for line in lines])
    short_ticks(axes)
