"""Whether a loss or a statistic is per example, which the proof of its clip takes for granted and no class can enforce: on made-up rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fedsim.batch import Batch, Layout
from fedsim.errors import NotPerExample
from fedsim.methods.messages import Task
from fedsim.models.initialise import initial_model
from fedsim.privacy.clipping import Norms, check_per_example
from fedsim.seeds import Seeds

ROWS = 6
CROWD = 40
"""Rows of one client and label, one more at a time: what depends on how many there are, as far as so many show it, is seen."""
CLOSE = 1e-2
"""Relative difference that is put down to rounding: more rows may be multiplied in another order, and cosines of large angles tell."""


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
        NotPerExample: a row's presence changes what others are worth, or the number of rows does.
        ValueError: a part of the loss is not one finite number a row, or the engine cannot clip the model.
    """
    model = _started(algorithm, clients)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return torch.stack(list(algorithm.loss(model, batch).values()), 1)

    batch = _made_up(algorithm, clients)
    _check_parts(algorithm.loss(model, batch))
    check_per_example(model, loss, batch, norms(model), algorithm.params.engine)
    crowd = _crowd(algorithm, clients)
    with torch.no_grad():
        whole = loss(model, crowd)
        for count in range(1, CROWD):
            check_same("the loss", count, loss(model, crowd.first(count)), whole)


def _check_parts(parts: Any) -> None:
    if not isinstance(parts, Mapping):
        raise ValueError(f"the loss returned a {type(parts).__name__}, not a mapping of its parts by name")
    for name, part in parts.items():
        if not isinstance(part, Tensor) or part.shape != (ROWS,):
            given = f"a tensor {list(part.shape)}" if isinstance(part, Tensor) else f"a {type(part).__name__}"
            raise ValueError(f"part '{name}' of the loss is {given}, not one number a row: [{ROWS}]")
        if not part.isfinite().all():
            raise ValueError(f"part '{name}' of the loss is not finite for made-up rows of unit norm")


def check_same(what: str, count: int, part: Tensor, whole: Tensor) -> None:
    """Compare what the first ``count`` rows of a crowd are worth by themselves with what they are worth in it.

    Raises:
        NotPerExample: it differs.
    """
    same = whole[:count].nan_to_num()
    if part.shape != same.shape or not float((part.nan_to_num() - same).norm()) <= CLOSE * float(same.norm() + part.nan_to_num().norm()):
        raise NotPerExample(
            f"{what} is not per example: the first {count} of {CROWD} rows of one client and label are worth something else by themselves; "
            "a row's part may depend on that row alone"
        )


def alike(task: Task) -> tuple[Tensor, Tensor]:
    """Made-up rows ``[CROWD, d]`` of unit norm, and their labels, which are equal."""
    stream = torch.Generator().manual_seed(1)
    return torch.nn.functional.normalize(torch.randn(CROWD, task.dim, generator=stream), dim=1), torch.zeros(CROWD, dtype=torch.long)


def _crowd(algorithm: PerExample, clients: int) -> Batch:
    (x, y), stream = alike(algorithm.task), torch.Generator().manual_seed(2)
    draws = {name: torch.randn(CROWD, *shape, generator=stream) for name, shape in algorithm.draws().items()}
    return Batch(x, y, draws, Layout(torch.zeros_like(y), clients))


def _started(algorithm: PerExample, clients: int) -> nn.Module:
    """The model at weights of which none is zero: a zero layer hides what lies behind it."""
    stream = torch.Generator().manual_seed(0)
    model = initial_model(algorithm.build, Seeds(0), range(clients))
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
