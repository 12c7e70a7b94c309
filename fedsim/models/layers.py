"""Layers of a cohort: one weight set, or one code, per client, over a ragged batch that holds all clients' rows together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Layout:
    """Which client each row of a ragged batch belongs to.

    Attributes:
        client: int64 ``[N]``, positions in the cohort (0 .. clients - 1), ascending.
        clients: K, the number of clients in the cohort.
        direct: gather one weight set per row instead of padding; for ``torch.func.vmap``, where shapes may not depend on data.
    """

    client: Tensor
    clients: int
    direct: bool = False

    @cached_property
    def counts(self) -> Tensor:
        """Rows per client, int64 ``[K]``."""
        return torch.bincount(self.client, minlength=self.clients)

    @cached_property
    def width(self) -> int:
        """The largest number of rows that one client has."""
        return int(self.counts.max()) if len(self.client) else 0

    @cached_property
    def _slots(self) -> Tensor:
        starts = torch.cumsum(self.counts, 0) - self.counts
        within = torch.arange(len(self.client), device=self.client.device) - starts[self.client]
        return self.client * self.width + within

    def detach(self) -> Layout:
        """Itself: Opacus detaches every input that a layer sees."""
        return self

    @property
    def shape(self) -> torch.Size:
        """``[N]``: Opacus reads the number of rows from a layer's last input."""
        return self.client.shape

    def pad(self, rows: Tensor) -> Tensor:
        """``[N, ...]`` to ``[K, width, ...]``, zeros where a client has fewer rows."""
        padded = rows.new_zeros(self.clients * self.width, *rows.shape[1:]).index_copy(0, self._slots, rows)
        return padded.view(self.clients, self.width, *rows.shape[1:])

    def flatten(self, padded: Tensor) -> Tensor:
        """``[K, width, ...]`` back to ``[N, ...]``; the inverse of :meth:`pad`."""
        return padded.reshape(self.clients * self.width, *padded.shape[2:]).index_select(0, self._slots)


def one_hot(y: Tensor, classes: int) -> Tensor:
    """Labels ``[...]`` as float32 ``[..., classes]``; unlike ``torch.nn.functional.one_hot`` it works under ``torch.func.vmap``."""
    return (y.unsqueeze(-1) == torch.arange(classes, device=y.device)).to(torch.float32)


class ZeroLinear(nn.Linear):
    """A linear layer that starts at zero."""

    def reset_parameters(self) -> None:
        """Set weight and bias to zero."""
        for parameter in self.parameters(recurse=False):
            nn.init.zeros_(parameter)


class ClientLinear(nn.Module):
    """A linear layer with one weight set per client: ``y_n = W_c(n) x_n + b_c(n)``.

    Rows are padded to ``[K, width, in]`` so that the whole cohort is one batched product.
    """

    def __init__(self, clients: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(clients, outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(clients, outputs))

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """``[N, in]`` to ``[N, out]``."""
        if layout.direct:
            weight, bias = self.weight[layout.client], self.bias[layout.client]
            return torch.einsum("noi,ni->no", weight, x) + bias
        return layout.flatten(torch.baddbmm(self.bias[:, None], layout.pad(x), self.weight.transpose(1, 2)))


class ClientCode(nn.Module):
    """One trainable code per client, given to the network as a per-example input."""

    def __init__(self, clients: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(clients, size))

    def forward(self, layout: Layout) -> Tensor:
        """Each row's client code, ``[N, size]``."""
        return self.weight[layout.client]


class Scale(nn.Module):
    """Elementwise scale ``y = x * weight`` over the last dimension."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, ..., size]`` to the same shape."""
        return x * self.weight


class Shift(nn.Module):
    """Elementwise shift ``y = x + weight`` over the last dimension."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, ..., size]`` to the same shape."""
        return x + self.weight
