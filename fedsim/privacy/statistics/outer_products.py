"""Clipped sums of statistics: outer products of two vectors per example, clipped jointly, summed in one product each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.device import CPU
from fedsim.privacy.clipping.norms import Norms

ROWS = 1024
"""Examples that are taken to float64 at a time on the CPU, to stay within its cache; another device takes all at once."""


@dataclass(frozen=True)
class OuterProduct:
    """One statistic ``sum_n left_n right_n^T``: ``left`` is ``[N, p]``, ``right`` is ``[N, q]``."""

    left: Tensor
    right: Tensor


def unit_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """Weights scaled so that statistics of norm at most 1 have a joint norm of at most 1."""
    norm = math.sqrt(sum(weight**2 for weight in weights.values()))
    return {name: weight / norm for name, weight in weights.items()}


def clipped_statistics(products: Mapping[str, OuterProduct], norms: Norms) -> tuple[dict[str, Tensor], Tensor]:
    """``sum_n c_n w left_n right_n^T`` by name, ``[p, q]`` each, with ``c_n = min(1, C / joint norm of example n)``.

    Class sums are (one-hot label, x), counts (one-hot label, 1), second moments (x, x). Removing one example changes all sums
    together by at most C in L2 norm. An example that is not finite counts as 0.

    The sums are made in float64 and rounded once, so that they depend neither on the order of the rows nor on a processor's products.

    Returns:
        The sums, weighted by ``norms.weight(name)``, and the joint norms ``[N]`` before clipping (private, for diagnostics only).
    """
    first = next(iter(products.values())).left
    squared = first.new_zeros(len(first))
    for name, product in products.items():
        squared += norms.weight(name) ** 2 * product.left.square().sum(1) * product.right.square().sum(1)
    broken, factor = ~squared.isfinite()[:, None], norms.factors(squared)
    sums = {}
    for name, product in products.items():
        total = first.new_zeros(product.left.shape[1], product.right.shape[1], dtype=torch.double)
        at_once = ROWS if first.device == CPU else max(1, len(squared))
        for start in range(0, len(squared), at_once):
            part = slice(start, start + at_once)
            # 0 times a nan is a nan: a broken row is left out, not weighed with 0.
            left, right = (side[part].masked_fill(broken[part], 0).double() for side in (product.left, product.right))
            total.addmm_((left * factor[part, None]).T, right, alpha=norms.weight(name))
        sums[name] = total.to(squared.dtype)
    return sums, squared.sqrt()
