"""One trial: from a cell and its data to its outcome."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch

from fedsim.data.embeddings import Embeddings
from fedsim.device import CPU
from fedsim.evaluation.judge import ClientScores, Judge
from fedsim.evaluation.scores import Scores, mean_scores, recall_per_class, scores_of, scores_of_clients
from fedsim.grid.models import Cell
from fedsim.methods.messages import Pool, Task, Tensors
from fedsim.partition import Partition
from fedsim.privacy.ledger import Tally
from fedsim.privacy.plan import PrivacyPlan
from fedsim.seeds import Seeds
from fedsim.simulation.checkpoint import Checkpoints
from fedsim.simulation.cohort import Cohort, CohortSpec, LocalPool, build_algorithm
from fedsim.simulation.rounds import RoundRecord, Trained, train
from fedsim.simulation.state import Checkpoint

SECRET_BITS = 256
"""Bits of the entropy behind secret noise."""


@dataclass(frozen=True)
class Trial:
    """What a worker needs to run a cell, besides the data.

    Attributes:
        cell: the cell.
        task: the public facts that its algorithm is told.
        plan: its privacy plan, None where epsilon has no meaning.
        partition: every client's training rows.
        sizes: clients per actor, in client order.
        data_key: which of the prepared data sets it reads.
    """

    cell: Cell
    task: Task
    plan: PrivacyPlan | None
    partition: Partition
    sizes: tuple[int, ...]
    data_key: str

    @property
    def train_rows(self) -> int:
        """How many training rows all clients have together."""
        return sum(map(len, self.partition.rows))

    def cohorts(self, seeds: Seeds | None = None) -> list[CohortSpec]:
        """One specification an actor; ``seeds`` default to those that follow from the cell's seed."""
        specs, start = [], 0
        for size in self.sizes:
            members = tuple(range(start, start + size))
            rows = self.partition.rows[start : start + size]
            cell = self.cell
            specs.append(CohortSpec(cell.algorithm, cell.params, self.task, self.plan, seeds or Seeds(cell.seed), members, rows))
            start += size
        return specs


@dataclass(frozen=True)
class Outcome:
    """The fields of a row that running a cell decides, every client's scores, and the state that its generator is made from, if any.

    ``recalls`` are the classes', ``tested`` says on which test rows clients were judged, if they were, ``mechanisms`` are
    what the data of every client went through (:meth:`fedsim.privacy.ledger.Ledger.mechanisms`), ``noise_at`` is where
    noise is added, ``unaccounted`` where the ledger is
    not what the plan planned (:meth:`fedsim.privacy.ledger.Ledger.unaccounted`); "" where it is.
    """

    scores: Scores
    recalls: tuple[float | None, ...]
    clients: tuple[ClientScores, ...] = field(repr=False)
    tested: str | None
    epsilon_spent: float | None
    epsilon_spent_replace_one: float | None
    accountant: str | None
    mechanisms: tuple[Tally, ...] | None
    noise_at: Literal["sum", "clients"] | None
    unaccounted: str
    uplink_bytes: int
    seconds: float
    generator: Tensors | None = field(repr=False, compare=False)


def local_pool(trial: Trial, data: Embeddings, seeds: Seeds | None = None, device: torch.device = CPU) -> Pool:
    """All clients in this process."""
    return LocalPool([Cohort(spec, data.x_train, data.y_train, device) for spec in trial.cohorts(seeds)])


def seeds_of(trial: Trial, resume: Checkpoint | None) -> Seeds:
    """The cell's seed tree; under ``noise: secret`` with a root from the operating system, which only a checkpoint keeps."""
    cell = trial.cell
    if cell.noise == "seeded" or trial.plan is None:
        return Seeds(cell.seed)
    kept = None if resume is None else resume.secret
    return Seeds(cell.seed, secrets.randbits(SECRET_BITS) if kept is None else kept)


def run_trial(
    trial: Trial,
    data: Embeddings,
    make_pool: Callable[[Trial, Embeddings, Seeds], Pool] = local_pool,
    checkpoints: Checkpoints | None = None,
    device: torch.device = CPU,
) -> Iterator[RoundRecord | Outcome]:
    """Train, synthesise, evaluate: yields every round's record, then the outcome.

    Args:
        trial: the cell.
        data: its data set.
        make_pool: makes its clients; by default all of them in this process, on the CPU.
        checkpoints: where its progress is kept.
        device: where the server computes, and what it made.
    """
    started = time.perf_counter()
    cell = trial.cell
    resume = checkpoints.load() if checkpoints else None
    seeds = seeds_of(trial, resume)
    algorithm = build_algorithm(cell.algorithm, cell.params, trial.task)
    pool = make_pool(trial, data, seeds)
    trained: Trained = yield from train(algorithm, pool, trial.plan, seeds, resume, checkpoints, device)
    judge, evaluation = Judge(cell, data, trial.partition, trained.made, device), cell.evaluation
    predicted = judge.predictions()
    scores = Scores(mean_scores([scores_of(each) for each in predicted]), **judge.readouts())
    clients = judge.of_clients() if evaluation.per_client else ()
    scores |= scores_of_clients([each.own for each in clients], [each.shared for each in clients])
    if evaluation.personal is not None:
        scores |= judge.personal()
    spent, accountant = (None, None) if trial.plan is None else trained.ledger.epsilon(trial.plan.delta)
    replaced = None if trial.plan is None else trained.ledger.replace_one_epsilon(trial.plan.delta)
    unaccounted = "" if trial.plan is None else trained.ledger.unaccounted(trial.plan, cell.clients)
    if checkpoints:
        checkpoints.remove()
    state = trained.state if algorithm.generates() else None
    seconds = time.perf_counter() - started
    judged = judge.own_rows.words if clients or evaluation.personal is not None else None
    yield Outcome(
        scores,
        recall_per_class(predicted, data.classes),
        clients,
        judged,
        spent,
        replaced,
        accountant,
        None if trial.plan is None else trained.ledger.mechanisms(),
        None if trial.plan is None else "clients" if algorithm.noise_at_clients() else "sum",
        unaccounted,
        trained.uplink_bytes,
        seconds,
        state,
    )


def packing(clients: int, per_actor: int) -> tuple[int, ...]:
    """Clients per actor for at most ``per_actor`` each, as even as can be."""
    actors = -(-clients // per_actor)
    return tuple(clients // actors + (i < clients % actors) for i in range(actors))
