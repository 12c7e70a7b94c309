"""The engine that holds every per-example gradient, by ``torch.func.vmap``: for models whose layers bookkeeping does not cover.

One to two orders of magnitude slower than bookkeeping.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fedsim.batch import Batch, Layout
from fedsim.privacy.clipping.norms import Loss, Measured, Norms, clip_units

_Losses = TypeVar("_Losses")


def vmap(model: nn.Module, loss: Loss, batch: Batch, norms: Norms, sums: dict[str, Tensor]) -> Measured:
    """See :func:`fedsim.privacy.clipping.clipped_sum`: ``vmap(grad(loss))`` over rows; those of a group or client are summed first."""
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    names = list(batch.draws)

    def single(params: dict[str, Tensor], x: Tensor, y: Tensor, client: Tensor, *noise: Tensor) -> tuple[Tensor, Tensor]:
        layout = Layout(client[None], batch.layout.clients, direct=True)
        row = Batch(x[None], y[None], {name: draw[None] for name, draw in zip(names, noise, strict=True)}, layout)
        parts = functional_loss(model, loss, params, row)[0]
        return parts.sum(), parts

    grads, (_, losses) = torch.func.vmap(torch.func.grad_and_value(single, has_aux=True), in_dims=(None, 0, 0, 0, *[0] * len(names)))(
        parameters, batch.x, batch.y, batch.layout.client, *batch.draws.values()
    )
    units, of_unit = len(batch), {"group": batch.groups, "client": batch.layout}.get(norms.unit)
    if of_unit is not None:
        units = of_unit.clients
        for name, g in grads.items():
            grads[name] = g.new_zeros(units, *g.shape[1:]).index_add(0, of_unit.client, g)
    clipped, unit_norms = clip_units(grads, norms, units)
    for name, g in clipped.items():
        sums[name] += g.sum(0)
    return unit_norms, losses.detach()


class _LossModule(nn.Module):
    """A model whose forward is its loss, so that ``functional_call`` reaches every parameter."""

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, Batch], Any]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Batch) -> Any:
        """The loss."""
        return self.loss(self.model, batch)


def functional_loss(
    model: nn.Module, loss: Callable[[nn.Module, Batch], _Losses], parameters: Mapping[str, Tensor], batch: Batch
) -> _Losses:
    """The loss of a model with other parameters, by their names in it; the model is not changed."""
    named = {f"model.{name}": value for name, value in parameters.items()}
    result: _Losses = torch.func.functional_call(_LossModule(model, loss), named, (batch,))
    return result
