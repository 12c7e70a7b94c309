"""A model's parameters by name: shared ones, per-client ones; sums and norms of such tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

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
    """The sum of the cohorts' sums, in client order and in float64, so that it depends on neither timing nor packing."""
    terms: dict[str, list[Tensor]] = {}
    for part in parts:
        for name, value in part.items():
            terms.setdefault(name, []).append(value)
    return {name: own[0] if len(own) == 1 else sum_in_double(own) for name, own in terms.items()}


def rounded(tensors: Tensors) -> Tensors:
    """Float64 rounded to float32: sums are rounded after their noise is added, not before."""
    return {name: value.float() if value.dtype == torch.float64 else value for name, value in tensors.items()}


def sum_in_double(terms: Sequence[Tensor]) -> Tensor:
    """The sum of equal shapes, added up in float64 and rounded once to the dtype of the first."""
    total = terms[0].double()
    for term in terms[1:]:
        total = total + term
    return total.to(terms[0].dtype)


def in_order(tensors: Tensors) -> Tensors:
    """The tensors in row-major, aligned memory, as a checkpoint restores them: rounding of products may depend on strides and alignment."""
    return {
        name: value if value.is_contiguous() and _is_aligned(value) else value.clone(memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }


def _is_aligned(value: Tensor) -> bool:
    # a lazy device has no memory to ask for
    return value.device.type not in FUSED or value.data_ptr() % ALIGNMENT == 0


def squared_sums(tensors: Tensors) -> Tensor:
    """The sum of squares of each tensor, on their device."""
    flat = [value.flatten() for value in tensors.values()]
    return torch.stack([torch.dot(value, value) for value in flat]) if flat else torch.zeros(0)


def l2_norm(tensors: Tensors) -> float:
    """Joint L2 norm."""
    return joint_norm(squared_sums(tensors).tolist())


def joint_norm(squared: Iterable[float]) -> float:
    """Joint L2 norm of tensors with these sums of squares."""
    return math.sqrt(sum(squared))
