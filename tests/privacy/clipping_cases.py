"""Small models, one per kind of layer, and the slow and sure way to clip.

The slow way takes one example at a time, with plain autograd.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from streams import seeded
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from fedsim.batch import Batch, Layout, consecutive
from fedsim.models.layers import ClientCode, ClientLinear, Shift
from fedsim.privacy.clipping import Norms

DIM = 5


def make_batch(
    counts: tuple[int, ...] = (3, 0, 1, 4),
    seed: int = 0,
) -> Batch:
    """Return ``counts[k]`` examples of client k, in groups of some examples of one client."""
    stream = seeded(seed)
    rows = sum(counts)
    client = torch.repeat_interleave(
        torch.arange(len(counts)),
        torch.tensor(counts),
    )
    coins = torch.rand(rows, generator=seeded(seed))
    is_new_client = client.diff(prepend=torch.tensor([-1])) > 0
    group = (is_new_client | (coins < 0.5)).cumsum(0)
    return Batch(
        torch.randn(rows, DIM, generator=stream),
        torch.randint(4, (rows,), generator=stream),
        {"eps": torch.randn(rows, 3, DIM, generator=stream)},
        Layout(client, len(counts)),
        consecutive(group, client),
    )


class Calls(nn.Module):
    """Layers and parameters by name, and a loss ``[N]`` of them and a batch."""

    def __init__(
        self,
        loss: Callable[[Any, Batch], Tensor],
        **parts: nn.Module | nn.Parameter,
    ) -> None:
        super().__init__()
        self.loss = loss
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, b: Batch) -> Tensor:
        return self.loss(self, b)


def randomised(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def linear(clients: int) -> nn.Module:
    def loss(m: Any, b: Batch) -> Tensor:
        hidden = torch.tanh(m.one(b.x))
        return m.two(hidden).square().sum(1)

    return Calls(
        loss,
        one=nn.Linear(DIM, 7),
        two=nn.Linear(7, 2, bias=False),
    )


def linear_many_times(clients: int) -> nn.Module:
    """Use a layer three times in one call, then once more."""

    def loss(m: Any, b: Batch) -> Tensor:
        hidden = torch.tanh(m.layer(b.draws["eps"]))
        return m.layer(hidden.mean(1) + b.x).square().sum(1)

    return Calls(loss, layer=nn.Linear(DIM, DIM))


def elementwise(clients: int) -> nn.Module:
    """Shift by a vector and by one number, once and three times per example."""

    def loss(m: Any, b: Batch) -> Tensor:
        thrice = m.offset(m.shift(b.draws["eps"]))
        once = m.shift(b.x)
        return thrice.sin().sum((1, 2)) + once.square().sum(1)

    return Calls(loss, shift=Shift(DIM), offset=Shift(1))


def per_client(clients: int) -> nn.Module:
    """Give every client its own encoder and code, beside a shared layer."""

    def loss(m: Any, b: Batch) -> Tensor:
        code = m.code(b.layout)
        hidden = torch.tanh(m.encoder(b.x, b.layout))
        return m.out(hidden * code + code).square().sum(1)

    return Calls(
        loss,
        encoder=randomised(ClientLinear(clients, DIM, 4)),
        code=randomised(ClientCode(clients, 4)),
        out=nn.Linear(4, 2),
    )


Kind = Callable[[int], nn.Module]
MODELS: tuple[Kind, ...] = (
    linear,
    linear_many_times,
    elementwise,
    per_client,
)


def build(kind: Kind, clients: int = 4) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return kind(clients)


def call(model: nn.Module, batch: Batch) -> Tensor:
    """Return the loss of one of the models above."""
    return model(batch)


def trainable(model: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def single_gradients(
    model: nn.Module,
    loss: Callable[[nn.Module, Batch], Tensor],
    batch: Batch,
) -> Tensor:
    """Return every example's gradient by all parameters, from a batch of its own, ``[N, P]``."""
    parameters = list(trainable(model).values())
    rows = []
    for index in range(len(batch)):
        example = batch.take(slice(index, index + 1))
        gradient = torch.autograd.grad(
            loss(model, example).sum(),
            parameters,
            allow_unused=True,
            materialize_grads=True,
        )
        rows.append(parameters_to_vector(gradient))
    return torch.stack(rows)


def loop(
    model: nn.Module,
    loss: Callable[[nn.Module, Batch], Tensor],
    batch: Batch,
    norms: Norms,
) -> dict[str, Tensor]:
    """Return the clipped sum, written as its definition reads."""
    parameters = trainable(model)
    weights = [torch.full_like(p, norms.weight(name)) for name, p in parameters.items()]
    free = [torch.full_like(p, name in norms.free) for name, p in parameters.items()]
    is_free = parameters_to_vector(free).bool()
    gradients = single_gradients(model, loss, batch) * parameters_to_vector(weights)
    unit_of_row = torch.arange(len(batch))
    if norms.unit == "client":
        unit_of_row = batch.layout.client
    elif norms.unit == "group":
        unit_of_row = batch.groups.client
    total = torch.zeros_like(is_free, dtype=torch.float)
    for unit in unit_of_row.unique():
        gradient = gradients[unit_of_row == unit].sum(0)
        norm = float(gradient[~is_free].double().norm())
        factor = min(1.0, norms.clip / max(norm, 1e-12))
        total += torch.where(
            is_free,
            gradient,
            factor * gradient,
        )
    pieces = total.split([p.numel() for p in parameters.values()])
    return dict(zip(parameters, pieces, strict=True))


def difference(
    sums: dict[str, Tensor],
    expected: dict[str, Tensor],
) -> float:
    """Return the largest relative L2 error of a parameter."""
    assert sums.keys() == expected.keys()
    errors = []
    for name, right in expected.items():
        error = (sums[name].flatten() - right.flatten()).norm()
        errors.append(float(error / right.norm().clamp_min(1e-6)))
    return max(errors)
