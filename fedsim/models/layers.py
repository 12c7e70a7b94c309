"""Layers of a cohort: one weight set, or one code, per client, over a ragged batch that holds all clients' rows together."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedsim.batch import Layout


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

    Rows are padded to one width so that all clients that have some are one batched product.
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
        weight, bias = self.weight[layout.span], self.bias[layout.span]
        return layout.flatten(torch.baddbmm(bias[:, None], layout.pad(x), weight.transpose(1, 2)))


class ClientCode(nn.Module):
    """One trainable code per client, given to the network as a per-example input."""

    def __init__(self, clients: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(clients, size))

    def forward(self, layout: Layout) -> Tensor:
        """Each row's client code, ``[N, size]``."""
        return self.weight[layout.client]


class Shift(nn.Module):
    """Elementwise shift ``y = x + weight`` over the last dimension."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, ..., size]`` to the same shape."""
        return x + self.weight
