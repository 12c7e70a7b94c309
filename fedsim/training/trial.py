"""One trial: from a cell and its data to its outcome."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Literal

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from fedsim.data.embeddings import Embeddings, PublicRows
from fedsim.device import CPU
from fedsim.errors import PluginError
from fedsim.grid.models import Cell
from fedsim.methods.algorithm import Algorithm
from fedsim.methods.messages import Round, Task, Tensors
from fedsim.methods.products import Generator, is_classifier
from fedsim.models.layers import initial_model
from fedsim.partition import Partition
from fedsim.plugins.registry import lookup
from fedsim.privacy.mechanism import Mechanism
from fedsim.privacy.plan import PrivacyPlan
from fedsim.seeds import Seeds
from fedsim.training.cohort import Cohort, CohortSpec, LocalPool, build_algorithm
from fedsim.training.rounds import RoundRecord, Trained, to_the_end, train
from fedsim.training.state import Checkpoint, Checkpoints

SECRET_BITS = 256
"""Bits of the entropy behind secret noise."""


@dataclass(frozen=True)
class Candidate:
    """Parameters that a tuned cell may train with, all of them, and the plan of such a training
    with its score.
    """

    params: dict[str, Any]
    plan: PrivacyPlan | None


@dataclass(frozen=True)
class Trial:
    """All that a worker needs to train a cell, besides the data.

    Attributes:
        task: the public facts that its algorithm gets; public rows come with the data, see
            :meth:`given`.
        plan: its privacy plan, None if epsilon has no meaning.
        partition: every client's training rows.
        sizes: clients per actor, in client order.
        data_key: the key of its prepared data set.
        candidates: of a tuned cell, every point of its space; ``plan`` is the first one's.
    """

    cell: Cell
    task: Task
    plan: PrivacyPlan | None
    partition: Partition
    sizes: tuple[int, ...]
    data_key: str
    candidates: tuple[Candidate, ...] = field(default=(), repr=False)

    @property
    def train_rows(self) -> int:
        """The number of training rows of all clients."""
        return sum(map(len, self.partition.rows))

    @property
    def train_groups(self) -> int | None:
        """The number of their groups, if the unit is a group."""
        if self.task.unit == "group":
            groups = self.partition.groups
        else:
            groups = None
        if groups is None:
            return None
        return sum(int(own[-1]) + 1 for own in groups if len(own))

    @property
    def units(self) -> int:
        """The number of units that the budget protects."""
        if self.task.unit == "client":
            return self.cell.clients
        return self.train_groups or self.train_rows

    def given(self, data: Embeddings) -> Trial:
        """With the data's public rows in the task."""
        return replace(self, task=replace(self.task, public=data.public))

    def of(self, params: dict[str, Any], plan: PrivacyPlan | None) -> Trial:
        """The cell with other parameters: those that a tuned one trains with, or ended with."""
        return replace(self, cell=self.cell.model_copy(update={"params": params}), plan=plan)

    @property
    def trained(self) -> tuple[Trial, ...]:
        """The cell with each of the parameters that it may train with."""
        return tuple(
            self.of(candidate.params, candidate.plan) for candidate in self.candidates
        ) or (self,)

    def ended(self, outcome: Outcome) -> Trial:
        """The cell with the parameters that its outcome was trained with."""
        if outcome.chosen is None:
            return self
        return self.of(outcome.chosen.params, outcome.chosen.plan)

    def cohorts(self, seeds: Seeds | None = None) -> list[CohortSpec]:
        """One specification an actor; ``seeds`` default to those that follow from the cell's
        seed.
        """
        cell = self.cell
        if self.task.unit == "group":
            groups = self.partition.groups
        else:
            groups = None
        specs = []
        seeds = seeds or Seeds(cell.seed)
        for size, end in zip(self.sizes, accumulate(self.sizes), strict=True):
            own = slice(end - size, end)
            held = (tuple(range(end - size, end)), self.partition.rows[own], groups and groups[own])
            specs.append(
                CohortSpec(cell.algorithm, cell.params, self.task, self.plan, seeds, *held)
            )
        return specs


@dataclass(frozen=True)
class Outcome:
    """The outcome of a training.

    Attributes:
        epsilon_spent: counted by ``accountant`` from the steps that ran; None without a plan.
        mechanisms: the mechanisms that ran on every client's data
            (:meth:`fedsim.privacy.ledger.Ledger.mechanisms`).
        noise_at: whether noise is added at the clients or to their sum.
        unaccounted: the first difference between ledger and plan
            (:meth:`fedsim.privacy.ledger.Ledger.unaccounted`); "" if there is none.
        uplink_bytes, downlink_bytes: bytes that all clients sent and received.
        parameters: the number of parameters that one client trains.
        seconds: wall time.
        state: the state from which the product is made
            (:attr:`fedsim.training.rounds.Trained.state`).
        chosen: of a tuned cell, what its best training ran with.
        trials: how many trainings there were. Not private: a selection whose number is known costs
            more.
    """

    epsilon_spent: float | None
    accountant: str | None
    mechanisms: tuple[Mechanism, ...] | None
    noise_at: Literal["sum", "clients"] | None
    unaccounted: str
    uplink_bytes: int
    downlink_bytes: int
    parameters: int
    seconds: float
    state: Tensors = field(repr=False, compare=False)
    chosen: Candidate | None = None
    trials: int | None = None


def local_pool(
    trial: Trial, data: Embeddings, seeds: Seeds | None = None, device: torch.device = CPU
) -> LocalPool:
    """All clients in this process."""
    return LocalPool(
        [Cohort(spec, data.x_train, data.y_train, device) for spec in trial.cohorts(seeds)]
    )


def seeds_of(trial: Trial, resume: Checkpoint | None) -> Seeds:
    """The cell's seed tree; under ``noise: secret`` with a root from the operating system, which
    only a checkpoint keeps.
    """
    cell = trial.cell
    if cell.noise == "seeded" or trial.plan is None:
        return Seeds(cell.seed)
    if resume is None:
        kept = None
    else:
        kept = resume.secret
    return Seeds(cell.seed, secrets.randbits(SECRET_BITS) if kept is None else kept)


def run_trial(
    trial: Trial,
    data: Embeddings,
    make_pool: Callable[[Trial, Embeddings, Seeds], LocalPool] = local_pool,
    checkpoints: Checkpoints | None = None,
    device: torch.device = CPU,
    seeds: Seeds | None = None,
) -> Iterator[RoundRecord | Outcome]:
    """Train a cell, by default with all clients in this process, on the CPU: yields every round's
    record, then the outcome.
    """
    started = time.perf_counter()
    trial, cell = trial.given(data), trial.cell
    if checkpoints:
        resume = checkpoints.load()
    else:
        resume = None
    seeds = seeds or seeds_of(trial, resume)
    algorithm = build_algorithm(cell.algorithm, cell.params, trial.task)
    pool = make_pool(trial, data, seeds)
    trained: Trained = yield from train(
        algorithm, pool, trial.plan, seeds, resume, checkpoints, device
    )
    plan = trial.plan
    ledger = trained.ledger
    spent = None
    accountant = None
    if plan is not None:
        spent, accountant = ledger.epsilon(plan.delta)
    yield Outcome(
        epsilon_spent=spent,
        accountant=accountant,
        mechanisms=ledger.mechanisms() if plan else None,
        noise_at=None if plan is None else "clients" if algorithm.noise_at_clients() else "sum",
        unaccounted=ledger.unaccounted(plan, cell.clients) if plan else "",
        uplink_bytes=trained.uplink_bytes,
        downlink_bytes=trained.downlink_bytes,
        parameters=sum(
            p.numel()
            for p in initial_model(algorithm.build, Seeds(0), (0,)).parameters()
            if p.requires_grad
        ),
        seconds=time.perf_counter() - started,
        state=trained.state,
    )


def packing(clients: int, per_actor: int) -> tuple[int, ...]:
    """The numbers of clients of all actors, at most ``per_actor`` and as even as possible."""
    actors = -(-clients // per_actor)
    return tuple(clients // actors + (i < clients % actors) for i in range(actors))


MADE_UP_ROWS = 8
BRIEF_PARAMS = {"sample_rate": 1.0, "client_rate": 1.0, "local_steps": 2}
"""Parameters that are set: no row is left to chance, and it takes a moment."""


def made_up_cohort(
    name: str, params: dict[str, Any], task: Task, plan: PrivacyPlan | None, count: int
) -> Cohort:
    """All clients, each with ``count`` made-up rows of unit norm, whose algorithm samples everyone;
    public rows are made up, too.

    :data:`BRIEF_PARAMS` replace parameters that allow it; where the unit is a group, two rows are
    one.
    """
    if not (task.public is not None):
        task = replace(task, public=PublicRows.made_up(task.dim, task.classes))
    known = lookup(name).Params
    whole = count * task.clients
    clients = range(task.clients)
    brief = params | known.brief(BRIEF_PARAMS, ())
    with suppress(ValidationError):  # values that parameters allow one by one may not do together
        known.model_validate(brief)
        params = brief
    x = np.random.default_rng(0).standard_normal((whole, task.dim), dtype=np.float32)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    y = np.arange(whole) % task.classes
    rows = tuple(np.arange(client * count, (client + 1) * count) for client in clients)
    if task.unit == "group":
        groups = tuple(np.arange(count) // 2 for _ in clients)
    else:
        groups = None
    return Cohort(
        CohortSpec(name, params, task, plan, Seeds(0), tuple(clients), rows, groups), x, y
    )


def first_rounds(algorithm: Algorithm, count: int = 1) -> list[Round]:
    """The first rounds of each release."""
    return [round_ for round_ in algorithm.schedule() if round_.step < count]


def train_rehearsed(cohort: Cohort, plan: PrivacyPlan | None) -> None:
    """Run two rounds of each release, by :func:`fedsim.training.rounds.train`, and sample from the
    generator; where there is a plan the contract is tried, too.
    """
    algorithm: Algorithm = type(cohort.algorithm)(cohort.algorithm.params, cohort.algorithm.task)
    pool = LocalPool([cohort], None if plan is None else algorithm)
    schedule = first_rounds(algorithm, 2)
    _, trained = to_the_end(train(algorithm, pool, plan, Seeds(0), schedule=schedule))
    if not is_classifier(trained.made):
        labels = torch.cat(cohort.clients.y).to(torch.int64)
        _sample_rehearsed(trained.made, labels)


def _sample_rehearsed(made: Generator, labels: Tensor) -> None:
    """Let a generator break its contract now rather than after every cell's training."""
    try:
        made.sample(labels, torch.Generator().manual_seed(0))
    except PluginError:
        raise
    except Exception:
        # two rounds on made-up rows may leave numbers that cannot be sampled from, which the whole
        # training does not
        return
