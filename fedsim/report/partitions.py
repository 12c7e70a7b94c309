"""Label-by-client matrices as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from fedsim.partition.matrix import MOST_PANELS, LabelMatrix
from fedsim.report.figures import PAPER, STYLE
from fedsim.words import setting

_FEW = 24
_MOST_ACROSS = 200
"""Clients whose names and counts are drawn, and clients that are drawn."""


def draw_partitions(matrices: Sequence[LabelMatrix]) -> Figure | None:
    """A panel for every partition of the first seed, at most 12: classes down, clients across, dark
    where many rows are.

    None where there is no partition.
    """
    drawn = [m for m in matrices if m.seed == matrices[0].seed][:MOST_PANELS]
    if not drawn:
        return None
    columns = min(len(drawn), 3)
    lines = math.ceil(len(drawn) / columns)
    height = 1.2 + 0.2 * max(len(m.classes) for m in drawn)
    with rc_context(STYLE):
        figure = Figure(
            figsize=(max(4.0 * columns, 8.0), height * lines), layout="constrained", facecolor=PAPER
        )
        grid = figure.subplots(lines, columns, squeeze=False).flat
        for axes in grid[len(drawn) :]:
            axes.set_axis_off()
        for axes, matrix in zip(grid, drawn, strict=False):
            table = matrix.counts[:_MOST_ACROSS].T
            axes.grid(False)
            # square roots keep small holdings visible beside large ones
            axes.imshow(
                np.sqrt(table),
                cmap="Blues",
                vmin=0,
                vmax=2 * math.sqrt(table.max() or 1),
                aspect="auto",
            )
            if matrix.clients > _MOST_ACROSS:
                more = f" (the first {_MOST_ACROSS})"
            else:
                more = ""
            axes.set_title(
                setting(matrix.dataset, matrix.scheme, alpha=matrix.alpha, clients=matrix.clients)
                + more
            )
            axes.set_yticks(range(len(matrix.classes)), matrix.classes)
            axes.set_xlabel("" if matrix.sites else "client")
            if matrix.clients <= _FEW:
                axes.set_xticks(
                    range(matrix.clients), matrix.names, rotation=90 if matrix.sites else 0
                )
                for (row, column), count in np.ndenumerate(table):
                    axes.text(
                        column,
                        row,
                        str(count) if count else "",
                        ha="center",
                        va="center",
                        fontsize=7.5,
                    )
    return figure
