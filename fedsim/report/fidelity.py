"""How like real rows synthetic ones are, against epsilon: a row of panels for every partition, a panel for every number that says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fedsim.report.figures import INK, MUTED, PAPER, SMALL, show_all, style
from fedsim.report.lines import Axis, Series, caption_of, draw_methods, frame, legend_below, legend_height, series_of, x_label
from fedsim.report.tables import EVERYWHERE, same_everywhere, shown_once
from fedsim.results.groups import Group, grouped
from fedsim.words import setting

FIDELITY = "fidelity"


@dataclass(frozen=True)
class FidelityPanel:
    """One number: its field of a row, its title, what is good, and what endlessly many real rows would reach."""

    measure: str
    title: str
    good: str
    best: float


_PANELS = (
    FidelityPanel("frechet_distance", "Fréchet distance", "lower is better", 0.0),
    FidelityPanel("squared_mmd", "squared MMD", "lower is better", 0.0),
    FidelityPanel("density", "density", "as real rows: 1", 1.0),
    FidelityPanel("coverage", "coverage", "higher is better", 1.0),
    FidelityPanel("real_or_synthetic", "real or synthetic", "a guess: 0.5", 0.5),
)
_CAPTION = (
    "in the test rows' leading directions, means over classes of more than 5 test rows; real or synthetic: whole rows, all classes · "
    "dotted: the ideal, which finitely many real rows do not quite reach"
)


def draw_fidelity(groups: Sequence[Group]) -> Figure | None:
    """The figure, methods in the looks of the privacy-utility curves; None where no row has any of the numbers.

    A method that yields a classifier has none. What white rows around a classifier's weights hide from a probe is seen here.
    """
    drawn = [group for group in groups if group.rows]
    panels = [panel for panel in _PANELS if any(group.interval(panel.measure) for group in drawn)]
    shown = [group for group in drawn if any(group.interval(panel.measure) for panel in panels)]
    if not shown:
        return None
    labels = {group.label for group in shown}
    with style():
        return _figure(shown, [method for method in series_of(drawn) if method.label in labels], panels)


def _figure(groups: Sequence[Group], series: Sequence[Series], panels: Sequence[FidelityPanel]) -> Figure:
    axis = Axis.of(groups)
    everywhere = same_everywhere(groups, [panel.measure for panel in panels])
    places = grouped(shown_once(groups, everywhere), lambda group: group.place)
    once = f"{', '.join(sorted(everywhere))}: the same at {EVERYWHERE}" if everywhere else ""
    width, caption = 0.6 + 2.3 * max(len(panels), 2), " · ".join(filter(None, (_CAPTION, caption_of(groups, once))))
    height = 2.3 * len(places) + legend_height(series, caption, width)
    figure = Figure(figsize=(width, height), layout="constrained", facecolor=PAPER)
    grid = figure.subplots(len(places), len(panels), squeeze=False)
    for line, members in zip(grid, places.values(), strict=True):
        place = _place(members[0], [group for held in places.values() for group in held])
        for axes, panel in zip(line, panels, strict=True):
            _draw(axes, members, series, axis, panel)
            title = f"{panel.title} ({panel.good})"
            axes.set_title(f"{place}\n{title}" if place else title, fontsize=SMALL, color=INK, loc="left", parse_math=False)
            axes.set_xlabel(x_label(axis), color=INK, fontsize=SMALL)
    legend_below(figure, caption, series)
    return figure


def _place(group: Group, groups: Sequence[Group]) -> str:
    """What of a panel's place is not the same for all."""
    fields = ("dataset", "scheme", "alpha", "clients")
    varied = {name: getattr(group, name) for name in fields if len({getattr(other, name) for other in groups}) > 1}
    return setting(varied.get("dataset"), varied.get("scheme"), alpha=varied.get("alpha"), clients=varied.get("clients"))


def _draw(axes: Axes, groups: Sequence[Group], series: Sequence[Series], axis: Axis, panel: FidelityPanel) -> None:
    frame(axes, axis)
    axes.axhline(panel.best, color=MUTED, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1.5)
    draw_methods(axes, groups, series, axis, panel.measure)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    means = [_means([group for group in groups if group.label == method.label], panel.measure) for method in series]
    if panel.best == 0:
        show_all(axes, means)
    axes.tick_params(labelsize=SMALL)


def _means(groups: Sequence[Group], measure: str) -> NDArray[np.float64]:
    """The heights of a method's points, those that are finite."""
    means = np.array([interval.mean for group in groups if (interval := group.interval(measure))], dtype=np.float64)
    return means[np.isfinite(means)]
