"""One trial: from a cell and its data to the fields of its row."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.algorithm import Generator, PersonalGenerator, Pool, RoundRecord, Task, Tensors, Trained
from fedsim.config import Cell
from fedsim.data.embeddings import Embeddings
from fedsim.evaluate import Scores, score_clients, score_probe
from fedsim.partition import Partition
from fedsim.privacy.plan import PrivacyPlan
from fedsim.runtime.checkpoint import Checkpoints
from fedsim.runtime.cohort import Cohort, CohortSpec, LocalPool, build_algorithm
from fedsim.seeds import SERVER, Purpose, Seeds


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

    def cohorts(self) -> list[CohortSpec]:
        """One specification an actor."""
        specs, start = [], 0
        for size in self.sizes:
            members = tuple(range(start, start + size))
            rows = self.partition.rows[start : start + size]
            cell = self.cell
            specs.append(CohortSpec(cell.algorithm, cell.params, self.task, self.plan, cell.seed, members, rows))
            start += size
        return specs


@dataclass(frozen=True)
class Outcome:
    """The fields of a row that running a cell decides, and the state that its generator is made from."""

    scores: Scores
    client_balanced_accuracy: float | None
    epsilon_spent: float | None
    accountant: str | None
    uplink_bytes: int
    seconds: float
    generator: Tensors = field(repr=False, compare=False)


def local_pool(trial: Trial, data: Embeddings) -> Pool:
    """All clients in this process."""
    return LocalPool([Cohort(spec, data.x_train, data.y_train) for spec in trial.cohorts()])


def run_trial(
    trial: Trial,
    data: Embeddings,
    make_pool: Callable[[Trial, Embeddings], Pool] = local_pool,
    checkpoints: Checkpoints | None = None,
) -> Iterator[RoundRecord | Outcome]:
    """Train, synthesise, evaluate: yields every round's record, then the outcome."""
    started = time.perf_counter()
    cell, seeds = trial.cell, Seeds(trial.cell.seed)
    algorithm = build_algorithm(cell.algorithm, cell.params, trial.task)
    pool = make_pool(trial, data)
    resume = checkpoints.load() if checkpoints else None
    trained: Trained = yield from algorithm.train(pool, trial.plan, seeds, resume, checkpoints)
    x, y = synthesise(trained.generator, data.classes, cell.evaluation.per_class, seeds)
    scores = score_probe(x, y, data.x_test, data.y_test, cell.evaluation.probe_c)
    own = client_score(trained.generator, trial, data, seeds) if cell.evaluation.per_client else None
    spent, accountant = (None, None) if trial.plan is None else trained.ledger.epsilon(trial.plan.delta)
    if checkpoints:
        checkpoints.remove()
    yield Outcome(scores, own, spent, accountant, trained.uplink_bytes, time.perf_counter() - started, trained.state)


def client_score(generator: Generator, trial: Trial, data: Embeddings, seeds: Seeds) -> float:
    """Balanced accuracy of probes trained on each client's own synthetic embeddings."""
    evaluation, clients = trial.cell.evaluation, range(trial.task.clients)
    own = [generator.of_client(client) if isinstance(generator, PersonalGenerator) else generator for client in clients]
    made = [synthesise(own[client], data.classes, evaluation.per_class, seeds, client) for client in clients]
    return score_clients(made, data.x_test, data.y_test, evaluation.probe_c)


def synthesise(
    generator: Generator, classes: int, per_class: int, seeds: Seeds, client: int = SERVER
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Synthetic embeddings with uniform labels, which cost no privacy: ``[classes * per_class, d]`` and their labels."""
    labels = torch.arange(classes).repeat_interleave(per_class)
    x = generator.sample(labels, seeds.torch(Purpose.SYNTHESIS, 0, client))
    return x.numpy().astype(np.float32, copy=False), labels.numpy()


def packing(clients: int, per_actor: int) -> tuple[int, ...]:
    """Clients per actor for at most ``per_actor`` each, as even as can be."""
    actors = -(-clients // per_actor)
    return tuple(clients // actors + (i < clients % actors) for i in range(actors))


def first_row_fields(trial: Trial) -> dict[str, Any]:
    """The fields of a row that are known before its cell runs."""
    cell, plan = trial.cell, trial.plan
    fields: dict[str, Any] = {
        "cell_id": cell.cell_id,
        "algorithm": cell.algorithm,
        "label": cell.label,
        "params": cell.params,
        "dataset": cell.dataset.display,
        "dataset_hash": cell.dataset_hash,
        "scheme": cell.partition.scheme,
        "alpha": cell.alpha,
        "clients": cell.clients,
        "partition_hash": trial.partition.fingerprint,
        "seed": cell.seed,
        "claim": "none",
        "chance": 1 / trial.task.classes,
    }
    if plan is not None:
        fields |= {
            "epsilon_target": plan.epsilon_target,
            "delta": plan.delta,
            "unit": plan.unit,
            "trust": plan.trust,
            "scope": plan.scope,
            "claim": plan.claim,
            "sigma": plan.sigma,
            "sample_rate": plan.releases[-1].sample_rate,
            "steps": sum(release.steps for release in plan.releases),
            "clip": plan.clip,
        }
    return fields
