"""What real data reach: the ceiling of pooled rows, and what a client has by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.evaluation.scores import score_classifier
from fedsim.models.linear import ProbeClassifier
from fedsim.models.probe import fit_probe

if TYPE_CHECKING:
    from fedsim.data.embeddings import Embeddings
    from fedsim.partition import Partition


def ceiling(data: Embeddings, probe_c: float) -> float:
    """Balanced accuracy of the probe trained on the pooled real training rows; the same for every partition."""
    return _balanced_accuracy(data, data.x_train, data.y_train, probe_c)


def local_only(data: Embeddings, partition: Partition, probe_c: float) -> float:
    """Mean over clients of the balanced accuracy of a probe trained on the client's own real rows."""
    each = [_balanced_accuracy(data, data.x_train[rows], data.y_train[rows], probe_c) for rows in partition.rows if len(rows)]
    return float(np.mean(each))


def _balanced_accuracy(data: Embeddings, x: NDArray[np.float32], y: NDArray[np.int64], probe_c: float) -> float:
    """Of a probe trained on rows ``x`` with labels ``y``, over all test rows."""
    probe = ProbeClassifier(fit_probe(x, y, probe_c), data.classes)
    return score_classifier(probe, torch.from_numpy(data.x_test), data.y_test).balanced_accuracy
