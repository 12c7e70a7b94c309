"""Partitions for the eye: label-by-client matrices as a picture and as tables for the terminal."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from fedsim.report.curves import INK, MUTED, PAPER, SERIES
from fedsim.report.tables import number

NAME = "partitions"
MOST_PANELS = 12
_MOST_LINES = 30
_FEW = 24
_COLOURS = LinearSegmentedColormap.from_list("rows", [PAPER, SERIES[0]])


@dataclass(frozen=True, eq=False)
class LabelMatrix:
    """How many rows of each label each client holds. Exact counts of real data: a diagnostic, not private.

    Attributes:
        dataset, scheme, alpha, clients, seed: the partition's place in the grid; alpha is None where the scheme has none.
        fingerprint: the partition's.
        counts: int64 ``[clients, classes]``.
        classes: what the classes are called.
    """

    dataset: str
    scheme: str
    alpha: float | None
    clients: int
    seed: int
    fingerprint: str
    counts: NDArray[np.int64]
    classes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a run folder's manifest."""
        return {**vars(self), "counts": self.counts.tolist(), "classes": list(self.classes)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LabelMatrix:
        """What ``to_json`` gave."""
        return cls(**{**values, "counts": np.array(values["counts"], dtype=np.int64), "classes": tuple(values["classes"])})

    @property
    def title(self) -> str:
        """Its place in the grid, in a few words."""
        parts = [self.dataset, self.scheme, *([f"α = {number(self.alpha)}"] if self.alpha is not None else [])]
        return " · ".join([*parts, f"{self.clients} clients", f"seed {self.seed}"])

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Rows of each client."""
        return np.asarray(self.counts.sum(axis=1), np.int64)

    @property
    def labels_per_client(self) -> float:
        """Mean number of labels that a client holds."""
        return float((self.counts > 0).sum(axis=1).mean())

    @property
    def entropy(self) -> float:
        """Mean entropy of a client's labels, relative to log C: 0 for one label each, 1 for uniform ones."""
        shares = self.counts / self.sizes.clip(min=1)[:, None]
        logs = np.log(np.where(shares > 0, shares, 1))
        return float(-(shares * logs).sum(axis=1).mean() / math.log(max(len(self.classes), 2)))


def summary_table(matrices: Sequence[LabelMatrix]) -> Table:
    """A line for every partition: sizes, labels per client, entropy, fingerprint."""
    table = Table(title="partitions", title_justify="left", show_edge=False)
    for name in ("data", "scheme"):
        table.add_column(name, no_wrap=True)
    for name in ("α", "clients", "seed", "rows, least", "median", "most", "labels a client", "entropy"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("fingerprint", no_wrap=True)
    for m in matrices:
        alpha = "–" if m.alpha is None else number(m.alpha)
        sizes = [f"{m.sizes.min()}", f"{np.median(m.sizes):g}", f"{m.sizes.max()}"]
        table.add_row(
            m.dataset, m.scheme, alpha, str(m.clients), str(m.seed), *sizes, f"{m.labels_per_client:.1f}", f"{m.entropy:.2f}", m.fingerprint
        )
    return table


def label_table(matrix: LabelMatrix) -> Table:
    """The matrix itself: a line for every client (the first 30), a column for every class, shaded by the share of the class."""
    table = Table(title=matrix.title, title_justify="left", show_edge=False)
    table.add_column("client", justify="right")
    for name in matrix.classes:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("rows", justify="right")
    shares = matrix.counts / matrix.counts.sum(axis=0).clip(min=1)
    for client, counts in enumerate(matrix.counts[:_MOST_LINES]):
        cells = [Text(str(count) if count else "·", _shade(share)) for count, share in zip(counts, shares[client], strict=True)]
        table.add_row(str(client), *cells, str(matrix.sizes[client]))
    if matrix.clients > _MOST_LINES:
        table.caption = f"… and {matrix.clients - _MOST_LINES} more clients"
    return table


def _shade(share: float) -> str:
    return "dim" if share == 0 else "bold" if share >= 0.25 else ""


def draw_partitions(matrices: Sequence[LabelMatrix]) -> Figure | None:
    """A panel for every partition of the first seed, at most 12: classes down, clients across, dark where many rows are.

    None where there is no partition.
    """
    drawn = [m for m in matrices if m.seed == matrices[0].seed][:MOST_PANELS]
    if not drawn:
        return None
    columns = 1 if len(drawn) == 1 else 2 if len(drawn) <= 6 else 3
    lines = math.ceil(len(drawn) / columns)
    height = 1.1 + 0.2 * max(len(m.classes) for m in drawn)
    with _style():
        figure = Figure(figsize=(5.2 * columns, height * lines + 0.3), layout="constrained", facecolor=PAPER)
        grid = figure.subplots(lines, columns, squeeze=False).flat
        for axes, matrix in zip(grid, drawn, strict=False):
            _panel(axes, matrix)
        for axes in list(grid)[len(drawn) :]:
            axes.set_axis_off()
        figure.supxlabel("exact counts of the real data: a diagnostic, not private", fontsize=7.5, color=MUTED)
    return figure


def _panel(axes: Axes, matrix: LabelMatrix) -> None:
    table = matrix.counts.T
    # square roots keep small holdings visible beside large ones
    axes.imshow(np.sqrt(table), cmap=_COLOURS, aspect="auto", interpolation="nearest", vmin=0)
    axes.set_title(matrix.title, fontsize=8.5, color=INK, loc="left", parse_math=False)
    axes.set_yticks(range(len(matrix.classes)), [name[:22] for name in matrix.classes], fontsize=7.5, parse_math=False)
    if matrix.clients <= _FEW:
        axes.set_xticks(range(matrix.clients))
    axes.set_xlabel("client", fontsize=8, color=INK)
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=7.5, length=0)
    axes.spines[:].set_visible(False)
    if matrix.clients <= _FEW:
        dark = math.sqrt(table.max()) / 2
        for c, client in np.argwhere(table > 0):
            colour = PAPER if math.sqrt(table[c, client]) > dark else INK
            axes.text(client, c, str(table[c, client]), ha="center", va="center", fontsize=5.5, color=colour)


def save_partitions(figure: Figure, folder: Path) -> list[Path]:
    """Write ``partitions.png`` (200 dpi) and ``.svg`` into ``folder``; the same figure gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    png, svg = folder / f"{NAME}.png", folder / f"{NAME}.svg"
    with _style():
        FigureCanvasAgg(figure)
        figure.savefig(png, dpi=200)
        text = io.StringIO()
        FigureCanvasSVG(figure)
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg.write_text(text.getvalue(), encoding="utf-8")
    return [png, svg]


def _style() -> Any:
    # Text becomes outlines, so that the picture looks the same on a machine without the font.
    return matplotlib.rc_context({"font.family": "DejaVu Sans", "font.size": 9, "svg.fonttype": "path", "svg.hashsalt": "fedsim"})
