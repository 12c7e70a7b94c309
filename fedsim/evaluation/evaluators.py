"""Evaluates synthetic embeddings beside the linear probe.

There are two other learners (nearest neighbours, a small network), and measures of fidelity: how
similar synthetic embeddings are to real ones. Except for the two-sample accuracy, fidelity is the
mean over the classes with enough embeddings of both kinds. It is computed in the leading directions
of the real embeddings, which are the same for every algorithm. The two-sample probe sees all
dimensions of all classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsim.data.embeddings import Embeddings
from fedsim.data.split import Integers
from fedsim.evaluation.measures import balanced_accuracy_of
from fedsim.evaluation.scores import Scores
from fedsim.evaluation.subset import MOST_TEST_ROWS, balanced_rows
from fedsim.models.probe import SCALE_FLOOR, fit_probe

NEAREST = 5
"""The number of nearest neighbours that vote for a label."""
MOST_NEIGHBOURS = 1000
"""The approximate largest number of synthetic embeddings that may be neighbours.

With more, the table of distances takes longer than the training of some methods. With more classes
than this, each class keeps one.
"""
HIDDEN = 64
"""The number of hidden units of the small network."""
DIRECTIONS = 64
"""The number of leading directions of the real embeddings in which fidelity is computed."""
NEIGHBOURS = 5
"""The number of neighbours, k, of density and coverage; a class needs more real embeddings."""
MOST_ROWS_COMPARED = 1000
"""The approximate largest number of embeddings that two parts of fidelity use.

It bounds the real embeddings that the leading directions are computed from, and the real and the
synthetic embeddings of the two-sample accuracy. All other parts use all embeddings.
"""

WIDTHS = (1.0, 10.0, 100.0)
"""The widths of the MMD's kernels, in medians of the squared distance of real embeddings."""

Rows = NDArray[np.float64]
"""Embeddings in the leading directions, float64 ``[n, k]``; or the directions ``[d, k]``."""


@dataclass(frozen=True)
class Labelled:
    """Embeddings with labels.

    Attributes:
        x: the embeddings, float32 ``[n, d]``.
        y: their labels, int64 ``[n]``.
    """

    x: NDArray[np.float32]
    y: Integers


def nearest_neighbours(
    synthetic: Labelled,
    real: Labelled,
    probe_c: float,
) -> Scores:
    """Return the balanced accuracy of a vote among the nearest synthetic embeddings.

    Args:
        synthetic: the synthetic embeddings, ordered by class.
        real: the test rows.
        probe_c: not used.
    """
    from sklearn.neighbors import KNeighborsClassifier

    # Embeddings are ordered by class, so every k-th of them keeps the frequencies of the classes if
    # there are at most MOST_NEIGHBOURS classes.
    step = -(-len(synthetic.x) // MOST_NEIGHBOURS)
    x = synthetic.x[::step]
    y = synthetic.y[::step]
    voters = min(NEAREST, len(x))
    _, first_rows = np.unique(synthetic.y, return_index=True)
    if len(first_rows) > MOST_NEIGHBOURS:
        x = synthetic.x[first_rows]
        y = synthetic.y[first_rows]
        # With one embedding per class, the votes of several neighbours would always tie.
        voters = 1
    model = KNeighborsClassifier(voters, algorithm="brute").fit(x, y)
    return Scores(knn_balanced_accuracy=balanced_accuracy_of(real.y, model.predict(real.x)))


def small_network(synthetic: Labelled, real: Labelled, probe_c: float) -> Scores:
    """Return the balanced accuracy of a network with one hidden layer.

    It is trained on the synthetic embeddings for a fixed number of epochs.

    Args:
        synthetic: the synthetic embeddings.
        real: the test rows.
        probe_c: the inverse penalty of the probe, from which the weight decay follows.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    mean = synthetic.x.mean(axis=0)
    deviation = synthetic.x.std(axis=0)
    # The floor is that of the probe, or 1e-6 if every feature is constant.
    floor = SCALE_FLOOR * float(np.sqrt(np.mean(deviation**2)))
    deviation = deviation.clip(max(floor, 1e-6))
    model = MLPClassifier(
        (HIDDEN,),
        alpha=1 / (probe_c * len(synthetic.x)),
        max_iter=30,
        random_state=0,
        tol=0.0,
        n_iter_no_change=30,
    )
    with warnings.catch_warnings():
        # The number of epochs is part of the definition, so the network need not converge.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit((synthetic.x - mean) / deviation, synthetic.y)
    predicted = model.predict((real.x - mean) / deviation)
    return Scores(mlp_balanced_accuracy=balanced_accuracy_of(real.y, predicted))


def fidelity(synthetic: Labelled, real: Labelled, probe_c: float) -> Scores:
    """Return how similar synthetic embeddings are to real ones.

    Args:
        synthetic: the synthetic embeddings.
        real: the test rows.
        probe_c: the inverse penalty of the probe that tells them apart.

    Returns:
        Fréchet distance, squared MMD, density, coverage, and two-sample accuracy. The scores are
        empty if no class has both two synthetic embeddings and more than :data:`NEIGHBOURS` real
        ones.
    """
    basis = leading_directions(real.x)
    counts = np.bincount(real.y)
    enough = np.flatnonzero(counts > NEIGHBOURS)
    # Neither a covariance nor the MMD can be estimated from one embedding.
    several = np.flatnonzero(np.bincount(synthetic.y) > 1)
    classes = np.intersect1d(enough, several)
    if not len(classes):
        return Scores()
    by_class = []
    for label in classes:
        synthetic_rows = synthetic.x[synthetic.y == label] @ basis
        real_rows = real.x[real.y == label] @ basis
        by_class.append(
            (
                frechet(synthetic_rows, real_rows),
                squared_mmd(synthetic_rows, real_rows),
                *density_and_coverage(synthetic_rows, real_rows),
            )
        )
    names = ("frechet_distance", "squared_mmd", "density", "coverage")
    means = np.array(by_class).mean(axis=0).tolist()
    return Scores(
        dict(zip(names, means, strict=True)),
        real_or_synthetic=two_sample_accuracy(synthetic, real, probe_c),
    )


def left_out(data: Embeddings, site: str | None = None) -> str | None:
    """Return a warning if a class has too few test rows for fidelity, else None.

    Of large data, only the rows that are scored count (:mod:`fedsim.evaluation.subset`).

    Args:
        data: the data set whose test rows are counted.
        site: the only site that the test rows come from; None if they come from all sites.
    """
    y_test = data.y_test[balanced_rows(data.y_test, MOST_TEST_ROWS)]
    counts = np.bincount(y_test, minlength=data.classes)
    enough = int((counts > NEIGHBOURS).sum())
    if enough == data.classes:
        return None
    owner = data.name
    if site:
        owner = f"{site} of {data.name}"
    return (
        f"fidelity on {owner} is over {enough} of its {data.classes} classes: the others are "
        f"scored on {NEIGHBOURS} test rows or fewer"
    )


def leading_directions(x: NDArray[np.float32]) -> Rows:
    """Return the leading principal directions of rows ``[n, d]``, orthonormal, ``[d, k]``.

    They are computed from at most about :data:`MOST_ROWS_COMPARED` rows.
    """
    rows = x[:: -(-len(x) // MOST_ROWS_COMPARED)].astype(np.float64)
    centred = rows - rows.mean(axis=0)
    if len(rows) >= x.shape[1]:
        _, vectors = np.linalg.eigh(centred.T @ centred)
        return np.ascontiguousarray(vectors[:, ::-1][:, :DIRECTIONS])
    # With fewer rows than features, the matrix of the rows' products gives the same directions.
    values, vectors = np.linalg.eigh(centred @ centred.T)
    leading = np.flatnonzero(values > 1e-12 * values[-1])[::-1][:DIRECTIONS]
    return np.ascontiguousarray(centred.T @ vectors[:, leading] / np.sqrt(values[leading]))


def frechet(synthetic: Rows, real: Rows) -> float:
    """Return the Fréchet distance of the Gaussians that fit two sets of rows, ``[n, k]`` each.

    With means m, n and covariances A, B it is

        |m - n|^2 + tr(A + B - 2 (A^(1/2) B A^(1/2))^(1/2)),

    in units of squared embedding norm (Heusel et al. 2017, arXiv 1706.08500, equation 6).
    """
    a = np.atleast_2d(np.cov(synthetic.T, bias=True))
    b = np.atleast_2d(np.cov(real.T, bias=True))
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ b @ root).clip(0)).sum()
    distance = np.square(synthetic.mean(axis=0) - real.mean(axis=0)).sum()
    return float(distance + np.trace(a) + np.trace(b) - 2 * cross)


def squared_mmd(synthetic: Rows, real: Rows) -> float:
    """Return the unbiased squared MMD (Gretton et al. 2012) of two sets of rows, ``[n, k]`` each.

    Each set needs two rows. With one, no pair tells how similar the rows of the set are.

    The kernel is the mean of Gaussian kernels of different widths (:data:`WIDTHS`). The narrowest
    has the median squared distance of real rows as its width. The wider ones also react to
    differences between distant rows, such as a wrong norm of all rows.
    """
    from scipy.spatial.distance import cdist, pdist

    width = max(float(np.median(pdist(real, "sqeuclidean"))), 1e-12)

    def kernel(first: Rows, second: Rows) -> Rows:
        distances = cdist(first, second, "sqeuclidean") / width
        return np.asarray(np.mean([np.exp(-distances / factor) for factor in WIDTHS], axis=0))

    def mean_kernel(rows: Rows) -> float:
        """Return the mean over all pairs of different rows."""
        count = len(rows)
        return float((kernel(rows, rows).sum() - count) / (count * (count - 1)))

    return mean_kernel(synthetic) + mean_kernel(real) - 2 * float(kernel(synthetic, real).mean())


def density_and_coverage(synthetic: Rows, real: Rows) -> tuple[float, float]:
    """Return density and coverage of two sets of rows (Naeem et al. 2020, arXiv 2002.09797).

    The neighbourhood of a real row reaches to its k-th nearest real row (:data:`NEIGHBOURS`).
    Density is the number of neighbourhoods that a synthetic row lies in, divided by k, on average.
    Coverage is the share of real rows with a synthetic row in their neighbourhood.
    """
    from scipy.spatial.distance import cdist

    radius = np.sort(cdist(real, real), axis=1)[:, NEIGHBOURS]
    inside = cdist(real, synthetic) < radius[:, None]
    return float(inside.sum() / (NEIGHBOURS * len(synthetic))), float(inside.any(axis=1).mean())


def two_sample_accuracy(
    synthetic: Labelled,
    real: Labelled,
    probe_c: float,
) -> float:
    """Return the accuracy of a probe that tells real from synthetic rows; 0.5 is a guess.

    Each class that has both kinds of rows gives equally many of both, at least one. There are at
    most about :data:`MOST_ROWS_COMPARED` rows of either kind. The features of the probe are the
    embedding and its squared norm. Two folds take turns in training and testing. Two consecutive
    rows of a class are in the same fold, because some generators draw rows in pairs, and the
    partner of a test row must not be a training row.

    Args:
        synthetic: the synthetic embeddings, ordered by class.
        real: the test rows.
        probe_c: the inverse penalty of the probe.

    Returns:
        The share of right predictions, or 0.5 if there are too few rows for two folds.
    """
    classes = 1 + int(max(synthetic.y.max(), real.y.max()))
    available = np.minimum(
        np.bincount(synthetic.y, minlength=classes), np.bincount(real.y, minlength=classes)
    )
    scaled = available * min(1.0, MOST_ROWS_COMPARED / available.sum())
    counts = np.maximum(scaled, np.minimum(available, 1)).astype(np.int64)
    synthetic_rows = synthetic.x[_first_rows(synthetic.y, counts)]
    real_rows = real.x[_first_rows(real.y, counts)]
    x = np.concatenate([synthetic_rows, real_rows])
    # A linear probe cannot compute the norm of a row, so the squared norm is one more feature.
    x = np.hstack([x, np.square(x).sum(axis=1, keepdims=True)])
    y = np.repeat([0, 1], [len(synthetic_rows), len(real_rows)])
    fold = np.tile(_pair_numbers(counts), 2) % 2
    if len(np.unique(fold)) < 2:
        return 0.5
    correct = 0.0
    for training_fold in (0, 1):
        training = fold == training_fold
        probe = fit_probe(x[training], y[training], probe_c)
        correct += float((probe.predict(x[~training]) == y[~training]).sum())
    return correct / len(y)


def _first_rows(
    y: Integers,
    counts: Integers,
) -> Integers:
    """Return the positions of the first ``counts[c]`` rows of every class c, class by class."""
    return np.concatenate(
        [np.flatnonzero(y == label)[:count] for label, count in enumerate(counts)]
    )


def _pair_numbers(counts: Integers) -> Integers:
    """Return the number of the pair that each row belongs to, class by class.

    Two consecutive rows of a class form a pair. If a class has an odd number of rows, its last row
    is alone in a pair, and the next class starts a new pair.
    """
    pairs = (counts + 1) // 2
    starts = np.cumsum(pairs) - pairs
    return np.concatenate(
        [start + np.arange(count) // 2 for start, count in zip(starts, counts, strict=True)]
    )


EVALUATORS: dict[str, Callable[[Labelled, Labelled, float], Scores]] = {
    "knn": nearest_neighbours,
    "mlp": small_network,
    "fidelity": fidelity,
}
"""The evaluators by the names that a grid gives them.

Each takes synthetic embeddings, test rows and the probe's inverse penalty, and returns scores.
"""
