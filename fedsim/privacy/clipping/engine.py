"""One function for every algorithm: the sum of clipped per-unit gradients, by the engine of one's choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from fedsim.batch import Batch
from fedsim.privacy.plan import Unit

Loss = Callable[[nn.Module, Batch], Tensor]
"""Per-example loss: (model, batch of N rows) to ``[N]``, row n a function of row n alone."""


@dataclass(frozen=True)
class Norms:
    """What is clipped, to what, and how its parts are weighed against each other.

    Attributes:
        clip: C, the largest joint L2 norm that one unit's gradient keeps; ``inf`` clips nothing.
        unit: what is clipped as one: each example's gradient, or the sum of each client's.
        weights: factor per parameter, by the longest matching name prefix, applied before the joint norm is taken and kept in the
            sum: the caller divides by it after the noise, which is post-processing. 1 where no prefix matches.
        free: prefixes of the names of parameters that are neither counted in the norm nor clipped (``scope: hypernetwork``).
    """

    clip: float
    unit: Unit = "example"
    weights: Mapping[str, float] | None = None
    free: tuple[str, ...] = ()

    def weight(self, name: str) -> float:
        """The factor of parameter ``name``."""
        matching = [prefix for prefix in self.weights or {} if name.startswith(prefix)]
        return (self.weights or {})[max(matching, key=len)] if matching else 1.0

    def is_free(self, name: str) -> bool:
        """Whether ``name`` is left out of the norm and the clip."""
        return any(name.startswith(prefix) for prefix in self.free)

    def factors(self, squared: Tensor) -> Tensor:
        """``min(1, C / norm)`` for squared norms ``[units]``."""
        return (self.clip / squared.sqrt().clamp_min(1e-12)).clamp_max(1.0)


@dataclass(frozen=True)
class ClippedSum:
    """The result of :func:`clipped_sum`.

    Attributes:
        sums: by parameter name, the sum over units of clipped, weighted gradients; the parameter's own shape.
        norms: each unit's joint norm before clipping, ``[N]`` examples or ``[K]`` clients: private, for diagnostics only.
        loss: each example's loss ``[N]``: private, for diagnostics only.
    """

    sums: dict[str, Tensor]
    norms: Tensor
    loss: Tensor


class Engine(Protocol):
    """How the clipped sum is computed."""

    def __call__(self, model: nn.Module, loss: Loss, batch: Batch, norms: Norms) -> ClippedSum:
        """See :func:`clipped_sum`."""


def _engines() -> dict[str, Engine]:
    from fedsim.privacy.clipping.bookkeeping import bookkeeping
    from fedsim.privacy.clipping.materialised import opacus_hooks, vmap

    return {"bookkeeping": bookkeeping, "opacus": opacus_hooks, "vmap": vmap}


ENGINES = ("bookkeeping", "opacus", "vmap")


def clipped_sum(model: nn.Module, loss: Loss, batch: Batch, norms: Norms, engine: str = "bookkeeping") -> ClippedSum:
    """The sum over units u of ``min(1, C / |w * g_u|) * w * g_u``, g_u the gradient of u's loss by all parameters jointly.

    Removing one unit changes the result by at most C in L2 norm over all parameters that are not free: the sensitivity
    that the Gaussian mechanism needs (Abadi et al. 2016, algorithm 1, under add/remove-one).

    Args:
        model: its trainable parameters are what the gradient is taken by.
        loss: the per-example loss ``[N]``.
        batch: the rows, sorted by client; may be empty.
        norms: the clip norm, the unit, the weights and the free parameters.
        engine: ``bookkeeping`` (one forward, one backward, no gradient with a batch dimension), ``opacus`` or ``vmap``
            (both hold every per-example gradient; references, and for layers the first does not cover).

    Raises:
        ValueError: a parameter that the engine cannot cover (named), or a layer that did not see one row per example.
    """
    if len(batch) == 0:
        sums = {name: torch.zeros_like(p) for name, p in model.named_parameters() if p.requires_grad}
        units = 0 if norms.unit == "example" else batch.layout.clients
        return ClippedSum(sums, batch.x.new_zeros(units), batch.x.new_zeros(0))
    return _engines()[engine](model, loss, batch, norms)
