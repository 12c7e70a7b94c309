"""Per-example clipping: the sum of clipped per-example gradients of any model, by two engines with
one answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from fedsim.batch import Batch, Layout
from fedsim.models.layers import ClientCode, ClientLinear
from fedsim.privacy.clipping.bookkeeping import bookkeeping
from fedsim.privacy.clipping.norms import Loss, Measured, clip_units
from fedsim.privacy.clipping.norms import Norms as Norms

_Losses = TypeVar("_Losses")


def vmap(
    model: nn.Module, loss: Loss, batch: Batch, norms: Norms, sums: dict[str, Tensor]
) -> Measured:
    """See :func:`fedsim.privacy.clipping.clipped_sum`: ``vmap(grad(loss))`` over rows; those of a
    group or client are summed first.

    For models whose layers bookkeeping does not cover; one to two orders of magnitude slower.
    """
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    names = list(batch.draws)

    def single(
        params: dict[str, Tensor], x: Tensor, y: Tensor, client: Tensor, *noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        layout = Layout(client[None], batch.layout.clients, direct=True)
        row = Batch(
            x[None],
            y[None],
            {name: draw[None] for name, draw in zip(names, noise, strict=True)},
            layout,
        )
        parts = functional_loss(model, loss, params, row)[0]
        return parts.sum(), parts

    grads, (_, losses) = torch.func.vmap(
        torch.func.grad_and_value(single, has_aux=True), in_dims=(None, 0, 0, 0, *[0] * len(names))
    )(parameters, batch.x, batch.y, batch.layout.client, *batch.draws.values())
    units = len(batch)
    of_unit = {"group": batch.groups, "client": batch.layout}.get(norms.unit)
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
        self.model = model
        self.loss = loss

    def forward(self, batch: Batch) -> Any:
        return self.loss(self.model, batch)


def functional_loss(
    model: nn.Module,
    loss: Callable[[nn.Module, Batch], _Losses],
    parameters: Mapping[str, Tensor],
    batch: Batch,
) -> _Losses:
    """The loss of a model with other parameters, by their names in it; the model is not changed."""
    named = {f"model.{name}": value for name, value in parameters.items()}
    result: _Losses = torch.func.functional_call(_LossModule(model, loss), named, (batch,))
    return result


EngineName = Literal["bookkeeping", "vmap"]
ENGINES = {"bookkeeping": bookkeeping, "vmap": vmap}
"""Each adds the clipped sum to its last argument, which holds every trainable parameter, in place;
see :func:`clipped_sum`.
"""


@dataclass(frozen=True)
class ClippedSum:
    """The result of :func:`clipped_sum`.

    Attributes:
        sums: by parameter name, the sum over units of clipped, weighted gradients; the parameter's
            own shape.
        norms: each unit's joint norm before clipping, ``[N]`` examples, ``[G]`` groups or ``[K]``
            clients: private, for diagnostics only.
        loss: each example's loss ``[N]`` or ``[N, parts]``: private, for diagnostics only.
    """

    sums: dict[str, Tensor]
    norms: Tensor
    loss: Tensor


EXAMPLES_AT_ONCE = 256
"""Examples in a chunk: its activations fit a processor's cache, and memory does not grow with the
batch.
"""


def clipped_sum(
    model: nn.Module, loss: Loss, batch: Batch, norms: Norms, engine: EngineName = "bookkeeping"
) -> ClippedSum:
    """The sum over units u of ``min(1, C / |w * g_u|) * w * g_u``, g_u the gradient of u's loss by
    all parameters jointly.

    Removing one unit changes the result by at most C in L2 norm over all parameters that are not
    free: the sensitivity that the Gaussian mechanism needs (Abadi et al. 2016, algorithm 1, under
    add/remove-one). A unit whose gradient is not finite counts as 0: a nan in the sum would reveal
    the unit.

    The rows of ``batch`` are sorted by client, and by group where that is the unit; the loss is
    called with a part of them at a time unless the unit is a client. ``bookkeeping`` takes one
    forward and one backward; ``vmap`` holds every per-example gradient, for layers that bookkeeping
    does not cover.
    """
    modules = dict(model.named_modules())
    _refuse(modules, batch)
    if norms.unit == "group" and batch.groups is None:
        raise ValueError(
            "the unit is a group, and the batch does not say which rows are one; take it "
            "from Clients.batch or batches"
        )
    sums = {name: torch.zeros_like(p) for name, p in model.named_parameters() if p.requires_grad}
    if len(batch) == 0:
        if norms.unit == "client":
            units = batch.layout.clients
        else:
            units = 0
        return ClippedSum(sums, batch.x.new_zeros(units), batch.x.new_zeros(0))

    def checked_loss(model: nn.Module, batch: Batch) -> Tensor:
        losses = loss(model, batch)
        if losses.dim() not in (1, 2) or len(losses) != len(batch):
            raise ValueError(
                f"the loss has shape {list(losses.shape)}, not a number or a row of parts "
                f"for each of {len(batch)} examples"
            )
        return losses

    before = _state(modules)
    if norms.unit == "client":
        parts: Iterable[Batch] = [batch]
    else:
        parts = batch.chunks(EXAMPLES_AT_ONCE)
    measured = [ENGINES[engine](model, checked_loss, part, norms, sums) for part in parts]
    after = _state(modules)
    for name in {**before, **after}:
        (old, old_version), (new, new_version) = (
            before.get(name, (None, 0)),
            after.get(name, (None, 0)),
        )
        if old is not new or old_version != new_version:
            raise ValueError(
                f"the loss changed '{name}' of the model, which would be released without noise"
            )
    unit_norms, losses = (torch.cat(values) for values in zip(*measured, strict=True))
    return ClippedSum(sums, unit_norms, losses)


def _refuse(modules: Mapping[str, nn.Module], batch: Batch) -> None:
    for path, module in modules.items():
        if (
            isinstance(module, ClientLinear | ClientCode)
            and len(module.weight) != batch.layout.clients
        ):
            raise ValueError(
                f"'{path}' has weights for {len(module.weight)} clients, its batch "
                f"{batch.layout.clients}"
            )
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ValueError(
                f"'{path}' normalises by batch statistics: an example's gradient would "
                "depend on the others"
            )
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
            raise ValueError(
                f"'{path}' draws from the global generator; take its draws from the batch's noise"
            )
    if not len(batch) == len(batch.y) == len(batch.layout.client):
        raise ValueError(
            f"{len(batch)} rows, {len(batch.y)} labels and {len(batch.layout.client)} client "
            "numbers in a batch"
        )
    client = batch.layout.positions
    if len(client) and not (
        bool((client[1:] >= client[:-1]).all())
        and client[0] >= 0
        and client[-1] < batch.layout.clients
    ):
        raise ValueError(
            "the rows are not sorted by client, or a client is not one of 0 to "
            f"{batch.layout.clients - 1}"
        )


def _state(modules: Mapping[str, nn.Module]) -> dict[str, tuple[Tensor, int]]:
    """The tensors of a model, and how often they were written."""
    return {
        f"{path}.{name}".removeprefix("."): (tensor, tensor._version)
        for path, module in modules.items()
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }
