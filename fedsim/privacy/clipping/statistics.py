"""Clipped sums of statistics: outer products of two vectors per example, clipped jointly, summed in one product each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.privacy.clipping.engine import Norms


@dataclass(frozen=True)
class OuterProduct:
    """One statistic ``sum_n left_n right_n^T``: ``left`` is ``[N, p]``, ``right`` is ``[N, q]``."""

    left: Tensor
    right: Tensor


def clipped_statistics(products: Mapping[str, OuterProduct], norms: Norms) -> tuple[dict[str, Tensor], Tensor]:
    """``sum_n c_n w left_n right_n^T`` by name, ``[p, q]`` each, with ``c_n = min(1, C / joint norm of example n)``.

    Class sums are (one-hot label, x), counts (one-hot label, 1), second moments (x, x). Removing one example changes all sums
    together by at most C in L2 norm.

    Returns:
        The sums, weighted by ``norms.weight(name)``, and the joint norms ``[N]`` before clipping (private, for diagnostics only).
    """
    parts = list(products.items())
    squared = torch.zeros(len(parts[0][1].left))
    for name, product in parts:
        left, right = product.left, product.right
        squared += norms.weight(name) ** 2 * left.square().sum(1) * right.square().sum(1)
    factor = norms.factors(squared)
    sums = {name: norms.weight(name) * (product.left * factor[:, None]).T @ product.right for name, product in parts}
    return sums, squared.sqrt()
