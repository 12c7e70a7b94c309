"""The label-by-client matrix of a partition, with its place in a grid."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_PANELS = 12
"""So many matrices are drawn at most."""


@dataclass(frozen=True, eq=False)
class LabelMatrix:
    """How many rows of each label each client holds. Exact counts of real data: a diagnostic, not private.

    Attributes:
        dataset, scheme, alpha, clients, seed: the partition's place in the grid; alpha is None where the scheme has none.
        fingerprint: the partition's.
        counts: int64 ``[clients, classes]``.
        classes: what the classes are called.
    """

    dataset: str
    scheme: str
    alpha: float | None
    clients: int
    seed: int
    fingerprint: str
    counts: NDArray[np.int64]
    classes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a run folder's ``partitions.json``."""
        return {**vars(self), "counts": self.counts.tolist(), "classes": list(self.classes)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LabelMatrix:
        """What ``to_json`` gave."""
        return cls(**{**values, "counts": np.array(values["counts"], dtype=np.int64), "classes": tuple(values["classes"])})

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Rows of each client."""
        return np.asarray(self.counts.sum(axis=1), np.int64)

    @property
    def labels_per_client(self) -> float:
        """Mean number of labels that a client holds."""
        return float((self.counts > 0).sum(axis=1).mean())

    @property
    def entropy(self) -> float:
        """Mean entropy of a client's labels, relative to log C: 0 for one label each, 1 for uniform ones."""
        shares = self.counts / self.sizes.clip(min=1)[:, None]
        logs = np.log(np.where(shares > 0, shares, 1))
        return float(-(shares * logs).sum(axis=1).mean() / math.log(max(len(self.classes), 2)))
