"""Tensors by name: a model's parameters, their sums and norms, and optimiser steps on them.

Some parameters are shared by all clients, others have a slice per client. All state is tensors, so
that a checkpoint can hold it.
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
from fedsim.privacy.noise import Deviations

ADAM_EPSILON = 1e-8
"""Adam's constant below the fraction line, as in the paper."""
SIGNAL_RATE = 0.3
"""The weight of a step's mean square in the running mean square of :func:`signal_shares`."""
ALIGNMENT = 64
"""Torch allocates memory at addresses that are multiples of this number of bytes."""


def shared_tensors(model: nn.Module) -> Tensors:
    """Return the parameters that all clients share, by name."""
    local = set(local_names(model))
    return {name: p.detach() for name, p in model.named_parameters() if name not in local}


def load_parameters(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    prefix: str = "",
) -> None:
    """Set each parameter ``NAME`` to the tensor named ``prefix`` + ``NAME``, if there is one."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            value = tensors.get(f"{prefix}{name}")
            if value is not None:
                parameter.copy_(value)


def local_names(model: nn.Module) -> list[str]:
    """Return the names of the per-client parameters, whose shape is ``[clients, ...]``."""
    return [
        name
        for path, module in model.named_modules()
        if isinstance(module, (ClientLinear, ClientCode))
        for name, _ in module.named_parameters(path, recurse=False)
    ]


def code_names(model: nn.Module) -> list[str]:
    """Return the names of the client codes."""
    return [
        f"{path}.weight" for path, module in model.named_modules() if isinstance(module, ClientCode)
    ]


def add_in_order(parts: Sequence[Tensors]) -> Tensors:
    """Return the sum of the cohorts' sums, by name.

    The cohorts are in client order, so the sum does not depend on which of them finished first.
    Terms are added in float64, and the result is rounded once, to the dtype of the first cohort's
    tensor.
    """
    terms: dict[str, list[Tensor]] = {}
    for part in parts:
        for name, value in part.items():
            terms.setdefault(name, []).append(value)
    sums = {}
    for name, values in terms.items():
        first = values[0]
        if len(values) == 1:
            sums[name] = first
        else:
            total = reduce(torch.add, (value.double() for value in values))
            sums[name] = total.to(first.dtype)
    return sums


def rounded(tensors: Tensors) -> Tensors:
    """Return the tensors with float64 rounded to float32.

    Sums are rounded after their noise is added, not before.
    """
    result = dict(tensors)
    for name, value in tensors.items():
        if value.dtype == torch.float64:
            result[name] = value.float()
    return result


def in_order(tensors: Tensors) -> Tensors:
    """Return the tensors in row-major, aligned memory, as a checkpoint restores them.

    The rounding of matrix products may depend on strides and alignment.
    """
    result = dict(tensors)
    for name, value in tensors.items():
        # Other devices may have no address to ask for, so their alignment is not tested.
        aligned = value.device.type not in FUSED or value.data_ptr() % ALIGNMENT == 0
        if not (value.is_contiguous() and aligned):
            result[name] = value.clone(memory_format=torch.contiguous_format)
    return result


def squared_sums(tensors: Tensors) -> Tensor:
    """Return the sum of squares of each tensor, ``[tensors]``, on their device."""
    flat = [value.flatten() for value in tensors.values()]
    if flat:
        return torch.stack([torch.dot(value, value) for value in flat])
    return torch.zeros(0)


def l2_norm(tensors: Tensors) -> float:
    """Return the joint L2 norm of all tensors."""
    return math.sqrt(sum(squared_sums(tensors).tolist()))


def adam_step(
    parameters: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    state: Tensors,
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
    shares: Mapping[str, Tensor] | None = None,
) -> None:
    """Take one Adam step (Kingma and Ba 2015), in place.

    Torch's fused kernel ignores strides and would read an expanded gradient past its end, so all
    tensors are made contiguous.

    Args:
        parameters: the parameters by name; those without a gradient do not change.
        gradients: the gradients by name.
        state: the optimiser's state. It starts empty and gains ``adam.*`` tensors.
        learning_rate: the step size.
        betas: the decay rates of the two running means.
        shares: the factor on the step of each parameter, which broadcasts to its shape; None: 1.
    """
    for name, gradient in gradients.items():
        if f"adam.t.{name}" not in state:
            zeros = torch.zeros_like(gradient, memory_format=torch.contiguous_format)
            state[f"adam.m.{name}"] = zeros
            state[f"adam.v.{name}"] = zeros.clone()
            state[f"adam.t.{name}"] = torch.zeros(
                (),
                device=gradient.device,
            )

    def of_state(kind: str) -> list[Tensor]:
        return [state[f"adam.{kind}.{name}"] for name in gradients]

    with torch.no_grad():
        updated = [parameters[name].contiguous() for name in gradients]
        before = {}
        if shares is not None:
            before = {name: parameters[name].clone() for name in gradients}
        fused = all(value.device.type in FUSED for value in updated)
        adam(
            updated,
            [gradient.contiguous() for gradient in gradients.values()],
            of_state("m"),
            of_state("v"),
            [],  # the maxima of which only AMSGrad makes use
            of_state("t"),
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
        for name, value in zip(gradients, updated, strict=True):
            if shares is not None:
                torch.lerp(
                    before[name],
                    value,
                    shares[name],
                    out=value,
                )
            if value is not parameters[name]:
                parameters[name].copy_(value)


def signal_shares(
    gradients: Mapping[str, Tensor],
    noise: Deviations,
    state: Tensors,
    *,
    by_client: bool,
) -> Tensors:
    """Return the factor on each gradient's Adam step that removes the part due to noise, by name.

    The factor is

        sqrt(1 - noise variance / mean square),

    or 0 if the mean square is below the noise variance. For a gradient g = signal + noise, the
    expression below the root is the signal's share of the energy of g, which is the factor of a
    Wiener filter. Adam divides by the root mean square of g, so its step is scaled by the root of
    the share. The factor is computed from noisy gradients and public numbers only, so it costs no
    epsilon.

    Args:
        gradients: noisy gradients, of at least one dimension, or two with ``by_client``.
        noise: the standard deviation of the noise per coordinate, by name; 0: all is signal.
        state: gains ``adam.signal.*``, running mean squares in units of the noise variance.
        by_client: whether gradients are ``[clients, ...]``. There is then one factor per client;
            else there is one per input of a matrix, or one for a vector.
    """
    shares = {}
    for name, value in gradients.items():
        if not noise[name]:
            shares[name] = value.new_ones(())
            continue
        if by_client:
            dims = tuple(range(1, value.dim()))
        else:
            dims = (0,)
        count = math.prod(value.shape[dim] for dim in dims)
        # vector_norm makes no squared copy; with many clients this is the largest tensor of all.
        norm = torch.linalg.vector_norm(value, dim=dims, keepdim=True)
        energy = norm.square() / (count * noise[name] ** 2)
        key = f"adam.signal.{name}"
        if key in state:
            state[key] = torch.lerp(
                state[key],
                energy,
                SIGNAL_RATE,
            )
        else:
            state[key] = energy
        shares[name] = (1 - 1 / state[key].clamp_min(1)).sqrt()
    return shares


def average_step(parameters: Mapping[str, Tensor], state: Tensors) -> None:
    """Update the running mean of the parameters over iterates (Polyak and Juditsky 1992).

    ``state`` gains the means, ``average.*``, and ``average_count``. The count is moved back to the
    CPU, since loading a checkpoint may have moved it. The parameters must be detached.
    """
    if "average_count" not in state:
        state["average_count"] = torch.zeros(())
        for name, value in parameters.items():
            state[f"average.{name}"] = torch.zeros_like(value)
    state["average_count"] = state["average_count"].cpu() + 1
    weight = 1 / float(state["average_count"])
    means = [state[f"average.{name}"] for name in parameters]
    torch._foreach_lerp_(means, list(parameters.values()), weight)
