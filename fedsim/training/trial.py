"""Trains one cell: a trial has everything that a training needs, which ends in an outcome."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Literal

import torch

from fedsim.data.embeddings import Embeddings
from fedsim.device import CPU
from fedsim.grid.models import Cell
from fedsim.methods.algorithm import Algorithm
from fedsim.methods.messages import Task, Tensors
from fedsim.models.layers import initial_model
from fedsim.partition import Partition
from fedsim.partition.schemes import RowNumbers
from fedsim.privacy.accountant import AccountantName
from fedsim.privacy.mechanism import Mechanism
from fedsim.privacy.plan import PrivacyPlan
from fedsim.seeds import Seeds
from fedsim.training.cohort import Cohort, CohortSpec, LocalPool, build_algorithm
from fedsim.training.rounds import RoundRecord, Trained, train
from fedsim.training.state import Checkpoint, Checkpoints

SECRET_BITS = 256
"""Bits of entropy behind secret noise: the key length of AES-256, which makes the noise."""


@dataclass(frozen=True)
class Candidate:
    """One set of parameters that a tuned cell may train with.

    Attributes:
        params: all parameters of the algorithm.
        plan: the privacy plan of one training with these parameters, including its score; None if
            epsilon has no meaning.
    """

    params: dict[str, Any]
    plan: PrivacyPlan | None


@dataclass(frozen=True)
class Trial:
    """All that a worker needs to train a cell, besides the data.

    Attributes:
        cell: the cell: algorithm, parameters, budget and seed.
        task: the public facts that its algorithm gets. Public examples come with the data
            (:meth:`given`).
        plan: its privacy plan; None if epsilon has no meaning.
        partition: every client's training examples.
        sizes: the number of clients of each actor, in client order.
        data_key: the key of its prepared data set.
        candidates: for a tuned cell: all sets of parameters that it may train with. The parameters
            of ``cell`` and ``plan`` are then those of the first candidate.
    """

    cell: Cell
    task: Task
    plan: PrivacyPlan | None
    partition: Partition
    sizes: tuple[int, ...]
    data_key: str
    candidates: tuple[Candidate, ...] = field(default=(), repr=False)

    @property
    def groups(self) -> RowNumbers | None:
        """The group of each client's training examples if the unit is a group, else None."""
        if self.task.unit == "group":
            return self.partition.groups
        return None

    @property
    def train_rows(self) -> int:
        """The number of training examples of all clients."""
        return self.partition.count("example")

    @property
    def train_groups(self) -> int | None:
        """The number of groups of all clients if the unit is a group, else None."""
        if self.task.unit != "group":
            return None
        return self.partition.count("group")

    @property
    def units(self) -> int:
        """The number of units that the budget protects: examples, groups or clients."""
        return self.partition.count(self.task.unit)

    def given(self, data: Embeddings) -> Trial:
        """Return a copy whose task has the data's public examples."""
        return replace(self, task=replace(self.task, public=data.public))

    def of(self, params: dict[str, Any], plan: PrivacyPlan | None) -> Trial:
        """Return a copy with other parameters and the plan for them."""
        return replace(self, cell=self.cell.model_copy(update={"params": params}), plan=plan)

    @property
    def candidate_trials(self) -> tuple[Trial, ...]:
        """One trial for each set of parameters that the cell may train with."""
        trials = tuple(self.of(choice.params, choice.plan) for choice in self.candidates)
        return trials or (self,)

    def ended(self, outcome: Outcome) -> Trial:
        """Return a copy with the parameters that ``outcome`` was trained with."""
        if outcome.chosen is None:
            return self
        return self.of(outcome.chosen.params, outcome.chosen.plan)

    def cohorts(self, seeds: Seeds | None = None) -> list[CohortSpec]:
        """Return one cohort specification per actor, in client order.

        Args:
            seeds: the seed tree; None for the cell's seed tree with seeded noise.
        """
        cell = self.cell
        seeds = seeds or Seeds(cell.seed)
        groups = self.groups
        specs = []
        for size, end in zip(self.sizes, accumulate(self.sizes), strict=True):
            members = slice(end - size, end)
            specs.append(
                CohortSpec(
                    cell.algorithm,
                    cell.params,
                    self.task,
                    self.plan,
                    seeds,
                    tuple(range(end - size, end)),
                    self.partition.rows[members],
                    groups and groups[members],
                )
            )
        return specs


@dataclass(frozen=True)
class Outcome:
    """The outcome of a training.

    Attributes:
        epsilon_spent: the epsilon that ``accountant`` computed from the steps that ran; None
            without a plan.
        accountant: the name of the accountant; None without a plan.
        mechanisms: the mechanisms that ran on every client's data
            (:meth:`fedsim.privacy.ledger.Ledger.mechanisms`); None without a plan.
        noise_at: whether noise is added at the clients or to their sum; None without a plan.
        unaccounted: the first difference between ledger and plan
            (:meth:`fedsim.privacy.ledger.Ledger.unaccounted`); "" if there is none.
        uplink_bytes, downlink_bytes: bytes that all clients sent and received.
        parameters: the number of parameters that one client trains.
        seconds: wall time.
        state: the state from which the generator or classifier is made
            (:attr:`fedsim.training.rounds.Trained.state`).
        chosen: for a tuned cell: the parameters of its best training, and their plan.
        trials: for a tuned cell: the number of its trainings. It must not be published, because the
            plan assumes that the number is secret: a selection among a known number costs more.
    """

    epsilon_spent: float | None
    accountant: AccountantName | None
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
    trial: Trial,
    data: Embeddings,
    seeds: Seeds | None = None,
    device: torch.device = CPU,
) -> LocalPool:
    """Return a pool with all clients of a cell in this process."""
    return LocalPool(
        [Cohort(spec, data.x_train, data.y_train, device) for spec in trial.cohorts(seeds)]
    )


def seeds_of(trial: Trial, resume: Checkpoint | None) -> Seeds:
    """Return the cell's seed tree.

    Under ``noise: secret`` the key of its secret streams is drawn by the operating system. Only a
    checkpoint keeps this key, and a resumed training takes it from there.

    Args:
        trial: the cell.
        resume: the checkpoint from which the training continues; None for a new training.
    """
    cell = trial.cell
    if cell.noise == "seeded" or trial.plan is None:
        return Seeds(cell.seed)
    if resume is None or resume.secret is None:
        return Seeds(cell.seed, secrets.randbits(SECRET_BITS))
    return Seeds(cell.seed, resume.secret)


def run_trial(
    trial: Trial,
    data: Embeddings,
    make_pool: Callable[[Trial, Embeddings, Seeds], LocalPool] = local_pool,
    checkpoints: Checkpoints | None = None,
    device: torch.device = CPU,
    seeds: Seeds | None = None,
) -> Iterator[RoundRecord | Outcome]:
    """Train a cell.

    Args:
        trial: the cell and its plan.
        data: the data set.
        make_pool: makes the pool of clients; default: all in this process, on the CPU.
        checkpoints: the checkpoints from which the training continues and to which it saves its
            progress; None for neither.
        device: where the server computes.
        seeds: the seed tree; None for that of :func:`seeds_of`.

    Yields:
        The record of every round, then the outcome.
    """
    started = time.perf_counter()
    trial = trial.given(data)
    cell = trial.cell
    plan = trial.plan
    resume = None
    if checkpoints:
        resume = checkpoints.load()
    seeds = seeds or seeds_of(trial, resume)
    algorithm = build_algorithm(cell.algorithm, cell.params, trial.task)
    pool = make_pool(trial, data, seeds)
    trained: Trained = yield from train(algorithm, pool, plan, seeds, resume, checkpoints, device)
    ledger = trained.ledger
    spent = None
    accountant = None
    mechanisms = None
    noise_at: Literal["sum", "clients"] | None = None
    unaccounted = ""
    if plan is not None:
        spent, accountant = ledger.epsilon(plan.delta)
        mechanisms = ledger.mechanisms()
        noise_at = "clients" if algorithm.noise_at_clients() else "sum"
        unaccounted = ledger.unaccounted(plan, cell.clients)
    outcome = Outcome(
        epsilon_spent=spent,
        accountant=accountant,
        mechanisms=mechanisms,
        noise_at=noise_at,
        unaccounted=unaccounted,
        uplink_bytes=trained.uplink_bytes,
        downlink_bytes=trained.downlink_bytes,
        parameters=_trained_parameters(algorithm),
        seconds=time.perf_counter() - started,
        state=trained.state,
    )
    # The caller evaluates the outcome before this function returns. The evaluation does not need
    # the pool and the generator, so their memory is freed now.
    del pool, trained
    yield outcome


def _trained_parameters(algorithm: Algorithm) -> int:
    """Return the number of parameters that one client trains."""
    model = initial_model(algorithm.build, Seeds(0), (0,))
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
