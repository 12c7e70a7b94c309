"""Tests of the contract on which the privacy of clipped sums rests.

The loss or statistic of an example must depend on that example alone. If whole clients are clipped,
the loss of a client's examples must depend on that client's examples alone. No class can enforce
this, so it is tested on made-up examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

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
"""The number of made-up examples that are left out one by one; each costs two clipped sums."""
CROWD_ROWS = 40
"""The number of made-up examples of one client and label, of which growing parts are evaluated.

They show whether the loss depends on the number of examples, up to this number.
"""
MIXED_ROWS = 400
"""The number of mixed examples: made-up ones of several labels. A fault may need a large batch."""
MIXED_LABELS = 10
"""The largest number of different labels of mixed examples: a fault may depend on the label."""
END_ROWS = tuple(2**n for n in range(9))
"""How many of the first and of the last mixed examples are evaluated alone.

Code that drops a remainder may skip the first examples or the last.
"""
LOSS_TOLERANCE = 1e-2
"""The relative difference that is attributed to rounding.

A matrix product may add its terms in another order for another number of examples. Cosines amplify
such differences.
"""
SAME_BATCH_TOLERANCE = 1e-4
"""The relative difference attributed to rounding for the same examples in the same order."""
SUM_TOLERANCE = 1e-3
"""The allowed error of a clipped sum, relative to its norm."""


def check_loss(
    algorithm: Any,
    clients: int,
    norms: Callable[[nn.Module], Norms],
) -> None:
    """Test that each example's loss in a DPSGD or LocalDPSGD depends on that example alone.

    Args:
        algorithm: the algorithm.
        clients: the number of clients to which the made-up examples belong.
        norms: maps a model to how its gradients are clipped.

    Raises:
        NotPerExample: the loss mixes examples, or remembers earlier ones.
        ValueError: the loss or its gradient is not finite.
    """
    model = _nonzero_model(algorithm, clients)
    batch = _small_batch(algorithm, clients)
    loss = partial(_loss_matrix, algorithm)
    if not loss(model, batch).isfinite().all():
        raise ValueError("a part of the loss is not finite for made-up rows of unit norm")
    check_per_example(model, loss, batch, norms(model), algorithm.params.engine)
    with torch.no_grad():
        for crowd in crowds(algorithm.task):
            crowd_batch = _batch(
                algorithm,
                crowd.x,
                crowd.y,
                torch.zeros_like(crowd.y),
                clients,
            )
            together = loss(model, crowd_batch)
            for part in crowd.parts:
                alone = loss(model, crowd_batch.take(part))
                crowd.check_same("the loss", part, alone, together)
        _check_forgets(algorithm, clients, model)


def check_clients(algorithm: Any, clients: int) -> None:
    """Test that the loss of a client's examples depends on that client's examples alone.

    This test is enough for algorithms that clip the gradient of each client as a whole.

    Args:
        algorithm: the algorithm.
        clients: the number of clients, a divisor of :data:`MIXED_ROWS`.

    Raises:
        NotPerExample: the loss mixes clients, or remembers earlier examples.
    """
    model = _nonzero_model(algorithm, clients)
    _, crowd = crowds(algorithm.task)
    rows_per_client = MIXED_ROWS // clients
    batch = _batch(
        algorithm,
        crowd.x,
        crowd.y,
        torch.arange(MIXED_ROWS) // rows_per_client,
        clients,
    )
    with torch.no_grad():
        together = _loss_matrix(algorithm, model, batch)
        for client in range(clients):
            part = slice(client * rows_per_client, (client + 1) * rows_per_client)
            alone = _loss_matrix(algorithm, model, batch.take(part))
            if not _near(alone, together[part], LOSS_TOLERANCE):
                raise NotPerExample(
                    "a client's loss depends on other clients' rows: it changes when they "
                    "are left out"
                )
        _check_forgets(algorithm, clients, model)


def check_per_example(
    model: nn.Module,
    loss: Loss,
    batch: Batch,
    norms: Norms,
    engine: EngineName = "bookkeeping",
) -> None:
    """Test that one example changes a clipped sum by its own clipped gradient only.

    The engines clip the gradient of example n on the assumption that it depends on example n alone.
    A batch statistic, such as an MMD over the batch, breaks this assumption. So does a layer that
    sees the examples in another order. The test leaves out every example of ``batch`` in turn. The
    clip norm is the median of the examples' gradient norms, so that about half of the gradients are
    clipped.

    Args:
        model: the model.
        loss: (model, batch) to loss parts ``[N, parts]``.
        batch: made-up examples of the real shapes.
        norms: how gradients are clipped.
        engine: computes the clipped sums.

    Raises:
        NotPerExample: an example changes the sum by something else than its own clipped gradient.
        ValueError: a gradient is not finite, or the engine refuses the model or the batch.
    """
    unclipped = replace(norms, clip=math.inf, unit="example")
    measured = clipped_sum(model, loss, batch, unclipped, engine).norms
    if not measured.isfinite().all():
        raise ValueError(
            "the gradient of the loss is infinite or NaN for made-up examples of norm 1; look for "
            "sqrt, log, a norm or a division at 0 in the loss"
        )
    halving = replace(unclipped, clip=max(float(measured.median()), 1e-12))
    together = clipped_sum(model, loss, batch, halving, engine).sums
    for index in range(len(batch)):
        example = batch.take(slice(index, index + 1))
        without = clipped_sum(model, loss, batch.without(index), halving, engine).sums
        alone = clipped_sum(model, loss, example, halving, engine).sums
        error = l2_norm({name: together[name] - without[name] - alone[name] for name in together})
        size = max(map(l2_norm, (together, without, alone)))
        if not error <= SUM_TOLERANCE * size:
            raise NotPerExample(
                f"the loss is not per example: leaving out row {index} of {len(batch)} "
                f"changes the clipped sum by {error:.3g} beyond "
                f"its own gradient (the sum's norm is {size:.3g}); a row's loss may depend "
                "on that row alone"
            )


@dataclass(frozen=True)
class Crowd:
    """Made-up examples of one client, and the parts of them that are evaluated alone.

    Attributes:
        x: embeddings of unit norm ``[n, d]``.
        y: labels ``[n]``.
        words: what the examples have in common, for error messages.
        parts: slices of the examples, each from the first on or up to the last.
    """

    x: Tensor
    y: Tensor
    words: str
    parts: tuple[slice, ...]

    def check_same(self, what: str, part: slice, alone: Tensor, whole: Tensor) -> None:
        """Test that examples have the same values alone as together, label by label.

        Args:
            what: the name of the values, for the error message.
            part: the examples that were evaluated alone.
            alone: their values, evaluated alone ``[m, ...]``.
            whole: the values of all examples, evaluated together ``[n, ...]``.

        Raises:
            NotPerExample: the values differ by more than rounding.
        """
        together = whole[part]
        y = self.y[part].to(whole.device)
        if alone.shape == together.shape and all(
            _near(alone[y == label], together[y == label], LOSS_TOLERANCE)
            for label in torch.unique(y)
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
    """Return two crowds: examples of one label, and examples of many labels.

    The parts of the first grow by one example at a time. Those of the second are taken from either
    end.
    """
    labels = torch.linspace(0, task.classes - 1, min(MIXED_LABELS, task.classes)).round().long()
    stream = torch.Generator().manual_seed(1)
    x = normalize(
        torch.randn(MIXED_ROWS, task.dim, generator=stream),
        dim=1,
    )
    mixed = labels[torch.randint(len(labels), (MIXED_ROWS,), generator=stream)]
    growing = [slice(0, count) for count in range(1, CROWD_ROWS)]
    first = [slice(0, count) for count in END_ROWS]
    last = [slice(MIXED_ROWS - count, MIXED_ROWS) for count in END_ROWS]
    one_label = torch.zeros(CROWD_ROWS, dtype=torch.long)
    return (
        Crowd(x[:CROWD_ROWS], one_label, "one client and label", tuple(growing)),
        Crowd(x, mixed, "one client", tuple(first + last)),
    )


def _check_forgets(algorithm: Any, clients: int, model: nn.Module) -> None:
    """Test that the loss does not remember examples that were evaluated before.

    A second instance with the same weights first evaluates examples that ``algorithm`` has not
    seen. Then both must give the same losses for the same batch.

    Raises:
        NotPerExample: the losses differ.
    """
    batch = _small_batch(algorithm, clients)
    second_instance = type(algorithm)(algorithm.params, algorithm.task)
    second_model = _nonzero_model(second_instance, clients)
    crowd, _ = crowds(algorithm.task)
    unseen = _batch(second_instance, -crowd.x, crowd.y, torch.zeros_like(crowd.y), clients)
    _loss_matrix(second_instance, second_model, unseen)
    first = _loss_matrix(algorithm, model, batch)
    second = _loss_matrix(second_instance, second_model, batch)
    if not _near(first, second, SAME_BATCH_TOLERANCE):
        raise NotPerExample(
            "the loss has memory: the loss of the same rows changes after other rows were seen"
        )


def _loss_matrix(algorithm: Any, model: nn.Module, batch: Batch) -> Tensor:
    """Return the parts of the loss side by side, ``[N, parts]``."""
    return torch.stack(
        list(loss_parts(algorithm, model, batch).values()),
        1,
    )


def _near(first: Tensor, second: Tensor, tolerance: float) -> bool:
    """Return whether values are equal up to rounding; a NaN counts as 0.

    If the norms of the tensors are not finite, the tensors must be equal.
    """
    first = first.nan_to_num()
    second = second.nan_to_num()
    if torch.equal(first, second):
        return True
    size = float(first.norm() + second.norm())
    return float((first - second).norm()) <= tolerance * size < math.inf


def _nonzero_model(algorithm: Any, clients: int) -> nn.Module:
    """Return the model at nonzero weights: a layer of zeros would hide the layers behind it."""
    stream = torch.Generator().manual_seed(0)
    model = initial_model(algorithm.build, Seeds(0), range(clients))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=stream))
    return model


def _small_batch(algorithm: Any, clients: int) -> Batch:
    """Return :data:`TRIED_ROWS` made-up examples of up to three labels, spread over clients."""
    task = algorithm.task
    stream = torch.Generator().manual_seed(0)
    x = normalize(
        torch.randn(TRIED_ROWS, task.dim, generator=stream),
        dim=1,
    )
    numbers = torch.arange(TRIED_ROWS)
    labels = numbers % min(3, task.classes)
    return _batch(
        algorithm,
        x,
        labels,
        numbers * clients // TRIED_ROWS,
        clients,
    )


def _batch(algorithm: Any, x: Tensor, y: Tensor, client: Tensor, clients: int) -> Batch:
    """Return a batch of these examples with the random draws that the loss needs."""
    stream = torch.Generator().manual_seed(2)
    draws = {
        name: torch.randn(len(x), *shape, generator=stream)
        for name, shape in algorithm.draws().items()
    }
    return Batch(x, y, draws, Layout(client, clients))
