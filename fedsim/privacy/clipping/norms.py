"""Gradient norms: how a unit's gradient is clipped, and the rules of the bookkeeping engine.

The bookkeeping engine (:mod:`fedsim.privacy.clipping.bookkeeping`) makes no per-example gradients.
It has one rule for each kind of layer, which computes the gradients' norms and their weighted sums.
For a linear layer with input a_n and output gradient g_n, the weight's gradient of example n is
``g_n a_n^T``. Its squared norm is

    |g_n|^2 |a_n|^2

and, for factors c_n that clip the examples, the clipped sum is

    sum_n c_n g_n a_n^T = (c * g)^T a

(Goodfellow 2015, arXiv 1510.01799; Bu et al. 2023, "book-keeping", arXiv 2210.00038). If an example
uses the layer T times, with inputs a_1 .. a_T and output gradients g_1 .. g_T, the squared norm is

    sum_st <g_s, g_t> <a_s, a_t>

(Li et al. 2022, "ghost norm", arXiv 2110.05679).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedsim.batch import Batch, Layout
from fedsim.device import FUSED
from fedsim.models.layers import ClientCode, ClientLinear, Shift, ZeroLinear
from fedsim.privacy.plan import Unit

Loss = Callable[[nn.Module, Batch], Tensor]
"""A per-example loss: it maps a model and a batch of N rows to ``[N]``, or to ``[N, parts]``.

Parts are added. Row n of the result is a function of row n of the batch alone.
"""


@dataclass(frozen=True)
class Norms:
    """The clip norm, the unit, and the weights of parameters in the joint norm.

    A prefix is the name of a module or of a parameter: ``decoder`` covers ``decoder.weight``, not
    ``decoder2.weight``.

    Attributes:
        clip: C, the largest joint L2 norm that one unit's gradient keeps; ``inf`` clips nothing.
        unit: what is clipped: the gradient of one example, or the sum of the gradients of all
            examples of one group or client.
        weights: the factor of each parameter, by the longest matching name prefix, 1 if none
            matches. It is applied before the joint norm is taken and stays in the sum: the caller
            divides by it after the noise, which is post-processing.
        free: prefixes of the names of parameters that are neither counted in the norm nor clipped
            (``noised: shared``).
    """

    clip: float
    unit: Unit = "example"
    weights: Mapping[str, float] = field(default_factory=dict)
    free: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.clip > 0:
            raise ValueError(f"the clip norm must be positive, not {self.clip}")
        for prefix, weight in self.weights.items():
            if not prefix:
                raise ValueError(
                    "a weight has an empty name; give the name of a parameter or module"
                )
            if not 0 < weight < math.inf:
                raise ValueError(
                    f"the weight of '{prefix}' must be positive and finite, not {weight}"
                )

    def weight(self, name: str) -> float:
        """Return the factor of parameter ``name``."""
        matching = [prefix for prefix in self.weights if _covers(prefix, name)]
        if matching:
            return self.weights[max(matching, key=len)]
        return 1.0

    def is_free(self, name: str) -> bool:
        """Return whether parameter ``name`` is left out of the norm and not clipped."""
        return any(_covers(prefix, name) for prefix in self.free)

    def factors(self, squared: Tensor) -> Tensor:
        """Return ``min(1, C / norm)`` for squared norms ``[units]``; 0 for those not finite."""
        factor = (self.clip / squared.sqrt().clamp_min(1e-12)).clamp_max(1.0)
        return factor.masked_fill(~squared.isfinite(), 0.0)


def _covers(prefix: str, name: str) -> bool:
    return name == prefix or name.startswith(prefix.rstrip(".") + ".")


Measured = tuple[Tensor, Tensor]
"""The units' joint norms before clipping ``[units]``, and the losses ``[N]`` or ``[N, parts]``."""


def clip_units(
    gradients: Mapping[str, Tensor],
    norms: Norms,
    units: int,
) -> tuple[dict[str, Tensor], Tensor]:
    """Multiply the gradient of every unit by the weights and clip it.

    A unit whose gradient is not finite gets the gradient 0.

    Args:
        gradients: the gradients by parameter name, ``[units, ...]`` each.
        norms: the clip norm, the weights and the free parameters.
        units: the number of units.

    Returns:
        The weighted and clipped gradients by name ``[units, ...]``, which the caller sums, and the
        units' joint norms ``[units]`` after weighting and before clipping.
    """
    any_gradient = next(iter(gradients.values()), torch.zeros(units))
    squared = any_gradient.new_zeros(units)
    is_finite = torch.ones(
        units,
        dtype=torch.bool,
        device=any_gradient.device,
    )
    for name, gradient in gradients.items():
        flat = gradient.reshape(units, -1)
        squared_of_parameter = torch.linalg.vecdot(flat, flat)
        if norms.is_free(name):
            is_finite &= squared_of_parameter.isfinite()
        else:
            squared.add_(squared_of_parameter, alpha=norms.weight(name) ** 2)
    clip_factor = norms.factors(squared)
    keep_factor = (is_finite & squared.isfinite()).to(squared.dtype)  # 0 or 1
    clipped = {}
    for name, gradient in gradients.items():
        unit_factor = keep_factor if norms.is_free(name) else clip_factor * keep_factor
        factor = norms.weight(name) * unit_factor
        factor = factor.view(-1, *[1] * (gradient.dim() - 1))
        # 0 times a nan is a nan, so where the factor is 0 the gradient is overwritten with 0.
        clipped[name] = (gradient * factor).masked_fill_(factor == 0, 0)
    return clipped, squared.sqrt()


GRAM_SLACK = 1e-6
"""The slack that is added to a squared norm, as a share of the sum of its terms' absolute values.

The terms are the products of Gram matrices in :meth:`LinearRule.squared`. If an example's uses of a
layer cancel, the squared norm is a small difference of large float32 numbers. Without the slack,
rounding could make it too small, and the gradient would pass unclipped.
"""


@dataclass(frozen=True)
class Use:
    """All uses of one layer in one forward pass.

    Attributes:
        layer: the layer.
        inputs: the layer's inputs, ``[N, T, in]``, where T is the number of times that an example
            uses the layer. The gradient of a linear layer's weight is the sum over T of the outer
            products of ``grads`` and ``inputs``. For a layer without inputs, ``in`` is 0.
        grads: the gradient of the summed loss with respect to the layer's output, ``[N, T, out]``.
        layout: the client of each row.
    """

    layer: nn.Module
    inputs: Tensor
    grads: Tensor
    layout: Layout

    def keep_only(self, rows: Tensor) -> Use:
        """Return the use with zeros where ``rows`` (bool ``[N]``) is False.

        A product with 0 would keep a nan.
        """
        mask = ~rows[:, None, None]
        inputs = self.inputs.masked_fill(mask, 0)
        grads = self.grads.masked_fill(mask, 0)
        return replace(self, inputs=inputs, grads=grads)


@dataclass(frozen=True)
class Target:
    """The sum ``weight * sum_n factor_n * gradient_n`` of one parameter, and where it is added.

    Attributes:
        tensor: the tensor to which the sum is added in place.
        weight: the weight of the parameter.
        factor: the factor of every example, ``[N]``.
    """

    tensor: Tensor
    weight: float
    factor: Tensor

    def add_product(self, left: Tensor, right: Tensor) -> None:
        """Add the weighted product of matrices, batches of matrices, or a matrix and a vector."""
        if self.tensor.device.type not in FUSED:
            self.tensor.add_(left @ right, alpha=self.weight)
            return
        by_dimension = {
            1: Tensor.addmv_,
            2: Tensor.addmm_,
            3: Tensor.baddbmm_,
        }
        add = by_dimension[self.tensor.dim()]
        add(self.tensor, left, right, alpha=self.weight)


class LinearRule:
    """The rule of ``nn.Linear``, whose weight and bias all clients share.

    The results of every rule are by parameter name within the layer.
    """

    names: ClassVar[tuple[str, ...]] = ("weight", "bias")
    """The parameters that the rule covers."""

    def inputs(
        self,
        args: tuple[Any, ...],
        grads: Tensor,
    ) -> Tensor:
        """Return :attr:`Use.inputs`, ``[N, T, in]``, from the arguments of the layer's call."""
        return by_use(args[0].detach())

    def squared(self, use: Use) -> dict[str, Tensor]:
        """Return the squared norm of each parameter's gradient per example, ``[N]``."""
        a = use.inputs
        g = use.grads
        bias = _squared_norm(_over_uses(g))
        if g.shape[1] == 1:
            # The slack is the same as for several uses. If one group of a batch has many rows, all
            # groups are padded to several uses, and that must not change the norm of a group.
            return {
                "weight": _squared_norm(a[:, 0]) * bias * (1 + GRAM_SLACK),
                "bias": bias,
            }
        input_gram = a @ a.transpose(1, 2)  # <a_s, a_t>, [N, T, T]
        grad_gram = g @ g.transpose(1, 2)  # <g_s, g_t>, [N, T, T]
        products = input_gram * grad_gram
        slack = GRAM_SLACK * products.abs().sum((1, 2))
        weight = (products.sum((1, 2)) + slack).clamp_min(0)
        return {"weight": weight, "bias": bias}

    def add(self, use: Use, name: str, target: Target) -> None:
        """Add the weighted sum of the gradients of parameter ``name`` to its target."""
        factor = target.factor
        if name == "bias":
            # An example's uses are added first, as for its norm: large uses that cancel would
            # otherwise absorb other examples' gradients.
            target.add_product(_over_uses(use.grads).T, factor)
            return
        a = use.inputs.flatten(0, 1)
        g = use.grads.flatten(0, 1)
        if len(g) != len(factor):
            factor = factor.repeat_interleave(use.grads.shape[1])
        # It is faster to multiply the narrower side by the factors.
        if a.shape[1] < g.shape[1]:
            target.add_product(g.T, a * factor[:, None])
        else:
            target.add_product((g * factor[:, None]).T, a)

    def per_client(self, use: Use) -> dict[str, Tensor]:
        """Return each parameter's gradient summed per client, ``[K, ...]``.

        It is zero for a client without a row.
        """
        grads = _by_client(use, use.grads)
        inputs = _by_client(use, use.inputs)
        in_span = {
            "weight": grads.transpose(1, 2) @ inputs,
            "bias": grads.sum(1),
        }
        span = use.layout.span
        clients = use.layout.clients
        if span == slice(0, clients):
            return in_span
        of_all = {}
        for name, value in in_span.items():
            of_all[name] = value.new_zeros(
                clients,
                *value.shape[1:],
            )
            of_all[name][span] = value
        return of_all


class ClientLinearRule(LinearRule):
    """The rule of ``ClientLinear``: the norms of a linear layer, and one sum per client."""

    def add(self, use: Use, name: str, target: Target) -> None:
        """Add one weighted batched product over the padded clients; see :meth:`LinearRule.add`."""
        of_span = replace(target, tensor=target.tensor[use.layout.span])
        if name == "bias":
            weighted = _over_uses(use.grads) * target.factor[:, None]
            by_client = use.layout.pad(weighted).sum(1)
            of_span.tensor.add_(by_client, alpha=target.weight)
            return
        grads = _by_client(
            use,
            use.grads * target.factor[:, None, None],
        )
        inputs = _by_client(use, use.inputs)
        of_span.add_product(grads.transpose(1, 2), inputs)


class ShiftRule(LinearRule):
    """The rule of ``Shift``, which computes per-example gradients: they are small."""

    names = ("weight",)

    def gradients(self, use: Use) -> Tensor:
        """Return each example's gradient ``[N, size]``, which is that of the output.

        If the weight is a single number, it shifts every column of the output. Its gradient is then
        the sum over the columns.
        """
        assert isinstance(use.layer, Shift)
        gradient = use.grads.sum(1)
        if use.layer.weight.numel() == 1:
            return gradient.sum(1, keepdim=True)
        return gradient

    def squared(self, use: Use) -> dict[str, Tensor]:
        """Return the squared norms of the per-example gradients, ``[N]``."""
        return {"weight": _squared_norm(self.gradients(use))}

    def add(self, use: Use, name: str, target: Target) -> None:
        """Add the weighted sum over examples; see :meth:`LinearRule.add`."""
        target.tensor.add_(
            target.factor @ self.gradients(use),
            alpha=target.weight,
        )

    def per_client(self, use: Use) -> dict[str, Tensor]:
        """Return the gradient summed per client, ``[K, size]``."""
        gradients = self.gradients(use)
        sums = gradients.new_zeros(
            use.layout.clients,
            gradients.shape[-1],
        )
        return {"weight": sums.index_add(0, use.layout.client, gradients)}


class ClientCodeRule(ShiftRule):
    """The rule of ``ClientCode``: an example's gradient is added to the row of its client."""

    def inputs(
        self,
        args: tuple[Any, ...],
        grads: Tensor,
    ) -> Tensor:
        """Return inputs with an empty last dimension: the gradient is that of the output."""
        return grads[..., :0]

    def gradients(self, use: Use) -> Tensor:
        """Return each example's gradient by its client's code, ``[N, size]``."""
        return use.grads.sum(1)

    def add(self, use: Use, name: str, target: Target) -> None:
        """Add the weighted gradients to their clients' rows; see :meth:`LinearRule.add`."""
        weighted = self.gradients(use) * target.factor[:, None]
        target.tensor.index_add_(
            0,
            use.layout.client,
            weighted,
            alpha=target.weight,
        )


RULES: dict[type[nn.Module], LinearRule] = {
    nn.Linear: LinearRule(),
    ZeroLinear: LinearRule(),
    ClientLinear: ClientLinearRule(),
    ClientCode: ClientCodeRule(),
    Shift: ShiftRule(),
}
"""The rule of every layer type that bookkeeping covers."""
PER_CLIENT = (ClientLinear, ClientCode)
"""The layers whose parameters have one slice per client."""


def by_use(values: Tensor) -> Tensor:
    """Reshape ``[N, ..., m]`` to ``[N, T, m]``, where T is the number of uses per example."""
    if values.dim() == 2:
        return values.unsqueeze(1)
    return values.flatten(1, -2)


def _over_uses(grads: Tensor) -> Tensor:
    """Sum ``[N, T, m]`` over the uses to ``[N, m]``, without a copy for T = 1."""
    if grads.shape[1] == 1:
        return grads[:, 0]
    return grads.sum(1)


def _squared_norm(rows: Tensor) -> Tensor:
    """Return the squared norms ``[N]`` of rows ``[N, m]``."""
    norm: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return norm.square()


def _by_client(use: Use, values: Tensor) -> Tensor:
    """Return ``[N, T, m]`` by client, ``[clients in the span, width * T, m]``, filled with zeros.

    The span is the clients from the first to the last one with a row, and the width is the largest
    number of rows of one client (:class:`fedsim.batch.Layout`).
    """
    return use.layout.pad(values).flatten(1, 2)
