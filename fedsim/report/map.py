"""Draws the map: the real and synthetic embeddings of each method in two dimensions.

Each class has a colour. A bench draws the map at its end, because only the bench has the real data.
The file holds real test examples and is not for release.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from operator import attrgetter

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from fedsim.data.embeddings import Embeddings
from fedsim.evaluation.evaluate import cell_evaluator, synthesise
from fedsim.evaluation.evaluators import Labelled
from fedsim.methods.products import is_classifier
from fedsim.report.panels import MUTED, SERIES, STYLE, blank_panels, save_figure
from fedsim.results.columns import Row
from fedsim.results.join import RunResults
from fedsim.results.lines import as_trained, read_state
from fedsim.seeds import Seeds
from fedsim.training.trial import Trial
from fedsim.words import number

POINTS = 30
"""The largest number of real points per class in a panel, and of synthetic ones."""
MOST_METHODS = 8
"""The largest number of methods on a map."""
MOST_POINTS = 20_000
"""The axes are computed from at most about this many synthetic embeddings."""


def save_map(results: RunResults, trials: Sequence[Trial], data: Mapping[str, Embeddings]) -> None:
    """Write ``curves/map.svg`` of the generators that are saved in a run folder.

    The map of an earlier run is deleted. There is no new one if no generator is saved, or if the
    embeddings have one dimension.

    Args:
        results: The results of the run.
        trials: The cells of the run.
        data: The data sets by key.

    Raises:
        UserError: The tensors of a generator cannot be read, or were changed.
    """
    folder = results.folder
    trial_of = {trial.cell.cell_id: trial for trial in trials}
    saved_rows = [
        row
        for row in results.rows
        if row.cell_id in trial_of and folder.has_state(results.trained[row.cell_id])
    ]
    panels = {}
    for row in shown_rows(saved_rows):
        training = results.trained[row.cell_id]
        trial = trial_of[row.cell_id]
        embeddings = data[trial.data_key]
        state = read_state(
            folder.state(training["training_id"]),
            training["state"],
        )
        generator = cell_evaluator(
            as_trained(trial, training),
            state,
            embeddings,
        ).product
        assert not is_classifier(generator)
        title = row.label
        if row.epsilon_target is not None:
            title += f", ε = {number(row.epsilon_target)}"
        synthetic = synthesise(
            generator,
            embeddings.classes,
            POINTS,
            Seeds(row.seed),
        )
        panels[title] = Labelled(*synthetic)
    path = folder.curves / "map.svg"
    path.unlink(missing_ok=True)
    # All panels have the same data set (see shown_rows), so that of the last one will do.
    if panels and embeddings.dim > 1:
        save_figure(draw_map(panels, embeddings), path)


def shown_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the results whose generators are on the map, one per method.

    They have the data set, partition and seed of the first generator, so that they share their
    real examples. Each method is shown at its largest finite epsilon, or without noise if it has
    no such epsilon.

    Args:
        rows: Results with saved products, in the order of the grid.
    """
    generators = [row for row in rows if row.status == "ok" and row.yields == "generator"]
    place_of = attrgetter("dataset", "alpha", "clients", "seed")
    by_label: dict[str, list[Row]] = {row.label: [] for row in generators}
    for row in generators:
        if place_of(row) == place_of(generators[0]):
            by_label[row.label].append(row)
    # If epsilons are equal, the last result is shown: max takes the first of the reversed list.
    shown = [max(reversed(same), key=_finite_epsilon) for same in by_label.values() if same]
    return shown[:MOST_METHODS]


def _finite_epsilon(row: Row) -> float:
    """Return the epsilon of a result, or 0 if it has none or an infinite one."""
    if row.is_private:
        return float(row.epsilon_target)
    return 0.0


def draw_map(panels: Mapping[str, Labelled], data: Embeddings) -> Figure:
    """Return the map: one panel per method, all on the same two axes.

    The axes are the first two principal components of the synthetic embeddings, so they do not
    depend on the real ones. Each class has its own colour. If there are more classes than colours,
    only the classes with the most real test examples are drawn.

    Args:
        panels: The synthetic embeddings ``[n, d]`` with their labels ``[n]``, by title.
        data: The real embeddings, of which test examples are drawn.
    """
    synthetic = np.concatenate([embeddings.x for embeddings in panels.values()])
    # Embeddings are ordered by class, so every k-th of them keeps the frequencies of the classes.
    every_kth = math.ceil(len(synthetic) / MOST_POINTS)
    fitted = synthetic[::every_kth]
    pca = PCA(2, svd_solver="full").fit(fitted.astype(np.float64))
    by_size = np.argsort(
        -np.bincount(data.y_test, minlength=data.classes),
        kind="stable",
    )
    classes = sorted(map(int, by_size[: len(SERIES)]))
    colours = dict(zip(classes, SERIES, strict=False))
    columns = min(4, len(panels))
    size = (max(9.0, 2.8 * columns), 2.9 * math.ceil(len(panels) / columns) + 0.5)
    with matplotlib.rc_context(STYLE):
        figure, grid = blank_panels(
            len(panels),
            columns,
            size,
            sharex=True,
            sharey=True,
        )
        for axes, (title, embeddings) in zip(grid, panels.items(), strict=True):
            axes.set(xticks=[], yticks=[], title=title)
            for label, colour in colours.items():
                real_points = _projected(
                    pca,
                    data.x_test[data.y_test == label],
                )
                synthetic_points = _projected(
                    pca,
                    embeddings.x[embeddings.y == label],
                )
                axes.scatter(
                    *real_points,
                    color=colour,
                    s=26,
                    alpha=0.25,
                    linewidths=0,
                )
                axes.scatter(
                    *synthetic_points,
                    color=colour,
                    s=9,
                    marker="x",
                    linewidths=0.8,
                )
        figure.legend(
            handles=_legend({data.names[label]: colour for label, colour in colours.items()}),
            loc="outside lower left",
            ncols=6,
            frameon=False,
            fontsize=8,
        )
    return figure


def _legend(colours: Mapping[str, str]) -> list[Line2D]:
    """Return the entries of the legend: both kinds of points, then the classes.

    Args:
        colours: The colour of each class, by its name.
    """
    marks = [
        (MUTED, "o", 6, 0.4, "real test examples (not for release)"),
        (MUTED, "x", 4, None, "synthetic examples"),
    ]
    marks += [(colour, "s", 5, None, name) for name, colour in colours.items()]
    return [
        Line2D(
            [],
            [],
            color=colour,
            ls="",
            marker=marker,
            ms=size,
            alpha=alpha,
            label=label,
        )
        for colour, marker, size, alpha, label in marks
    ]


def _projected(pca: PCA, x: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the coordinates of the first :data:`POINTS` embeddings on both axes, ``[2, m]``.

    Args:
        pca: The fitted axes.
        x: The embeddings ``[n, d]`` of one class. n may be 0, which ``PCA.transform`` refuses.
    """
    if not len(x):
        return np.empty((2, 0))
    return np.asarray(pca.transform(x[:POINTS].astype(np.float64)).T)
