"""The figure of partitions: which client holds how many examples of which class.

The counts are exact functions of the real data, so the figure is a diagnostic and not private.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedsim.partition.matrix import MOST_PANELS, LabelMatrix
from fedsim.report.figures import PAPER, STYLE
from fedsim.words import setting

_FEW = 24
"""The largest number of clients whose names and counts are written into a panel."""
_MOST_ACROSS = 200
"""The largest number of clients in a panel; further ones are not drawn."""


def draw_partitions(matrices: Sequence[LabelMatrix]) -> Figure | None:
    """Return one panel for every partition of the first seed, at most 12.

    Classes are from top to bottom, clients from left to right, and the more examples a client has
    of a class, the darker its field.

    Args:
        matrices: The label-by-client matrices of all partitions and seeds.

    Returns:
        The figure, or None if there is no partition.
    """
    drawn = [matrix for matrix in matrices if matrix.seed == matrices[0].seed][:MOST_PANELS]
    if not drawn:
        return None
    columns = min(len(drawn), 3)
    lines = math.ceil(len(drawn) / columns)
    height = 1.2 + 0.2 * max(len(matrix.classes) for matrix in drawn)
    with rc_context(STYLE):
        figure = Figure(
            figsize=(max(4.0 * columns, 8.0), height * lines), layout="constrained", facecolor=PAPER
        )
        grid = figure.subplots(lines, columns, squeeze=False).flat
        for axes in grid[len(drawn) :]:
            axes.set_axis_off()
        for axes, matrix in zip(grid, drawn, strict=False):
            _draw_matrix(axes, matrix)
    return figure


def _draw_matrix(axes: Axes, matrix: LabelMatrix) -> None:
    """Draw one partition, with names and counts if it has few clients."""
    counts = matrix.counts[:_MOST_ACROSS].T
    axes.grid(False)
    # Square roots keep small counts visible beside large ones.
    darkest = 2 * math.sqrt(counts.max() or 1)
    axes.imshow(np.sqrt(counts), cmap="Blues", vmin=0, vmax=darkest, aspect="auto")
    title = setting(matrix.dataset, matrix.scheme, alpha=matrix.alpha, clients=matrix.clients)
    if matrix.clients > _MOST_ACROSS:
        title += f" (the first {_MOST_ACROSS})"
    axes.set_title(title)
    axes.set_yticks(range(len(matrix.classes)), matrix.classes)
    rotation = 90
    axes.set_xlabel("")
    if not matrix.sites:
        rotation = 0
        axes.set_xlabel("client")
    if matrix.clients > _FEW:
        return
    axes.set_xticks(range(matrix.clients), matrix.names, rotation=rotation)
    for (row, column), count in np.ndenumerate(counts):
        axes.text(column, row, str(count or ""), ha="center", va="center", fontsize=7.5)
