"""What else reads synthetic rows beside the linear probe: other learners, and how like real rows
they are, class by class.

All numbers of fidelity but the probe's are means over the classes that have real rows enough, of
rows in the leading directions of the real ones: the same directions for every algorithm. The probe
sees whole rows of all classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsim.data.embeddings import Embeddings
from fedsim.evaluation.measures import balanced_accuracy_of
from fedsim.evaluation.scores import Scores
from fedsim.models.probe import fit_probe

NEAREST = 5
"""Neighbours that vote."""
MOST_NEIGHBOURS = 1000
"""Synthetic rows that may be neighbours: a table of distances to more takes longer than training
some methods.
"""
HIDDEN = 64
"""Units of the small network."""
DIRECTIONS = 64
"""Leading directions of the real rows in which rows are compared."""
NEIGHBOURS = 5
"""k of density and coverage; a class needs more real rows."""
MOST_ROWS_COMPARED = 1000
"""Rows that directions are computed from, and rows of each kind that the probe of real against
synthetic sees.
"""

WIDTHS = (1.0, 10.0, 100.0)
"""Widths of the MMD's kernels, in medians of squared distance."""

Rows = NDArray[np.float64]


@dataclass(frozen=True)
class Labelled:
    """Rows float32 ``[n, d]`` with labels int64 ``[n]``."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]


def nearest_neighbours(made: Labelled, real: Labelled, probe_c: float) -> Scores:
    """Balanced accuracy on real rows of a vote among the nearest synthetic ones."""
    from sklearn.neighbors import KNeighborsClassifier

    # rows stand class by class: every so many-th keeps the classes' shares
    some = slice(None, None, -(-len(made.x) // MOST_NEIGHBOURS))
    x = made.x[some]
    y = made.y[some]
    model = KNeighborsClassifier(min(NEAREST, len(x)), algorithm="brute").fit(x, y)
    return Scores(knn_balanced_accuracy=balanced_accuracy_of(real.y, model.predict(real.x)))


def small_network(made: Labelled, real: Labelled, probe_c: float) -> Scores:
    """Balanced accuracy on real rows of a network with one hidden layer, trained on the synthetic
    ones.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    mean = made.x.mean(axis=0)
    deviation = made.x.std(axis=0).clip(1e-6)
    model = MLPClassifier(
        (HIDDEN,),
        alpha=1 / (probe_c * len(made.x)),
        max_iter=30,
        random_state=0,
        tol=0.0,
        n_iter_no_change=30,
    )
    with warnings.catch_warnings():
        # so many steps are the readout's definition
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit((made.x - mean) / deviation, made.y)
    return Scores(
        mlp_balanced_accuracy=balanced_accuracy_of(
            real.y, model.predict((real.x - mean) / deviation)
        )
    )


def fidelity(made: Labelled, real: Labelled, probe_c: float) -> Scores:
    """Fréchet distance, squared MMD, density, coverage, and how well a probe of inverse penalty
    ``probe_c`` tells real from made.
    """
    basis = leading_directions(real.x)
    counts = np.bincount(real.y)
    classes = [label for label in np.flatnonzero(counts > NEIGHBOURS) if (made.y == label).any()]
    if not classes:
        return Scores()
    pairs = [
        (made.x[made.y == label] @ basis, real.x[real.y == label] @ basis) for label in classes
    ]
    numbers = np.array(
        [(frechet(*pair), squared_mmd(*pair), *density_and_coverage(*pair)) for pair in pairs]
    )
    names = ("frechet_distance", "squared_mmd", "density", "coverage")
    return Scores(
        dict(zip(names, numbers.mean(axis=0).tolist(), strict=True)),
        real_or_synthetic=two_sample_accuracy(made, real, probe_c),
    )


def left_out(data: Embeddings, site: str | None = None) -> str | None:
    """What is wrong with fidelity where classes have too few test rows, None where none has;
    ``site``: whose rows alone these are.
    """
    enough = int((np.bincount(data.y_test, minlength=data.classes) > NEIGHBOURS).sum())
    if enough == data.classes:
        return None
    if site:
        of = f"{site} of {data.name}"
    else:
        of = data.name
    return (
        f"fidelity on {of} is over {enough} of its {data.classes} classes: the others have "
        f"{NEIGHBOURS} test rows or fewer"
    )


def leading_directions(x: NDArray[np.float32]) -> Rows:
    """Orthonormal ``[d, k]``: the leading principal directions of rows, of at most
    :data:`MOST_ROWS_COMPARED` of them.
    """
    some = x[:: -(-len(x) // MOST_ROWS_COMPARED)].astype(np.float64)
    centred = some - some.mean(axis=0)
    if len(some) >= x.shape[1]:
        _, vectors = np.linalg.eigh(centred.T @ centred)
        return np.ascontiguousarray(vectors[:, ::-1][:, :DIRECTIONS])
    # fewer rows than features: the same directions from the rows' own products
    values, vectors = np.linalg.eigh(centred @ centred.T)
    kept = np.flatnonzero(values > 1e-12 * values[-1])[::-1][:DIRECTIONS]
    return np.ascontiguousarray(centred.T @ vectors[:, kept] / np.sqrt(values[kept]))


def frechet(made: Rows, real: Rows) -> float:
    """Distance of the Gaussians that fit the two: ``|m - n|^2 + tr(A + B - 2 (A^(1/2) B
    A^(1/2))^(1/2))``.

    Heusel et al. 2017 (arXiv 1706.08500), equation 6, in units of squared embedding norm.
    """
    a, b = (np.atleast_2d(np.cov(rows.T, bias=True)) for rows in (made, real))
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ b @ root).clip(0)).sum()
    return float(
        np.square(made.mean(axis=0) - real.mean(axis=0)).sum()
        + np.trace(a)
        + np.trace(b)
        - 2 * cross
    )


def squared_mmd(made: Rows, real: Rows) -> float:
    """Unbiased squared MMD (Gretton et al. 2012): Gaussian kernels as wide as real rows are apart,
    and wider, so that size shows.
    """
    from scipy.spatial.distance import cdist, pdist

    width = max(float(np.median(pdist(real, "sqeuclidean"))), 1e-12)

    def kernel(one: Rows, other: Rows) -> Rows:
        distances = cdist(one, other, "sqeuclidean") / width
        return np.asarray(np.mean([np.exp(-distances / wider) for wider in WIDTHS], axis=0))

    def mean_kernel(rows: Rows) -> float:
        """Without the pairs of a row with itself."""
        return float((kernel(rows, rows).sum() - len(rows)) / (len(rows) * max(len(rows) - 1, 1)))

    return mean_kernel(made) + mean_kernel(real) - 2 * float(kernel(made, real).mean())


def density_and_coverage(made: Rows, real: Rows) -> tuple[float, float]:
    """Naeem et al. 2020 (arXiv 2002.09797): made rows in real rows' neighbourhoods, and real rows
    with a made one in theirs.
    """
    from scipy.spatial.distance import cdist

    radius = np.sort(cdist(real, real), axis=1)[:, NEIGHBOURS]
    inside = cdist(real, made) < radius[:, None]
    return float(inside.sum() / (NEIGHBOURS * len(made))), float(inside.any(axis=1).mean())


def two_sample_accuracy(made: Labelled, real: Labelled, probe_c: float) -> float:
    """Accuracy of a probe that tells real from made by features and squared norm: 0.5 is a guess.

    There are as many made rows as real ones of every class, at least one, and at most about
    :data:`MOST_ROWS_COMPARED` of either kind in all. The probe is trained on every other two rows
    and tested on the rest, and the other way round: two at a time, since some generators draw rows
    in pairs, and the other of a pair must not be among the training rows. Too few rows for two
    folds: 0.5.
    """
    classes = 1 + int(max(made.y.max(), real.y.max()))
    counts = np.minimum(*(np.bincount(rows.y, minlength=classes) for rows in (made, real)))
    counts = np.maximum(
        counts * min(1.0, MOST_ROWS_COMPARED / counts.sum()), np.minimum(counts, 1)
    ).astype(np.int64)
    picked = [
        [np.flatnonzero(rows.y == label)[:count] for label, count in enumerate(counts)]
        for rows in (made, real)
    ]
    mine, theirs = (np.concatenate(own) for own in picked)
    x = np.concatenate([made.x[mine], real.x[theirs]])
    x = np.hstack(
        [x, np.square(x).sum(axis=1, keepdims=True)]
    )  # a linear probe does not see how long rows are
    even = (
        counts + counts % 2
    )  # the rows of a class start at an even number, so that consecutive draws form a pair
    numbers = np.concatenate(
        [
            end - room + np.arange(count)
            for end, room, count in zip(np.cumsum(even), even, counts, strict=True)
        ]
    )
    y = np.repeat([0, 1], [len(mine), len(theirs)])
    fold = np.tile(numbers, 2) // 2 % 2
    if len(np.unique(fold)) < 2:
        return 0.5
    halves = [fold == part for part in (0, 1)]
    return sum(
        float((fit_probe(x[half], y[half], probe_c).predict(x[~half]) == y[~half]).sum())
        for half in halves
    ) / len(y)


READOUTS: dict[str, Callable[[Labelled, Labelled, float], Scores]] = {
    "knn": nearest_neighbours,
    "mlp": small_network,
    "fidelity": fidelity,
}
"""By the names that a grid gives them: (synthetic rows, test rows, the probe's inverse penalty) to
scores.
"""
