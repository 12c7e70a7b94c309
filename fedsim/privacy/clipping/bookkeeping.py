"""The bookkeeping engine: norms and clipped sums from the inputs and output gradients that one backward pass leaves behind.

For a linear layer the gradient of example n is ``g_n a_n^T``, so its squared norm is ``|g_n|^2 |a_n|^2`` and the clipped sum is one
product ``(c * g)^T a`` (Goodfellow 2015, arXiv 1510.01799; Bu et al. 2023, "book-keeping", arXiv 2210.00038). A layer used T times an
example has ``sum_st <g_s, g_t> <a_s, a_t>`` (Li et al. 2022, "ghost norm", arXiv 2110.05679).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.batch import Batch
from fedsim.models.layers import ClientCode, ClientLinear, Layout, Scale, Shift, ZeroLinear
from fedsim.privacy.clipping.engine import ClippedSum, Loss, Norms


@dataclass(frozen=True)
class Use:
    """All uses of one layer in one forward pass.

    Attributes:
        layer: the layer.
        inputs: what its gradient is an outer product with, ``[N, T, in]``; empty last dimension where there is nothing.
        grads: gradient of the summed loss by its output, ``[N, T, out]``.
        layout: which client each row belongs to.
    """

    layer: nn.Module
    inputs: Tensor
    grads: Tensor
    layout: Layout


class Rule:
    """How one kind of layer yields squared per-example norms and weighted sums, by parameter name within the layer."""

    def squared(self, use: Use) -> dict[str, Tensor]:
        """Each parameter's squared gradient norm, ``[N]``."""
        raise NotImplementedError

    def sums(self, use: Use, factor: Tensor) -> dict[str, Tensor]:
        """Each parameter's ``sum_n factor_n * gradient_n``, in the parameter's shape."""
        raise NotImplementedError

    def per_client(self, use: Use) -> dict[str, Tensor]:
        """Each parameter's gradient summed per client, ``[K, ...]``; a per-client parameter's own shape where it has K rows."""
        raise NotImplementedError


def _outer_squared(a: Tensor, g: Tensor) -> Tensor:
    """``|sum_t g_t a_t^T|^2`` per example from ``[N, T, in]`` and ``[N, T, out]``."""
    if a.shape[1] == 1:
        return torch.linalg.vecdot(a, a).squeeze(1) * torch.linalg.vecdot(g, g).squeeze(1)
    return ((a @ a.transpose(1, 2)) * (g @ g.transpose(1, 2))).sum((1, 2))


def _vector_squared(g: Tensor) -> Tensor:
    """``|sum_t g_t|^2`` per example from ``[N, T, out]``."""
    summed = g.sum(1) if g.shape[1] > 1 else g[:, 0]
    return torch.linalg.vecdot(summed, summed)


def _by_client(use: Use, values: Tensor) -> Tensor:
    """``[N, T, m]`` to ``[K, width * T, m]``."""
    padded = use.layout.pad(values)
    return padded.reshape(padded.shape[0], -1, padded.shape[-1])


class LinearRule(Rule):
    """``nn.Linear``: weight and bias shared by all clients."""

    def squared(self, use: Use) -> dict[str, Tensor]:
        """From the norms of inputs and output gradients, or their Gram matrices where T > 1."""
        found = {"weight": _outer_squared(use.inputs, use.grads)}
        if use.layer.bias is not None:
            found["bias"] = _vector_squared(use.grads)
        return found

    def sums(self, use: Use, factor: Tensor) -> dict[str, Tensor]:
        """One weighted product."""
        weighted = (use.grads * factor[:, None, None]).flatten(0, 1)
        found = {"weight": weighted.T @ use.inputs.flatten(0, 1)}
        if use.layer.bias is not None:
            found["bias"] = weighted.sum(0)
        return found

    def per_client(self, use: Use) -> dict[str, Tensor]:
        """One batched product over the padded clients."""
        grads = _by_client(use, use.grads)
        found = {"weight": grads.transpose(1, 2) @ _by_client(use, use.inputs)}
        if use.layer.bias is not None:
            found["bias"] = grads.sum(1)
        return found


class ClientLinearRule(LinearRule):
    """``ClientLinear``: the same norms, sums kept apart by client."""

    def sums(self, use: Use, factor: Tensor) -> dict[str, Tensor]:
        """One weighted batched product over the padded clients."""
        return self.per_client(Use(use.layer, use.inputs, use.grads * factor[:, None, None], use.layout))


class ShiftRule(Rule):
    """``Shift``: the gradient is the output's."""

    def gradient(self, use: Use) -> Tensor:
        """Per-example gradient ``[N, size]``."""
        return use.grads.sum(1)

    def squared(self, use: Use) -> dict[str, Tensor]:
        """Directly: an elementwise parameter's gradient is no larger than the activation."""
        return {"weight": _vector_squared(self.gradient(use)[:, None])}

    def sums(self, use: Use, factor: Tensor) -> dict[str, Tensor]:
        """Weighted sum over examples."""
        return {"weight": factor @ self.gradient(use)}

    def per_client(self, use: Use) -> dict[str, Tensor]:
        """Summed by client."""
        return {"weight": _sum_by(use.layout.client, self.gradient(use), use.layout.clients)}


class ScaleRule(ShiftRule):
    """``Scale``: the gradient is input times output gradient."""

    def gradient(self, use: Use) -> Tensor:
        """Per-example gradient ``[N, size]``."""
        return (use.grads * use.inputs).sum(1)


class LayerNormRule(Rule):
    """``nn.LayerNorm`` over the last dimension: a scale of the normalised input, and a shift."""

    def _gradients(self, use: Use) -> dict[str, Tensor]:
        assert isinstance(use.layer, nn.LayerNorm)
        normalised = F.layer_norm(use.inputs, use.layer.normalized_shape, eps=use.layer.eps)
        found = {"weight": (use.grads * normalised).sum(1)}
        if use.layer.bias is not None:
            found["bias"] = use.grads.sum(1)
        return found

    def squared(self, use: Use) -> dict[str, Tensor]:
        """Directly, as for any elementwise parameter."""
        return {name: torch.linalg.vecdot(g, g) for name, g in self._gradients(use).items()}

    def sums(self, use: Use, factor: Tensor) -> dict[str, Tensor]:
        """Weighted sum over examples."""
        return {name: factor @ g for name, g in self._gradients(use).items()}

    def per_client(self, use: Use) -> dict[str, Tensor]:
        """Summed by client."""
        return {name: _sum_by(use.layout.client, g, use.layout.clients) for name, g in self._gradients(use).items()}


class EmbeddingRule(Rule):
    """``nn.Embedding``: rows picked by index; ``inputs`` holds the indices ``[N, T, 1]``."""

    def squared(self, use: Use) -> dict[str, Tensor]:
        """Gram matrix of the gradients, over pairs of uses that picked the same row."""
        same = use.inputs == use.inputs.transpose(1, 2)
        return {"weight": ((use.grads @ use.grads.transpose(1, 2)) * same).sum((1, 2))}

    def sums(self, use: Use, factor: Tensor) -> dict[str, Tensor]:
        """Weighted gradients added to the rows that were picked."""
        weight = use.layer.weight
        assert isinstance(weight, Tensor)
        weighted = (use.grads * factor[:, None, None]).flatten(0, 1)
        return {"weight": _sum_by(use.inputs.flatten().long(), weighted, len(weight))}

    def per_client(self, use: Use) -> dict[str, Tensor]:
        """As :meth:`sums`, each client with a table of its own."""
        weight = use.layer.weight
        assert isinstance(weight, Tensor)
        rows, times = use.grads.shape[:2]
        client = use.layout.client[:, None].expand(rows, times)
        index = (client * len(weight) + use.inputs[..., 0].long()).flatten()
        summed = _sum_by(index, use.grads.flatten(0, 1), use.layout.clients * len(weight))
        return {"weight": summed.view(use.layout.clients, *weight.shape)}


class ClientCodeRule(ShiftRule):
    """``ClientCode``: the gradient of the per-example input, added to its client's row."""

    def sums(self, use: Use, factor: Tensor) -> dict[str, Tensor]:
        """Weighted sum per client."""
        return {"weight": _sum_by(use.layout.client, self.gradient(use) * factor[:, None], use.layout.clients)}


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: LinearRule(),
    ZeroLinear: LinearRule(),
    nn.LayerNorm: LayerNormRule(),
    nn.Embedding: EmbeddingRule(),
    ClientLinear: ClientLinearRule(),
    ClientCode: ClientCodeRule(),
    Scale: ScaleRule(),
    Shift: ShiftRule(),
}
PER_CLIENT = (ClientLinear, ClientCode)
"""Layers whose parameters have one slice per client."""


def _sum_by(index: Tensor, values: Tensor, size: int) -> Tensor:
    return values.new_zeros(size, values.shape[-1]).index_add(0, index, values)


def covered_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that hold the trainable parameters, by name.

    Raises:
        ValueError: a parameter that no rule covers, or that two layers share.
    """
    layers: dict[str, nn.Module] = {}
    owners: dict[int, str] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            full = f"{path}.{name}" if path else name
            if type(module) not in RULES:
                raise ValueError(
                    f"bookkeeping does not cover parameter '{full}' of a {type(module).__name__}; "
                    f"covered: {', '.join(kind.__name__ for kind in RULES)}; or use engine vmap"
                )
            if id(parameter) in owners:
                raise ValueError(
                    f"bookkeeping does not cover '{full}': it is the same parameter as '{owners[id(parameter)]}'"
                )
            owners[id(parameter)] = full
            layers[path] = module
    return layers


@contextmanager
def _watched(layers: dict[str, nn.Module]) -> Iterator[dict[str, list[tuple[tuple[Any, ...], Tensor]]]]:
    """Record (inputs, output) of every use of ``layers``; their parameters take no gradient meanwhile."""
    calls: dict[str, list[tuple[tuple[Any, ...], Tensor]]] = defaultdict(list)

    def watch(path: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def record(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            if not output.requires_grad:
                output.requires_grad_(True)
            calls[path].append((inputs, output))

        return record

    parameters = [p for layer in layers.values() for p in layer.parameters(recurse=False) if p.requires_grad]
    handles = [layer.register_forward_hook(watch(path)) for path, layer in layers.items()]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield calls
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for handle in handles:
            handle.remove()


def _times(values: Tensor) -> Tensor:
    """``[N, ..., m]`` to ``[N, T, m]``."""
    return values.unsqueeze(1) if values.dim() == 2 else values.flatten(1, -2)


def _uses(
    layers: dict[str, nn.Module], calls: dict[str, list[tuple[tuple[Any, ...], Tensor]]], loss: Tensor, layout: Layout
) -> dict[str, Use]:
    outputs = [output for path in layers for _, output in calls[path]]
    found = iter(torch.autograd.grad(loss.sum(), outputs, allow_unused=True))
    uses = {}
    for path, layer in layers.items():
        inputs, grads = [], []
        for args, output in calls[path]:
            if output.shape[0] != len(loss):
                raise ValueError(
                    f"layer '{path}' saw {output.shape[0]} rows for {len(loss)} examples: its gradient is not per example; "
                    "give it one input row per example (a code expanded to the batch, not one weight set for all)"
                )
            grad = next(found)
            grads.append(_times(torch.zeros_like(output) if grad is None else grad))
            if isinstance(layer, ClientCode):
                inputs.append(grads[-1][..., :0])
            elif isinstance(layer, nn.Embedding):
                inputs.append(args[0].reshape(len(loss), -1, 1))
            else:
                inputs.append(_times(args[0].detach()))
        if grads:
            uses[path] = Use(layer, _join(inputs), _join(grads), layout)
    return uses


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def bookkeeping(model: nn.Module, loss: Loss, batch: Batch, norms: Norms) -> ClippedSum:
    """See :func:`fedsim.privacy.clipping.clipped_sum`: one forward, one backward, one weighted product a layer."""
    layers = covered_layers(model)
    with _watched(layers) as calls, torch.enable_grad():
        losses = loss(model, batch)
        uses = _uses(layers, calls, losses, batch.layout)
    with torch.no_grad():
        clip = _clip_clients if norms.unit == "client" else _clip_examples
        sums, unit_norms = clip(uses, norms, batch)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and name not in sums:
                sums[name] = torch.zeros_like(parameter)
    return ClippedSum(sums, unit_norms, losses.detach())


def _clip_examples(uses: dict[str, Use], norms: Norms, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
    squared = batch.x.new_zeros(len(batch))
    for path, use in uses.items():
        for name, value in RULES[type(use.layer)].squared(use).items():
            if not norms.is_free(f"{path}.{name}"):
                squared += norms.weight(f"{path}.{name}") ** 2 * value
    factor, ones = norms.factors(squared), torch.ones_like(squared)
    sums = {}
    for path, use in uses.items():
        free = norms.is_free(path)
        for name, value in RULES[type(use.layer)].sums(use, ones if free else factor).items():
            sums[f"{path}.{name}"] = value * norms.weight(f"{path}.{name}")
    return sums, squared.sqrt()


def _clip_clients(uses: dict[str, Use], norms: Norms, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
    messages: dict[str, Tensor] = {}
    squared = batch.x.new_zeros(batch.layout.clients)
    for path, use in uses.items():
        for name, value in RULES[type(use.layer)].per_client(use).items():
            full = f"{path}.{name}"
            messages[full] = value * norms.weight(full)
            if not norms.is_free(full):
                squared += messages[full].flatten(1).square().sum(1)
    factor = norms.factors(squared)
    sums = {}
    for path, use in uses.items():
        for full in (name for name in messages if name.rpartition(".")[0] == path):
            value = messages[full]
            if not norms.is_free(full):
                value = value * factor.view(-1, *[1] * (value.dim() - 1))
            sums[full] = value if isinstance(use.layer, PER_CLIENT) else value.sum(0)
    return sums, squared.sqrt()
