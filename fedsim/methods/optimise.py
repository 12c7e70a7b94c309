"""Adam on tensors by name, with its state as tensors by name, so that a checkpoint is a dictionary."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.optim.adam import adam

from fedsim.device import FUSED

EPSILON = 1e-8
SIGNAL_RATE = 0.3
"""Weight of a step's mean square in its running mean."""
Dims = Callable[[Tensor], tuple[int, ...]]


def adam_step(
    parameters: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    state: dict[str, Tensor],
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
    shares: Mapping[str, Tensor] | None = None,
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
        shares: by the same names, the share of its step that each parameter goes, broadcast to it; None: all of it.
    """
    names = list(gradients)
    for name in names:
        if f"adam.t.{name}" not in state:
            state[f"adam.m.{name}"] = torch.zeros_like(gradients[name], memory_format=torch.contiguous_format)
            state[f"adam.v.{name}"] = torch.zeros_like(gradients[name], memory_format=torch.contiguous_format)
            state[f"adam.t.{name}"] = torch.zeros((), device=gradients[name].device)
    with torch.no_grad():
        updated = [parameters[name].contiguous() for name in names]
        before = {} if shares is None else {name: parameters[name].clone() for name in names}
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
            if shares is not None:
                torch.lerp(before[name], value, shares[name], out=value)
            if value is not parameters[name]:
                parameters[name].copy_(value)


def signal_shares(gradients: Mapping[str, Tensor], noise: Mapping[str, float], state: dict[str, Tensor], dims: Dims) -> dict[str, Tensor]:
    """How much of each gradient is not noise, by name: sqrt(1 - noise variance / mean square), 0 where there is not even the noise.

    Of a gradient g = s + noise of known variance the share of the signal's energy is what a Wiener filter would leave of g; Adam's step
    has unit size whatever g is, so its length is scaled by the root. Reads what is private already and a constant of the plan.

    Args:
        gradients: noisy means by name.
        noise: standard deviation of each one's noise per coordinate; 0: none, all of it is signal.
        state: gains ``adam.signal.*``, the running mean squares in units of the noise variance.
        dims: over which dimensions of a gradient its mean square is taken.
    """
    shares = {}
    for name, value in gradients.items():
        if not noise[name]:
            shares[name] = value.new_ones(())
            continue
        over = dims(value)
        count = math.prod(value.shape[dim] for dim in over)
        # a norm makes no copy of what, with many clients, is the largest tensor of all
        energy = torch.linalg.vector_norm(value, dim=over, keepdim=True).square() / (count * noise[name] ** 2)
        key = f"adam.signal.{name}"
        state[key] = torch.lerp(state[key], energy, SIGNAL_RATE) if key in state else energy
        shares[name] = (1 - 1 / state[key].clamp_min(1)).sqrt()
    return shares


def by_input(gradient: Tensor) -> tuple[int, ...]:
    """A shared parameter's: all outputs of an input have one share, and all of a vector."""
    return (0,)


def by_client(gradient: Tensor) -> tuple[int, ...]:
    """A per-client parameter's, ``[clients, ...]``: all that is a client's has one share."""
    return tuple(range(1, gradient.dim()))


def average_step(parameters: Mapping[str, Tensor], state: dict[str, Tensor]) -> None:
    """Take the parameters into their running mean ``average.*`` (Polyak and Juditsky 1992); they are counted on the CPU."""
    if "average_count" not in state:
        state["average_count"] = torch.zeros(())
        state.update({f"average.{name}": torch.zeros_like(value) for name, value in parameters.items()})
    state["average_count"] = state["average_count"].cpu() + 1
    weight = 1 / float(state["average_count"])
    torch._foreach_lerp_([state[f"average.{name}"] for name in parameters], list(parameters.values()), weight)
