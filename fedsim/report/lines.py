"""Methods as lines over epsilon, on a logarithmic axis with a place for infinity: what pictures of them share."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator

from fedsim.report.figures import INK, MUTED, PAPER, SERIES, dress
from fedsim.report.tables import CLAIM_WORDS, claim
from fedsim.results.groups import Group, grouped
from fedsim.words import number, setting

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_CROSSES = ("x", "+", "1", "2", "3")
"""Markers of classifiers."""
_LEVELS = ((0, (6, 2, 1, 2)), (0, (2, 2)), (0, (9, 3)))
_CLAIM_STYLES = {"stated": (0, (4, 2)), "heuristic": (0, (4, 2)), "none": (0, (1, 1.5)), "refuted": (0, (1, 1.5))}
_OPEN = ("heuristic", "none", "refuted")
_CHARACTERS = 16
"""Characters of the caption in an inch of the figure."""


@dataclass(frozen=True)
class Series:
    """One method across all panels: its name in the legend, its look, and whether its epsilon is a theorem; ``dashes`` of a level.

    A method that yields a classifier is thin with crosses, beside the generators.
    """

    label: str
    colour: str
    marker: str
    claim: str
    dashes: tuple[int, tuple[int, ...]] = _LEVELS[0]
    classifier: bool = False

    @property
    def private(self) -> bool:
        """Whether it has an epsilon, and so a line instead of a level."""
        return self.claim != "not private"

    @property
    def name(self) -> str:
        """Name in the legend."""
        name = "\n".join(textwrap.wrap(self.label, 48) or [self.label])
        remarks = [*(["classifier"] if self.classifier else []), *([CLAIM_WORDS[self.claim]] if self.claim in CLAIM_WORDS else [])]
        return f"{name} ({', '.join(remarks)})" if remarks else name

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
    # where colours come round again, markers and dashes differ
    return [
        Series(
            label,
            SERIES[position % len(SERIES)],
            (_CROSSES if classifies else _MARKERS)[position % len(_CROSSES if classifies else _MARKERS)],
            claim(members),
            _LEVELS[position // len(SERIES) % len(_LEVELS)],
            classifies,
        )
        for position, (label, members) in enumerate(by_label.items())
        for classifies in (members[0].classifies,)
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
        _axis_break(axes, (axis.position(axis.finite[-1]) + axis.position(math.inf)) / 2)


def _axis_break(axes: Axes, at: float) -> None:
    """Two strokes through the axis: what lies right of them is not on the logarithmic scale."""
    place = axes.get_xaxis_transform()
    low, high = axes.get_xlim()
    for shift in (-0.008, 0.008):
        middle = at + shift * (high - low)
        lean = 0.007 * (high - low)
        axes.plot([middle - lean, middle + lean], [-0.022, 0.022], transform=place, color=MUTED, linewidth=0.9, clip_on=False)


def draw_methods(axes: Axes, groups: Sequence[Group], series: Sequence[Series], axis: Axis, measure: str) -> None:
    """Every method's means of a measure: a line over epsilon, or a level for one that has none."""
    for method in series:
        members = [group for group in groups if group.label == method.label]
        if method.private:
            _curve(axes, members, method, axis, shift_of(method, series, axis), measure)
        else:
            _level(axes, members, method, measure)


def shift_of(method: Series, series: Sequence[Series], axis: Axis) -> float:
    """The small shift that keeps the bars of methods at one epsilon apart, in axis units; the ticks stay at the true values."""
    lines = [other for other in series if other.private]
    low, high = axis.limits
    step = min(0.02, 0.1 / len(lines)) * (high - low)
    return step * (lines.index(method) - (len(lines) - 1) / 2)


def _curve(axes: Axes, groups: Sequence[Group], series: Series, axis: Axis, shift: float, measure: str) -> None:
    points = [
        (group.epsilon_target, interval) for group in groups if group.epsilon_target is not None and (interval := group.interval(measure))
    ]
    x = [axis.position(epsilon) + shift for epsilon, _ in points]
    y = [interval.mean for _, interval in points]
    finite = sum(math.isfinite(epsilon) for epsilon, _ in points)
    drawn = look(series)
    axes.plot(x[:finite], y[:finite], **drawn)
    axes.plot(x[finite:], y[finite:], **(drawn | {"linestyle": "none"}))
    if 0 < finite < len(points):
        # Infinity is off the scale, so the way there is only hinted at.
        hinted = Line2D(x[finite - 1 :], y[finite - 1 :], color=series.colour, linewidth=1.1, linestyle=(0, (1, 2.5)), alpha=0.6)
        axes.add_line(hinted)
    # No bar for a single seed: a bar of length 0 would claim certainty.
    spread = [math.nan if interval.half_width is None else interval.half_width for _, interval in points]
    axes.errorbar(x, y, spread, fmt="none", ecolor=series.colour, elinewidth=1.1, capsize=2.2, capthick=1.1, zorder=2.5)


def look(series: Series) -> dict[str, Any]:
    """How matplotlib draws a method's line and markers."""
    return {
        "color": series.colour,
        "linewidth": series.width,
        "linestyle": _CLAIM_STYLES.get(series.claim, "-"),
        "marker": series.marker,
        "markersize": 5.2,
        "fillstyle": "left" if series.claim == "stated" else "full",
        "markerfacecolor": PAPER if series.claim in _OPEN else series.colour,
        "markerfacecoloralt": PAPER,
        "markeredgecolor": series.colour,
        "markeredgewidth": 1.2,
        "zorder": 3,
    }


def _level(axes: Axes, groups: Sequence[Group], series: Series, measure: str) -> None:
    for group in groups:
        if interval := group.interval(measure):
            axes.axhline(interval.mean, color=series.colour, linewidth=series.width, linestyle=series.dashes, zorder=2)
            if interval.half_width is not None:
                low, high = interval.mean - interval.half_width, interval.mean + interval.half_width
                axes.axhspan(low, high, color=series.colour, alpha=0.13, linewidth=0, zorder=1)


def x_label(axis: Axis) -> str:
    """What the axis of epsilon is called."""
    if not axis.ticks:
        return "no method here has an ε"
    return "privacy budget ε (log scale; ∞: no noise)" if axis.infinite else "privacy budget ε (log scale)"


def _legend_columns(series: Sequence[Series], width: float) -> int:
    """How many names fit beside each other in ``width`` inches."""
    widest = max(len(line) for method in series for line in method.name.split("\n"))
    return max(1, min(len(series), int(16 * width / (widest + 7))))


def legend_lines(series: Sequence[Series], width: float) -> int:
    """How many lines of text the names take."""
    tallest = max(method.name.count("\n") + 1 for method in series)
    return tallest * math.ceil(len(series) / _legend_columns(series, width))


def legend_below(figure: Figure, caption: str, series: Sequence[Series]) -> None:
    """The methods' names below the panels, under a caption."""
    handles = [
        Line2D([], [], **look(method))
        if method.private
        else Line2D([], [], color=method.colour, linewidth=method.width, linestyle=method.dashes)
        for method in series
    ]
    # matplotlib drops labels that begin with an underscore and reads mathematics into dollar signs, so names come after.
    legend = figure.legend(
        handles,
        [str(position) for position in range(len(series))],
        loc="outside lower center",
        ncols=_legend_columns(series, figure.get_figwidth()),
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
        handlelength=3.2,
        title=textwrap.fill(caption, int(_CHARACTERS * figure.get_figwidth())),
        title_fontsize=7.5,
    )
    legend.get_title().set(color=MUTED, parse_math=False)
    for text, method in zip(legend.get_texts(), series, strict=True):
        text.set(text=method.name, parse_math=False)


def caption_of(groups: Sequence[Group], more: str = "") -> str:
    """What a reader has to know when the picture stands alone, with ``more`` that is of this picture."""
    counts = sorted({len(group.rows) for group in groups})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    mean = "one seed, so no interval" if counts == [1] else f"mean over {seeds} seeds; bars and bands: 95 % confidence interval"
    private = [group for group in groups if group.epsilon_target is not None]
    budgets = [f"{group.unit}-level ε, trust {group.trust}, δ = {number(group.delta)}" for group in private]
    common = [_common([group.dataset for group in groups]), _common([setting(clients=group.clients) for group in groups])]
    thin = "thin: classifiers, which generate no rows" if any(group.classifies for group in groups) else ""
    return " · ".join(part for part in (*common, _common(budgets), mean, thin, more) if part)


def _common(values: Sequence[str]) -> str:
    return values[0] if len(set(values)) == 1 else ""
