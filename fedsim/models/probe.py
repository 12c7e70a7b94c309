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
"""The largest number of L-BFGS iterations of a fit to many embeddings.

There are many if there are more embeddings than half of the features, and few otherwise.
"""
TOLERANCE = 1e-4
"""The largest entry of the gradient of the mean loss at which a fit to many embeddings ends."""
PATH_ITERATIONS = 50
"""The largest number of L-BFGS iterations for each penalty of :func:`fit_path`."""
PATH_TOLERANCE = 3e-4
"""The largest entry of the preconditioned gradient at which :func:`fit_path` ends a fit."""
_SMALLEST_VALUE = 1e-6
"""The smallest eigenvalue that counts as above 0, relative to the largest one.

The eigenvalues are those of the matrix of the examples' inner products.
"""
_EXACT_ITERATIONS = 1000
"""The largest number of L-BFGS iterations of a fit to few embeddings."""
_EXACT_TOLERANCE = 1e-7
"""The largest entry of the gradient of the mean loss at which a fit to few embeddings ends.

At :data:`TOLERANCE`, up to 2 in 1,000 predictions would depend on the last bit of the data.
"""
SCALE_FLOOR = 1e-3
"""The smallest scale of a feature, in units of the root mean square of all scales.

A feature that hardly varies in training is divided by this smallest scale. Divided by its own
scale, its test values would be so large that they drown those of other features.
"""


@dataclass(frozen=True)
class Probe:
    """A fitted probe.

    Attributes:
        mean: the mean of each feature over the training examples, ``[d]``.
        scale: the scale of each feature over the training examples, ``[d]``.
        classes: the labels that occurred in training, ascending.
        weight: weights of the standardised features, ``[d, k]``. k is the number of labels, except
            for one or two labels. For two labels k is 1: there is only the logit of the second
            label. For one label k is 0, and that label is always predicted.
        bias: the biases, ``[k]``.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    classes: NDArray[np.int64]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def predict(self, x: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the predicted labels ``[n]`` of the rows of ``x`` ``[n, d]``.

        Only labels that occurred in training are predicted.
        """
        return self._predict_standardised(_standardise(x, self.mean, self.scale))

    def probabilities(
        self,
        x: NDArray[np.float32],
        classes: int,
    ) -> NDArray[np.float64]:
        """Return class probabilities ``[n, classes]`` of ``x`` ``[n, d]``.

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
        """Return the predicted label of every row of standardised features ``[n, d]``."""
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
    """Return the predictions of several probes of the same training examples.

    The probes share the mean and the scale of these examples, so ``x`` ``[n, d]`` is standardised
    only once.
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
    """Fit the probe to embeddings; the fit is deterministic and the same for every algorithm.

    It minimises

        sum_i -log softmax(W s(x_i) + b)[y_i] + ||W||^2 / (2 probe_c)

    with L-BFGS, where s subtracts the mean and divides by the scale of each feature over ``x``. The
    scale is the standard deviation, but at least :data:`SCALE_FLOOR`. For two labels the weights
    and the bias of the first one are 0. If there are more embeddings than half of the features, the
    fit stops at a gradient of :data:`TOLERANCE` or after :data:`MAX_ITERATIONS`. With fewer it
    continues until the gradient is almost 0.

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
    """Yield one probe for each of several penalties, as :func:`fit_probe` fits it.

    All probes have the same examples. Each probe is fitted only when the caller asks for it.

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
    """Yield nearly the probes of :func:`fit_probes`, for large data in a fraction of the time.

    Each fit starts from the weights of the fit before it, so the strengths should ascend. The
    weights are fitted along the principal axes of the standardised examples. Their units are chosen
    so that the loss is about equally curved along each axis, and L-BFGS then needs few iterations.
    They are computed in float32.

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
        probe_weight = axes @ weight
        probe_bias = bias
        if len(classes) == 2:
            probe_weight = np.diff(probe_weight)
            probe_bias = np.diff(probe_bias)
        yield Probe(mean, scale, classes, probe_weight, probe_bias)


def _principal_axes(
    features: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]:
    """Return the principal axes of features ``[n, d]``, and the features' coordinates along them.

    Returns:
        Axes ``[d, r]``, coordinates ``[n, r]`` and the sum of squares along each axis ``[r]``. r is
        d if n is at least d. Otherwise r is at most n, because axes along which the examples hardly
        vary are left out.
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
    """Return the weights ``[r, k]`` and biases ``[k]`` of one penalty.

    Args:
        coordinates: the examples ``[n, r]``.
        target: the number of each example's class ``[n]``.
        importance: the weight of each example in the loss ``[n]``, 1 in sum.
        penalty: the factor of half the squared norm of the weights.
        step: the unit in which L-BFGS measures the weights along each axis ``[r]``. With these
            units the loss is about equally curved along all axes.
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
        # To save memory, one array holds the logits, then their exponentials, then the gradient.
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
            "ftol": 1e-6,  # a fit also ends if the loss falls by less than this share
            "maxcor": 5,
        },
    )
    parameters = fit.x.astype(np.float32).reshape(shape) * units
    return parameters[:-1], parameters[-1]


def strengths(dim: int) -> list[float]:
    """Return the inverse strengths to try for ``dim`` features, the strongest penalty first."""
    return [strength / dim for strength in STRENGTHS]


def _check_examples(x: NDArray[np.float32]) -> None:
    """Raise ValueError if there is no example, or one is not finite."""
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
    """Return the mean and the scale of every feature, ``[d]`` each."""
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
    """Yield weights and biases for each strength of the penalty."""
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
