"""Label-by-client matrices as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from fedsim.partition.matrix import MOST_PANELS, LabelMatrix
from fedsim.report.figures import PAPER, style
from fedsim.words import setting

_FEW, _MOST_ACROSS, _LONGEST = 24, 200, 22
"""Clients whose names and counts are drawn, clients that are drawn, and characters of a name."""


def draw_partitions(matrices: Sequence[LabelMatrix]) -> Figure | None:
    """A panel for every partition of the first seed, at most 12: classes down, clients across, dark where many rows are.

    None where there is no partition.
    """
    drawn = [m for m in matrices if m.seed == matrices[0].seed][:MOST_PANELS]
    if not drawn:
        return None
    columns = min(len(drawn), 3)
    lines = math.ceil(len(drawn) / columns)
    height = 1.2 + 0.2 * max(len(m.classes) for m in drawn)
    with style():
        figure = Figure(figsize=(max(4.0, 11.5 / columns) * columns, height * lines + 0.3), layout="constrained", facecolor=PAPER)
        grid = figure.subplots(lines, columns, squeeze=False).flat
        for axes in grid:
            axes.set_axis_off()
        for axes, matrix in zip(figure.axes, drawn, strict=False):
            table = matrix.counts[:_MOST_ACROSS].T
            axes.set_axis_on()
            axes.grid(False)
            # square roots keep small holdings visible beside large ones
            axes.imshow(np.sqrt(table), cmap="Blues", vmin=0, vmax=2 * math.sqrt(table.max() or 1), aspect="auto")
            more = f" (the first {_MOST_ACROSS})" if matrix.clients > _MOST_ACROSS else ""
            axes.set_title(setting(matrix.dataset, matrix.scheme, alpha=matrix.alpha, clients=matrix.clients) + more)
            axes.set_yticks(range(len(matrix.classes)), [name[:_LONGEST] for name in matrix.classes])
            axes.set_xlabel("" if matrix.sites else "client")
            if matrix.clients <= _FEW:
                axes.set_xticks(range(matrix.clients), [name[:_LONGEST] for name in matrix.names], rotation=90 if matrix.sites else 0)
                for place, count in np.ndenumerate(table):
                    if count:
                        shown = str(count) if count < 10_000 else f"{count // 1000}k"
                        axes.text(place[1], place[0], shown, ha="center", va="center", fontsize=7.5)
        figure.supxlabel("exact counts of the real data: a diagnostic, not private", fontsize=8)
    return figure
