"""The sum of the clipped gradients of all units in a batch: of examples, groups or clients.

Two engines compute the same sum, up to rounding. Bookkeeping is fast and covers the layers of
:data:`fedsim.privacy.clipping.norms.RULES`. ``vmap`` is slow and serves models with other layers.
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
    model: nn.Module,
    loss: Loss,
    batch: Batch,
    norms: Norms,
    sums: dict[str, Tensor],
) -> Measured:
    """Add the clipped sum of ``batch`` to ``sums``, in place, by ``vmap(grad(loss))`` over rows.

    The gradients of a group or client are summed before they are clipped. This engine is for layers
    that bookkeeping does not cover; it is one to two orders of magnitude slower. See
    :func:`fedsim.privacy.clipping.clipped_sum`.
    """
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def loss_of_row(
        params: dict[str, Tensor],
        x: Tensor,
        y: Tensor,
        client: Tensor,
        draws: dict[str, Tensor],
    ) -> tuple[Tensor, Tensor]:
        layout = Layout(
            client[None],
            batch.layout.clients,
            direct=True,
        )
        batch_draws = {name: draw[None] for name, draw in draws.items()}
        row = Batch(x[None], y[None], batch_draws, layout)
        losses = functional_loss(model, loss, params, row)[0]
        return losses.sum(), losses

    gradient_and_loss = torch.func.grad_and_value(loss_of_row, has_aux=True)
    of_rows = torch.func.vmap(gradient_and_loss, in_dims=(None, 0, 0, 0, 0))
    gradients, (_, losses) = of_rows(
        parameters,
        batch.x,
        batch.y,
        batch.layout.client,
        dict(batch.draws),
    )
    units = len(batch)
    # A layout says which group, or which client, each row belongs to. Examples need none.
    unit_layout = {"group": batch.groups, "client": batch.layout}.get(norms.unit)
    if unit_layout is not None:
        units = unit_layout.clients
        for name, gradient in gradients.items():
            zeros = gradient.new_zeros(units, *gradient.shape[1:])
            gradients[name] = zeros.index_add(
                0,
                unit_layout.client,
                gradient,
            )
    clipped, unit_norms = clip_units(gradients, norms, units)
    for name, gradient in clipped.items():
        sums[name] += gradient.sum(0)
    return unit_norms, losses.detach()


class _LossModule(nn.Module):
    """A model whose forward is its loss, so that ``functional_call`` reaches every parameter."""

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[nn.Module, Batch], Any],
    ) -> None:
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
    """Return the loss of a model with other parameters; the model is not changed.

    Args:
        model: the model.
        loss: maps a model and a batch to a loss.
        parameters: the values to use instead, by their names in the model.
        batch: the batch.
    """
    replacements = {f"model.{name}": value for name, value in parameters.items()}
    module = _LossModule(model, loss)
    result: _Losses = torch.func.functional_call(
        module,
        replacements,
        (batch,),
    )
    return result


EngineName = Literal["bookkeeping", "vmap"]
ENGINES = {"bookkeeping": bookkeeping, "vmap": vmap}
"""The engines by name.

Each adds the clipped sum in place to its last argument, which has one tensor for every trainable
parameter. It returns the units' norms and the examples' losses. See :func:`clipped_sum`.
"""


@dataclass(frozen=True)
class ClippedSum:
    """The result of :func:`clipped_sum`.

    Attributes:
        sums: the sum over units of their clipped, weighted gradients, by parameter name; each has
            the parameter's shape.
        norms: each unit's joint norm before clipping, ``[N]`` examples, ``[G]`` groups or ``[K]``
            clients: private, for diagnostics only.
        loss: each example's loss ``[N]`` or ``[N, parts]``, and ``[0]`` for an empty batch:
            private, for diagnostics only.
    """

    sums: dict[str, Tensor]
    norms: Tensor
    loss: Tensor


EXAMPLES_AT_ONCE = 256
"""The approximate number of examples in a chunk of a batch.

The activations of one chunk fit a processor's cache, and memory does not grow with the batch. A
group stays in one chunk, so a large group makes a larger chunk.
"""


def clipped_sum(
    model: nn.Module,
    loss: Loss,
    batch: Batch,
    norms: Norms,
    engine: EngineName = "bookkeeping",
) -> ClippedSum:
    """Return the sum of the clipped gradients of all units in a batch.

    Let g_u be the gradient of the loss of unit u with respect to all parameters, w the weights of
    the parameters and C the clip norm (:class:`Norms`). The sum is

        sum_u min(1, C / |w * g_u|) * w * g_u

    (Abadi et al. 2016, algorithm 1). Parameters in :attr:`Norms.free` do not count in the norm and
    are not clipped. Over all other parameters, removing one unit changes the sum by at most C in L2
    norm. This is the sensitivity that the Gaussian mechanism needs. A unit whose gradient is not
    finite counts as 0, because a nan in the sum would reveal the unit.

    Args:
        model: the model.
        loss: the per-example loss. Unless the unit is a client, it is called on one chunk of the
            batch at a time.
        batch: rows sorted by client, and by group if that is the unit.
        norms: the clip norm, the unit, the weights and the free parameters.
        engine: ``bookkeeping`` takes one forward and one backward pass. ``vmap`` keeps every
            per-example gradient in memory, and covers layers that bookkeeping does not.

    Raises:
        ValueError: the model, the batch or the loss breaks an assumption of the bound.
    """
    modules = dict(model.named_modules())
    _check_layers(modules, batch.layout.clients)
    _check_batch(batch, norms)
    sums = {name: torch.zeros_like(p) for name, p in model.named_parameters() if p.requires_grad}
    if len(batch) == 0:
        units = batch.layout.clients if norms.unit == "client" else 0
        return ClippedSum(
            sums,
            batch.x.new_zeros(units),
            batch.x.new_zeros(0),
        )

    def checked_loss(model: nn.Module, batch: Batch) -> Tensor:
        losses = loss(model, batch)
        if losses.dim() not in (1, 2) or len(losses) != len(batch):
            raise ValueError(
                f"the loss has shape {list(losses.shape)}; it must have shape [n] or [n, parts] "
                f"for a batch of n = {len(batch)} examples"
            )
        return losses

    before = _tensor_versions(modules)
    chunks: Iterable[Batch] = [batch]
    if norms.unit != "client":
        chunks = batch.chunks(EXAMPLES_AT_ONCE)
    measured = [ENGINES[engine](model, checked_loss, chunk, norms, sums) for chunk in chunks]
    _check_unchanged(before, _tensor_versions(modules))
    unit_norms, losses = zip(*measured, strict=True)
    return ClippedSum(
        sums,
        torch.cat(unit_norms),
        torch.cat(losses),
    )


def _check_layers(
    modules: Mapping[str, nn.Module],
    clients: int,
) -> None:
    """Raise ValueError if the model has a layer that the bound or the batch does not allow.

    Such layers are batch norms, dropout in training mode, and per-client layers whose weights are
    for another number of clients.

    Args:
        modules: the model's modules by name.
        clients: the number of clients in the batch.
    """
    for path, module in modules.items():
        if isinstance(module, ClientLinear | ClientCode) and len(module.weight) != clients:
            raise ValueError(
                f"'{path}' has weights for {len(module.weight)} clients, its batch {clients}"
            )
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ValueError(
                f"'{path}' is a batch norm, which is refused in every mode: while it trains, an "
                "example's gradient depends on the other examples; use a layer that normalises "
                "each example by itself"
            )
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
            raise ValueError(
                f"'{path}' draws from the global generator; use numbers of batch.draws instead"
            )


def _check_batch(batch: Batch, norms: Norms) -> None:
    """Raise ValueError if a batch is not one that :func:`clipped_sum` can read.

    Its tensors must have equal lengths, its rows must be sorted by client, and it must have groups
    if the unit is a group.
    """
    if not len(batch) == len(batch.y) == len(batch.layout.client):
        raise ValueError(
            f"{len(batch)} rows, {len(batch.y)} labels and {len(batch.layout.client)} client "
            "numbers in a batch"
        )
    client = batch.layout.positions
    if len(client):
        is_sorted = bool((client[1:] >= client[:-1]).all())
        is_in_range = client[0] >= 0 and client[-1] < batch.layout.clients
        if not (is_sorted and is_in_range):
            raise ValueError(
                "the rows are not sorted by client, or a client is not one of 0 to "
                f"{batch.layout.clients - 1}"
            )
    if norms.unit == "group" and batch.groups is None:
        raise ValueError(
            "the privacy unit is a group, but the batch has no group numbers; make the batch by "
            "clients.batch(...) or clients.batches(...)"
        )


def _tensor_versions(modules: Mapping[str, nn.Module]) -> dict[str, tuple[Tensor, int]]:
    """Return every tensor of a model, and how often it was written, by name."""
    versions = {}
    for path, module in modules.items():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                versions[f"{path}.{name}".removeprefix(".")] = (
                    tensor,
                    tensor._version,
                )
    return versions


def _check_unchanged(
    before: Mapping[str, tuple[Tensor, int]],
    after: Mapping[str, tuple[Tensor, int]],
) -> None:
    """Raise ValueError if a tensor was replaced, written, added or removed."""
    missing = (None, 0)
    for name in {**before, **after}:
        old_tensor, old_version = before.get(name, missing)
        new_tensor, new_version = after.get(name, missing)
        if old_tensor is not new_tensor or old_version != new_version:
            raise ValueError(
                f"the loss changed '{name}' of the model, and such a change would be released "
                "without noise"
            )
