"""Adam on tensors by name, with its state as tensors by name, so that a checkpoint is a dictionary."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim.adam import adam

from fedsim.device import FUSED

EPSILON = 1e-8


def adam_step(
    parameters: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    state: dict[str, Tensor],
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
) -> None:
    """One Adam step (Kingma and Ba 2015) in place; ``state`` gains ``adam.*`` tensors, and starts empty.

    Torch's fused kernel reads memory in order, whatever the strides are: an expanded gradient would be read past
    its end. So it is handed contiguous tensors only.

    Args:
        parameters: what is updated; stacked parameters of several clients are updated elementwise.
        gradients: by the same names.
        state: moments and step counts.
        learning_rate: step size.
        betas: decay rates of the two moments.
    """
    names = list(gradients)
    for name in names:
        if f"adam.t.{name}" not in state:
            state[f"adam.m.{name}"] = torch.zeros_like(gradients[name], memory_format=torch.contiguous_format)
            state[f"adam.v.{name}"] = torch.zeros_like(gradients[name], memory_format=torch.contiguous_format)
            state[f"adam.t.{name}"] = torch.zeros((), device=gradients[name].device)
    with torch.no_grad():
        updated = [parameters[name].contiguous() for name in names]
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
            eps=EPSILON,
            maximize=False,
        )
        for name, value in zip(names, updated, strict=True):
            if value is not parameters[name]:
                parameters[name].copy_(value)


def average_step(parameters: Mapping[str, Tensor], state: dict[str, Tensor]) -> None:
    """Take the parameters into their running mean ``average.*`` (Polyak and Juditsky 1992); they are counted on the CPU."""
    if "average_count" not in state:
        state["average_count"] = torch.zeros(())
        state.update({f"average.{name}": torch.zeros_like(value) for name, value in parameters.items()})
    state["average_count"] = state["average_count"].cpu() + 1
    weight = 1 / float(state["average_count"])
    torch._foreach_lerp_([state[f"average.{name}"] for name in parameters], list(parameters.values()), weight)
