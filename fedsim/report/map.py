"""The map: real test rows and each method's synthetic rows in two dimensions, by class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from fedsim.data.embeddings import Embeddings
from fedsim.evaluation.judge import judge_of, synthesise
from fedsim.evaluation.readouts import Labelled
from fedsim.methods.products import is_classifier
from fedsim.report.figures import MUTED, PAPER, SERIES, STYLE, save_figure
from fedsim.results.columns import Row
from fedsim.results.join import RunResults
from fedsim.results.lines import as_trained, read_state
from fedsim.seeds import Seeds
from fedsim.training.trial import Trial
from fedsim.words import number

POINTS = 30
"""Rows of a class that are drawn, real ones and synthetic ones."""
MOST_METHODS = 8


def save_map(results: RunResults, trials: Sequence[Trial], data: Mapping[str, Embeddings]) -> None:
    """Write ``curves/map.svg``, of the generators that the run folder holds; without one there is
    none.

    Args:
        results: of the run.
        trials: its cells.
        data: their data sets by key.
    """
    folder = results.folder
    cells = {trial.cell.cell_id: trial for trial in trials}
    chosen = [
        row
        for row in results.rows
        if row.cell_id in cells
        and folder.state(results.trained[row.cell_id]["training_id"]).exists()
    ]
    path = folder.curves / "map.svg"
    panels = {}
    for row in shown_rows(chosen):
        line = results.trained[row.cell_id]
        trial = cells[row.cell_id]
        rows = data[trial.data_key]
        made = judge_of(
            as_trained(trial, line),
            read_state(folder.state(line["training_id"]), line["state"]),
            rows,
        ).made
        assert not is_classifier(made)
        if row.epsilon_target is None:
            budget = ""
        else:
            budget = f", ε = {number(row.epsilon_target)}"
        panels[f"{row.label}{budget}"] = Labelled(
            *synthesise(made, rows.classes, POINTS, Seeds(row.seed))
        )
    path.unlink(missing_ok=True)
    if panels and rows.dim > 1:
        save_figure(draw_map(panels, rows), path)


def shown_rows(rows: Sequence[Row]) -> list[Row]:
    """Of each generator, on the first row's data set, partition and seed, the row of the largest
    finite epsilon.
    """
    generators = [row for row in rows if row.status == "ok" and row.yields == "generator"]
    place = [(row.dataset, row.alpha, row.clients, row.seed) for row in generators]
    # of two rows of a method the later in this order stays
    ordered = sorted(
        (row for row, at in zip(generators, place, strict=True) if at == place[0]),
        key=_finite_epsilon,
    )
    latest = {row.label: row for row in ordered}
    return [
        latest[label] for label in dict.fromkeys(row.label for row in generators) if label in latest
    ][:MOST_METHODS]


def _finite_epsilon(row: Row) -> float:
    epsilon = row.epsilon_target
    if epsilon is not None and math.isfinite(epsilon):
        return float(epsilon)
    return 0.0


def draw_map(panels: Mapping[str, Labelled], data: Embeddings) -> Figure:
    """A panel for the synthetic rows of each title, all on the axes of one PCA, which is fitted on
    synthetic rows alone.

    Args:
        panels: synthetic rows by title.
        data: real rows, of which test rows are drawn, of the classes with most of them.
    """
    axes = PCA(2, svd_solver="full").fit(
        np.concatenate([rows.x for rows in panels.values()]).astype(np.float64)
    )
    by_size = np.argsort(-np.bincount(data.y_test, minlength=data.classes), kind="stable")
    colours = {int(label): SERIES[i] for i, label in enumerate(sorted(by_size[: len(SERIES)]))}
    columns = min(4, len(panels))
    lines = math.ceil(len(panels) / columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(
            figsize=(max(9.0, 2.8 * columns), 2.9 * lines + 0.5),
            layout="constrained",
            facecolor=PAPER,
        )
        places = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for axis in places[len(panels) :]:
            axis.set_axis_off()
        for axis, (title, rows) in zip(places, panels.items(), strict=False):
            axis.set(xticks=[], yticks=[], title=title)
            for label, colour in colours.items():
                for x, y, looks in (
                    (data.x_test, data.y_test, {"s": 26, "alpha": 0.25, "linewidths": 0}),
                    (rows.x, rows.y, {"s": 9, "marker": "x", "linewidths": 0.8}),
                ):
                    axis.scatter(*_placed(axes, x[y == label][:POINTS]), color=colour, **looks)
        kinds = [
            Line2D(
                [],
                [],
                color=MUTED,
                ls="",
                marker="o",
                ms=6,
                alpha=0.4,
                label="real test rows (not for release)",
            )
        ]
        kinds += [Line2D([], [], color=MUTED, ls="", marker="x", ms=4, label="synthetic rows")]
        names = [
            Line2D([], [], color=colour, ls="", marker="s", ms=5, label=data.names[label])
            for label, colour in colours.items()
        ]
        figure.legend(
            handles=[*kinds, *names], loc="outside lower left", ncols=6, frameon=False, fontsize=8
        )
    return figure


def _placed(axes: PCA, x: NDArray[np.floating]) -> NDArray[np.float64]:
    """Rows ``[n, d]`` on the axes, ``[2, n]``; there may be none."""
    if not len(x):
        return np.empty((2, 0))
    return np.asarray(axes.transform(x.astype(np.float64)).T)
