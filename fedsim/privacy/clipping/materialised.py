"""Engines that hold every per-example gradient: ``torch.func.vmap`` (any model) and Opacus' layer hooks.

Slower than bookkeeping by one to two orders of magnitude; they are the references it is tested against, and they serve models
whose layers it does not cover.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.batch import Batch
from fedsim.models.layers import ClientCode, ClientLinear, Layout, Scale, Shift
from fedsim.privacy.clipping.engine import ClippedSum, Loss, Norms


def _trainable(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def vmap(model: nn.Module, loss: Loss, batch: Batch, norms: Norms) -> ClippedSum:
    """See :func:`fedsim.privacy.clipping.clipped_sum`: ``vmap(grad(loss))`` over single rows."""
    parameters = _trainable(model)
    noise_names = list(batch.noise)

    def single(params: dict[str, Tensor], x: Tensor, y: Tensor, client: Tensor, *noise: Tensor) -> Tensor:
        layout = Layout(client[None], batch.layout.clients, direct=True)
        row = Batch(x[None], y[None], {name: draw[None] for name, draw in zip(noise_names, noise, strict=True)}, layout)
        return _functional(model, loss, params, row)[0]

    grads, losses = torch.func.vmap(torch.func.grad_and_value(single), in_dims=(None, 0, 0, 0, *[0] * len(noise_names)))(
        parameters, batch.x, batch.y, batch.layout.client, *batch.noise.values()
    )
    return _clip(grads, losses.detach(), batch, norms)


class _LossModule(nn.Module):
    """A model whose forward is its loss, so that ``functional_call`` reaches every parameter."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Batch) -> Tensor:
        return self.loss(self.model, batch)


def _functional(model: nn.Module, loss: Loss, parameters: dict[str, Tensor], batch: Batch) -> Tensor:
    named = {f"model.{name}": value for name, value in parameters.items()}
    result: Tensor = torch.func.functional_call(_LossModule(model, loss), named, (batch,))
    return result


def opacus_hooks(model: nn.Module, loss: Loss, batch: Batch, norms: Norms) -> ClippedSum:
    """See :func:`fedsim.privacy.clipping.clipped_sum`: Opacus' ``GradSampleModule`` keeps ``grad_sample`` per parameter."""
    from opacus import GradSampleModule

    _register_cohort_layers()
    wrapped = GradSampleModule(_LossModule(model, loss), loss_reduction="sum")
    try:
        losses = wrapped(replace(batch, layout=replace(batch.layout, direct=True)))
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
                grads[name] = sample.detach()
    finally:
        wrapped.zero_grad(set_to_none=True)
        wrapped.to_standard_module()
    return _clip(grads, losses.detach(), batch, norms)


def _clip(grads: dict[str, Tensor], losses: Tensor, batch: Batch, norms: Norms) -> ClippedSum:
    """Clip and sum gradients ``[N, ...]``; for ``unit: client`` they are summed by client first."""
    weighted = {name: g * norms.weight(name) for name, g in grads.items()}
    if norms.unit == "client":
        by_client = {}
        for name, g in weighted.items():
            flat = g.flatten(1)
            summed = flat.new_zeros(batch.layout.clients, flat.shape[1]).index_add(0, batch.layout.client, flat)
            by_client[name] = summed.view(-1, *g.shape[1:])
        weighted = by_client
    units = next(iter(weighted.values())).shape[0]
    squared = losses.new_zeros(units)
    for name, g in weighted.items():
        if not norms.is_free(name):
            squared += g.flatten(1).square().sum(1)
    factor = norms.factors(squared)
    sums = {}
    for name, g in weighted.items():
        sums[name] = g.sum(0) if norms.is_free(name) else torch.einsum("n,n...->...", factor, g)
    return ClippedSum(sums, squared.sqrt(), losses)


_registered = False


def _register_cohort_layers() -> None:
    """Teach Opacus the cohort layers once per process."""
    global _registered
    if _registered:
        return
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

    def scale(layer: Scale, inputs: list[Any], grads: Tensor) -> dict[nn.Parameter, Tensor]:
        return {layer.weight: (grads * inputs[0]).flatten(1, -2).sum(1) if grads.dim() > 2 else grads * inputs[0]}

    def shift(layer: Shift, inputs: list[Any], grads: Tensor) -> dict[nn.Parameter, Tensor]:
        return {layer.weight: grads.flatten(1, -2).sum(1) if grads.dim() > 2 else grads}

    for kind, sampler in ((ClientLinear, client_linear), (ClientCode, client_code), (Scale, scale), (Shift, shift)):
        register_grad_sampler(kind)(sampler)
    _registered = True
