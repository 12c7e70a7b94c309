"""What the proof of clipping takes for granted: that a row's loss or statistic depends on that row
alone.

No class can enforce it, so it is tested on made-up rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.batch import Batch, Layout
from fedsim.errors import NotPerExample
from fedsim.methods.messages import Task
from fedsim.methods.parameters import l2_norm
from fedsim.methods.returned import loss_parts
from fedsim.models.layers import initial_model
from fedsim.privacy.clipping import EngineName, Norms, clipped_sum
from fedsim.privacy.clipping.norms import Loss
from fedsim.seeds import Seeds

TRIED_ROWS = 6
CROWD_ROWS = 40
"""Rows of one client and label, added one at a time: shows a dependence on the number of rows up to
this one.
"""
MIXED_ROWS = 400
MIXED_LABELS = 10
"""Rows of one client, and their largest number of labels: a fault may depend on the label, or
appear in a large batch only.
"""
END_ROWS = tuple(2**n for n in range(9))
"""Numbers of first and of last mixed rows that are evaluated alone: code that drops a remainder may
skip the first rows or the last.
"""
LOSS_TOLERANCE = 1e-2
"""Relative difference that is attributed to rounding: the order of products depends on the number
of rows, and cosines amplify it.
"""
SAME_BATCH_TOLERANCE = 1e-4
"""As :data:`LOSS_TOLERANCE`, for the same rows in the same order."""
SUM_TOLERANCE = 1e-3
"""Allowed error of a clipped sum, relative to its norm."""


def check_loss(algorithm: Any, clients: int, norms: Callable[[nn.Module], Norms]) -> None:
    """Test the loss of a DPSGD or LocalDPSGD on made-up rows of ``clients``, whose gradients are
    clipped by ``norms`` of the model.
    """
    model = _started(algorithm, clients)
    batch = _made_up(algorithm, clients)
    loss = partial(_parts, algorithm)
    if not loss(model, batch).isfinite().all():
        raise ValueError("a part of the loss is not finite for made-up rows of unit norm")
    check_per_example(model, loss, batch, norms(model), algorithm.params.engine)
    with torch.no_grad():
        for crowd in crowds(algorithm.task):
            own = _batch(algorithm, crowd.x, crowd.y, torch.zeros_like(crowd.y), clients)
            whole = loss(model, own)
            for part in crowd.parts:
                crowd.check_same("the loss", part, loss(model, own.take(part)), whole)
        _check_forgets(algorithm, clients, batch, model)


def check_clients(algorithm: Any, clients: int) -> None:
    """Test a loss on made-up rows of ``clients``, whose gradients are clipped client by client."""
    model, (_, crowd), rows = (
        _started(algorithm, clients),
        crowds(algorithm.task),
        MIXED_ROWS // clients,
    )
    batch = _batch(algorithm, crowd.x, crowd.y, torch.arange(MIXED_ROWS) // rows, clients)
    with torch.no_grad():
        whole = _parts(algorithm, model, batch)
        for part in (slice(client * rows, (client + 1) * rows) for client in range(clients)):
            if not _near(_parts(algorithm, model, batch.take(part)), whole[part], LOSS_TOLERANCE):
                raise NotPerExample(
                    "a client's loss depends on other clients' rows: it changes when they "
                    "are left out"
                )
        _check_forgets(algorithm, clients, _made_up(algorithm, clients), model)


def check_per_example(
    model: nn.Module, loss: Loss, batch: Batch, norms: Norms, engine: EngineName = "bookkeeping"
) -> None:
    """Raise if one example's presence changes the clipped sum by anything but its own clipped
    gradient.

    The engines clip row n's gradient on the assumption that it depends on row n alone. A batch
    statistic, such as a batch-level MMD, breaks it, and so does a layer that sees the rows in
    another order. Every row of ``batch``, made-up ones of the real shapes, is left out in turn,
    with a clip at their median norm, so that half of them are clipped.
    """
    measured = clipped_sum(
        model, loss, batch, replace(norms, clip=math.inf, unit="example"), engine
    ).norms
    if not measured.isfinite().all():
        raise ValueError("the loss's gradient is not finite on made-up rows of unit norm")
    biting = replace(norms, clip=max(float(measured.median()), 1e-12), unit="example")
    whole = clipped_sum(model, loss, batch, biting, engine).sums
    for index in range(len(batch)):
        without = clipped_sum(model, loss, batch.without(index), biting, engine).sums
        alone = clipped_sum(model, loss, batch.take(slice(index, index + 1)), biting, engine).sums
        error = l2_norm({name: whole[name] - without[name] - alone[name] for name in whole})
        size = max(map(l2_norm, (whole, without, alone)))
        if not error <= SUM_TOLERANCE * size:
            raise NotPerExample(
                f"the loss is not per example: leaving out row {index} of {len(batch)} "
                f"changes the clipped sum by {error:.3g} beyond "
                f"its own gradient (the sum's norm is {size:.3g}); a row's loss may depend "
                "on that row alone"
            )


@dataclass(frozen=True)
class Crowd:
    """Made-up rows of unit norm of one client ``[n, d]``, their labels, what they have in common,
    and slices that are evaluated alone.
    """

    x: Tensor
    y: Tensor
    words: str
    parts: tuple[slice, ...]

    def check_same(self, what: str, part: slice, alone: Tensor, whole: Tensor) -> None:
        """Compare the values of the rows in ``part``, evaluated ``alone``, with theirs in the
        ``whole``; label by label.
        """
        within = whole[part]
        y = self.y[part].to(whole.device)
        if alone.shape == within.shape and all(
            _near(alone[y == each], within[y == each], LOSS_TOLERANCE) for each in torch.unique(y)
        ):
            return
        if part.start == 0:
            which = f"first {part.stop}"
        else:
            which = f"last {len(self.y) - part.start}"
        raise NotPerExample(
            f"{what} is not per example: it changes for the {which} of {len(self.y)} rows of "
            f"{self.words} when they are evaluated alone; "
            "a row's part may depend on that row alone"
        )


def crowds(task: Task) -> tuple[Crowd, Crowd]:
    """Rows of one label, added one at a time; and rows of many labels, from either end."""
    labels = torch.linspace(0, task.classes - 1, min(MIXED_LABELS, task.classes)).round().long()
    stream = torch.Generator().manual_seed(1)
    rows = torch.nn.functional.normalize(torch.randn(MIXED_ROWS, task.dim, generator=stream), dim=1)
    mixed = labels[torch.randint(len(labels), (MIXED_ROWS,), generator=stream)]
    ends = (
        *(slice(0, count) for count in END_ROWS),
        *(slice(MIXED_ROWS - count, MIXED_ROWS) for count in END_ROWS),
    )
    alike = tuple(slice(0, count) for count in range(1, CROWD_ROWS))
    return (
        Crowd(
            rows[:CROWD_ROWS],
            torch.zeros(CROWD_ROWS, dtype=torch.long),
            "one client and label",
            alike,
        ),
        Crowd(rows, mixed, "one client", ends),
    )


def _check_forgets(algorithm: Any, clients: int, batch: Batch, model: nn.Module) -> None:
    """Compare the loss with that of another instance, which has seen other rows."""
    again = type(algorithm)(algorithm.params, algorithm.task)
    other, (crowd, _) = _started(again, clients), crowds(algorithm.task)
    _parts(again, other, _batch(again, -crowd.x, crowd.y, torch.zeros_like(crowd.y), clients))
    if not _near(
        _parts(algorithm, model, batch), _parts(again, other, batch), SAME_BATCH_TOLERANCE
    ):
        raise NotPerExample(
            "the loss has memory: the loss of the same rows changes after other rows were seen"
        )


def _parts(algorithm: Any, model: nn.Module, batch: Batch) -> Tensor:
    return torch.stack(list(loss_parts(algorithm, model, batch).values()), 1)


def _near(one: Tensor, two: Tensor, within: float) -> bool:
    """Whether the values of rows are equal up to rounding."""
    one = one.nan_to_num()
    two = two.nan_to_num()
    return float((one - two).norm()) <= within * float(one.norm() + two.norm())


def _started(algorithm: Any, clients: int) -> nn.Module:
    """The model at nonzero weights: a layer of zeros would hide the layers behind it."""
    stream = torch.Generator().manual_seed(0)
    model = initial_model(algorithm.build, Seeds(0), range(clients))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=stream))
    return model


def _made_up(algorithm: Any, clients: int) -> Batch:
    task = algorithm.task
    stream = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(TRIED_ROWS, task.dim, generator=stream), dim=1)
    return _batch(
        algorithm,
        x,
        torch.arange(TRIED_ROWS) % min(3, task.classes),
        torch.arange(TRIED_ROWS) * clients // TRIED_ROWS,
        clients,
    )


def _batch(algorithm: Any, x: Tensor, y: Tensor, client: Tensor, clients: int) -> Batch:
    stream = torch.Generator().manual_seed(2)
    draws = {
        name: torch.randn(len(x), *shape, generator=stream)
        for name, shape in algorithm.draws().items()
    }
    return Batch(x, y, draws, Layout(client, clients))
