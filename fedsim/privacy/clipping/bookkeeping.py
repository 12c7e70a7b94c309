"""The bookkeeping engine: norms and clipped sums from the inputs and output gradients that one
backward pass leaves behind.

An example's norm and its part of the sum come from the same numbers
(:mod:`fedsim.privacy.clipping.norms`), so the gradient that is clipped is the one that was
measured. The engine assumes that row n of every layer belongs to example n, and raises where that
is visibly false.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from fedsim.batch import Batch, Layout
from fedsim.device import CPU, to_device
from fedsim.privacy.clipping.norms import (
    PER_CLIENT,
    RULES,
    Loss,
    Measured,
    Norms,
    Target,
    Use,
    by_use,
    clip_units,
)


class Call(NamedTuple):
    """One use of a layer: its arguments, the version of the first, and its output's place in the
    graph of gradients.
    """

    args: tuple[Any, ...]
    version: int
    edge: GradientEdge
    shape: torch.Size


Calls = dict[str, list[Call]]


def bookkeeping(
    model: nn.Module, loss: Loss, batch: Batch, norms: Norms, sums: dict[str, Tensor]
) -> Measured:
    """See :func:`fedsim.privacy.clipping.clipped_sum`: one forward, one backward, one weighted
    product a layer.
    """
    layers = covered_layers(model)
    with torch.enable_grad():
        with _recorded(layers) as calls:
            losses = loss(model, batch)
        _refuse_other_uses(losses, layers, calls)
        uses = _uses(layers, calls, losses, batch.layout)
    with torch.no_grad():
        if norms.unit == "client":
            return _clip_clients(uses, norms, batch, sums), losses.detach()
        units = len(batch)
        if norms.unit == "group" and batch.groups is not None:
            uses = _as_uses_of_groups(uses, batch.groups, batch.layout)
            units = batch.groups.clients
        return _clip_units(uses, norms, units, sums, batch.x), losses.detach()


def covered_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that hold the trainable parameters, by name."""
    layers: dict[str, nn.Module] = {}
    owned: set[int] = set()
    for path, module in model.named_modules():
        rule = RULES.get(type(module))
        hooks = (*module._forward_hooks, *module._forward_pre_hooks)
        for name, parameter in module._parameters.items():
            if parameter is None or not parameter.requires_grad:
                continue
            if (
                rule is None
                or name not in rule.names
                or "forward" in vars(module)
                or hooks
                or id(parameter) in owned
            ):
                raise ValueError(
                    f"bookkeeping does not cover parameter '{_full(path, name)}' of a "
                    f"{type(module).__name__}: it covers "
                    f"{', '.join(kind.__name__ for kind in RULES)}, without hooks or shared "
                    "parameters; give engine: vmap"
                )
            owned.add(id(parameter))
            layers[path] = module
    return layers


@contextmanager
def _recorded(layers: dict[str, nn.Module]) -> Iterator[Calls]:
    """Record every use of ``layers`` that a gradient can flow through."""
    calls: Calls = defaultdict(list)

    def watch(path: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def record(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if not output.requires_grad:
                return
            if not args:
                raise ValueError(
                    f"layer '{path}' was called with keywords only; pass its input by position"
                )
            if isinstance(args[0], Tensor):
                version = args[0]._version
            else:
                version = 0
            # The edge, not the tensor: an operation in place would move the tensor on in the graph.
            assert output.grad_fn is not None
            calls[path].append(
                Call(args, version, GradientEdge(output.grad_fn, output.output_nr), output.shape)
            )

        return record

    handles = [layer.register_forward_hook(watch(path)) for path, layer in layers.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _refuse_other_uses(losses: Tensor, layers: dict[str, nn.Module], calls: Calls) -> None:
    """Raise if the loss reaches a parameter other than by a recorded use of its layer."""
    over: dict[Node, list[Node | None]] = {}
    for uses in calls.values():
        for call in uses:
            over[call.edge.node] = [
                get_gradient_edge(a).node
                for a in call.args
                if isinstance(a, Tensor) and a.requires_grad
            ]
    names = {
        id(p): _full(path, name)
        for path, layer in layers.items()
        for name, p in layer._parameters.items()
        if p is not None and p.requires_grad
    }
    waiting: list[Node | None] = [losses.grad_fn]
    seen: set[Node] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in over:
            waiting += over[node]
            continue
        following = node.next_functions
        waiting += [successor for successor, _ in following]
        # only leaves of the graph hold a variable
        if following:
            name = None
        else:
            name = names.get(id(getattr(node, "variable", None)))
        if name is not None:
            raise ValueError(
                f"parameter '{name}' is used outside its layer's own forward: bookkeeping "
                "would not see that gradient; give engine: vmap"
            )


def _uses(
    layers: dict[str, nn.Module], calls: Calls, losses: Tensor, layout: Layout
) -> dict[str, Use]:
    edges = [call.edge for path in layers for call in calls[path]]
    if not losses.requires_grad or not edges:
        return {}
    gradients = iter(torch.autograd.grad(losses.sum(), edges, allow_unused=True))
    uses = {}
    for path, layer in layers.items():
        inputs = []
        grads = []
        for call, grad in [(call, next(gradients)) for call in calls[path]]:
            if grad is None:
                continue
            _check_call(path, call, len(losses), layout)
            grads.append(by_use(grad))
            inputs.append(RULES[type(layer)].inputs(call.args, grads[-1]))
        if grads:
            uses[path] = Use(layer, _join(inputs), _join(grads), layout)
    return uses


def _check_call(path: str, call: Call, rows: int, layout: Layout) -> None:
    if len(call.shape) < 2 or call.shape[0] != rows:
        raise ValueError(
            f"layer '{path}' gave {list(call.shape)} for {rows} examples: its gradient is "
            "not per example; give it a row an example"
        )
    first = call.args[0]
    if isinstance(first, Tensor) and first._version != call.version:
        raise ValueError(
            f"the input of layer '{path}' was changed in place after the layer had used it"
        )
    if any(isinstance(arg, Layout) and arg is not layout for arg in call.args):
        raise ValueError(f"layer '{path}' was called with another layout than its batch's")


def _join(parts: list[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts, 1)


def _as_uses_of_groups(uses: dict[str, Use], groups: Layout, layout: Layout) -> dict[str, Use]:
    """The uses by group instead of example: a group's gradient is that of one example that uses the
    layer once for every row.
    """
    counts = torch.bincount(groups.positions, minlength=groups.clients)
    first = counts.cumsum(0) - counts
    owner = replace(
        layout,
        client=layout.client[to_device(first, layout.client.device)],
        known=layout.positions[first],
    )

    def padded(values: Tensor) -> Tensor:
        return groups.pad(values).flatten(1, 2)

    return {
        path: Use(use.layer, padded(use.inputs), padded(use.grads), owner)
        for path, use in uses.items()
    }


def _clip_units(
    uses: dict[str, Use], norms: Norms, units: int, sums: dict[str, Tensor], like: Tensor
) -> Tensor:
    """Clip and add ``units`` gradients, of examples or groups, on the device of ``like``; their
    joint norms before clipping.
    """
    parts = [like.new_zeros(units)]
    weights = [1.0]
    finite = torch.ones(units, dtype=torch.bool, device=like.device)
    for path, use in uses.items():
        for name, value in RULES[type(use.layer)].squared(use).items():
            full = _full(path, name)
            if full not in sums:
                continue
            if norms.is_free(full):
                finite &= value.isfinite()
            else:
                parts.append(value)
                weights.append(norms.weight(full) ** 2)
    squared = to_device(torch.tensor(weights, dtype=like.dtype), like.device) @ torch.stack(parts)
    finite &= squared.isfinite()
    # reading a value from another device would wait for it
    if finite.device != CPU or not bool(finite.all()):
        uses = {path: use.keep_only(finite) for path, use in uses.items()}
    factor = norms.factors(squared)
    ones = torch.ones_like(squared)
    # backwards: the layers measured last are still in the cache
    for path, use in reversed(uses.items()):
        rule = RULES[type(use.layer)]
        clipped: dict[str, Target] = {}
        free: dict[str, Target] = {}
        for name in rule.names:
            full = _full(path, name)
            if full in sums:
                (free if norms.is_free(full) else clipped)[name] = Target(
                    sums[full], norms.weight(full)
                )
        if clipped:
            rule.add(use, factor, clipped)
        if free:
            rule.add(use, ones, free)
    return squared.sqrt()


def _clip_clients(
    uses: dict[str, Use], norms: Norms, batch: Batch, sums: dict[str, Tensor]
) -> Tensor:
    messages: dict[str, Tensor] = {}
    per_client = set()
    for path, use in uses.items():
        for name, value in RULES[type(use.layer)].per_client(use).items():
            if _full(path, name) in sums:
                messages[_full(path, name)] = value
                if isinstance(use.layer, PER_CLIENT):
                    per_client.add(_full(path, name))
    clipped, unit_norms = clip_units(messages, norms, batch.layout.clients)
    for name, value in clipped.items():
        if name in per_client:
            sums[name] += value
        else:
            sums[name] += value.sum(0)
    return unit_norms


def _full(path: str, name: str) -> str:
    if path:
        return f"{path}.{name}"
    return name
