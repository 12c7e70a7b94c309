"""A model's parameters by name: shared ones, per-client ones; sums and norms of such tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from fedsim.device import FUSED
from fedsim.methods.messages import Tensors
from fedsim.models.layers import ClientCode, ClientLinear

ALIGNMENT = 64
"""Bytes to which torch aligns the memory that it allocates."""


def shared_tensors(model: nn.Module) -> Tensors:
    """The parameters that all clients share, by name."""
    local = set(local_names(model))
    return {name: p.detach() for name, p in model.named_parameters() if name not in local}


def load_parameters(model: nn.Module, tensors: Mapping[str, Tensor], prefix: str = "") -> None:
    """Set every parameter that has a tensor under ``prefix`` and its name."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f"{prefix}{name}" in tensors:
                parameter.copy_(tensors[f"{prefix}{name}"])


def local_names(model: nn.Module) -> list[str]:
    """Names of the per-client parameters, which are ``[clients, ...]``."""
    owners = [(path, m) for path, m in model.named_modules() if isinstance(m, (ClientLinear, ClientCode))]
    return [f"{path}.{name}" for path, module in owners for name in module._parameters]


def code_names(model: nn.Module) -> list[str]:
    """Names of the client codes."""
    return [f"{path}.weight" for path, module in model.named_modules() if isinstance(module, ClientCode)]


def add_in_order(parts: Sequence[Tensors]) -> Tensors:
    """The sum of the cohorts' sums, in client order and in float64, so that it depends on neither timing nor packing.

    It is rounded once, to the dtype of the first.
    """
    terms: dict[str, list[Tensor]] = {}
    for part in parts:
        for name, value in part.items():
            terms.setdefault(name, []).append(value)
    return {
        name: own[0] if len(own) == 1 else reduce(torch.add, (value.double() for value in own)).to(own[0].dtype)
        for name, own in terms.items()
    }


def rounded(tensors: Tensors) -> Tensors:
    """Float64 rounded to float32: sums are rounded after their noise is added, not before."""
    return {name: value.float() if value.dtype == torch.float64 else value for name, value in tensors.items()}


def in_order(tensors: Tensors) -> Tensors:
    """The tensors in row-major, aligned memory, as a checkpoint restores them: rounding of products may depend on strides and alignment."""
    made = {}
    for name, value in tensors.items():
        # a lazy device has no memory to ask for
        aligned = value.device.type not in FUSED or value.data_ptr() % ALIGNMENT == 0
        made[name] = value if value.is_contiguous() and aligned else value.clone(memory_format=torch.contiguous_format)
    return made


def squared_sums(tensors: Tensors) -> Tensor:
    """The sum of squares of each tensor, on their device."""
    flat = [value.flatten() for value in tensors.values()]
    return torch.stack([torch.dot(value, value) for value in flat]) if flat else torch.zeros(0)


def l2_norm(tensors: Tensors) -> float:
    """Joint L2 norm."""
    return math.sqrt(sum(squared_sums(tensors).tolist()))
