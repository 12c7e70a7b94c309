"""How much weight a client's own classifier gets beside the shared one."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.models.linear import LinearClassifier, fit_linear

HELD_OUT = 5
"""Of so many rows one is held out, to choose the weight on."""


TRIED_WEIGHTS = tuple(step / 10 for step in range(11))
"""The weights of the local classifier that are tried."""


def best_weight(local: Tensor, shared: Tensor, y: Tensor, importance: Tensor) -> float:
    """The weight of ``local`` among :data:`TRIED_WEIGHTS` whose mixture has the best weighted accuracy; the smallest of equals.

    Of probabilities ``[n, C]`` of both, labels y ``[n]``, and the importance of each row ``[n]``.
    """
    best, best_score = 0.0, -math.inf
    for weight in TRIED_WEIGHTS:
        right = (weight * local + (1 - weight) * shared).argmax(1) == y
        score = float((right * importance).sum())
        if score > best_score + 1e-9:
            best, best_score = weight, score
    return best


def held_out_weight(x: NDArray[np.float32], y: NDArray[np.int64], shared: LinearClassifier, classes: int, probe_c: float) -> float:
    """The best weight of a client's own classifier on a fifth of its rows, which the classifier that is tried there did not see.

    Of rows ``[n, d]`` with labels ``[n]`` and what it is interpolated with. A client with one row has nothing to try it on: 0.
    """
    if len(y) < 2:
        return 0.0
    kept = np.arange(len(y)) % HELD_OUT == min(HELD_OUT, len(y)) - 1  # of few rows one
    tried = fit_linear(x[~kept], y[~kept], classes, probe_c)
    rows, ones = torch.from_numpy(x[kept]), torch.ones(int(kept.sum()))
    return best_weight(tried.probabilities(rows), shared.probabilities(rows), torch.from_numpy(y[kept]), ones)
