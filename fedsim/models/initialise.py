"""Initial weights from the seed tree, keyed by parameter name: what two algorithms share starts the same for a seed."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence

import torch
from torch import nn

from fedsim.models.layers import ClientCode, ClientLinear, ZeroLinear
from fedsim.seeds import Purpose, Seeds


def initialise(model: nn.Module, seeds: Seeds, members: Sequence[int] = ()) -> None:
    """Set every weight and bias in place: weights N(0, 1 / fan_in), client codes N(0, 1 / size), biases 0, a zero layer 0.

    Fan_in is how many inputs an output has, of a convolution all that its kernel covers. Elementwise scales and shifts stay as built. A
    draw depends on the parameter's name and on the shape of one client's slice, never on the cohort: all clients start with the same
    encoder, each of ``members``, whose slices the model has in this order, with a code of its own.
    """
    with torch.no_grad():
        for path, module in model.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                key = zlib.crc32(f"{path}.{name}".encode())
                if isinstance(module, ClientCode):
                    for row, client in zip(parameter, members, strict=True):
                        row.copy_(torch.randn(len(row), generator=seeds.torch(Purpose.INIT, key, client)) / math.sqrt(len(row)))
                elif name == "bias" or isinstance(module, ZeroLinear):
                    parameter.zero_()
                elif parameter.dim() >= 2:
                    shape = parameter.shape[1:] if isinstance(module, ClientLinear) else parameter.shape
                    parameter.copy_(torch.randn(shape, generator=seeds.torch(Purpose.INIT, key)) / math.sqrt(math.prod(shape[1:])))


def initial_model(build: Callable[[int], nn.Module], seeds: Seeds, members: Sequence[int] = ()) -> nn.Module:
    """Build for ``members`` and initialise; what torch's layers draw from the global generator as they are built is the seed's, too.

    That generator is put back.
    """
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(seeds.torch(Purpose.INIT).get_state())
        model = build(len(members))
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            given = str(parameter.dtype).removeprefix("torch.")
            what = f"parameter '{name}' of the model is {given}, not float32 as embeddings and noise are"
            raise TypeError(f"{what}; let build return float32")
    initialise(model, seeds, members)
    return model
