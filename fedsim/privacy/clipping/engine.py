"""One function for every algorithm: the sum of clipped per-unit gradients, by the engine of one's choice."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from fedsim.batch import Batch
from fedsim.models.layers import ClientCode, ClientLinear
from fedsim.privacy.plan import Unit

Loss = Callable[[nn.Module, Batch], Tensor]
"""Per-example loss: (model, batch of N rows) to ``[N]``, or ``[N, parts]`` to be added; row n a function of row n alone."""


@dataclass(frozen=True)
class Norms:
    """What is clipped, to what, and how its parts are weighed against each other.

    Prefixes of parameter names end where a module's name ends: ``decoder`` covers ``decoder.weight``, not ``decoder2.weight``.

    Attributes:
        clip: C, the largest joint L2 norm that one unit's gradient keeps; ``inf`` clips nothing.
        unit: what is clipped as one: each example's gradient, or the sum of each client's.
        weights: factor per parameter, by the longest matching name prefix, applied before the joint norm is taken and kept in the
            sum: the caller divides by it after the noise, which is post-processing. 1 where no prefix matches.
        free: prefixes of the names of parameters that are neither counted in the norm nor clipped (``scope: hypernetwork``).

    Raises:
        ValueError: ``clip`` is not positive, or a weight is not positive and finite.
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
                raise ValueError(f"the weight of '{prefix}' must be positive and finite, not {weight}")

    def weight(self, name: str) -> float:
        """The factor of parameter ``name``."""
        matching = [prefix for prefix in self.weights or {} if _covers(prefix, name)]
        return (self.weights or {})[max(matching, key=len)] if matching else 1.0

    def is_free(self, name: str) -> bool:
        """Whether ``name`` is left out of the norm and the clip."""
        return any(_covers(prefix, name) for prefix in self.free)

    def factors(self, squared: Tensor) -> Tensor:
        """``min(1, C / norm)`` for squared norms ``[units]``; 0 where the norm is not finite."""
        factor = (self.clip / squared.sqrt().clamp_min(1e-12)).clamp_max(1.0)
        return factor.masked_fill(~squared.isfinite(), 0.0)


def _covers(prefix: str, name: str) -> bool:
    return name == prefix or name.startswith(prefix.rstrip(".") + ".")


@dataclass(frozen=True)
class ClippedSum:
    """The result of :func:`clipped_sum`.

    Attributes:
        sums: by parameter name, the sum over units of clipped, weighted gradients; the parameter's own shape.
        norms: each unit's joint norm before clipping, ``[N]`` examples or ``[K]`` clients: private, for diagnostics only.
        loss: each example's loss ``[N]`` or ``[N, parts]``: private, for diagnostics only.
    """

    sums: dict[str, Tensor]
    norms: Tensor
    loss: Tensor


Measured = tuple[Tensor, Tensor]
"""The units' norms before clipping and the examples' losses."""


class Engine(Protocol):
    """How the clipped sum is computed."""

    def __call__(self, model: nn.Module, loss: Loss, batch: Batch, norms: Norms, sums: dict[str, Tensor]) -> Measured:
        """Add the clipped sum to ``sums``, which holds every trainable parameter, in place; see :func:`clipped_sum`."""


def _engines() -> dict[str, Engine]:
    from fedsim.privacy.clipping.bookkeeping import bookkeeping
    from fedsim.privacy.clipping.materialised import opacus_hooks, vmap

    return {"bookkeeping": bookkeeping, "opacus": opacus_hooks, "vmap": vmap}


CHUNK = 256
"""Examples that are computed on at a time: what they leave behind fits a processor's cache, and memory does not grow with the batch."""

ENGINES = ("bookkeeping", "opacus", "vmap")


def clipped_sum(
    model: nn.Module,
    loss: Loss,
    batch: Batch,
    norms: Norms,
    engine: str = "bookkeeping",
    onto: Mapping[str, Tensor] | None = None,
) -> ClippedSum:
    """The sum over units u of ``min(1, C / |w * g_u|) * w * g_u``, g_u the gradient of u's loss by all parameters jointly.

    Removing one unit changes the result by at most C in L2 norm over all parameters that are not free: the sensitivity
    that the Gaussian mechanism needs (Abadi et al. 2016, algorithm 1, under add/remove-one). A unit whose gradient is not finite
    counts as 0: a nan that went through would show that the unit is there.

    Args:
        model: its trainable parameters are what the gradient is taken by.
        loss: the per-example loss; called with a part of the batch at a time where the unit is an example.
        batch: the rows, sorted by client; may be empty.
        norms: the clip norm, the unit, the weights and the free parameters.
        engine: ``bookkeeping`` (one forward, one backward, no gradient with a batch dimension), ``opacus`` or ``vmap``
            (both hold every per-example gradient; references, and for layers the first does not cover).
        onto: by parameter name, tensors that the sums are added to in place, such as the noise, which saves a pass over them; the
            result holds these tensors. Zeros for what is not named.

    Raises:
        ValueError: a parameter that the engine cannot cover (named), a layer that did not see one row per example, a module that
            uses batch statistics, draws from the global generator or keeps state from its forward, or rows out of order.
    """
    modules = dict(model.named_modules())
    _refuse_modules(modules, batch)
    _refuse_disorder(batch)
    given = onto or {}
    sums = {name: given[name] if name in given else torch.zeros_like(p) for name, p in model.named_parameters() if p.requires_grad}
    if len(batch) == 0:
        units = 0 if norms.unit == "example" else batch.layout.clients
        return ClippedSum(sums, batch.x.new_zeros(units), batch.x.new_zeros(0))

    def one_each(model: nn.Module, batch: Batch) -> Tensor:
        losses = loss(model, batch)
        if losses.dim() not in (1, 2) or len(losses) != len(batch):
            raise ValueError(
                f"the loss has shape {list(losses.shape)}, not one number, or one row of parts, for each of {len(batch)} examples"
            )
        return losses

    before = _state(modules)
    parts = batch.chunks(CHUNK) if norms.unit == "example" else [batch]
    measured = [_engines()[engine](model, one_each, part, norms, sums) for part in parts]
    _refuse_changes(before, _state(modules))
    unit_norms, losses = (torch.cat(values) for values in zip(*measured, strict=True))
    return ClippedSum(sums, unit_norms, losses)


def clip_units(gradients: Mapping[str, Tensor], norms: Norms, units: int) -> tuple[dict[str, Tensor], Tensor]:
    """Weigh and clip every unit's gradient; the caller sums.

    Args:
        gradients: by parameter name, ``[units, ...]`` each.
        norms: the clip norm, the weights and the free parameters.
        units: how many there are.

    Returns:
        Clipped gradients in the same shapes, and the units' joint norms before ``[units]``.
    """
    squared, finite = _joint_squared(gradients, norms, units)
    clip, free = norms.factors(squared), finite.to(squared.dtype)
    clipped = {}
    for name, value in gradients.items():
        factor = norms.weight(name) * (free if norms.is_free(name) else clip * free)
        broken = (factor == 0).view(-1, *[1] * (value.dim() - 1))
        clipped[name] = (value * factor.view(broken.shape)).masked_fill_(broken, 0)
    return clipped, squared.sqrt()


def _joint_squared(gradients: Mapping[str, Tensor], norms: Norms, units: int) -> tuple[Tensor, Tensor]:
    some = next(iter(gradients.values()), torch.zeros(units))
    squared, finite = some.new_zeros(units), torch.ones(units, dtype=torch.bool, device=some.device)
    for name, value in gradients.items():
        flat = value.reshape(units, -1)
        own = torch.linalg.vecdot(flat, flat)
        if norms.is_free(name):
            finite &= own.isfinite()
        else:
            squared.add_(own, alpha=norms.weight(name) ** 2)
    return squared, finite & squared.isfinite()


def _refuse_modules(modules: Mapping[str, nn.Module], batch: Batch) -> None:
    for path, module in modules.items():
        if isinstance(module, ClientLinear | ClientCode) and len(module.weight) != batch.layout.clients:
            raise ValueError(f"'{path}' has weights for {len(module.weight)} clients, its batch {batch.layout.clients}")
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ValueError(f"'{path}' normalises by batch statistics: an example's gradient would depend on the others")
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
            raise ValueError(f"'{path}' draws from the global generator; take its draws from the batch's noise")


def _refuse_disorder(batch: Batch) -> None:
    if not len(batch) == len(batch.y) == len(batch.layout.client):
        raise ValueError(f"{len(batch)} rows, {len(batch.y)} labels and {len(batch.layout.client)} client numbers in a batch")
    client = batch.layout.client.tolist()
    if client and not (client == sorted(client) and client[0] >= 0 and client[-1] < batch.layout.clients):
        raise ValueError(f"the rows are not sorted by client, or a client is not one of 0 to {batch.layout.clients - 1}")


def _state(modules: Mapping[str, nn.Module]) -> dict[str, tuple[Tensor, int]]:
    """Which tensors a model holds, and how often each was written."""
    return {
        f"{path}.{name}".removeprefix("."): (tensor, tensor._version)
        for path, module in modules.items()
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }


def _refuse_changes(before: Mapping[str, tuple[Tensor, int]], after: Mapping[str, tuple[Tensor, int]]) -> None:
    for name in {**before, **after}:
        (old, old_version), (new, new_version) = before.get(name, (None, 0)), after.get(name, (None, 0))
        if old is not new or old_version != new_version:
            raise ValueError(f"the loss changed '{name}' of the model: what it keeps there would leave without noise")
