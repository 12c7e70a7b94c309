"""Layers of a cohort: one weight set, or one code, per client, over a ragged batch that holds all
clients' rows together.

Their initial weights come from the seed tree, keyed by parameter name: what two algorithms share
starts the same for a seed.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fedsim.batch import Layout
from fedsim.seeds import Purpose, Seeds


def one_hot(y: Tensor, classes: int) -> Tensor:
    """Labels ``[...]`` as float32 ``[..., classes]``; unlike ``torch.nn.functional.one_hot`` it
    works under ``torch.func.vmap``.
    """
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
            weight = self.weight[layout.client]
            bias = self.bias[layout.client]
            return torch.einsum("noi,ni->no", weight, x) + bias
        weight = self.weight[layout.span]
        bias = self.bias[layout.span]
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


def initialise(model: nn.Module, seeds: Seeds, members: Sequence[int] = ()) -> None:
    """Set every weight and bias in place: weights N(0, 1 / fan_in), client codes N(0, 1 / size),
    biases 0, a zero layer 0.

    Fan_in is how many inputs an output has, of a convolution all that its kernel covers.
    Elementwise scales and shifts stay as built. A draw depends on the parameter's name and on the
    shape of one client's slice, never on the cohort: all clients start with the same encoder, each
    of ``members``, whose slices the model has in this order, with a code of its own.
    """
    with torch.no_grad():
        for path, module in model.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                key = zlib.crc32(f"{path}.{name}".encode())
                if isinstance(module, ClientCode):
                    for row, client in zip(parameter, members, strict=True):
                        row.copy_(
                            torch.randn(len(row), generator=seeds.torch(Purpose.INIT, key, client))
                            / math.sqrt(len(row))
                        )
                elif name == "bias" or isinstance(module, ZeroLinear):
                    parameter.zero_()
                elif parameter.dim() >= 2:
                    if isinstance(module, ClientLinear):
                        shape = parameter.shape[1:]
                    else:
                        shape = parameter.shape
                    parameter.copy_(
                        torch.randn(shape, generator=seeds.torch(Purpose.INIT, key))
                        / math.sqrt(math.prod(shape[1:]))
                    )


def initial_model(
    build: Callable[[int], nn.Module], seeds: Seeds, members: Sequence[int] = ()
) -> nn.Module:
    """Build for ``members`` and initialise; what torch's layers draw from the global generator as
    they are built is the seed's, too.

    That generator is put back.
    """
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(seeds.torch(Purpose.INIT).get_state())
        model = build(len(members))
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            given = str(parameter.dtype).removeprefix("torch.")
            raise TypeError(
                f"parameter '{name}' of the model is {given}, and embeddings and noise are "
                "float32; let build return that"
            )
    initialise(model, seeds, members)
    return model
