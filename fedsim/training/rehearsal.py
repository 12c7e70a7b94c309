"""Two rounds of a method on made-up rows, by the code that trains."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from fedsim.data.embeddings import PublicRows
from fedsim.device import CPU
from fedsim.methods.algorithm import Algorithm
from fedsim.methods.messages import Message, Round, Task, Tensors
from fedsim.methods.products import Product
from fedsim.plugins.registry import lookup
from fedsim.privacy.plan import PrivacyPlan
from fedsim.seeds import Seeds
from fedsim.training.cohort import Cohort, CohortSpec, LocalPool
from fedsim.training.rounds import to_the_end, train

MADE_UP_ROWS = 8
BRIEF_PARAMS = {"sample_rate": 1.0, "client_rate": 1.0, "local_steps": 2}
"""Parameters that are set: no row is left to chance, and it takes a moment."""


def made_up_cohort(
    name: str, params: dict[str, Any], task: Task, plan: PrivacyPlan | None, count: int, device: torch.device = CPU
) -> Cohort:
    """All clients, each with ``count`` made-up rows of unit norm, whose algorithm samples everyone; public rows are made up, too.

    :data:`BRIEF_PARAMS` replace parameters that allow it; where the unit is a group, two rows are one.
    """
    task = task if task.public is not None else replace(task, public=PublicRows.made_up(task.dim, task.classes))
    known, whole, clients = lookup(name).Params, count * task.clients, range(task.clients)
    brief = params | known.brief(BRIEF_PARAMS, ())
    with suppress(ValidationError):  # values that parameters allow one by one may not do together
        known.model_validate(brief)
        params = brief
    x = np.random.default_rng(0).standard_normal((whole, task.dim), dtype=np.float32)
    x, y = x / np.linalg.norm(x, axis=1, keepdims=True), np.arange(whole) % task.classes
    rows = tuple(np.arange(client * count, (client + 1) * count) for client in clients)
    groups = tuple(np.arange(count) // 2 for _ in clients) if task.unit == "group" else None
    return Cohort(CohortSpec(name, params, task, plan, Seeds(0), tuple(clients), rows, groups), x, y, device)


def first_rounds(algorithm: Algorithm, count: int = 1) -> list[Round]:
    """The first rounds of each release."""
    return [round_ for round_ in algorithm.schedule() if round_.step < count]


def train_rehearsed(cohort: Cohort, plan: PrivacyPlan | None) -> Product:
    """What two rounds of each release make, by :func:`fedsim.training.rounds.train`; on the CPU the contract is tried, too."""
    algorithm: Algorithm = type(cohort.algorithm)(cohort.algorithm.params, cohort.algorithm.task)
    pool = TriedPool([cohort], algorithm if plan is not None and cohort.clients.device == CPU else None)
    return to_the_end(train(algorithm, pool, plan, Seeds(0), device=cohort.clients.device, schedule=first_rounds(algorithm, 2)))[1].made


class TriedPool(LocalPool):
    """Clients; after each round they compute, the contract of ``tried`` is tried for it."""

    def __init__(self, cohorts: Sequence[Cohort], tried: Algorithm | None) -> None:
        super().__init__(cohorts)
        self.tried = tried

    def round(self, round_: Round, broadcast: Tensors) -> list[Message]:
        """See :class:`fedsim.methods.messages.Pool`."""
        messages = super().round(round_, broadcast)
        if self.tried is not None:
            self.tried.check_contract(round_, broadcast)
        return messages
