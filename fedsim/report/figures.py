"""What all figures share: colours, fonts, scales of y axes, files, and how they stand in a page."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from fedsim.errors import UserError
from fedsim.files import replaced
from fedsim.words import number

INK, MUTED, GRID_COLOUR, PAPER = "#1c2430", "#6b7281", "#e4e7ec", "#ffffff"
# Okabe and Ito's palette, which colour-blind readers can tell apart, without its yellow (too pale) and black (the ink).
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
# Seven steps of plasma from pale (small epsilon) to dark (no noise), all with contrast to the paper.
SHADES = ("#f2844b", "#de5f65", "#c33d80", "#a11b9b", "#7701a8", "#48039f", "#0d0887")


_WIDE = 30.0
"""An axis on which one line reaches this many times as far as another gets a symmetrical log scale, so that both are seen."""
_MARGIN = 0.05
"""Share of an axis that is left where it ends at the last number there can be."""


WIDTHS = {"column": 3.35, "page": 7.0}
"""Inches of a two-column paper's column (8.5 cm), and of both."""
PANEL_HEIGHT = 2.1
"""Inches of a panel in a figure for a paper."""
Y_CHARACTERS = 26
"""Characters that fit beside such a panel."""
_WIDTH_RANGE = (2.0, 20.0)


@dataclass(frozen=True)
class Drawn:
    """A figure as SVG, with the name of its files and of its place in the page, and the title that stands over it there."""

    name: str
    title: str
    svg: str


@contextmanager
def style() -> Iterator[None]:
    """The font; text becomes outlines, so that a figure looks the same on a machine without it."""
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "font.size": 9, "svg.fonttype": "path", "svg.hashsalt": "fedsim"}):
        yield


def dress(axes: Axes, axis: Literal["both", "y"], width: float) -> None:
    """Paper, two spines, and below what is drawn a grid of lines of ``width`` points across an ``axis``."""
    axes.set_facecolor(PAPER)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.grid(axis=axis, color=GRID_COLOUR, linewidth=width)
    axes.set_axisbelow(True)


def name_level(axes: Axes, text: str, height: float, size: float, gap: float) -> None:
    """Write ``text`` right of the axes at a data ``height``; font ``size`` and ``gap`` are in points."""
    axes.annotate(
        text,
        xy=(1, height),
        xycoords=axes.get_yaxis_transform(),
        xytext=(gap, 0),
        textcoords="offset points",
        va="center",
        fontsize=size,
        color=MUTED,
        annotation_clip=False,
    )


def shades(epsilons: Iterable[float | None]) -> dict[float | None, str]:
    """A shade for every epsilon, the darkest for the largest, neighbours sharing one of seven; grey for None, a method without one."""
    given = set(epsilons)
    finite = sorted(epsilon for epsilon in given if epsilon is not None)
    step = (len(SHADES) - 1) / max(1, len(finite) - 1)
    colours: dict[float | None, str] = {e: SHADES[len(SHADES) - 1 - round(step * i)] for i, e in enumerate(reversed(finite))}
    return dict(reversed(colours.items())) | ({None: MUTED} if None in given else {})


def name_epsilons(figure: Figure, colours: Mapping[float | None, str], handles: Sequence[Line2D], place: tuple[float, float]) -> None:
    """A line of what stands for which epsilon, with its upper left corner at ``place`` in the figure; a handle a colour."""
    figure.legend(
        handles,
        ["no ε" if epsilon is None else f"ε = {number(epsilon)}" for epsilon in colours],
        loc="upper left",
        bbox_to_anchor=place,
        ncols=len(colours),
        frameon=False,
        fontsize=9.5,
        labelcolor=INK,
        handlelength=1.8,
        borderpad=0,
        borderaxespad=0,
    )


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


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write ``name.png`` (200 dpi) and ``name.svg`` into ``folder``, each at once or not at all; the same figure gives the same bytes.

    The layout is computed once and kept.
    """
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    with style(), warnings.catch_warnings(), replaced(png) as part:
        # a name in a script that the font lacks is boxes here, and right in the page's tables
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.set_dpi(200)
        # savefig would draw a figure with a layout engine twice
        canvas: Any = FigureCanvasAgg(figure)
        canvas.print_png(part)
    figure.set_layout_engine("none")
    with replaced(svg) as part:
        part.write_text(svg_text(figure), encoding="utf-8")
    return [png, svg]


def inches(width: str) -> float:
    """A width of a figure: ``column``, ``page``, or inches.

    Raises:
        UserError: it is none of these.
    """
    try:
        value = WIDTHS[width] if width in WIDTHS else float(width)
    except ValueError:
        value = math.nan
    if not _WIDTH_RANGE[0] <= value <= _WIDTH_RANGE[1]:
        raise UserError(f"--width {width}", "is no width", f"give column, page, or inches in {_WIDTH_RANGE[0]:g} .. {_WIDTH_RANGE[1]:g}")
    return value


def panels_beside(width: float) -> int:
    """How many panels stand beside each other in a figure for a paper."""
    return max(1, int(width / 2.3))


def save_pdf(figure: Figure, path: Path) -> Path:
    """Write a figure as PDF, its text as text in embedded fonts, at once or not at all; the same figure gives the same bytes."""
    with style(), matplotlib.rc_context({"pdf.fonttype": 42}), replaced(path) as part:
        canvas: Any = FigureCanvasPdf(figure)
        canvas.print_pdf(part, metadata={"CreationDate": None})
    return path


def inline_svg(svg: str, title: str, name: str) -> str:
    """A figure as an ``<svg>`` element for a page, its colours as CSS variables so that it follows light and dark.

    The page defines ``--ink``, ``--muted``, ``--grid``, ``--paper``, ``--series-0`` … ``--series-5`` and ``--shade-0`` … ``--shade-6``.

    Args:
        svg: what ``svg_text`` gave, of a figure in this module's colours.
        title: read out by screen readers; must be free of markup.
        name: what its elements' ids start with, different for every figure of a page.
    """
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    # Inside a page this rule would reach every element of it.
    svg = re.sub(r"<style type=\"text/css\">.*?</style>", "", svg, flags=re.DOTALL)
    variables = {INK: "--ink", MUTED: "--muted", GRID_COLOUR: "--grid", PAPER: "--paper"}
    variables |= {colour: f"--series-{position}" for position, colour in enumerate(SERIES)}
    variables |= {colour: f"--shade-{position}" for position, colour in enumerate(SHADES)}
    for colour, variable in variables.items():
        svg = svg.replace(colour, f"var({variable})")
    # matplotlib numbers the elements of each figure from one
    for start in ('id="', 'href="#', "url(#"):
        svg = svg.replace(start, f"{start}{name}-")
    look = 'style="stroke-linejoin: round; stroke-linecap: butt"'
    return svg.replace("<svg ", f'<svg role="img" aria-label="{title}" {look} ', 1)


def svg_text(figure: Figure) -> str:
    """The figure as the text of an SVG file."""
    text = io.StringIO()
    with style():
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(text, metadata={"Date": None})
    return text.getvalue()
