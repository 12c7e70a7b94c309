"""The linear probe: multinomial logistic regression on standardised embeddings.

scikit-learn and scipy are imported where they are used: whoever reads a grid needs the default
alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PROBE_C = 0.1
"""The inverse strength of the L2 penalty of a probe of real rows where nothing else is asked for.
"""
STRENGTHS = (0.4, 1.28, 4.0, 12.8, 128.0)
"""Inverse strengths times the dimension d, which is the squared norm of a standardised row: what is
trained on real rows takes the best.
"""
MAX_ITERATIONS = 200
TOLERANCE = 1e-4
"""When a fit of many rows ends: the iterations, or the largest entry of the gradient."""
_EXACT_ITERATIONS = 1000
_EXACT_TOLERANCE = 1e-7
"""Those of few rows; stopped as early as many rows are, up to 2 in 1,000 predictions rest on the
last bit of the data.
"""
# A feature that hardly varies in training has no scale of its own: dividing by it would let its
# test values drown the rest.
SCALE_FLOOR = 1e-3


@dataclass(frozen=True)
class Probe:
    """A fitted probe: mean and scale ``[d]`` of the training rows' features, the labels that
    occurred, ascending, and weight and bias.

    These are of the standardised features, float32 ``[d, k]`` and ``[k]``: k is the number of
    labels, but 1 for two of them (the second one's logit) and 0 for one, which is always predicted.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    classes: NDArray[np.int64]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def predict(self, x: NDArray[np.float32]) -> NDArray[np.int64]:
        """The predicted label, int64 [n], of each row of ``x`` [n, d]; only labels seen in training
        occur.
        """
        return self._predicted(_standardise(x, self.mean, self.scale))

    def probabilities(self, x: NDArray[np.float32], classes: int) -> NDArray[np.float64]:
        """``[n, classes]`` for rows ``x`` [n, d]; 0 for labels not seen in training."""
        from scipy.special import expit, softmax

        found = np.zeros((len(x), classes))
        logits = self._logits(_standardise(x, self.mean, self.scale))
        if len(self.classes) == 2:
            second = expit(logits[:, 0])
            found[:, self.classes] = np.stack([1 - second, second], axis=1)
        else:
            if len(self.classes) > 2:
                found[:, self.classes] = softmax(logits, axis=1)
            else:
                found[:, self.classes] = 1.0
        return found

    def _predicted(self, features: NDArray[np.float32]) -> NDArray[np.int64]:
        if len(self.classes) == 1:
            return np.full(len(features), self.classes[0], dtype=np.int64)
        logits = self._logits(features)
        if len(self.classes) == 2:
            best = logits[:, 0] > 0
        else:
            best = logits.argmax(1)
        return self.classes[best.astype(np.int64)]

    def _logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        return features @ self.weight + self.bias


def predict_each(probes: Sequence[Probe], x: NDArray[np.float32]) -> list[NDArray[np.int64]]:
    """What each of several probes of the same training rows (:func:`fit_probes`) predicts of ``x``
    [n, d], which is standardised once.
    """
    features = _standardise(x, probes[0].mean, probes[0].scale)
    return [probe._predicted(features) for probe in probes]


def fit_probe(
    x: NDArray[np.float32], y: NDArray[np.int64], probe_c: float, *, balanced: bool = False
) -> Probe:
    """Fit the probe to rows ``[n, d]`` and labels ``[n]``, of which classes may be missing;
    deterministic, the same for every algorithm.

    Minimises ``sum_i -log softmax(W s(x_i) + b)[y_i] + ||W||^2 / (2 probe_c)`` with L-BFGS, where
    ``s`` subtracts the mean and divides by the standard deviation of each feature over ``x``. With
    more rows than half of the features it stops at a gradient of :data:`TOLERANCE` or after
    :data:`MAX_ITERATIONS`; with fewer it goes on to the minimum. ``balanced`` weighs every row by n
    / (C n_class), as if classes were equally frequent.
    """
    return next(fit_probes(x, y, [probe_c], balanced=balanced))


def fit_probes(
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    strengths: Sequence[float],
    *,
    balanced: bool = False,
) -> Iterator[Probe]:
    """:func:`fit_probe` of the same rows with each of several inverse strengths of the penalty,
    fitted as they are asked for.
    """
    if len(x) == 0:
        raise ValueError("the probe needs at least one training row")
    broken = int((~np.isfinite(x).all(axis=1)).sum())
    if broken:
        raise ValueError(
            f"{broken} of {len(x)} training rows of the probe hold NaN or infinite values"
        )
    mean = x.mean(axis=0, dtype=np.float64)
    deviation = x.std(axis=0, dtype=np.float64)
    floor = SCALE_FLOOR * float(np.sqrt(np.mean(deviation**2)))
    if floor > 0:
        scale = np.maximum(deviation, floor)
    else:
        scale = np.ones_like(deviation)
    classes = np.unique(y).astype(np.int64)
    if len(classes) == 1:
        yield from (
            Probe(
                mean, scale, classes, np.empty((x.shape[1], 0), np.float32), np.empty(0, np.float32)
            )
            for _ in strengths
        )
        return
    features = _standardise(x, mean, scale)
    # of few rows W lies in their span: the same problem in as many coordinates as there are rows
    few = 2 * len(x) <= x.shape[1]
    if few:
        basis, coordinates = np.linalg.qr(features.T.astype(np.float64))
    else:
        basis = None
        coordinates = features.T
    if few:
        limits = (_EXACT_ITERATIONS, _EXACT_TOLERANCE)
    else:
        limits = (MAX_ITERATIONS, TOLERANCE)
    for weight, bias in _weights(coordinates.T, y, strengths, balanced, *limits):
        if basis is None:
            whole = weight
        else:
            whole = basis @ weight
        yield Probe(mean, scale, classes, whole.astype(np.float32), bias.astype(np.float32))


def strengths(dim: int) -> list[float]:
    """The inverse strengths of the penalty that are tried on rows of ``dim`` features, the
    strongest penalty first.
    """
    return [strength / dim for strength in STRENGTHS]


def _weights(
    features: NDArray[np.floating],
    y: NDArray[np.int64],
    strengths: Sequence[float],
    balanced: bool,
    iterations: int,
    tolerance: float,
) -> Iterator[tuple[NDArray[np.floating], NDArray[np.floating]]]:
    """Weights and biases at each strength."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if balanced:
        weight = "balanced"
    else:
        weight = None
    for strength in strengths:
        model = LogisticRegression(
            C=strength, solver="lbfgs", class_weight=weight, max_iter=iterations, tol=tolerance
        )
        with warnings.catch_warnings():
            # Stopping at the limit is part of the probe's definition, not news.
            warnings.simplefilter("ignore", ConvergenceWarning)
            # nor are a client's few rows of as many classes
            warnings.filterwarnings("ignore", "The number of unique classes is greater")
            model.fit(features, y)
        yield np.ascontiguousarray(model.coef_.T), model.intercept_


def _standardise(
    x: NDArray[np.float32], mean: NDArray[np.float64], scale: NDArray[np.float64]
) -> NDArray[np.float32]:
    # float32 halves the time of a fit and changes the balanced accuracy by less than 0.001.
    return np.asarray((x - mean) / scale, dtype=np.float32)
