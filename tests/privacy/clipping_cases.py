"""Small models, one per layer kind, and the slow and sure way to clip: one example at a time, with
plain autograd.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.batch import Batch, Layout, consecutive
from fedsim.models.layers import ClientCode, ClientLinear, Shift
from fedsim.privacy.clipping import Norms

DIM = 5


def make_batch(counts: tuple[int, ...] = (3, 0, 1, 4), seed: int = 0) -> Batch:
    """``counts[k]`` rows of client k, in groups of some rows of one client."""
    stream = torch.Generator().manual_seed(seed)
    rows = sum(counts)
    client = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    begins = (torch.rand(rows, generator=torch.Generator().manual_seed(seed)) < 0.5) | (
        client.diff(prepend=torch.tensor([-1])) > 0
    )
    return Batch(
        torch.randn(rows, DIM, generator=stream),
        torch.randint(4, (rows,), generator=stream),
        {"eps": torch.randn(rows, 3, DIM, generator=stream)},
        Layout(client, len(counts)),
        consecutive(begins.cumsum(0), client),
    )


class Calls(nn.Module):
    """Layers and parameters by name, and a loss ``[N]`` of them and a batch."""

    def __init__(
        self, loss: Callable[[Any, Batch], Tensor], **parts: nn.Module | nn.Parameter
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
        return m.two(torch.tanh(m.one(b.x))).square().sum(1)

    return Calls(loss, one=nn.Linear(DIM, 7), two=nn.Linear(7, 2, bias=False))


def linear_many_times(clients: int) -> nn.Module:
    """T = 3 in one call, then the same layer again."""

    def loss(m: Any, b: Batch) -> Tensor:
        return m.layer(torch.tanh(m.layer(b.draws["eps"])).mean(1) + b.x).square().sum(1)

    return Calls(loss, layer=nn.Linear(DIM, DIM))


def elementwise(clients: int) -> nn.Module:
    """Shift by a vector and by one number, T = 1 and T = 3."""

    def loss(m: Any, b: Batch) -> Tensor:
        return m.offset(m.shift(b.draws["eps"])).sin().sum((1, 2)) + m.shift(b.x).square().sum(1)

    return Calls(loss, shift=Shift(DIM), offset=Shift(1))


def per_client(clients: int) -> nn.Module:
    """Encoders and codes of one's own, and a shared layer."""

    def loss(m: Any, b: Batch) -> Tensor:
        code = m.code(b.layout)
        return m.out(torch.tanh(m.encoder(b.x, b.layout)) * code + code).square().sum(1)

    encoder = randomised(ClientLinear(clients, DIM, 4))
    code = randomised(ClientCode(clients, 4))
    return Calls(loss, encoder=encoder, code=code, out=nn.Linear(4, 2))


MODELS: tuple[Callable[[int], nn.Module], ...] = (
    linear,
    linear_many_times,
    elementwise,
    per_client,
)


def build(kind: Callable[[int], nn.Module], clients: int = 4) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return kind(clients)


def call(model: nn.Module, batch: Batch) -> Tensor:
    """The loss of the models above."""
    return model(batch)


def single_gradients(
    model: nn.Module, loss: Callable[[nn.Module, Batch], Tensor], batch: Batch
) -> list[dict[str, Tensor]]:
    """Every example's gradient, from a batch of its own, by plain autograd."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = []
    for index in range(len(batch)):
        value = loss(model, batch.take(slice(index, index + 1))).sum()
        grads = torch.autograd.grad(value, list(named.values()), allow_unused=True)
        gradients.append(
            {
                n: torch.zeros_like(p) if g is None else g
                for (n, p), g in zip(named.items(), grads, strict=True)
            }
        )
    return gradients


def joint_norm(tensors: dict[str, Tensor]) -> float:
    return float(
        torch.stack([value.double().square().sum() for value in tensors.values()]).sum().sqrt()
    )


def loop(
    model: nn.Module, loss: Callable[[nn.Module, Batch], Tensor], batch: Batch, norms: Norms
) -> dict[str, Tensor]:
    """The clipped sum, written as its definition reads."""
    units = single_gradients(model, loss, batch)
    of_unit = {"group": batch.groups, "client": batch.layout}.get(norms.unit)
    if of_unit is not None:
        zero = {
            name: torch.zeros_like(p) for name, p in model.named_parameters() if p.requires_grad
        }
        summed = [dict(zero) for _ in range(of_unit.clients)]
        for gradient, unit in zip(units, of_unit.client.tolist(), strict=True):
            summed[unit] = {name: summed[unit][name] + value for name, value in gradient.items()}
        units = summed
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters() if p.requires_grad}
    for gradient in units:
        weighted = {name: norms.weight(name) * value for name, value in gradient.items()}
        counted = {name: value for name, value in weighted.items() if name not in norms.free}
        factor = min(1.0, norms.clip / max(joint_norm(counted), 1e-12))
        for name, value in weighted.items():
            total[name] = total[name] + (value if name in norms.free else factor * value)
    return total


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Largest relative L2 error of a parameter."""
    assert a.keys() == b.keys()
    return max(float((a[n] - b[n]).norm() / b[n].norm().clamp_min(1e-6)) for n in b)
