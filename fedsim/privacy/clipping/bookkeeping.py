"""The bookkeeping engine: clipped sums from the inputs and output gradients of one backward pass.

The engine records the inputs of every layer in the forward pass, and asks the backward pass for the
gradients of the layers' outputs. Both together are called the *use* of a layer
(:class:`fedsim.privacy.clipping.norms.Use`). An example's norm and its part of the sum are computed
from the same use, so the gradient that is clipped is the one that was measured. The engine assumes
that row n of every layer's output belongs to example n. It raises ValueError if a shape shows that
this is false.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
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
    """One call of a layer in a forward pass.

    Attributes:
        args: the positional arguments, followed by the values of the others.
        version: the version of the first argument's tensor when the layer read it.
        edge: the output's edge in autograd's graph, by which its gradient can be asked for.
        shape: the shape of the output.
    """

    args: tuple[Any, ...]
    version: int
    edge: GradientEdge
    shape: torch.Size


Calls = dict[str, list[Call]]
"""The calls of every layer, by the layer's name."""


def bookkeeping(
    model: nn.Module,
    loss: Loss,
    batch: Batch,
    norms: Norms,
    sums: dict[str, Tensor],
) -> Measured:
    """Add the clipped sum of ``batch`` to ``sums``, in place.

    It takes one forward pass, one backward pass, and one weighted product per layer; see
    :func:`fedsim.privacy.clipping.clipped_sum`.
    """
    layers = covered_layers(model)
    with torch.enable_grad():
        with _recorded_calls(layers) as calls:
            losses = loss(model, batch)
        _refuse_other_uses(losses, model, calls)
        uses = _uses(layers, calls, losses, batch.layout)
    with torch.no_grad():
        units = len(batch)
        if norms.unit == "client":
            unit_norms = _clip_clients(uses, norms, batch, sums)
        else:
            if norms.unit == "group" and batch.groups is not None:
                uses = _as_uses_of_groups(
                    uses,
                    batch.groups,
                    batch.layout,
                )
                units = batch.groups.clients
            unit_norms = _clip_examples_or_groups(
                uses,
                norms,
                units,
                sums,
                batch.x,
            )
        return unit_norms, losses.detach()


def covered_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that hold the trainable parameters, by name.

    Raises:
        ValueError: bookkeeping does not cover a parameter.
    """
    layers: dict[str, nn.Module] = {}
    known_ids: set[int] = set()
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is None or not parameter.requires_grad:
                continue
            if not _is_covered(module, name) or id(parameter) in known_ids:
                raise ValueError(
                    f"bookkeeping does not cover parameter '{_full_name(path, name)}' of a "
                    f"{type(module).__name__}: it covers "
                    f"{', '.join(kind.__name__ for kind in RULES)}, without hooks or shared "
                    "parameters; give engine: vmap"
                )
            known_ids.add(id(parameter))
            layers[path] = module
    return layers


def _is_covered(module: nn.Module, name: str) -> bool:
    """Return whether a rule covers the parameter, and nothing changes the module's forward."""
    rule = RULES.get(type(module))
    if rule is None or name not in rule.names:
        return False
    is_hooked = module._forward_hooks or module._forward_pre_hooks
    return not is_hooked and "forward" not in vars(module)


@contextmanager
def _recorded_calls(layers: dict[str, nn.Module]) -> Iterator[Calls]:
    """Record the calls of ``layers`` inside a ``with`` block, by the name of the layer.

    A call through which no gradient can flow is left out.
    """
    calls: Calls = defaultdict(list)

    def recorder(path: str) -> Callable[..., None]:
        def record(
            layer: nn.Module,
            args: tuple[Any, ...],
            names: dict[str, Any],
            output: Tensor,
        ) -> None:
            if not output.requires_grad:
                return
            if not args:
                raise ValueError(
                    f"layer '{path}' was called with keywords only; pass its input by position"
                )
            version = 0
            if isinstance(args[0], Tensor):
                version = args[0]._version
            # The edge is kept, not the tensor: an operation in place would move the tensor to
            # another place in the graph.
            assert output.grad_fn is not None
            edge = GradientEdge(output.grad_fn, output.output_nr)
            all_args = args + tuple(names.values())
            calls[path].append(Call(all_args, version, edge, output.shape))

        return record

    handles = [
        layer.register_forward_hook(recorder(path), with_kwargs=True)
        for path, layer in layers.items()
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _refuse_other_uses(
    losses: Tensor,
    model: nn.Module,
    calls: Calls,
) -> None:
    """Raise ValueError if the loss reaches a parameter other than by a recorded call.

    It walks the graph of gradients from the loss to its leaves, and passes over the inside of every
    recorded call.
    """
    inputs_of_calls = _inputs_of_calls(calls)
    name_of_id = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    waiting: list[Node | None] = [losses.grad_fn]
    seen: set[Node] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in inputs_of_calls:
            waiting += inputs_of_calls[node]
            continue
        waiting += [successor for successor, _ in node.next_functions]
        if node.next_functions:
            continue  # only a leaf of the graph holds a variable
        name = name_of_id.get(id(getattr(node, "variable", None)))
        if name is not None:
            raise ValueError(
                f"parameter '{name}' is used outside its layer's own forward: bookkeeping "
                "would not see that gradient; give engine: vmap"
            )


def _inputs_of_calls(calls: Calls) -> dict[Node, list[Node | None]]:
    """Return the nodes of the inputs of every recorded call, by the node of its output."""
    inputs: dict[Node, list[Node | None]] = {}
    for calls_of_layer in calls.values():
        for call in calls_of_layer:
            inputs[call.edge.node] = [
                get_gradient_edge(arg).node
                for arg in call.args
                if isinstance(arg, Tensor) and arg.requires_grad
            ]
    return inputs


def _uses(
    layers: dict[str, nn.Module],
    calls: Calls,
    losses: Tensor,
    layout: Layout,
) -> dict[str, Use]:
    """Run the backward pass and return the use of every layer that has a gradient, by name.

    The calls of one layer are joined into one use.
    """
    edges = [call.edge for path in layers for call in calls[path]]
    if not losses.requires_grad or not edges:
        return {}
    gradients = iter(torch.autograd.grad(losses.sum(), edges, allow_unused=True))
    uses = {}
    for path, layer in layers.items():
        rule = RULES[type(layer)]
        inputs = []
        grads = []
        for call in calls[path]:
            gradient = next(gradients)
            if gradient is None:
                continue
            _check_call(path, call, len(losses), layout)
            grad = by_use(gradient)
            grads.append(grad)
            inputs.append(rule.inputs(call.args, grad))
        if grads:
            uses[path] = Use(
                layer,
                _join(inputs),
                _join(grads),
                layout,
            )
    return uses


def _check_call(
    path: str,
    call: Call,
    rows: int,
    layout: Layout,
) -> None:
    """Raise ValueError if a call shows that its use would give a wrong gradient.

    The output must have one row per example, the input must not have changed after the call, and a
    layout among the arguments must be that of the batch.
    """
    if len(call.shape) < 2 or call.shape[0] != rows:
        raise ValueError(
            f"layer '{path}' gave {list(call.shape)} for {rows} examples: its gradient is "
            "not per example; let it return one row per example"
        )
    first = call.args[0]
    if isinstance(first, Tensor) and first._version != call.version:
        raise ValueError(
            f"the input of layer '{path}' was changed in place after the layer had used it"
        )
    for arg in call.args:
        if isinstance(arg, Layout) and arg is not layout:
            raise ValueError(
                f"layer '{path}' got a layout that is not that of the batch; pass it batch.layout"
            )


def _join(values: list[Tensor]) -> Tensor:
    """Concatenate the inputs or the gradients ``[N, T, m]`` of several calls along T."""
    if len(values) == 1:
        return values[0]
    return torch.cat(values, 1)


def _as_uses_of_groups(
    uses: dict[str, Use],
    groups: Layout,
    layout: Layout,
) -> dict[str, Use]:
    """Return uses in which row n is a group instead of an example.

    The gradient of a group is the sum over its rows. So a rule may treat the group as one example
    that uses the layer once for every row.
    """
    sizes = torch.bincount(groups.positions, minlength=groups.clients)
    first_rows = sizes.cumsum(0) - sizes
    group_layout = replace(
        layout,
        client=layout.client[to_device(first_rows, layout.client.device)],
        known=layout.positions[first_rows],
    )

    def pad(values: Tensor) -> Tensor:
        return groups.pad(values).flatten(1, 2)

    return {
        path: Use(use.layer, pad(use.inputs), pad(use.grads), group_layout)
        for path, use in uses.items()
    }


def _clip_examples_or_groups(
    uses: dict[str, Use],
    norms: Norms,
    units: int,
    sums: dict[str, Tensor],
    like: Tensor,
) -> Tensor:
    """Clip the gradients of examples or groups and add them to ``sums``.

    Args:
        uses: the use of every layer, with one row per unit.
        norms: the clip norm and the weights.
        units: the number of examples or groups.
        sums: the sums by parameter name, changed in place.
        like: a tensor of the device and dtype to compute in.

    Returns:
        The units' joint norms before clipping, ``[units]``.
    """
    squared, is_finite = _joint_squared_norms(
        uses,
        norms,
        units,
        sums,
        like,
    )
    # On the CPU the copies are avoided if all gradients are finite. On another device they are
    # always made, because reading `is_finite` there would make the CPU wait.
    if is_finite.device != CPU or not bool(is_finite.all()):
        uses = {path: use.keep_only(is_finite) for path, use in uses.items()}
    clip_factor = norms.factors(squared)
    ones = torch.ones_like(squared)
    # In reverse order, because the layers measured last are still in the cache.
    for path, use in reversed(uses.items()):
        rule = RULES[type(use.layer)]
        for name in rule.names:
            full_name = _full_name(path, name)
            if full_name in sums:
                factor = ones if norms.is_free(full_name) else clip_factor
                target = Target(
                    sums[full_name],
                    norms.weight(full_name),
                    factor,
                )
                rule.add(use, name, target)
    return squared.sqrt()


def _joint_squared_norms(
    uses: dict[str, Use],
    norms: Norms,
    units: int,
    names: Mapping[str, Tensor],
    like: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the units' squared joint norms and whether each gradient is finite, ``[units]``."""
    # The zeros are the squared norms if no parameter counts.
    squared_norms = [like.new_zeros(units)]
    squared_weights = [1.0]
    is_finite = torch.ones(
        units,
        dtype=torch.bool,
        device=like.device,
    )
    for path, use in uses.items():
        for name, squared_norm in RULES[type(use.layer)].squared(use).items():
            full_name = _full_name(path, name)
            if full_name not in names:
                continue
            if norms.is_free(full_name):
                is_finite &= squared_norm.isfinite()
            else:
                squared_norms.append(squared_norm)
                squared_weights.append(norms.weight(full_name) ** 2)
    weights = to_device(
        torch.tensor(squared_weights, dtype=like.dtype),
        like.device,
    )
    squared = weights @ torch.stack(squared_norms)
    is_finite &= squared.isfinite()
    return squared, is_finite


def _clip_clients(
    uses: dict[str, Use],
    norms: Norms,
    batch: Batch,
    sums: dict[str, Tensor],
) -> Tensor:
    """Clip the clients' summed gradients and add them to ``sums``; return their joint norms."""
    gradients: dict[str, Tensor] = {}
    per_client = set()
    for path, use in uses.items():
        for name, gradient in RULES[type(use.layer)].per_client(use).items():
            full_name = _full_name(path, name)
            if full_name not in sums:
                continue
            gradients[full_name] = gradient
            if isinstance(use.layer, PER_CLIENT):
                per_client.add(full_name)
    clipped, unit_norms = clip_units(
        gradients,
        norms,
        batch.layout.clients,
    )
    for name, gradient in clipped.items():
        # Slice k of a per-client parameter has a gradient from client k alone, so none are summed.
        if name in per_client:
            sums[name] += gradient
        else:
            sums[name] += gradient.sum(0)
    return unit_norms


def _full_name(path: str, name: str) -> str:
    """Return a parameter's name in the model from its layer's path and its name in the layer."""
    return f"{path}.{name}".removeprefix(".")
