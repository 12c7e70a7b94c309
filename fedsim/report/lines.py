"""Methods as lines over epsilon, on a logarithmic axis with a place for infinity: what pictures of them share."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator

from fedsim.report.figures import INK, MUTED, PAPER, SERIES, dress, strokes
from fedsim.report.tables import CLAIM_WORDS, ONE_SEED, PUBLIC_MARK, SPREADS, claim, public_words
from fedsim.results.groups import Group, Interval, grouped
from fedsim.words import number, setting

_MARKERS: tuple[Any, ...] = ("o", "s", "^", "D", "v", "P", "X", "p", "<", "*")
_CROSSES: tuple[Any, ...] = ("x", "+", "1", "2", (5, 2), (8, 2), "3", "4", (6, 2), (7, 2))
"""Markers of classifiers."""
_STARS: tuple[Any, ...] = tuple((points, 1, 0) for points in (5, 4, 6, 8, 7, 9, 10, 11, 12, 13))
"""Markers of methods that use public data: stars, by their points."""
_LEVELS = ((0, (6, 2, 1, 2)), (0, (2, 2)), (0, (9, 3)))
_CLAIM_STYLES = {"stated": (0, (4, 2)), "heuristic": (0, (4, 2)), "none": (0, (1, 1.5)), "refuted": (0, (1, 1.5))}
_OPEN = ("heuristic", "none", "refuted")
_LONGEST_NAME = 38
"""Characters of a line of a name in a legend."""
_CHARACTERS = 16
"""Characters of the caption in an inch of the figure."""


@dataclass(frozen=True)
class Series:
    """One method across all panels: its name in the legend, its look, and whether its epsilon is a theorem; ``dashes`` of a level.

    A method that yields a classifier is thin with crosses, beside the generators; one that uses public data has stars.
    """

    label: str
    colour: str
    marker: Any
    claim: str
    dashes: tuple[int, tuple[int, ...]] = _LEVELS[0]
    classifier: bool = False
    public: bool = False

    @property
    def private(self) -> bool:
        """Whether it has an epsilon, and so a line instead of a level."""
        return self.claim != "not private"

    @property
    def name(self) -> str:
        """Name in the legend."""
        remarks = [*(["classifier"] if self.classifier else []), *([CLAIM_WORDS[self.claim]] if self.claim in CLAIM_WORDS else [])]
        label = self.label + (PUBLIC_MARK if self.public else "")
        name = f"{label} ({', '.join(remarks)})" if remarks else label
        return "\n".join(textwrap.wrap(name, _LONGEST_NAME) or [name])

    @property
    def width(self) -> float:
        """Of its line, in points."""
        return 0.8 if self.classifier else 1.7 if self.private else 1.5


@dataclass(frozen=True)
class Axis:
    """Where an epsilon stands: log10 for a finite one, a place of its own behind the largest for infinity."""

    finite: tuple[float, ...]
    infinite: bool
    lowest: float = math.inf
    """A finite epsilon that none ran with, and that has to be on the axis too."""

    @classmethod
    def of(cls, groups: Sequence[Group]) -> Axis:
        """The axis that holds every drawn epsilon."""
        values = {group.epsilon_target for group in groups if group.epsilon_target is not None and group.rows}
        return cls(tuple(sorted(value for value in values if math.isfinite(value))), math.inf in values)

    def position(self, epsilon: float) -> float:
        """The place of an epsilon in axis units."""
        if math.isfinite(epsilon):
            return math.log10(epsilon)
        return math.log10(self.finite[-1]) + self.gap if self.finite else 0.0

    @property
    def gap(self) -> float:
        """Distance of infinity from the largest finite epsilon."""
        return max(0.35, 0.45 * (math.log10(self.finite[-1]) - math.log10(self.finite[0])))

    @property
    def ticks(self) -> tuple[float, ...]:
        """The epsilons with a tick: each that was run."""
        return (*self.finite, *([math.inf] if self.infinite else []))

    @property
    def limits(self) -> tuple[float, float]:
        """Ends of the axis."""
        if not self.ticks:
            return -1.0, 1.0
        low, high = min(self.position(self.ticks[0]), math.log10(self.lowest)), self.position(self.ticks[-1])
        margin = 0.1 * (high - low) or 0.5
        return low - margin, high + margin


def series_of(groups: Sequence[Group]) -> list[Series]:
    """Every method's look, by label in their order."""
    by_label = grouped(groups, lambda group: group.label)
    # where colours come round again, markers and dashes move on
    return [
        Series(
            label,
            SERIES[position % len(SERIES)],
            (_STARS if members[0].public else _CROSSES if members[0].classifies else _MARKERS)[
                (position + position // len(SERIES)) % len(_MARKERS)
            ],
            claim(members),
            _LEVELS[(position + position // len(SERIES)) % len(_LEVELS)],
            members[0].classifies,
            bool(members[0].public),
        )
        for position, (label, members) in enumerate(by_label.items())
    ]


def frame(axes: Axes, axis: Axis) -> None:
    """Paper, grid, and an axis of every epsilon that was run."""
    dress(axes, "y", 0.8)
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=8.5, length=3)
    axes.set_xlim(*axis.limits)
    axes.xaxis.set_major_locator(FixedLocator([axis.position(value) for value in axis.ticks]))
    axes.set_xticks([axis.position(value) for value in axis.ticks], [number(value) for value in axis.ticks])
    for value, label in zip(axis.ticks, axes.get_xticklabels(), strict=True):
        if math.isinf(value):
            label.set_fontsize(12)
    if axis.finite and axis.infinite:
        # what lies right of it is not on the logarithmic scale
        strokes(axes, (axis.position(axis.finite[-1]) + axis.position(math.inf)) / 2, 0, axes.get_xaxis_transform())


def draw_methods(
    axes: Axes, groups: Sequence[Group], series: Sequence[Series], axis: Axis, measure: str, pale: Collection[str] = ()
) -> None:
    """Every method's means of a measure: a line over epsilon, or a level for one that has none; those of ``pale`` labels without bars."""
    for method in series:
        members = [group for group in groups if group.label == method.label]
        if method.private:
            _curve(axes, members, method, axis, shift_of(method, series, axis), measure, method.label in pale)
        else:
            _level(axes, members, method, measure, method.label in pale)


def shift_of(method: Series, series: Sequence[Series], axis: Axis) -> float:
    """The small shift that keeps the bars of methods at one epsilon apart, in axis units; the ticks stay at the true values."""
    lines = [other for other in series if other.private]
    low, high = axis.limits
    step = min(0.02, 0.1 / len(lines)) * (high - low)
    return step * (lines.index(method) - (len(lines) - 1) / 2)


def _curve(axes: Axes, groups: Sequence[Group], series: Series, axis: Axis, shift: float, measure: str, pale: bool) -> None:
    points = [
        (group.epsilon_target, interval) for group in groups if group.epsilon_target is not None and (interval := group.interval(measure))
    ]
    x = [axis.position(epsilon) + shift for epsilon, _ in points]
    y = [interval.mean for _, interval in points]
    finite = sum(math.isfinite(epsilon) for epsilon, _ in points)
    drawn = look(series) | ({"marker": "", "alpha": _PALE} if pale else {})
    axes.plot(x[:finite], y[:finite], **drawn)
    axes.plot(x[finite:], y[finite:], **(drawn | {"linestyle": "none"}))
    if 0 < finite < len(points):
        # Infinity is off the scale, so the way there is only hinted at.
        hinted = Line2D(x[finite - 1 :], y[finite - 1 :], color=series.colour, linewidth=1.1, linestyle=(0, (1, 2.5)), alpha=0.6)
        axes.add_line(hinted)
    if not pale:
        draw_bars(axes, x, [interval for _, interval in points], [series.colour] * len(x), measure)


_PALE = 0.35
"""Opacity of what is drawn in full elsewhere."""
_MOST = {"frechet_distance": math.inf, "squared_mmd": math.inf, "density": math.inf, "personal_weight": 1.0}
_LEAST = {"squared_mmd": -math.inf}
"""The most and least that a measure can be where that is not 1 and 0; an unbiased squared MMD may be a little below 0."""


def ends_of(interval: Interval, measure: str) -> tuple[float, float]:
    """Where a bar ends: nowhere outside of what the measure can be; at its mean where there is none."""
    low, high = interval.ends or (interval.mean, interval.mean)
    return max(low, min(_LEAST.get(measure, 0.0), interval.mean)), min(high, max(_MOST.get(measure, 1.0), interval.mean))


def draw_bars(axes: Axes, x: Sequence[float], intervals: Sequence[Interval], colours: Sequence[str], measure: str) -> None:
    """Bars at some places, none where an interval has no ends: a bar of length 0 would claim certainty."""
    barred = [(at, *ends_of(interval, measure), c) for at, interval, c in zip(x, intervals, colours, strict=True) if interval.ends]
    if barred:
        places, low, high, own = zip(*barred, strict=True)
        axes.vlines(places, low, high, own, linewidth=1.2, zorder=2.5)


def look(series: Series) -> dict[str, Any]:
    """How matplotlib draws a method's line and markers."""
    return {
        "color": series.colour,
        "linewidth": series.width,
        "linestyle": _CLAIM_STYLES.get(series.claim, "-"),
        "marker": series.marker,
        "markersize": 8 if series.public else 5.2,  # a star's points are thin
        "fillstyle": "left" if series.claim == "stated" else "full",
        "markerfacecolor": PAPER if series.claim in _OPEN else series.colour,
        "markerfacecoloralt": PAPER,
        "markeredgecolor": series.colour,
        "markeredgewidth": 1.2,
        "zorder": 3,
    }


def _level(axes: Axes, groups: Sequence[Group], series: Series, measure: str, pale: bool) -> None:
    for group in groups:
        if interval := group.interval(measure):
            alpha = _PALE if pale else 1.0
            axes.axhline(interval.mean, color=series.colour, linewidth=series.width, linestyle=series.dashes, alpha=alpha, zorder=2)
            if interval.ends and not pale:
                axes.axhspan(*ends_of(interval, measure), color=series.colour, alpha=0.13, linewidth=0, zorder=1)


def x_label(axis: Axis) -> str:
    """What the axis of epsilon is called."""
    if not axis.ticks:
        return "no method here has an ε"
    return "privacy budget ε (∞: no noise)" if axis.infinite else "privacy budget ε"


def _legend_columns(series: Sequence[Series], width: float) -> int:
    """How many names fit beside each other in ``width`` inches."""
    widest = max(len(line) for method in series for line in method.name.split("\n"))
    return max(1, min(len(series), int(16 * width / (widest + 7))))


def legend_height(series: Sequence[Series], caption: str, width: float) -> float:
    """Inches that names and caption take."""
    tallest = max(method.name.count("\n") + 1 for method in series)
    return 0.3 + 0.19 * tallest * math.ceil(len(series) / _legend_columns(series, width)) + 0.14 * len(_lines(caption, width))


def _lines(caption: str, width: float) -> list[str]:
    return textwrap.wrap(caption, int(_CHARACTERS * width))


def legend_below(figure: Figure, caption: str, series: Sequence[Series]) -> None:
    """The methods' names below the panels, under a caption."""
    handles = [
        Line2D([], [], **look(method))
        if method.private
        else Line2D([], [], color=method.colour, linewidth=method.width, linestyle=method.dashes)
        for method in series
    ]
    width = figure.get_figwidth()
    # matplotlib drops labels that begin with an underscore and reads mathematics into dollar signs, so names come after.
    legend = figure.legend(
        handles,
        [str(position) for position in range(len(series))],
        loc="outside lower center",
        ncols=_legend_columns(series, width),
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
        handlelength=3.2,
        title="\n".join(_lines(caption, width)),
        title_fontsize=7.5,
    )
    legend.get_title().set(color=MUTED, parse_math=False)
    for text, method in zip(legend.get_texts(), series, strict=True):
        text.set(text=method.name, parse_math=False)


def caption_of(groups: Sequence[Group], more: str = "") -> str:
    """What a reader has to know when the picture stands alone, with ``more`` that is of this picture."""
    counts = sorted({len(group.rows) for group in groups})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    drawn = SPREADS[groups[0].spread] if max(counts) > 2 or groups[0].spread != "ci95" else "none, of so few seeds"
    mean = ONE_SEED if counts == [1] else f"mean over {seeds} seeds; bars and bands: {drawn}"
    private = [group for group in groups if group.epsilon_target is not None]
    budgets = [f"{group.unit}-level ε, trust {group.trust}, δ = {number(group.delta)}" for group in private]
    common = [_common([group.dataset for group in groups]), _common([setting(clients=group.clients) for group in groups])]
    thin = "thin: classifiers, which generate no rows" if any(group.classifies for group in groups) else ""
    public = public_words(groups).replace("†:", "stars, †:")
    return " · ".join(part for part in (*common, _common(budgets), mean, thin, public, more) if part)


def _common(values: Sequence[str]) -> str:
    return values[0] if len(set(values)) == 1 else ""
