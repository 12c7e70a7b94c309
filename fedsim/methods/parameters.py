"""A model's parameters by name, shared and per-client; sums, norms and Adam's steps of such
tensors; all state is tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from fedsim.device import FUSED
from fedsim.methods.messages import Tensors
from fedsim.models.layers import ClientCode, ClientLinear

ADAM_EPSILON = 1e-8
SIGNAL_RATE = 0.3
"""Weight of a step's mean square in its running mean."""
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
    owners = [
        (path, m) for path, m in model.named_modules() if isinstance(m, (ClientLinear, ClientCode))
    ]
    return [f"{path}.{name}" for path, module in owners for name in module._parameters]


def code_names(model: nn.Module) -> list[str]:
    """Names of the client codes."""
    return [
        f"{path}.weight" for path, module in model.named_modules() if isinstance(module, ClientCode)
    ]


def add_in_order(parts: Sequence[Tensors]) -> Tensors:
    """The sum of the cohorts' sums, in client order and in float64, so that it depends on neither
    timing nor packing.

    It is rounded once, to the dtype of the first.
    """
    terms: dict[str, list[Tensor]] = {}
    for part in parts:
        for name, value in part.items():
            terms.setdefault(name, []).append(value)
    return {
        name: own[0]
        if len(own) == 1
        else reduce(torch.add, (value.double() for value in own)).to(own[0].dtype)
        for name, own in terms.items()
    }


def rounded(tensors: Tensors) -> Tensors:
    """Float64 rounded to float32: sums are rounded after their noise is added, not before."""
    return {
        name: value.float() if value.dtype == torch.float64 else value
        for name, value in tensors.items()
    }


def in_order(tensors: Tensors) -> Tensors:
    """The tensors in row-major, aligned memory, as a checkpoint restores them: rounding of products
    may depend on strides and alignment.
    """
    made = {}
    for name, value in tensors.items():
        # a lazy device has no memory to ask for
        aligned = value.device.type not in FUSED or value.data_ptr() % ALIGNMENT == 0
        if value.is_contiguous() and aligned:
            made[name] = value
        else:
            made[name] = value.clone(memory_format=torch.contiguous_format)
    return made


def squared_sums(tensors: Tensors) -> Tensor:
    """The sum of squares of each tensor, on their device."""
    flat = [value.flatten() for value in tensors.values()]
    if flat:
        return torch.stack([torch.dot(value, value) for value in flat])
    return torch.zeros(0)


def l2_norm(tensors: Tensors) -> float:
    """Joint L2 norm."""
    return math.sqrt(sum(squared_sums(tensors).tolist()))


def adam_step(
    parameters: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    state: dict[str, Tensor],
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
    shares: Mapping[str, Tensor] | None = None,
) -> None:
    """One Adam step (Kingma and Ba 2015) of tensors by name, in place; ``state`` gains ``adam.*``
    tensors, and starts empty.

    Torch's fused kernel ignores strides and would read an expanded gradient past its end, so all
    tensors are made contiguous. ``shares`` are the fractions of its step that each parameter takes,
    broadcast to it; None: all of it.
    """
    names = list(gradients)
    for name in names:
        if f"adam.t.{name}" not in state:
            state[f"adam.m.{name}"] = torch.zeros_like(
                gradients[name], memory_format=torch.contiguous_format
            )
            state[f"adam.v.{name}"] = torch.zeros_like(
                gradients[name], memory_format=torch.contiguous_format
            )
            state[f"adam.t.{name}"] = torch.zeros((), device=gradients[name].device)
    with torch.no_grad():
        updated = [parameters[name].contiguous() for name in names]
        if shares is None:
            before = {}
        else:
            before = {name: parameters[name].clone() for name in names}
        fused = all(value.device.type in FUSED for value in updated)
        adam(
            updated,
            [gradients[name].contiguous() for name in names],
            [state[f"adam.m.{name}"] for name in names],
            [state[f"adam.v.{name}"] for name in names],
            [],
            [state[f"adam.t.{name}"] for name in names],
            fused=fused,
            foreach=False,
            capturable=not fused,
            amsgrad=False,
            beta1=betas[0],
            beta2=betas[1],
            lr=learning_rate,
            weight_decay=0.0,
            eps=ADAM_EPSILON,
            maximize=False,
        )
        for name, value in zip(names, updated, strict=True):
            if shares is not None:
                torch.lerp(before[name], value, shares[name], out=value)
            if value is not parameters[name]:
                parameters[name].copy_(value)


def signal_shares(
    gradients: Mapping[str, Tensor],
    noise: Mapping[str, float],
    state: dict[str, Tensor],
    *,
    by_client: bool,
) -> dict[str, Tensor]:
    """The signal's share of every gradient, by name: sqrt(1 - noise variance / mean square), 0 if
    the mean square is below the variance.

    For a gradient g = s + noise of known variance, the signal's share of the energy is the factor
    of a Wiener filter on g; Adam's step has unit size for any g, so its length is scaled by the
    root. Reads private values and a constant of the plan only. ``noise`` is the standard deviation
    per coordinate, 0: all is signal; ``state`` gains ``adam.signal.*``, the running mean squares in
    units of the noise variance. There is one share a client of per-client parameters ``[clients,
    ...]``; of shared ones one per input of a matrix.
    """
    shares = {}
    for name, value in gradients.items():
        if not noise[name]:
            shares[name] = value.new_ones(())
            continue
        if by_client:
            over = tuple(range(1, value.dim()))
        else:
            over = (0,)
        count = math.prod(value.shape[dim] for dim in over)
        # vector_norm makes no squared copy; with many clients this is the largest tensor
        energy = torch.linalg.vector_norm(value, dim=over, keepdim=True).square() / (
            count * noise[name] ** 2
        )
        key = f"adam.signal.{name}"
        if key in state:
            state[key] = torch.lerp(state[key], energy, SIGNAL_RATE)
        else:
            state[key] = energy
        shares[name] = (1 - 1 / state[key].clamp_min(1)).sqrt()
    return shares


def average_step(parameters: Mapping[str, Tensor], state: dict[str, Tensor]) -> None:
    """Update the running mean ``average.*`` of the parameters (Polyak and Juditsky 1992); its count
    is on the CPU.
    """
    if "average_count" not in state:
        state["average_count"] = torch.zeros(())
        state.update(
            {f"average.{name}": torch.zeros_like(value) for name, value in parameters.items()}
        )
    state["average_count"] = state["average_count"].cpu() + 1
    weight = 1 / float(state["average_count"])
    torch._foreach_lerp_(
        [state[f"average.{name}"] for name in parameters], list(parameters.values()), weight
    )
