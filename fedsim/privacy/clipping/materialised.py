"""Engines that hold every per-example gradient: ``torch.func.vmap`` (any model) and Opacus' layer hooks.

One to two orders of magnitude slower than bookkeeping. They are its references in tests, and serve models with layers that it does not
cover.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fedsim.batch import Batch, Layout
from fedsim.models.layers import ClientCode, ClientLinear, Scale, Shift
from fedsim.privacy.clipping.norms import Loss, Measured, Norms, clip_units

_Losses = TypeVar("_Losses")


def _trainable(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def vmap(model: nn.Module, loss: Loss, batch: Batch, norms: Norms, sums: dict[str, Tensor]) -> Measured:
    """See :func:`fedsim.privacy.clipping.clipped_sum`: ``vmap(grad(loss))`` over single rows."""
    parameters = _trainable(model)
    names = list(batch.draws)

    def single(params: dict[str, Tensor], x: Tensor, y: Tensor, client: Tensor, *noise: Tensor) -> tuple[Tensor, Tensor]:
        layout = Layout(client[None], batch.layout.clients, direct=True)
        row = Batch(x[None], y[None], {name: draw[None] for name, draw in zip(names, noise, strict=True)}, layout)
        parts = functional_loss(model, loss, params, row)[0]
        return parts.sum(), parts

    grads, (_, losses) = torch.func.vmap(torch.func.grad_and_value(single, has_aux=True), in_dims=(None, 0, 0, 0, *[0] * len(names)))(
        parameters, batch.x, batch.y, batch.layout.client, *batch.draws.values()
    )
    return _clip(grads, batch, norms, sums), losses.detach()


class LossModule(nn.Module):
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
    result: _Losses = torch.func.functional_call(LossModule(model, loss), named, (batch,))
    return result


def opacus_hooks(model: nn.Module, loss: Loss, batch: Batch, norms: Norms, sums: dict[str, Tensor]) -> Measured:
    """See :func:`fedsim.privacy.clipping.clipped_sum`: Opacus' ``GradSampleModule`` keeps ``grad_sample`` per parameter."""
    from opacus import GradSampleModule

    register_cohort_layers()
    wrapped = GradSampleModule(LossModule(model, loss), loss_reduction="sum")
    try:
        losses = wrapped(replace(batch, layout=replace(batch.layout, direct=True)))
        with warnings.catch_warnings():
            # layers whose input is data, which has no gradient, warn
            warnings.filterwarnings("ignore", "Full backward hook is firing")
            losses.sum().backward()
        grads = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                sample: Any = getattr(parameter, "grad_sample", None)
                if sample is None:
                    sample = parameter.new_zeros(len(batch), *parameter.shape)
                sample = sum(sample) if isinstance(sample, list) else sample
                if len(sample) != len(batch):
                    raise ValueError(f"opacus holds {len(sample)} gradients of '{name}' for {len(batch)} examples")
                _refuse_unseen(name, sample, parameter.grad)
                grads[name] = sample.detach()
    finally:
        wrapped.zero_grad(set_to_none=True)
        wrapped.to_standard_module()
    return _clip(grads, batch, norms, sums), losses.detach()


def _refuse_unseen(name: str, sample: Tensor, gradient: Tensor | None) -> None:
    """Raise if the hooks saw another gradient than autograd did, as where a weight is used outside its layer's forward."""
    whole = torch.zeros_like(sample[0]) if gradient is None else gradient
    error, size = (sample.sum(0) - whole).norm(), sample.reshape(len(sample), -1).norm(dim=1).sum()
    if bool(whole.isfinite().all()) and not bool(error <= 1e-3 * torch.maximum(size, whole.norm())):
        raise ValueError(f"opacus does not see all of the gradient of '{name}': it is used outside its layer's own forward")


def _clip(grads: dict[str, Tensor], batch: Batch, norms: Norms, sums: dict[str, Tensor]) -> Tensor:
    """Clip and add gradients ``[N, ...]``; those of a group or client are summed first."""
    units, of_unit = len(batch), {"group": batch.groups, "client": batch.layout}.get(norms.unit)
    if of_unit is not None:
        units = of_unit.clients
        for name, g in grads.items():
            grads[name] = g.new_zeros(units, *g.shape[1:]).index_add(0, of_unit.client, g)
    clipped, unit_norms = clip_units(grads, norms, units)
    for name, g in clipped.items():
        sums[name] += g.sum(0)
    return unit_norms


@cache
def register_cohort_layers() -> None:
    """Teach Opacus the cohort layers once per process."""
    from opacus.grad_sample import register_grad_sampler

    def client_linear(layer: ClientLinear, inputs: list[Any], grads: Tensor) -> dict[nn.Parameter, Tensor]:
        x, layout = inputs
        chosen = torch.nn.functional.one_hot(layout.client, layout.clients).to(grads.dtype)
        return {
            layer.weight: torch.einsum("nk,no,ni->nkoi", chosen, grads, x),
            layer.bias: torch.einsum("nk,no->nko", chosen, grads),
        }

    def client_code(layer: ClientCode, inputs: list[Any], grads: Tensor) -> dict[nn.Parameter, Tensor]:
        layout = inputs[0]
        chosen = torch.nn.functional.one_hot(layout.client, layout.clients).to(grads.dtype)
        return {layer.weight: torch.einsum("nk,no->nko", chosen, grads)}

    def per_example(grads: Tensor, weight: Tensor) -> Tensor:
        return grads.reshape(len(grads), -1, weight.numel()).sum(1)

    def scale(layer: Scale, inputs: list[Any], grads: Tensor) -> dict[nn.Parameter, Tensor]:
        return {layer.weight: per_example(grads * inputs[0], layer.weight)}

    def shift(layer: Shift, inputs: list[Any], grads: Tensor) -> dict[nn.Parameter, Tensor]:
        return {layer.weight: per_example(grads, layer.weight)}

    for kind, sampler in ((ClientLinear, client_linear), (ClientCode, client_code), (Scale, scale), (Shift, shift)):
        register_grad_sampler(kind)(sampler)
