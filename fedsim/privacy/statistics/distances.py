"""How far rows are from their centre: a released histogram, whose bins halve the squared distance, and the scales that it gives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.models.layers import one_hot
from fedsim.privacy.statistics import exact
from fedsim.privacy.statistics.moments import Products
from fedsim.privacy.statistics.outer_products import OuterProduct

BINS = 30
"""Half octaves of distance below 2; the last bin has all that are smaller."""
SEEN = 3.0
"""Standard deviations of noise above which a bin's count is believed."""
MOSTLY_CLIPPED = 0.95
"""Mean squared norm of rows that are clipped near their typical distance, in units of the clip, where no bin says otherwise."""


def distance_products(r: Tensor) -> Products:
    """A histogram ``[1, BINS]`` of the norms of rows ``[N, d]``; a row is in one bin, so its removal changes one count by 1."""
    bins = (exact.squares(r) <= largest_squares(r.device)).sum(1) - 1
    return {"bins": OuterProduct(r.new_ones(len(r), 1), one_hot(bins.clamp_min(0), BINS))}


def largest_squares(device: torch.device) -> Tensor:
    """The largest squared distance of every bin ``[BINS]``."""
    return 4 * 0.5 ** torch.arange(BINS, device=device)


@dataclass(frozen=True)
class ReleasedDistances:
    """What a noisy histogram says of the rows' distances.

    Attributes:
        square: their mean square, as it is believed.
        counts: of the bins ``[BINS]``, 0 where noise hides them.
        squares: the largest squared distance of every bin ``[BINS]``.
    """

    square: Tensor
    counts: Tensor
    squares: Tensor


def released_distances(bins: Tensor, std: float, square: Tensor) -> ReleasedDistances:
    """From the released sums ``[1, BINS]`` of :func:`distance_products`, the noise on each, and the mean square expected before.

    What was expected is kept within the bounds that the bins set, and where no bin stands out of the noise.
    """
    counts = torch.where(bins[0] > SEEN * std, bins[0], 0.0)
    squares = largest_squares(counts.device)
    most = (counts * squares).sum() / counts.sum().clamp_min(1e-9)
    believed = torch.where(counts.sum() > 0, torch.minimum(torch.maximum(square, most / 2), most), square)
    return ReleasedDistances(believed, counts, squares)


def clipped(counts: Tensor, squares: Tensor, radius: Tensor) -> Tensor:
    """The mean squared norm of rows that are clipped at ``radius``, in units of it, from bins as :class:`ReleasedDistances` has them."""
    rows, farthest = counts.sum(), squares / radius.square()
    middle = (farthest.clamp_max(1) + (farthest / 2).clamp_max(1)) / 2
    return torch.where(rows > 0, (counts * middle).sum() / rows.clamp_min(1e-9), MOSTLY_CLIPPED)
