"""What real data reach: the ceiling of pooled rows, and what a client has by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedsim.evaluation.scores import score_probe

if TYPE_CHECKING:
    from fedsim.data.embeddings import Embeddings
    from fedsim.partition import Partition


def ceiling(data: Embeddings, probe_c: float) -> float:
    """Balanced accuracy of the probe trained on the pooled real training rows; the same for every partition."""
    return score_probe(data.x_train, data.y_train, data.x_test, data.y_test, probe_c).balanced_accuracy


def local_only(data: Embeddings, partition: Partition, probe_c: float) -> float:
    """Mean over clients of the balanced accuracy of a probe trained on the client's own real rows."""
    return float(
        np.mean(
            [
                score_probe(data.x_train[rows], data.y_train[rows], data.x_test, data.y_test, probe_c).balanced_accuracy
                for rows in partition.rows
                if len(rows)
            ]
        )
    )
