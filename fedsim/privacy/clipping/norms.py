"""The joint norm to which a unit's gradient is clipped: clip norm, unit, weights and free parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedsim.batch import Batch
from fedsim.privacy.plan import Unit

Loss = Callable[[nn.Module, Batch], Tensor]
"""Per-example loss: (model, batch of N rows) to ``[N]``, or ``[N, parts]`` to be added; row n a function of row n alone."""


@dataclass(frozen=True)
class Norms:
    """The clip norm, the unit, and the weights of parameters in the joint norm.

    Prefixes of parameter names end where a module's name ends: ``decoder`` covers ``decoder.weight``, not ``decoder2.weight``.

    Attributes:
        clip: C, the largest joint L2 norm that one unit's gradient keeps; ``inf`` clips nothing.
        unit: an example, whose gradient is clipped, or a group or client, whose summed gradient is.
        weights: factor per parameter, by the longest matching name prefix, applied before the joint norm is taken and kept in the
            sum: the caller divides by it after the noise, which is post-processing. 1 if no prefix matches.
        free: prefixes of the names of parameters that are neither counted in the norm nor clipped (``noised: shared``).
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


Measured = tuple[Tensor, Tensor]
"""The units' norms before clipping and the examples' losses."""


def clip_units(gradients: Mapping[str, Tensor], norms: Norms, units: int) -> tuple[dict[str, Tensor], Tensor]:
    """Every unit's gradient, ``[units, ...]`` by name, weighed and clipped, for the caller to sum; and their joint norms before."""
    some = next(iter(gradients.values()), torch.zeros(units))
    squared, finite = some.new_zeros(units), torch.ones(units, dtype=torch.bool, device=some.device)
    for name, value in gradients.items():
        flat = value.reshape(units, -1)
        own = torch.linalg.vecdot(flat, flat)
        if norms.is_free(name):
            finite &= own.isfinite()
        else:
            squared.add_(own, alpha=norms.weight(name) ** 2)
    clip, free = norms.factors(squared), (finite & squared.isfinite()).to(squared.dtype)
    clipped = {}
    for name, value in gradients.items():
        factor = norms.weight(name) * (free if norms.is_free(name) else clip * free)
        broken = (factor == 0).view(-1, *[1] * (value.dim() - 1))
        clipped[name] = (value * factor.view(broken.shape)).masked_fill_(broken, 0)
    return clipped, squared.sqrt()
