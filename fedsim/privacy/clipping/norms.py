"""Gradient norms: the joint norm to which a unit is clipped, and every kind of layer's norms and
weighted sums for bookkeeping.

For a linear layer the gradient of example n is ``g_n a_n^T``, so its squared norm is ``|g_n|^2
|a_n|^2`` and the clipped sum is one product ``(c * g)^T a`` (Goodfellow 2015, arXiv 1510.01799; Bu
et al. 2023, "book-keeping", arXiv 2210.00038). A layer used T times an example has ``sum_st <g_s,
g_t> <a_s, a_t>`` (Li et al. 2022, "ghost norm", arXiv 2110.05679).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedsim.batch import Batch, Layout
from fedsim.device import FUSED
from fedsim.models.layers import ClientCode, ClientLinear, Shift, ZeroLinear
from fedsim.privacy.plan import Unit

Loss = Callable[[nn.Module, Batch], Tensor]
"""Per-example loss: (model, batch of N rows) to ``[N]``, or ``[N, parts]`` to be added; row n a
function of row n alone.
"""


@dataclass(frozen=True)
class Norms:
    """The clip norm, the unit, and the weights of parameters in the joint norm.

    Prefixes of parameter names end where a module's name ends: ``decoder`` covers
    ``decoder.weight``, not ``decoder2.weight``.

    Attributes:
        clip: C, the largest joint L2 norm that one unit's gradient keeps; ``inf`` clips nothing.
        unit: an example, whose gradient is clipped, or a group or client, whose summed gradient is.
        weights: factor per parameter, by the longest matching name prefix, applied before the joint
            norm is taken and kept in the sum: the caller divides by it after the noise, which is
                post-processing. 1 if no prefix matches.
        free: prefixes of the names of parameters that are neither counted in the norm nor clipped
            (``noised: shared``).
    """

    clip: float
    unit: Unit = "example"
    weights: Mapping[str, float] | None = None
    free: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.clip > 0:
            raise ValueError(f"the clip norm must be positive, not {self.clip}")
        for prefix, weight in (self.weights or {}).items():
            if not 0 < weight < math.inf:
                raise ValueError(
                    f"the weight of '{prefix}' must be positive and finite, not {weight}"
                )

    def weight(self, name: str) -> float:
        """The factor of parameter ``name``."""
        matching = [prefix for prefix in self.weights or {} if _covers(prefix, name)]
        if matching:
            return (self.weights or {})[max(matching, key=len)]
        return 1.0

    def is_free(self, name: str) -> bool:
        """Whether ``name`` is left out of the norm and the clip."""
        return any(_covers(prefix, name) for prefix in self.free)

    def factors(self, squared: Tensor) -> Tensor:
        """``min(1, C / norm)`` for squared norms ``[units]``; 0 where the norm is not finite."""
        factor = (self.clip / squared.sqrt().clamp_min(1e-12)).clamp_max(1.0)
        return factor.masked_fill(~squared.isfinite(), 0.0)


def _covers(prefix: str, name: str) -> bool:
    return name == prefix or name.startswith(prefix.rstrip(".") + ".")


Measured = tuple[Tensor, Tensor]
"""The units' norms before clipping and the examples' losses."""


def clip_units(
    gradients: Mapping[str, Tensor], norms: Norms, units: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Every unit's gradient, ``[units, ...]`` by name, weighed and clipped, for the caller to sum;
    and their joint norms before.
    """
    some = next(iter(gradients.values()), torch.zeros(units))
    squared = some.new_zeros(units)
    finite = torch.ones(units, dtype=torch.bool, device=some.device)
    for name, value in gradients.items():
        flat = value.reshape(units, -1)
        own = torch.linalg.vecdot(flat, flat)
        if norms.is_free(name):
            finite &= own.isfinite()
        else:
            squared.add_(own, alpha=norms.weight(name) ** 2)
    clip = norms.factors(squared)
    free = (finite & squared.isfinite()).to(squared.dtype)
    clipped = {}
    for name, value in gradients.items():
        factor = norms.weight(name) * (free if norms.is_free(name) else clip * free)
        broken = (factor == 0).view(-1, *[1] * (value.dim() - 1))
        clipped[name] = (value * factor.view(broken.shape)).masked_fill_(broken, 0)
    return clipped, squared.sqrt()


GRAM_SLACK = 1e-6
"""Share of the Gram products' absolute sum that is added to their sum.

Uses that cancel leave a small difference of large float32 numbers; with too small a norm a gradient
would pass unclipped.
"""


@dataclass(frozen=True)
class Use:
    """All uses of one layer in one forward pass.

    Attributes:
        layer: the layer.
        inputs: the gradient is the outer product of ``grads`` with them, ``[N, T, in]``; empty last
            dimension if there are none.
        grads: gradient of the summed loss by its output, ``[N, T, out]``.
        layout: which client each row belongs to.
    """

    layer: nn.Module
    inputs: Tensor
    grads: Tensor
    layout: Layout

    def keep_only(self, rows: Tensor) -> Use:
        """With zeros where ``rows`` (bool ``[N]``) is False; a product with 0 would keep a nan."""
        mask = ~rows[:, None, None]
        return Use(
            self.layer,
            self.inputs.masked_fill(mask, 0),
            self.grads.masked_fill(mask, 0),
            self.layout,
        )


@dataclass(frozen=True)
class Target:
    """The tensor of the parameter's shape to which a weighted sum is added, and the parameter's
    weight.
    """

    tensor: Tensor
    weight: float

    def add_product(self, left: Tensor, right: Tensor) -> None:
        """Add the weighted product of matrices, of batches of them, or of a matrix and a vector."""
        if self.tensor.device.type not in FUSED:
            self.tensor.add_(left @ right, alpha=self.weight)
        else:
            kernel = {1: Tensor.addmv_, 2: Tensor.addmm_, 3: Tensor.baddbmm_}[self.tensor.dim()]
            kernel(self.tensor, left, right, alpha=self.weight)


class LinearRule:
    """``nn.Linear``: weight and bias shared by all clients; every rule's results are by parameter
    name within the layer.
    """

    names: ClassVar[tuple[str, ...]] = ("weight", "bias")
    """The parameters that the rule covers."""

    def inputs(self, args: tuple[Any, ...], grads: Tensor) -> Tensor:
        """:attr:`Use.inputs`, ``[N, T, in]``, from the layer's arguments."""
        return by_use(args[0].detach())

    def squared(self, use: Use) -> dict[str, Tensor]:
        """Each parameter's squared norm ``[N]``, from those of inputs and output gradients, or Gram
        matrices where T > 1.
        """
        a = use.inputs
        g = use.grads
        bias = _squared_norm(_over_uses(g))
        if g.shape[1] == 1:
            # the same slack as with several uses: one group of many rows pads all groups to several
            # uses
            return {"weight": _squared_norm(a[:, 0]) * bias * (1 + GRAM_SLACK), "bias": bias}
        products = (a @ a.transpose(1, 2)) * (g @ g.transpose(1, 2))
        return {
            "weight": (products.sum((1, 2)) + GRAM_SLACK * products.abs().sum((1, 2))).clamp_min(0),
            "bias": bias,
        }

    def add(self, use: Use, factor: Tensor, into: Mapping[str, Target]) -> None:
        """Add ``weight * sum_n factor_n * gradient_n`` to every target; the narrower side is
        multiplied by the weights.
        """
        a = use.inputs.flatten(0, 1)
        g = use.grads.flatten(0, 1)
        if len(g) == len(factor):
            of_use = factor
        else:
            of_use = factor.repeat_interleave(use.grads.shape[1])
        for name, target in into.items():
            if name == "bias":
                # every example's uses are added up first, as for its norm: large uses that cancel
                # would absorb other examples' gradients
                target.add_product(_over_uses(use.grads).T, factor)
            elif a.shape[1] < g.shape[1]:
                target.add_product(g.T, a * of_use[:, None])
            else:
                target.add_product((g * of_use[:, None]).T, a)

    def per_client(self, use: Use) -> dict[str, Tensor]:
        """Each parameter's gradient summed per client ``[K, ...]``, zeros for clients without a
        row.
        """
        grads = _by_client(use, use.grads)
        span = use.layout.span
        clients = use.layout.clients
        summed = {
            "weight": grads.transpose(1, 2) @ _by_client(use, use.inputs),
            "bias": grads.sum(1),
        }
        if span == slice(0, clients):
            return summed
        whole = {name: value.new_zeros(clients, *value.shape[1:]) for name, value in summed.items()}
        for name, value in summed.items():
            whole[name][span] = value
        return whole


class ClientLinearRule(LinearRule):
    """``ClientLinear``: the same norms, one sum per client."""

    def add(self, use: Use, factor: Tensor, into: Mapping[str, Target]) -> None:
        """One weighted batched product over the padded clients."""
        span = use.layout.span
        for name, target in into.items():
            if name == "weight":
                grads = _by_client(use, use.grads * factor[:, None, None])
                Target(target.tensor[span], target.weight).add_product(
                    grads.transpose(1, 2), _by_client(use, use.inputs)
                )
            else:
                own = use.layout.pad(_over_uses(use.grads) * factor[:, None])
                target.tensor[span].add_(own.sum(1), alpha=target.weight)


class ShiftRule(LinearRule):
    """``Shift``: per-example gradients are no larger than the output, so they are computed."""

    names = ("weight",)

    def gradients(self, use: Use) -> Tensor:
        """Per-example gradients ``[N, size]``, the output's; a single number shifts every
        column.
        """
        assert isinstance(use.layer, Shift)
        gradient = use.grads.sum(1)
        if use.layer.weight.numel() == 1:
            return gradient.sum(1, keepdim=True)
        return gradient

    def squared(self, use: Use) -> dict[str, Tensor]:
        """Squared norms of the per-example gradients."""
        return {"weight": _squared_norm(self.gradients(use))}

    def add(self, use: Use, factor: Tensor, into: Mapping[str, Target]) -> None:
        """Weighted sum over examples."""
        into["weight"].tensor.add_(factor @ self.gradients(use), alpha=into["weight"].weight)

    def per_client(self, use: Use) -> dict[str, Tensor]:
        """Summed by client."""
        gradients = self.gradients(use)
        return {
            "weight": gradients.new_zeros(use.layout.clients, gradients.shape[-1]).index_add(
                0, use.layout.client, gradients
            )
        }


class ClientCodeRule(ShiftRule):
    """``ClientCode``: the gradient of the per-example input, added to its client's row."""

    def inputs(self, args: tuple[Any, ...], grads: Tensor) -> Tensor:
        """An empty last dimension: the gradient is the output's own."""
        return grads[..., :0]

    def gradients(self, use: Use) -> Tensor:
        """By the client's own row ``[N, size]``."""
        return use.grads.sum(1)

    def add(self, use: Use, factor: Tensor, into: Mapping[str, Target]) -> None:
        """Weighted, to each client's row."""
        weighted = self.gradients(use) * factor[:, None]
        into["weight"].tensor.index_add_(
            0, use.layout.client, weighted, alpha=into["weight"].weight
        )


RULES: dict[type[nn.Module], LinearRule] = {
    nn.Linear: LinearRule(),
    ZeroLinear: LinearRule(),
    ClientLinear: ClientLinearRule(),
    ClientCode: ClientCodeRule(),
    Shift: ShiftRule(),
}
PER_CLIENT = (ClientLinear, ClientCode)
"""Layers whose parameters have one slice per client."""


def by_use(values: Tensor) -> Tensor:
    """``[N, ..., m]`` to ``[N, T, m]``."""
    if values.dim() == 2:
        return values.unsqueeze(1)
    return values.flatten(1, -2)


def _over_uses(grads: Tensor) -> Tensor:
    """``[N, T, m]`` added up to ``[N, m]``, without a copy for T = 1."""
    if grads.shape[1] == 1:
        return grads[:, 0]
    return grads.sum(1)


def _squared_norm(rows: Tensor) -> Tensor:
    """``[N, m]`` to ``[N]``."""
    norm: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return norm.square()


def _by_client(use: Use, values: Tensor) -> Tensor:
    """``[N, T, m]`` to ``[clients in the span, width * T, m]``."""
    return use.layout.pad(values).flatten(1, 2)
