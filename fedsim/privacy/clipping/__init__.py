"""Per-example clipping: the sum of the clipped per-example gradients of any model.

Two engines compute the same sum.
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
    """Adds the clipped sum of ``batch`` to ``sums``, in place, by ``vmap(grad(loss))`` over rows.

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
    unit_of_row = {"group": batch.groups, "client": batch.layout}.get(norms.unit)
    if unit_of_row is not None:
        units = unit_of_row.clients
        for name, gradient in gradients.items():
            zeros = gradient.new_zeros(units, *gradient.shape[1:])
            gradients[name] = zeros.index_add(
                0,
                unit_of_row.client,
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
    """Returns the loss of a model with other parameters; the model is not changed.

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

Each adds the clipped sum in place to its last argument, which holds every trainable parameter; see
:func:`clipped_sum`.
"""


@dataclass(frozen=True)
class ClippedSum:
    """The result of :func:`clipped_sum`.

    Attributes:
        sums: the sum over units of their clipped, weighted gradients, by parameter name; each has
            the parameter's shape.
        norms: each unit's joint norm before clipping, ``[N]`` examples, ``[G]`` groups or ``[K]``
            clients: private, for diagnostics only.
        loss: each example's loss ``[N]`` or ``[N, parts]``: private, for diagnostics only.
    """

    sums: dict[str, Tensor]
    norms: Tensor
    loss: Tensor


EXAMPLES_AT_ONCE = 256
"""The number of examples in a chunk.

The activations of so many fit a processor's cache, and memory does not grow with the batch.
"""


def clipped_sum(
    model: nn.Module,
    loss: Loss,
    batch: Batch,
    norms: Norms,
    engine: EngineName = "bookkeeping",
) -> ClippedSum:
    """Returns the sum of the clipped gradients of all units in a batch.

    For the gradient g_u of a unit's loss by all parameters jointly, it is

        sum_u min(1, C / |w * g_u|) * w * g_u

    (Abadi et al. 2016, algorithm 1). Removing one unit changes it by at most C in L2 norm over all
    parameters that are not free: the sensitivity that the Gaussian mechanism needs. A unit whose
    gradient is not finite counts as 0: a nan in the sum would reveal the unit.

    Args:
        model: the model.
        loss: the per-example loss. Unless the unit is a client, it is called on one chunk of the
            batch at a time.
        batch: rows sorted by client, and by group if that is the unit.
        norms: the clip norm, the unit and the weights.
        engine: ``bookkeeping`` takes one forward and one backward pass; ``vmap`` holds every
            per-example gradient, for layers that bookkeeping does not cover.

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
                f"the loss has shape {list(losses.shape)}, not a number or a row of parts "
                f"for each of {len(batch)} examples"
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
    """Raises ValueError if a layer makes a gradient depend on other examples or on chance.

    Args:
        modules: the model's modules by name.
        clients: the number of clients in the batch, for which per-client layers need weights.
    """
    for path, module in modules.items():
        if isinstance(module, ClientLinear | ClientCode) and len(module.weight) != clients:
            raise ValueError(
                f"'{path}' has weights for {len(module.weight)} clients, its batch {clients}"
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


def _check_batch(batch: Batch, norms: Norms) -> None:
    """Raises ValueError if the rows of a batch do not fit together, or are not sorted by client."""
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
    """Returns every tensor of a model, and how often it was written, by name."""
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
    """Raises ValueError if a tensor was replaced, written, added or removed."""
    missing = (None, 0)
    for name in {**before, **after}:
        old_tensor, old_version = before.get(name, missing)
        new_tensor, new_version = after.get(name, missing)
        if old_tensor is not new_tensor or old_version != new_version:
            raise ValueError(
                f"the loss changed '{name}' of the model, which would be released without noise"
            )
