"""The linear probe: multinomial logistic regression on standardised embeddings.

scikit-learn and scipy are imported inside the functions that use them, because code that only reads
a grid needs nothing but the default penalty.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PROBE_C = 0.1
"""The default inverse strength of the L2 penalty of a probe of real embeddings."""
STRENGTHS = (0.4, 1.28, 4.0, 12.8, 128.0)
"""Inverse strengths of the penalty that are tried on real embeddings, times the dimension d.

The factor d is the squared norm of a standardised embedding.
"""
MAX_ITERATIONS = 200
"""The largest number of L-BFGS iterations of a fit to many embeddings."""
TOLERANCE = 1e-4
"""The largest entry of the gradient at which a fit to many embeddings ends."""
PATH_ITERATIONS = 50
"""The largest number of L-BFGS iterations for each penalty of :func:`fit_path`."""
PATH_TOLERANCE = 3e-4
"""The largest entry of the preconditioned gradient at which :func:`fit_path` ends a fit."""
_SMALLEST_VALUE = 1e-6
"""The smallest eigenvalue of the examples' products that counts, relative to the largest."""
_EXACT_ITERATIONS = 1000
"""The largest number of L-BFGS iterations of a fit to few embeddings."""
_EXACT_TOLERANCE = 1e-7
"""The largest entry of the gradient at which a fit to few embeddings ends.

At :data:`TOLERANCE`, up to 2 in 1,000 predictions would depend on the last bit of the data.
"""
SCALE_FLOOR = 1e-3
"""The smallest scale of a feature, in units of the root mean square of all scales.

A feature that hardly varies in training has no scale of its own: divided by it, its test values
would drown those of other features.
"""


@dataclass(frozen=True)
class Probe:
    """A fitted probe.

    Attributes:
        mean: the mean of each feature over the training examples, ``[d]``.
        scale: the scale of each feature over the training examples, ``[d]``.
        classes: the labels that occurred in training, ascending.
        weight: weights of the standardised features, ``[d, k]``. k is the number of labels, but 1
            for two labels (then it is the logit of the second) and 0 for one label, which is always
            predicted.
        bias: the biases, ``[k]``.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    classes: NDArray[np.int64]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def predict(self, x: NDArray[np.float32]) -> NDArray[np.int64]:
        """Returns the predicted label of every row of ``x`` ``[n, d]``, ``[n]``.

        Only labels that occurred in training are predicted.
        """
        return self._predict_standardised(_standardise(x, self.mean, self.scale))

    def probabilities(
        self,
        x: NDArray[np.float32],
        classes: int,
    ) -> NDArray[np.float64]:
        """Returns class probabilities ``[n, classes]`` of ``x`` ``[n, d]``.

        The probability of a label that did not occur in training is 0.
        """
        from scipy.special import expit, softmax

        probabilities = np.zeros((len(x), classes))
        logits = self._logits(_standardise(x, self.mean, self.scale))
        if len(self.classes) == 1:
            probabilities[:, self.classes] = 1.0
        elif len(self.classes) == 2:
            second = expit(logits[:, 0])
            probabilities[:, self.classes] = np.stack(
                [1 - second, second],
                axis=1,
            )
        else:
            probabilities[:, self.classes] = softmax(logits, axis=1)
        return probabilities

    def _predict_standardised(self, features: NDArray[np.float32]) -> NDArray[np.int64]:
        """Returns the predicted label of every row of standardised features ``[n, d]``."""
        if len(self.classes) == 1:
            return np.full(
                len(features),
                self.classes[0],
                dtype=np.int64,
            )
        logits = self._logits(features)
        if len(self.classes) == 2:
            best = logits[:, 0] > 0
        else:
            best = logits.argmax(1)
        return self.classes[best.astype(np.int64)]

    def _logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        return features @ self.weight + self.bias


def predict_each(
    probes: Sequence[Probe],
    x: NDArray[np.float32],
) -> list[NDArray[np.int64]]:
    """Returns the predictions of several probes of the same training examples.

    The probes come from :func:`fit_probes`, so ``x`` ``[n, d]`` is standardised only once.
    """
    features = _standardise(x, probes[0].mean, probes[0].scale)
    return [probe._predict_standardised(features) for probe in probes]


def fit_probe(
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    probe_c: float,
    *,
    balanced: bool = False,
) -> Probe:
    """Fits the probe to embeddings; the fit is deterministic and the same for every algorithm.

    It minimises

        sum_i -log softmax(W s(x_i) + b)[y_i] + ||W||^2 / (2 probe_c)

    with L-BFGS, where s subtracts the mean and divides by the standard deviation of each feature
    over ``x``. If there are more embeddings than half of the features, it stops at a gradient of
    :data:`TOLERANCE` or after :data:`MAX_ITERATIONS`; with fewer it continues to the minimum.

    Args:
        x: embeddings ``[n, d]``.
        y: labels ``[n]``; classes may be missing.
        probe_c: the inverse strength of the penalty.
        balanced: weigh every example by n / (C n_class), as if classes were equally frequent.
    """
    return next(fit_probes(x, y, [probe_c], balanced=balanced))


def fit_probes(
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    strengths: Sequence[float],
    *,
    balanced: bool = False,
) -> Iterator[Probe]:
    """Yields :func:`fit_probe` of the same examples for each of several penalties.

    A probe is fitted when it is asked for.

    Args:
        x: embeddings ``[n, d]``.
        y: labels ``[n]``.
        strengths: the inverse strengths of the penalty.
        balanced: weigh every example by n / (C n_class).

    Raises:
        ValueError: there is no example, or one is not finite.
    """
    _check_examples(x)
    mean, scale = _standardisation(x)
    classes = np.unique(y).astype(np.int64)
    if len(classes) == 1:
        no_weight = np.empty((x.shape[1], 0), np.float32)
        no_bias = np.empty(0, np.float32)
        for _ in strengths:
            yield Probe(mean, scale, classes, no_weight, no_bias)
        return
    features = _standardise(x, mean, scale)
    basis = None
    coordinates = features.T
    iterations = MAX_ITERATIONS
    tolerance = TOLERANCE
    if 2 * len(x) <= x.shape[1]:
        # The weights lie in the span of the examples, so with few examples the same problem is
        # solved in as many coordinates as there are examples.
        basis, coordinates = np.linalg.qr(features.T.astype(np.float64))
        iterations = _EXACT_ITERATIONS
        tolerance = _EXACT_TOLERANCE
    fits = _fit_weights(
        coordinates.T,
        y,
        strengths,
        balanced,
        iterations,
        tolerance,
    )
    for weight, bias in fits:
        if basis is not None:
            weight = basis @ weight
        yield Probe(
            mean,
            scale,
            classes,
            weight.astype(np.float32),
            bias.astype(np.float32),
        )


def fit_path(
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    strengths: Sequence[float],
    *,
    balanced: bool = False,
) -> Iterator[Probe]:
    """Yields nearly the probes of :func:`fit_probes`, for large data in a fraction of the time.

    Each fit starts at the last one, so strengths should ascend. Coordinates are the principal axes
    of the standardised examples, scaled so that the loss is about equally curved along each. L-BFGS
    then needs few iterations, which are computed in float32.

    Args:
        x: embeddings ``[n, d]``.
        y: labels ``[n]``.
        strengths: the inverse strengths of the penalty, the strongest penalty first.
        balanced: weigh every example by n / (C n_class).

    Raises:
        ValueError: there is no example, or one is not finite.
    """
    classes, target = np.unique(y, return_inverse=True)
    if len(classes) == 1:
        yield from fit_probes(x, y, strengths)
        return
    _check_examples(x)
    mean, scale = _standardisation(x)
    axes, coordinates, values = _principal_axes(_standardise(x, mean, scale))
    importance = np.full(len(y), 1 / len(y), np.float32)
    if balanced:
        importance_of_class = 1 / (len(classes) * np.bincount(target))
        importance = importance_of_class[target].astype(np.float32)
    weight = np.zeros((len(values), len(classes)), np.float32)
    bias = np.zeros(len(classes), np.float32)
    for strength in strengths:
        penalty = 1 / (strength * len(y))
        if len(classes) == 2:
            penalty *= 2  # fit_probes penalises the difference of two weights, not each weight
        curvature = values / (len(y) * len(classes)) + penalty
        step = (1 / np.sqrt(curvature)).astype(np.float32)
        weight, bias = _minimise(
            coordinates,
            target,
            importance,
            penalty,
            step,
            weight,
            bias,
        )
        full_weight = axes @ weight
        if len(classes) == 2:
            yield Probe(
                mean,
                scale,
                classes,
                np.diff(full_weight),
                np.diff(bias),
            )
        else:
            yield Probe(mean, scale, classes, full_weight, bias)


def _principal_axes(
    features: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]:
    """Returns the principal axes of features ``[n, d]``, their coordinates and their squares.

    Returns:
        Axes ``[d, r]`` where r is the smaller of n and d, coordinates ``[n, r]`` and the sum of
        squares along each axis ``[r]``.
    """
    if len(features) >= features.shape[1]:
        feature_products = features.T @ features
        values, vectors = np.linalg.eigh(feature_products.astype(np.float64))
        axes = vectors.astype(np.float32)
        return axes, features @ axes, values.clip(0)
    example_products = features @ features.T
    values, vectors = np.linalg.eigh(example_products.astype(np.float64))
    kept = values > _SMALLEST_VALUE * values[-1]
    kept_values = values[kept]
    kept_vectors = vectors[:, kept]
    root = np.sqrt(kept_values)
    combinations = (kept_vectors / root).astype(np.float32)
    coordinates = (kept_vectors * root).astype(np.float32)
    return features.T @ combinations, coordinates, kept_values


def _minimise(
    coordinates: NDArray[np.float32],
    target: NDArray[np.int64],
    importance: NDArray[np.float32],
    penalty: float,
    step: NDArray[np.float32],
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns the weights ``[r, k]`` and biases ``[k]`` of one penalty.

    Args:
        coordinates: the examples ``[n, r]``.
        target: the number of each example's class ``[n]``.
        importance: the weight of each example in the loss ``[n]``, 1 in sum.
        penalty: the factor of half the squared norm of the weights.
        step: the unit of the weights along each axis ``[r]``.
        weight: the weights to start from.
        bias: the biases to start from.
    """
    from scipy.optimize import minimize

    rows = np.arange(len(target))
    shape = (len(step) + 1, len(bias))
    unit_of_bias = np.float32(np.sqrt(shape[1]))
    units = np.append(step, unit_of_bias)[:, None]
    ones = np.ones((len(rows), 1), np.float32)
    scaled = np.hstack([coordinates, ones]) * units.T
    shrinkage = np.float32(penalty) * units**2
    shrinkage[-1] = 0.0

    def loss_and_gradient(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float32]]:
        parameters = flat.astype(np.float32).reshape(shape)
        scores = scaled @ parameters
        scores -= scores.max(axis=1, keepdims=True)
        of_target = scores[rows, target]
        np.exp(scores, out=scores)
        total = scores.sum(axis=1)
        shrunk = shrinkage * parameters
        loss = importance @ (np.log(total) - of_target)
        loss += 0.5 * np.vdot(shrunk, parameters)
        scores *= (importance / total)[:, None]
        scores[rows, target] -= importance
        return float(loss), (scaled.T @ scores + shrunk).ravel()

    start = np.vstack([weight, bias]) / units
    fit = minimize(
        loss_and_gradient,
        start.ravel().astype(np.float64),
        jac=True,
        method="L-BFGS-B",
        options={
            "maxiter": PATH_ITERATIONS,
            "gtol": PATH_TOLERANCE,
            "ftol": 1e-6,
            "maxcor": 5,
        },
    )
    parameters = fit.x.astype(np.float32).reshape(shape) * units
    return parameters[:-1], parameters[-1]


def strengths(dim: int) -> list[float]:
    """Returns the inverse strengths to try for ``dim`` features, the strongest penalty first."""
    return [strength / dim for strength in STRENGTHS]


def _check_examples(x: NDArray[np.float32]) -> None:
    """Raises ValueError if there is no example, or one is not finite."""
    if len(x) == 0:
        raise ValueError(
            "there is no example to train a probe on; a method that fits a probe must give it at "
            "least one example"
        )
    is_finite = np.isfinite(x).all(axis=1)
    broken = int((~is_finite).sum())
    if broken:
        raise ValueError(
            f"{broken} of {len(x)} training rows of the probe hold NaN or infinite values"
        )


def _standardisation(x: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the mean and the scale of every feature, ``[d]`` each."""
    mean = x.mean(axis=0, dtype=np.float64)
    deviation = x.std(axis=0, dtype=np.float64)
    root_mean_square = float(np.sqrt(np.mean(deviation**2)))
    floor = SCALE_FLOOR * root_mean_square
    if floor > 0:
        return mean, np.maximum(deviation, floor)
    return mean, np.ones_like(deviation)


def _fit_weights(
    features: NDArray[np.floating],
    y: NDArray[np.int64],
    strengths: Sequence[float],
    balanced: bool,
    iterations: int,
    tolerance: float,
) -> Iterator[tuple[NDArray[np.floating], NDArray[np.floating]]]:
    """Yields weights and biases for each strength of the penalty."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    class_weight = "balanced" if balanced else None
    for strength in strengths:
        model = LogisticRegression(
            C=strength,
            solver="lbfgs",
            class_weight=class_weight,
            max_iter=iterations,
            tol=tolerance,
        )
        with warnings.catch_warnings():
            # Stopping at the limit is part of the probe's definition.
            warnings.simplefilter("ignore", ConvergenceWarning)
            # It is normal that a client has few examples of as many classes.
            warnings.filterwarnings("ignore", "The number of unique classes is greater")
            model.fit(features, y)
        yield np.ascontiguousarray(model.coef_.T), model.intercept_


def _standardise(
    x: NDArray[np.float32],
    mean: NDArray[np.float64],
    scale: NDArray[np.float64],
) -> NDArray[np.float32]:
    # float32 halves the time of a fit and changes the balanced accuracy by less than 0.001.
    return np.asarray((x - mean) / scale, dtype=np.float32)
