"""What all figures share: colours, fonts, scales of y axes, files, and how they stand in a page."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
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
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path as Outline
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from matplotlib.transforms import Bbox, Transform
from numpy.typing import NDArray

from fedsim.errors import UserError
from fedsim.files import replaced
from fedsim.words import number

INK, MUTED, GRID_COLOUR, PAPER = "#1c2430", "#6b7281", "#e4e7ec", "#ffffff"
# Three of Okabe and Ito's, then seven as far from these and each other as a contrast of 3 to the paper lets them be, for red-green blind
# readers too.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#c86ba0", "#6b3a00", "#3d9bd8", "#a3123f", "#7650dd", "#5a6b00", "#1b1f5e")
HEAT = "#6db3dd"
"""Of a heat map at its fullest: the ink stands on it with a contrast of 6."""
# Seven steps of plasma from pale (small epsilon) to dark (no noise), all with contrast to the paper.
SHADES = ("#f2844b", "#de5f65", "#c33d80", "#a11b9b", "#7701a8", "#48039f", "#0d0887")


SMALL = 8.3
"""Points of the smallest text: 11 pixels in a page."""
_WIDE = 30.0
"""An axis on which one line reaches this many times as far as another gets a symmetrical log scale, so that both are seen."""


@dataclass(frozen=True)
class Part:
    """A part of a figure as it stands in a page: a panel, a name in its legend with what is drawn for it, a heading, or a caption.

    Attributes:
        kind: which of these.
        text: the words; of a panel, its title.
        svg: what is drawn, behind ``<svg``: matplotlib's own output, where every text is an outline and comments are escaped.
        width: of the drawing, in pixels.
    """

    kind: Literal["panel", "name", "heading", "caption"]
    text: str
    svg: str = ""
    width: float = 0.0


WIDTHS = {"column": 3.35, "page": 7.0}
"""Inches of a two-column paper's column (8.5 cm), and of both."""
PANEL_HEIGHT = 2.1
"""Inches of a panel in a figure for a paper."""
Y_CHARACTERS = 26
"""Characters that fit beside such a panel."""
_WIDTH_RANGE = (2.0, 20.0)


@dataclass(frozen=True)
class Drawn:
    """A figure in its parts, with the name of its files and of its place in the page, and the title that stands over it there.

    ``shared`` are outlines that its parts refer to.
    """

    name: str
    title: str
    parts: Sequence[Part]
    shared: str = ""

    @property
    def blocks(self) -> list[tuple[str, list[Part]]]:
        """Parts of one kind that follow each other."""
        return [(kind, list(parts)) for kind, parts in groupby(self.parts, lambda part: part.kind)]


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


_STROKES = MarkerStyle(Outline([(-0.6, -1), (-0.2, 1), (0.2, -1), (0.6, 1)], [Outline.MOVETO, Outline.LINETO] * 2))


def strokes(axes: Axes, x: float, y: float, place: Transform, turned: float = 0.0) -> None:
    """Two strokes through an axis, turned by so many degrees: it is not whole there."""
    look: dict[str, Any] = {"marker": _STROKES.rotated(deg=turned), "markersize": 8, "markeredgewidth": 0.9, "color": MUTED}
    axes.plot([x], [y], transform=place, linestyle="none", clip_on=False, **look)


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
        raise UserError(f"width {width}", "is no width", f"give column, page, or inches in {_WIDTH_RANGE[0]:g} .. {_WIDTH_RANGE[1]:g}")
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


def drawn(figure: Figure, svg: str, name: str, title: str) -> Drawn:
    """A figure in its parts, so that a page can let panels wrap and readers can copy words; colours as CSS variables, for light and dark.

    The page defines ``--ink``, ``--muted``, ``--grid``, ``--paper``, ``--heat``, ``--series-0`` … ``--series-9`` and ``--shade-0`` …
    ``--shade-6``. Names of the legend come first, captions last, the rest as it stands from top to bottom.

    Args:
        figure: one in this module's colours, saved by :func:`save_figure`.
        svg: what that wrote.
        name: what its elements' ids start with, different for every figure of a page.
        title: what stands over it.
    """
    variables = {INK: "--ink", MUTED: "--muted", GRID_COLOUR: "--grid", PAPER: "--paper", HEAT: "--heat"}
    variables |= {colour: f"--series-{position}" for position, colour in enumerate(SERIES)}
    variables |= {colour: f"--shade-{position}" for position, colour in enumerate(SHADES)}
    for colour, variable in variables.items():
        svg = svg.replace(colour, f"var({variable})")
    # matplotlib numbers the elements of each figure from one
    for start in ('id="', 'href="#', "url(#"):
        svg = svg.replace(start, f"{start}{name}-")
    figure.set_dpi(72)  # an SVG's
    canvas: Any = FigureCanvasAgg(figure)
    renderer = canvas.get_renderer()
    panels = [(axes, axes.get_tightbbox(renderer)) for axes in figure.axes if axes.axison]
    placed = [
        ((-round(axes.get_position().y1, 4), box.x0), _cropped("panel", axes.get_title(loc="left"), group, box, figure))
        for (axes, box), group in zip(panels, _groups(svg, "axes", 2), strict=True)
        if box is not None
    ]
    for text in figure.texts:
        kind: Literal["heading", "caption"] = "heading" if text.get_fontweight() == "bold" else "caption"
        height = 1.0 if kind == "caption" else -text.get_window_extent(renderer).y1 / figure.bbox.height
        placed.append(((height, 0.0), Part(kind, " ".join(text.get_text().split()))))
    for legend, group in zip(figure.legends, _groups(svg, "legend", 2), strict=True):
        handles = zip(legend.get_lines(), legend.get_texts(), _groups(group, "line2d", 3), strict=True)
        for handle, text, line in handles:
            placed.append(((-2.0, 0.0), _cropped("name", text.get_text(), line, handle.get_window_extent(renderer), figure)))
        if legend.get_title().get_text():
            placed.append(((2.0, 0.0), Part("caption", " ".join(legend.get_title().get_text().split()))))
    parts = [part for _, part in sorted(placed, key=lambda pair: pair[0])]
    return Drawn(name, title, parts, "".join(re.findall(r"<clipPath.*?</clipPath>", svg, flags=re.DOTALL)))


def _groups(svg: str, kind: str, depth: int) -> list[str]:
    """The elements of a kind at a depth of matplotlib's SVG, which is indented; text in it is outlines and escaped comments."""
    return re.findall(rf'^ {{{depth}}}<g id="[^"]*{kind}_\d+">\n.*?^ {{{depth}}}</g>', svg, flags=re.DOTALL | re.MULTILINE)


_CROP = 2.0
"""Points around a part of a figure."""


def _cropped(kind: Literal["panel", "name"], text: str, group: str, box: Bbox, figure: Figure) -> Part:
    """An element of a figure's SVG as one of its own, the size of its box, which is in points."""
    width, height = box.width + 2 * _CROP, box.height + 2 * _CROP
    view = f"{box.x0 - _CROP:.2f} {figure.bbox.height - box.y1 - _CROP:.2f} {width:.2f} {height:.2f}"
    return Part(kind, text, f'viewBox="{view}">{group}', width * 96 / 72)


def svg_text(figure: Figure) -> str:
    """The figure as the text of an SVG file."""
    text = io.StringIO()
    with style():
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(text, metadata={"Date": None})
    return text.getvalue()
