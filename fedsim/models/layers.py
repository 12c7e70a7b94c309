"""Defines layers with one set of weights, or one code, per client, and initial weights of models.

The layers read a ragged batch, which holds the rows of all clients of a cohort together. Initial
weights are drawn from the seed tree by parameter name. So parameters that have the same name and
shape in two algorithms start from the same values for a seed.
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
    """Return labels ``[...]`` as float32 ``[..., classes]``.

    Unlike ``torch.nn.functional.one_hot`` it works under ``torch.func.vmap``.
    """
    numbers = torch.arange(classes, device=y.device)
    return (y.unsqueeze(-1) == numbers).to(torch.float32)


class ZeroLinear(nn.Linear):
    """A linear layer that starts at zero."""

    def reset_parameters(self) -> None:
        """Set weight and bias to zero."""
        for parameter in self.parameters(recurse=False):
            nn.init.zeros_(parameter)


class ClientLinear(nn.Module):
    """A linear layer with one set of weights per client: ``y_n = W_c(n) x_n + b_c(n)``.

    Here c(n) is the client of row n. The clients' rows are padded to equal numbers of rows, so that
    one batched product computes all clients.
    """

    def __init__(
        self,
        clients: int,
        inputs: int,
        outputs: int,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(clients, outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(clients, outputs))

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Map ``[N, in]`` to ``[N, out]``; ``layout`` says which client each row belongs to."""
        if layout.direct:  # under torch.func.vmap, where shapes may not depend on data
            weight = self.weight[layout.client]
            bias = self.bias[layout.client]
            return torch.einsum("noi,ni->no", weight, x) + bias
        weight = self.weight[layout.span]
        bias = self.bias[layout.span]
        padded = torch.baddbmm(
            bias[:, None],
            layout.pad(x),
            weight.transpose(1, 2),
        )
        return layout.flatten(padded)


class ClientCode(nn.Module):
    """One trainable vector per client, its code, which a network reads with each example."""

    def __init__(self, clients: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(clients, size))

    def forward(self, layout: Layout) -> Tensor:
        """Return the code of each row's client, ``[N, size]``."""
        return self.weight[layout.client]


class Shift(nn.Module):
    """An elementwise shift ``y = x + weight`` over the last dimension."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, ..., size]`` to the same shape."""
        return x + self.weight


@torch.no_grad()
def initialise(
    model: nn.Module,
    seeds: Seeds,
    members: Sequence[int] = (),
) -> None:
    """Set every weight and bias of ``model`` in place.

    Weights are drawn from N(0, 1 / fan_in), client codes from N(0, 1 / size); biases and zero
    layers are 0; elementwise scales and shifts stay as built. Fan_in is the number of inputs of one
    output. For a convolution these are all inputs that its kernel covers.

    A draw depends on the parameter's name and on the shape of one client's slice, never on the
    cohort. All clients start with the same per-client weights, but each with its own code.

    Args:
        model: the model of the cohort.
        seeds: the seed tree.
        members: the numbers of the clients, in the order of their slices in the model.
    """
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            key = zlib.crc32(f"{path}.{name}".encode())
            if isinstance(module, ClientCode):
                for code, client in zip(parameter, members, strict=True):
                    stream = seeds.torch(
                        Purpose.INIT,
                        key,
                        client,
                    )
                    draw = torch.randn(len(code), generator=stream)
                    code.copy_(draw / math.sqrt(len(code)))
            elif name == "bias" or isinstance(module, ZeroLinear):
                parameter.zero_()
            elif parameter.dim() >= 2:
                shape = parameter.shape
                if isinstance(module, ClientLinear):
                    shape = shape[1:]  # the same draw serves every client
                fan_in = math.prod(shape[1:])
                draw = torch.randn(
                    shape,
                    generator=seeds.torch(Purpose.INIT, key),
                )
                parameter.copy_(draw / math.sqrt(fan_in))


def initial_model(
    build: Callable[[int], nn.Module],
    seeds: Seeds,
    members: Sequence[int] = (),
) -> nn.Module:
    """Build the model of a cohort and initialise it.

    Torch's layers draw from the global generator while they are built. That generator is seeded
    from ``seeds`` for this call and restored afterwards.

    Args:
        build: a function of the number of clients that returns a model.
        seeds: the seed tree.
        members: the numbers of the clients in the cohort.

    Raises:
        TypeError: a parameter is not float32.
    """
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(seeds.torch(Purpose.INIT).get_state())
        model = build(len(members))
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            dtype = str(parameter.dtype).removeprefix("torch.")
            raise TypeError(
                f"parameter '{name}' of the model is {dtype}, and embeddings and noise are "
                "float32; let build return that"
            )
    initialise(model, seeds, members)
    return model
