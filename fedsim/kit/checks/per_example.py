"""Check that a loss is per example, for algorithms that are a loss."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from fedsim.batch import Batch, Layout
from fedsim.kit.checks.subject import Subject
from fedsim.kit.checks.verdict import Verdict, failed, idle, passed
from fedsim.methods.dp_sgd import DPSGD
from fedsim.methods.local_dp_sgd import LocalDPSGD
from fedsim.models.initialise import initialise
from fedsim.privacy.clipping import Norms, check_per_example
from fedsim.seeds import Seeds

ROWS = 6
FIX = "let row n of every loss part depend on row n alone: no batch statistics, no weights made once for a batch (feed codes in per row)"


def per_example(subject: Subject) -> Verdict:
    """On made-up rows of two clients, or of one where clients train by themselves."""
    algorithm = subject.algorithm
    if subject.plan is None or subject.trial.task.unit == "client" or not isinstance(algorithm, DPSGD | LocalDPSGD):
        return idle("no loss whose examples are clipped one by one")
    clients = 2 if isinstance(algorithm, DPSGD) else 1
    model = _started(algorithm, clients)
    norms = replace(algorithm.norms(model), unit="example") if isinstance(algorithm, DPSGD) else Norms(algorithm.clip())

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return torch.stack(list(algorithm.loss(model, batch).values()), 1)

    try:
        check_per_example(model, loss, _made_up(subject, clients), norms, algorithm.params.engine)
    except (ValueError, RuntimeError) as error:
        return failed(" ".join(str(error).split())[:400], FIX)
    return passed(f"leaving out each of {ROWS} made-up rows changes the sum by its own gradient")


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


def _made_up(subject: Subject, clients: int) -> Batch:
    algorithm, task = subject.algorithm, subject.trial.task
    assert isinstance(algorithm, DPSGD | LocalDPSGD)
    stream = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(ROWS, task.dim, generator=stream), dim=1)
    y = torch.arange(ROWS) % min(3, task.classes)
    draws = {name: torch.randn(ROWS, *shape, generator=stream) for name, shape in algorithm.draws().items()}
    return Batch(x, y, draws, Layout(torch.arange(ROWS) * clients // ROWS, clients))
