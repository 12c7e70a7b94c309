"""Partitions for the eye: label-by-client matrices as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from fedsim.partition.matrix import MOST_PANELS, LabelMatrix
from fedsim.report.figures import HEAT, INK, MUTED, PAPER, SMALL, style
from fedsim.words import setting

PARTITIONS = "partitions"
_FEW = 24
"""Clients whose names and counts are drawn."""
_CELL = 0.33
"""Inches of a client that has its counts drawn."""
_LONGEST = 22
"""Characters of a name that is drawn."""
_MOST_ACROSS = 200


def title(matrix: LabelMatrix) -> str:
    """A matrix's place in the grid, in a few words."""
    return setting(matrix.dataset, matrix.scheme, alpha=matrix.alpha, clients=matrix.clients, seed=matrix.seed)


def draw_partitions(matrices: Sequence[LabelMatrix]) -> Figure | None:
    """A panel for every partition of the first seed, at most 12: classes down, clients across, dark where many rows are.

    None where there is no partition.
    """
    drawn = [m for m in matrices if m.seed == matrices[0].seed][:MOST_PANELS]
    if not drawn:
        return None
    columns = 1 if len(drawn) == 1 else 2 if len(drawn) <= 6 else 3
    lines = math.ceil(len(drawn) / columns)
    height = 1.1 + 0.2 * max(len(m.classes) for m in drawn) + 0.09 * max(len(name[:_LONGEST]) for m in drawn for name in m.sites or "0")
    most = max(m.clients for m in drawn)
    names = 0.085 * max(len(name[:_LONGEST]) for m in drawn for name in m.classes)
    width = max(2.6, names + 0.4 + (_CELL * most if most <= _FEW else 2.8))
    with style():
        figure = Figure(figsize=(width * columns, height * lines + 0.3), layout="constrained", facecolor=PAPER)
        grid = list(figure.subplots(lines, columns, squeeze=False).flat)
        for axes, matrix in zip(grid, drawn, strict=False):
            _panel(axes, matrix)
        for axes in grid[len(drawn) :]:
            axes.set_axis_off()
        figure.supxlabel("exact counts of the real data: a diagnostic, not private", fontsize=SMALL, color=MUTED)
    return figure


def _panel(axes: Axes, matrix: LabelMatrix) -> None:
    table = matrix.counts[:_MOST_ACROSS].T
    # square roots keep small holdings visible beside large ones; one colour with an opacity follows a page's light and dark
    opacity: Any = np.sqrt(table / max(1.0, float(table.max())))
    axes.pcolormesh(np.zeros(table.shape), cmap=ListedColormap([HEAT]), alpha=opacity)
    more = f" (the first {_MOST_ACROSS})" if matrix.clients > _MOST_ACROSS else ""
    axes.set_title(title(matrix) + more, fontsize=SMALL, color=INK, loc="left", y=1.0, parse_math=False)
    axes.set_yticks(np.arange(len(matrix.classes)) + 0.5, [name[:_LONGEST] for name in matrix.classes], fontsize=SMALL, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("" if matrix.sites else "client", fontsize=SMALL, color=INK)
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=SMALL, length=0)
    axes.spines[:].set_visible(False)
    if matrix.clients <= _FEW:
        turned = 90 if max(map(len, matrix.names)) > _SHORT else 0
        names = [name[:_LONGEST] for name in matrix.names]
        axes.set_xticks(np.arange(matrix.clients) + 0.5, names, parse_math=False, rotation=turned)
        for c, client in np.argwhere(table > 0):
            count = axes.text(client + 0.5, c + 0.5, _brief(table[c, client]), ha="center", va="center", fontsize=SMALL, color=INK)
            count.set_in_layout(False)


_SHORT = 3
"""Characters of names that stand upright."""


def _brief(count: int) -> str:
    """A count in at most four characters."""
    return str(count) if count < 10_000 else f"{count // 1000}k"
