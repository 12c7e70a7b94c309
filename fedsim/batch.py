"""Defines a batch: examples of one or many clients, with the random numbers of their losses.

A layout says which client or group each row of a batch belongs to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from fedsim.device import to_device


@dataclass(frozen=True)
class Layout:
    """A layout says which client each row of a batch belongs to.

    Clients may have different numbers of rows. A layout of groups has groups in place of clients.

    Attributes:
        client: int64 ``[N]``, positions in the cohort (0 .. clients - 1), ascending.
        clients: K, the number of clients in the cohort, or of groups in the batch.
        direct: whether layers gather one set of weights per row, and do not pad the rows.
            ``torch.func.vmap`` needs this, because its shapes may not depend on data.
        known: a copy of ``client`` on the CPU, which decides shapes. If it is None, ``client`` is
            copied from the device when the copy is needed.
    """

    client: Tensor
    clients: int
    direct: bool = False
    known: Tensor | None = None

    @classmethod
    def on(cls, device: torch.device, client: Tensor, clients: int) -> Layout:
        """Return the layout on ``device`` for positions ``client`` on the CPU."""
        return cls(to_device(client, device), clients, known=client)

    @cached_property
    def positions(self) -> Tensor:
        """The positions ``client`` on the CPU."""
        if self.known is None:
            return self.client.cpu()
        return self.known

    @cached_property
    def span(self) -> slice:
        """The slice of clients from the first to the last one with a row.

        Only these clients are computed.
        """
        if len(self.client):
            return slice(int(self.positions[0]), int(self.positions[-1]) + 1)
        return slice(0, 0)

    @cached_property
    def _counts(self) -> Tensor:
        """The number of rows of each client in the span, on the CPU."""
        return torch.bincount(self.positions - self.span.start)

    @cached_property
    def width(self) -> int:
        """The largest number of rows of one client."""
        if len(self.client):
            return int(self._counts.max())
        return 0

    @cached_property
    def _slots(self) -> Tensor:
        """The position of each row among all padded rows, ``[N]``."""
        # A client's rows are consecutive. A row moves up by the empty slots of all clients before
        # its own client.
        empty = self.width - self._counts
        shift = torch.repeat_interleave(torch.cumsum(empty, 0) - empty, self._counts)
        return to_device(shift + torch.arange(len(self.client)), self.client.device)

    def pad(self, rows: Tensor) -> Tensor:
        """Return ``[N, ...]`` as ``[clients in the span, width, ...]``, filled up with zeros."""
        size = self.span.stop - self.span.start
        if size == 1:
            return rows.unsqueeze(0)
        empty = rows.new_zeros(size * self.width, *rows.shape[1:])
        padded = empty.index_copy_(0, self._slots, rows)
        return padded.view(size, self.width, *rows.shape[1:])

    def flatten(self, padded: Tensor) -> Tensor:
        """Return padded rows as ``[N, ...]``; the inverse of :meth:`pad`."""
        return padded.flatten(0, 1).index_select(0, self._slots)

    def blocks(self, rows: int) -> Iterator[tuple[slice, Layout]]:
        """Yield consecutive parts of the rows, each with its layout; a client stays in one part.

        The layouts together have all clients, also those without a row.

        Args:
            rows: the least size of a part, which is then extended to the end of its last client.
                Only the last part may be smaller.
        """
        positions = self.positions
        count = len(positions)
        start = 0
        first_client = 0
        while True:
            end = min(start + rows, count)
            next_client = self.clients
            if end < count:
                end = int(torch.searchsorted(positions, positions[end - 1], right=True))
            if end < count:
                next_client = int(positions[end])
            known = positions[start:end] - first_client
            yield (
                slice(start, end),
                Layout.on(self.client.device, known, next_client - first_client),
            )
            if end == count:
                return
            start = end
            first_client = next_client


@dataclass(frozen=True)
class Batch:
    """Rows of one or many clients, sorted by client and, where the unit is a group, by group.

    The random numbers are drawn beforehand, so a loss is a pure function of (model, batch), and row
    n's loss may depend on row n alone.

    Attributes:
        x: float32 ``[N, d]`` embeddings.
        y: int64 ``[N]`` labels.
        draws: standard normal draws by name, each ``[N, ...]``.
        layout: which client each row belongs to.
        groups: which group each row belongs to; None if the unit is not a group. All rows of a
            group belong to one client.
    """

    x: Tensor
    y: Tensor
    draws: Mapping[str, Tensor]
    layout: Layout
    groups: Layout | None = None

    def __len__(self) -> int:
        return len(self.x)

    def chunks(self, rows: int) -> Iterator[Batch]:
        """Yield the batch in order, in chunks of one size near ``rows``.

        A chunk has a fixed cost however few rows it has, so a remainder is spread over all chunks.
        A group stays in one chunk. The last chunk may be smaller, and an empty batch is one
        chunk.
        """
        count = max(1, round(len(self) / rows))
        if count == 1:
            yield self
            return
        size = -(-len(self) // count)
        ends = torch.arange(size, len(self) + size, size).clamp_max(len(self))
        if self.groups is not None:
            positions = self.groups.positions
            ends_of_groups = torch.searchsorted(
                positions,
                positions[ends - 1],
                right=True,
            )
            ends = torch.unique_consecutive(ends_of_groups)
        for start, end in pairwise([0, *ends.tolist()]):
            yield self.take(slice(start, end))

    def without(self, index: int) -> Batch:
        """Return the neighbouring batch: all rows but ``index``."""
        return self.take(torch.arange(len(self), device=self.x.device) != index)

    def take(self, rows: Tensor | slice) -> Batch:
        """Return the batch of some rows, given as a slice, a bool mask or ascending row numbers."""
        draws = {name: values[rows] for name, values in self.draws.items()}
        known = None
        if isinstance(rows, slice):
            known = self.layout.positions[rows]
        layout = replace(self.layout, client=self.layout.client[rows], known=known)
        groups = None
        if self.groups is not None:
            chosen = rows.cpu() if isinstance(rows, Tensor) else rows
            groups = consecutive(self.groups.positions[chosen], self.x)
        return Batch(self.x[rows], self.y[rows], draws, layout, groups)


def consecutive(groups: Tensor, like: Tensor) -> Layout:
    """Return the layout of groups, counted from 0, on the device of ``like``.

    Args:
        groups: the group of every row, ``[N]`` on the CPU; the rows of a group follow each other.
        like: a tensor on the wanted device.
    """
    values, numbers = torch.unique_consecutive(groups, return_inverse=True)
    return Layout.on(like.device, numbers, len(values))
