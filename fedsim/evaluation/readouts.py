"""More than one way to read synthetic embeddings: what else learns from them beside the linear probe, and how like real rows they are."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from fedsim.evaluation.fidelity import Labelled, fidelity
from fedsim.evaluation.measures import balanced_accuracy_of
from fedsim.evaluation.scores import Scores

NEAREST = 5
"""Neighbours that vote."""
MOST_NEIGHBOURS = 1000
"""Synthetic rows that may be neighbours: a table of distances to more takes longer than training some methods."""
HIDDEN = 64
"""Units of the small network."""


def nearest_neighbours(made: Labelled, real: Labelled, probe_c: float) -> Scores:
    """Balanced accuracy on real rows of a vote among the nearest synthetic ones."""
    from sklearn.neighbors import KNeighborsClassifier

    # rows stand class by class: every so many-th keeps the classes' shares
    some = slice(None, None, -(-len(made.x) // MOST_NEIGHBOURS))
    x, y = made.x[some], made.y[some]
    model = KNeighborsClassifier(min(NEAREST, len(x)), algorithm="brute").fit(x, y)
    return Scores(knn_balanced_accuracy=balanced_accuracy_of(real.y, model.predict(real.x)))


def small_network(made: Labelled, real: Labelled, probe_c: float) -> Scores:
    """Balanced accuracy on real rows of a network with one hidden layer, trained on the synthetic ones."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    mean, deviation = made.x.mean(axis=0), made.x.std(axis=0).clip(1e-6)
    model = MLPClassifier((HIDDEN,), alpha=1 / (probe_c * len(made.x)), max_iter=30, random_state=0, tol=0.0, n_iter_no_change=30)
    with warnings.catch_warnings():
        # so many steps are the readout's definition
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit((made.x - mean) / deviation, made.y)
    return Scores(mlp_balanced_accuracy=balanced_accuracy_of(real.y, model.predict((real.x - mean) / deviation)))


READOUTS: dict[str, Callable[[Labelled, Labelled, float], Scores]] = {
    "knn": nearest_neighbours,
    "mlp": small_network,
    "fidelity": fidelity,
}
"""By the names that a grid gives them: (synthetic rows, test rows, the probe's inverse penalty) to scores."""
