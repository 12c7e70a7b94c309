"""A check that a loss is per example, to be run on made-up rows before a private one is touched."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fedsim.batch import Batch
from fedsim.errors import NotPerExample
from fedsim.privacy.clipping.engine import clipped_sum
from fedsim.privacy.clipping.norms import Loss, Norms

TOLERANCE = 1e-3
"""Allowed error, relative to the sum's norm."""


def check_per_example(model: nn.Module, loss: Loss, batch: Batch, norms: Norms, engine: str = "bookkeeping") -> None:
    """Raise if one example's presence changes the clipped sum by anything but its own clipped gradient.

    The engines measure and clip whatever they take for row n's gradient; that it depends on row n alone is up to the loss. A batch
    statistic, such as a batch-level MMD, breaks it, and so does a layer that sees the rows in another order.

    Args:
        model: as for :func:`fedsim.privacy.clipping.clipped_sum`, and so are ``loss`` and ``engine``.
        loss: the loss to check.
        batch: made-up rows, at least two, of the shapes that will come; every row is left out in turn.
        norms: the weights and the free parameters; the check clips to the median norm of the rows, so that it bites.
        engine: the engine to check with.

    Raises:
        NotPerExample: with the row and by how much.
        ValueError: the engine cannot clip the model.
    """
    measured = clipped_sum(model, loss, batch, Norms(math.inf, "example", norms.weights, norms.free), engine).norms
    if not measured.isfinite().all():
        raise ValueError("the loss's gradient is not finite on made-up rows of unit norm")
    biting = Norms(max(float(measured.median()), 1e-12), "example", norms.weights, norms.free)
    whole = clipped_sum(model, loss, batch, biting, engine).sums
    for index in range(len(batch)):
        without = clipped_sum(model, loss, batch.without(index), biting, engine).sums
        alone = clipped_sum(model, loss, batch.row(index), biting, engine).sums
        error = _norm({name: whole[name] - without[name] - alone[name] for name in whole})
        size = max(_norm(whole), _norm(without), _norm(alone))
        if not error <= TOLERANCE * size:
            raise NotPerExample(
                f"the loss is not per example: leaving out row {index} of {len(batch)} changes the clipped sum by {error:.3g} beyond "
                f"its own gradient (the sum's norm is {size:.3g}); a row's loss may depend on that row alone"
            )


def _norm(tensors: dict[str, Tensor]) -> float:
    return float(torch.stack([value.norm() for value in tensors.values()]).norm())
