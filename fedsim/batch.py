"""A batch: the rows that a cohort computes on together, and every random number that their loss needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedsim.models.layers import Layout


@dataclass(frozen=True)
class Batch:
    """Rows of one or many clients, sorted by client.

    The random numbers are drawn beforehand, so a loss is a pure function of (model, batch), and row n's loss may depend
    on row n alone.

    Attributes:
        x: float32 ``[N, d]`` embeddings.
        y: int64 ``[N]`` labels.
        noise: standard normal draws by name, each ``[N, ...]``.
        layout: which client each row belongs to.
    """

    x: Tensor
    y: Tensor
    noise: Mapping[str, Tensor]
    layout: Layout

    def __len__(self) -> int:
        return len(self.x)

    def chunks(self, rows: int) -> Iterator[Batch]:
        """The batch in order, at most ``rows`` at a time; an empty batch is one chunk."""
        for start in range(0, max(len(self), 1), rows):
            yield self._take(slice(start, start + rows))

    def row(self, index: int) -> Batch:
        """The batch that holds row ``index`` alone."""
        return self._take(torch.tensor([index], device=self.x.device))

    def without(self, index: int) -> Batch:
        """The neighbouring batch: all rows but ``index``."""
        return self._take(torch.arange(len(self), device=self.x.device) != index)

    def _take(self, rows: Tensor | slice) -> Batch:
        noise = {name: draws[rows] for name, draws in self.noise.items()}
        return Batch(self.x[rows], self.y[rows], noise, replace(self.layout, client=self.layout.client[rows]))
