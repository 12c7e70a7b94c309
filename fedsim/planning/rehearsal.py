"""The rehearsal: before a plug-in's cell trains, its worker trains it for two rounds of each of its releases on made-up rows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from fedsim.data.public import PublicRows
from fedsim.device import CPU
from fedsim.errors import NotPerExample, PluginError, WrongReturn
from fedsim.methods.algorithm import Algorithm
from fedsim.methods.contract import answer
from fedsim.methods.messages import Message, Round, Task, Tensors
from fedsim.methods.products import Product, is_classifier, is_personal, own
from fedsim.plugins.places import blamed, line_of, said
from fedsim.plugins.registry import lookup
from fedsim.privacy.plan import PrivacyPlan
from fedsim.seeds import Purpose, Seeds
from fedsim.training.cohort import Cohort, CohortSpec, LocalPool
from fedsim.training.rounds import to_the_end, train

MADE_UP_ROWS, MOST_CLIENTS = 8, 2
BRIEF_PARAMS = {"sample_rate": 1.0, "client_rate": 1.0, "local_steps": 2}
"""Parameters that a rehearsal sets: no row is left to chance, and it takes a moment."""


def rehearse(name: str, params: dict[str, Any], task: Task, plan: PrivacyPlan | None, device: torch.device = CPU) -> None:
    """Train on made-up rows by the code that trains, use what comes out, and on the CPU try the contract.

    Args:
        name: of the algorithm.
        params: of the algorithm.
        task: the public facts; of real data's shape.
        plan: the privacy plan, None without privacy.
        device: where it trains; what passes on the CPU is rehearsed there too.

    Raises:
        PluginError: an exception, a result of a wrong type, shape or dtype, or a loss that is not per example; with file and line, and what
            was expected.
    """
    task = _with_made_up_rows(replace(task, clients=min(MOST_CLIENTS, task.clients)))
    made_up = f"made-up data ({task.clients} clients with {MADE_UP_ROWS} rows each, {task.dim} dimensions, {task.classes} classes)"
    for place in dict.fromkeys((CPU, device)):
        try:
            with torch.random.fork_rng(devices=[]):
                cohort = made_up_cohort(name, params, task, plan, MADE_UP_ROWS, place)
                _use(train_rehearsed(cohort, plan), cohort)
        except PluginError:
            raise
        except (Exception, SystemExit) as error:  # a plug-in may raise anything
            what, fix = _complaint(error, lookup(name), place)
            raise PluginError(name, f"on {made_up}, {what}", fix) from error


def _complaint(error: BaseException, cls: type, device: torch.device) -> tuple[str, str]:
    """What is wrong, with file and line, and what would be right."""
    if isinstance(error, NotPerExample):
        return f"{line_of(getattr(cls, 'loss', getattr(cls, 'statistics', cls)))}: {error}", error.remedy
    if isinstance(error, WrongReturn):
        scalar = ", so without the mean or the sum over the batch (reduction='none')" if error.what.endswith(" []") else ""
        return f"{line_of(error.method)}: {error.what}", f"expected {error.expected}{scalar}"
    at, fix = blamed(error, cls), f"expected {cls.__name__} to train and sample"
    if device == CPU:
        return f"{at}: {said(error)}", fix
    fix = "it runs on the CPU: make tensors where the batch is (batch.x.new_zeros, fedsim.methods.normal), or set device: cpu"
    return f"on {device.type}, {at}: {said(error)}", fix


def made_up_cohort(
    name: str, params: dict[str, Any], task: Task, plan: PrivacyPlan | None, count: int, device: torch.device = CPU
) -> Cohort:
    """All clients with made-up rows, whose algorithm samples everyone.

    Args:
        name: of the algorithm.
        params: of the algorithm; :data:`BRIEF_PARAMS` replaces what they are, where they allow it.
        task: the public facts; public rows are made up where it has none.
        plan: the privacy plan, None without privacy.
        count: rows of unit norm of a client; where the unit is a group, two are one.
        device: where it trains.
    """
    task = _with_made_up_rows(task)
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


def _with_made_up_rows(task: Task) -> Task:
    return task if task.public is not None else replace(task, public=PublicRows.made_up(task.dim, task.classes))


def first_rounds(algorithm: Algorithm, count: int = 1) -> list[Round]:
    """The first rounds of each release."""
    return [round_ for round_ in algorithm.schedule() if round_.step < count]


def train_rehearsed(cohort: Cohort, plan: PrivacyPlan | None) -> Product:
    """What two rounds of each release make, by :func:`fedsim.training.rounds.train`; on the CPU the contract is tried, too.

    Args:
        cohort: from :func:`made_up_cohort`.
        plan: the privacy plan, None without privacy.

    Raises:
        NotPerExample: a loss or a statistic is not per example.
        WrongReturn: a method of the algorithm returned what cannot be used.
        Exception: whatever the algorithm raises.
    """
    algorithm: Algorithm = type(cohort.algorithm)(cohort.algorithm.params, cohort.algorithm.task)
    pool = _TriedPool([cohort], algorithm if plan is not None and cohort.clients.device == CPU else None)
    return to_the_end(train(algorithm, pool, plan, Seeds(0), device=cohort.clients.device, schedule=first_rounds(algorithm, 2)))[1].made


class _TriedPool(LocalPool):
    """Clients; after each round they compute, the contract of ``tried`` is tried for it."""

    def __init__(self, cohorts: Sequence[Cohort], tried: Algorithm | None) -> None:
        super().__init__(cohorts)
        self.tried = tried

    def round(self, round_: Round, broadcast: Tensors) -> list[Message]:
        messages = super().round(round_, broadcast)
        if self.tried is not None:
            self.tried.check_contract(round_, broadcast)
        return messages


def _use(made: Product, cohort: Cohort) -> None:
    """Sample or predict, by the shared version and by a client's own."""
    algorithm, x, personal = cohort.algorithm, cohort.clients.pooled.x, [own(made, 0)] if is_personal(made) else []
    labels = torch.arange(algorithm.task.classes, device=x.device).repeat_interleave(2)
    # a personal classifier is used by its clients alone
    for version in personal if personal and is_classifier(made) else [made, *personal]:
        answer(algorithm, version, labels, x, Seeds(0).torch(Purpose.SYNTHESIS))
