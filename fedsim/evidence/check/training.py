"""One training as the checks see it: records, outcome, the progress after every round, and what it did to global random states."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.data.embeddings import Embeddings
from fedsim.methods.algorithm import Algorithm
from fedsim.methods.messages import Pool
from fedsim.methods.products import Product, is_classifier, is_personal, own
from fedsim.privacy.plan import PrivacyPlan
from fedsim.seeds import Seeds
from fedsim.training import rounds
from fedsim.training.rounds import RoundRecord, Trained
from fedsim.training.state import Checkpoint


@dataclass(frozen=True)
class Training:
    """What :func:`train` returns.

    Attributes:
        records: one a round.
        trained: the outcome.
        progress: after each round.
        touched: the global random states that it changed, of ``torch``, ``numpy`` and ``random``.
    """

    records: list[RoundRecord]
    trained: Trained
    progress: list[Checkpoint]
    touched: tuple[str, ...]


def train(algorithm: Algorithm, pool: Pool, plan: PrivacyPlan | None, seed: int, resume: Checkpoint | None = None) -> Training:
    """All rounds, with every global random state at a fixed start, put back afterwards."""
    progress: list[Checkpoint] = []
    touched: list[str] = []
    with fixed_random_states(touched):
        steps = rounds.train(algorithm, pool, plan, Seeds(seed), resume, lambda capture: progress.append(capture()))
        records, trained = rounds.to_the_end(steps)
    return Training(records, trained, progress, tuple(touched))


@contextmanager
def fixed_random_states(touched: list[str]) -> Iterator[None]:
    """Start torch's, numpy's and Python's global generators at 0; ``touched`` gains the names of those that were drawn from."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002 (the global state is what is looked at)
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    start = _states()
    try:
        yield
    finally:
        touched += [name for name, state in _states().items() if state != start[name]]
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])


def _states() -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": repr(np.random.get_state()),  # noqa: NPY002
        "random": random.getstate(),
    }


def answers(made: Product, labels: Tensor, x: Tensor) -> Tensor:
    """What a generator says to ``labels``, always from the same stream, or a classifier to embeddings ``x``."""
    found: Tensor = made.probabilities(x) if is_classifier(made) else made.sample(labels, torch.Generator().manual_seed(0))
    return found


def same(first: Tensor, second: Tensor) -> bool:
    """Whether all numbers are equal, or none in both: that they are not finite is a fault of its own."""
    return torch.allclose(first, second, rtol=0, atol=0, equal_nan=True)


def drawn(made: Product, data: Embeddings, clients: int) -> Tensor:
    """Answers to fixed questions, those of every client's own version too: rows ``[n, d]``, or probabilities ``[n, C]``.

    As tensors: that they are something else is a fault of its own.
    """
    labels, x = torch.arange(data.classes).repeat(2), torch.from_numpy(data.x_test[:20])
    versions = [made, *(own(made, client) for client in range(clients))] if is_personal(made) else [made]
    return torch.cat([torch.as_tensor(answers(version, labels, x)) for version in versions])
