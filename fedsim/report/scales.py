"""Scales of y axes on which every line is seen, however far lines and bars reach."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

_WIDE = 30.0
"""An axis on which one line reaches this many times as far as another gets a symmetrical log scale, so that both are seen."""
_MARGIN = 0.05
"""Share of an axis that is left where it ends at the last number there can be."""


def show_all(axes: Axes, lines: Sequence[NDArray[np.float64]]) -> None:
    """Make the y axis logarithmic above the smallest of some lines where they reach far apart; leave it as it is elsewhere."""
    reach = [float(np.abs(line).max()) for line in lines if (line != 0).any()]
    if reach and max(reach) > _WIDE * min(reach):
        values = np.concatenate(lines)
        axes.set_yscale("symlog", linthresh=min(reach))
        axes.yaxis.set_major_locator(FixedLocator(_symmetric_ticks(float(values.min()), float(values.max()), min(reach))))
        short_ticks(axes)


def end_at(axes: Axes, least: float, most: float) -> None:
    """End the y axis a little outside of what its numbers can be: bars of two seeds may end anywhere."""
    scale, ends = axes.yaxis.get_transform(), axes.get_ylim()
    low, high = scale.transform(np.clip(ends, least, most))
    margin = _MARGIN * (high - low)
    bottom, top = scale.inverted().transform([low - margin, high + margin])
    axes.set_ylim(max(ends[0], bottom), min(ends[1], top))


def short_ticks(axes: Axes) -> None:
    """No small ticks on the y axis, and short texts beside the others."""
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}".replace("e+0", "e").replace("e-0", "e-")))


def _symmetric_ticks(low: float, high: float, threshold: float) -> list[float]:
    """0 and a few powers of ten of either sign, none inside the linear part, where they would lie on 0."""
    first, last = math.ceil(math.log10(threshold)), math.floor(math.log10(max(high, -low)))
    step = max(1, math.ceil((last - first + 1) / 3))
    powers = [10.0**exponent for exponent in range(last, first - 1, -step)]
    return sorted([-power for power in powers if power <= -low] + [0.0] + [power for power in powers if power <= high])
