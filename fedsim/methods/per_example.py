"""Whether a method's loss is per example, which the proof of its clip takes for granted and no class can enforce: on made-up rows."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from fedsim.batch import Batch, Layout
from fedsim.methods.algorithm import Algorithm
from fedsim.methods.dp_sgd import DPSGD
from fedsim.methods.local_dp_sgd import LocalDPSGD
from fedsim.models.initialise import initialise
from fedsim.privacy.clipping import Norms, check_per_example
from fedsim.seeds import Seeds

ROWS = 6
PER_EXAMPLE = (
    "let row n of every loss part depend on row n alone: no batch statistics, no weights made once for a batch (feed codes in per row)"
)


def clips_examples(algorithm: Algorithm) -> bool:
    """Whether it has a loss whose examples are clipped one by one."""
    return algorithm.private and algorithm.task.unit != "client" and isinstance(algorithm, DPSGD | LocalDPSGD)


def check_loss(algorithm: Algorithm) -> None:
    """Look at :data:`ROWS` made-up rows of two clients, or of one where there is one or clients train by themselves.

    Raises:
        NotPerExample: a row's presence changes what others are worth.
        ValueError: the engine cannot clip the model.
        RuntimeError: as above.
    """
    assert isinstance(algorithm, DPSGD | LocalDPSGD)
    clients = min(2, algorithm.task.clients) if isinstance(algorithm, DPSGD) else 1
    model = _started(algorithm, clients)
    norms = replace(algorithm.norms(model), unit="example") if isinstance(algorithm, DPSGD) else Norms(algorithm.clip())

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return torch.stack(list(algorithm.loss(model, batch).values()), 1)

    check_per_example(model, loss, _made_up(algorithm, clients), norms, algorithm.params.engine)


def _started(algorithm: DPSGD | LocalDPSGD, clients: int) -> nn.Module:
    """The model at weights of which none is zero: a zero layer hides what lies behind it."""
    seeds, stream = Seeds(0), torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        model = algorithm.build(clients)
    initialise(model, seeds, range(clients))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=stream))
    return model


def _made_up(algorithm: DPSGD | LocalDPSGD, clients: int) -> Batch:
    task, stream = algorithm.task, torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(ROWS, task.dim, generator=stream), dim=1)
    y = torch.arange(ROWS) % min(3, task.classes)
    draws = {name: torch.randn(ROWS, *shape, generator=stream) for name, shape in algorithm.draws().items()}
    return Batch(x, y, draws, Layout(torch.arange(ROWS) * clients // ROWS, clients))
