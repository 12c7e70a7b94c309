"""Whether a loss is per example, which the proof of its clip takes for granted and no class can enforce: on made-up rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fedsim.batch import Batch, Layout
from fedsim.methods.messages import Task
from fedsim.models.initialise import initialise
from fedsim.privacy.clipping import Norms, check_per_example
from fedsim.seeds import Seeds

ROWS = 6


class PerExample(Protocol):
    """An algorithm that is a loss per example."""

    task: Task
    params: Any

    def build(self, clients: int) -> nn.Module:
        """The model."""

    def draws(self) -> Mapping[str, tuple[int, ...]]:
        """Draws of an example."""

    def loss(self, model: Any, batch: Batch) -> Mapping[str, Tensor]:
        """Parts ``[N]``."""


def check_loss(algorithm: PerExample, clients: int, norms: Callable[[nn.Module], Norms]) -> None:
    """Look at :data:`ROWS` made-up rows of ``clients``, whose gradients are clipped by ``norms`` of the model.

    Raises:
        NotPerExample: a row's presence changes what others are worth.
        ValueError: the engine cannot clip the model.
    """
    model = _started(algorithm, clients)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return torch.stack(list(algorithm.loss(model, batch).values()), 1)

    check_per_example(model, loss, _made_up(algorithm, clients), norms(model), algorithm.params.engine)


def _started(algorithm: PerExample, clients: int) -> nn.Module:
    """The model at weights of which none is zero: a zero layer hides what lies behind it."""
    stream = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        model = algorithm.build(clients)
    initialise(model, Seeds(0), range(clients))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=stream))
    return model


def _made_up(algorithm: PerExample, clients: int) -> Batch:
    task, stream = algorithm.task, torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(ROWS, task.dim, generator=stream), dim=1)
    y = torch.arange(ROWS) % min(3, task.classes)
    draws = {name: torch.randn(ROWS, *shape, generator=stream) for name, shape in algorithm.draws().items()}
    return Batch(x, y, draws, Layout(torch.arange(ROWS) * clients // ROWS, clients))
