"""The small cell that an algorithm is checked on: 200 rows of digits, 4 clients, a training of a
moment.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim.data.embeddings import Embeddings, PublicRows, unit_norm
from fedsim.errors import UserError, at
from fedsim.evaluation.tuning import plans_of
from fedsim.evidence.worlds import WatchedPool, watched
from fedsim.grid.cells import expand, loaded, partition_of, resolve, task_of
from fedsim.grid.models import Grid
from fedsim.grid.read import one_cell
from fedsim.methods.algorithm import Algorithm
from fedsim.methods.messages import Task
from fedsim.methods.products import Product, is_classifier, is_personal, own
from fedsim.plugins.registry import blamed, lookup, said
from fedsim.privacy.plan import PrivacyPlan, Trust, Unit
from fedsim.seeds import Seeds
from fedsim.training import rounds
from fedsim.training.cohort import Cohort, LocalPool, build_algorithm
from fedsim.training.rounds import RoundRecord, Trained
from fedsim.training.state import Checkpoint
from fedsim.training.trial import Trial

BRIEF = {"rounds": 3, "local_steps": 3, "meta_steps": 2, "generator_steps": 2}
"""Parameters that make a training long, where an algorithm has them, and what they become."""
FEWEST_STEPS: Mapping[str, Any] = {**BRIEF, "local_steps": 2, "meta_steps": 1}
"""What they become in a check."""
NARROW: Mapping[str, Any] = {
    "latent": 4,
    "hidden": [8],
    "encoder_hidden": [8],
    "discriminator_hidden": [8],
    "candidates": 40,
    "votes": 4,
}
"""Parameters that make a step of a training large, and what they become in a quick check."""
EPSILON = 4.0
DELTA = 1e-4
CHECKED_CLIENTS = 4
CELL: Mapping[str, Any] = {
    "dataset": {"name": "digits", "limit": 200},
    "partition": {"scheme": "dirichlet"},
    "alpha": 1.0,
    "clients": CHECKED_CLIENTS,
    "epsilon": EPSILON,
    "delta": DELTA,
    "seeds": 0,
}
"""The small cell, as a grid has it."""
ROWS_OF_A_GROUP = 2
"""Rows of a group, where the unit is a group: digits do not say who wrote them, so neighbouring
rows of a client are taken for one's.
"""


class Fault(Exception):
    """A fault and how to mend it: ``(what was seen, fix)``."""


class Idle(Exception):
    """There was nothing to check, or no way to: ``(why,)``."""


class Training(NamedTuple):
    """What :func:`train` returns: a record a round, the outcome, and the progress after each
    round.
    """

    records: list[RoundRecord]
    trained: Trained
    progress: list[Checkpoint]


@dataclass(frozen=True)
class Subject:
    """An algorithm with its parameters, in one privacy setting, on the small cell.

    Public rows are made up, and the same in both worlds of a pair. The ``draws`` are numbers of
    random pairs of neighbouring worlds; the ``rounds`` are of a training that is not shortened,
    where the algorithm has such a parameter and it was not given.
    """

    trial: Trial
    data: Embeddings
    draws: range = range(0)
    rounds: int | None = None

    @property
    def plan(self) -> PrivacyPlan | None:
        """The cell's plan, None for an algorithm that is not private."""
        return self.trial.plan

    @property
    def setting(self) -> str:
        """Unit and trust, as a table names them."""
        if self.plan is not None:
            return f"{self.trial.task.unit}, {self.trial.task.trust}"
        return "not private"

    @cached_property
    def algorithm(self) -> Algorithm:
        """A fresh instance for questions that change nothing."""
        return self.build()

    def build(self) -> Algorithm:
        """A new instance."""
        return build_algorithm(self.trial.cell.algorithm, self.trial.cell.params, self.trial.task)

    def cohorts(self, sizes: tuple[int, ...] = (CHECKED_CLIENTS,), seed: int = 0) -> list[Cohort]:
        """The cell's clients in cohorts of ``sizes``, each with a tape of its own."""
        specs = replace(self.trial, sizes=sizes).cohorts()
        return [
            watched(replace(spec, seeds=Seeds(seed)), self.data.x_train, self.data.y_train)
            for spec in specs
        ]

    def train(self, seed: int = 0) -> Training:
        """A whole training."""
        return train(self.build(), WatchedPool(self.cohorts(seed=seed)), self.plan, seed)

    @cached_property
    def first(self) -> tuple[Training, WatchedPool]:
        """The training that most checks look at, all clients in one cohort, and the pool that it
        ran on.
        """
        pool = WatchedPool(self.cohorts())
        return train(self.build(), pool, self.plan, 0), pool


def shortened(name: str, params: Sequence[str], *, quick: bool) -> dict[str, Any]:
    """The parameters that a check of an algorithm changes, and their values there.

    A full check changes numbers of steps alone, so that what passes is what a grid trains. A
    parameter that ``params``, ``key=YAML`` texts, give stays as it is given.
    """
    given = {text.partition("=")[0].strip() for text in params}
    values = {**FEWEST_STEPS, **NARROW} if quick else FEWEST_STEPS
    return lookup(name).Params.brief(values, given)


def subject(
    name: str,
    params: Sequence[str],
    unit: Unit,
    trust: Trust,
    draws: range = range(0),
    *,
    quick: bool = True,
) -> Subject:
    """The cell of an algorithm, with parameters from ``key=YAML`` texts, for one privacy
    setting.
    """
    known = lookup(name).Params
    brief = shortened(name, params, quick=quick)
    short = [f"{key}={value}" for key, value in brief.items()]
    grid = one_cell(
        name, [*params, *short], unit="example" if unit == "group" else unit, trust=trust, **CELL
    )
    data = {
        key: replace(rows, public=PublicRows.made_up(rows.dim, rows.classes))
        for key, rows in loaded(grid).items()
    }
    (cell,) = expand(resolve(grid), data)
    rows = data[cell.data_key]
    partition = partition_of(cell, rows)
    if unit == "group":
        cell = cell.model_copy(update={"unit": unit})
        partition = replace(
            partition,
            groups=tuple(np.arange(len(own)) // ROWS_OF_A_GROUP for own in partition.rows),
        )
    task = task_of(cell, rows)

    given_by = Grid.model_fields

    def location(where: str) -> str:
        if where in given_by:
            return f"{grid.location(where)} with {cell.label}"
        return f"{grid.location('algorithms')}: {where} with {cell.label}"

    with at(location):
        (candidate,) = plans_of(
            lookup(cell.algorithm), cell.params, cell.tuning, task, cell.epsilon, cell.delta
        )
    trial = Trial(cell, task, candidate.plan, partition, (CHECKED_CLIENTS,), cell.data_key)
    if "rounds" in brief:
        field = known.model_fields["rounds"]
    else:
        field = None
    return Subject(
        trial,
        rows,
        draws,
        field.get_default() if field is not None and not field.is_required() else None,
    )


def varied(subject: Subject, **params: Any) -> Subject:
    """The subject with other parameters, as far as its algorithm has them; the noise multiplier
    stays as it was solved.
    """
    given = subject.trial.cell.params
    cell = subject.trial.cell.model_copy(
        update={"params": given | {key: value for key, value in params.items() if key in given}}
    )
    changed = replace(subject, trial=replace(subject.trial, cell=cell))
    if subject.plan is None:
        return changed
    own = changed.algorithm
    plan = replace(
        subject.plan, releases=own.releases(), clip=own.clip(), sensitivity=own.sensitivity()
    )
    return replace(subject, trial=replace(changed.trial, plan=plan))


def resized(subject: Subject, clients: int, features: int | None) -> Subject:
    """The subject with so many clients and features, None: those of its data; a size that the
    algorithm refuses stays as it was.
    """
    trial = subject.trial
    data = subject.data
    if features is not None and features != data.dim:
        axes = np.linalg.qr(np.random.default_rng(0).standard_normal((data.dim, features)))[0]
        turned = axes.astype(np.float32)
        smaller = replace(
            data,
            x_train=unit_norm(data.x_train @ turned),
            x_test=unit_norm(data.x_test @ turned),
            public=PublicRows.made_up(features, data.classes),
        )
        task = replace(trial.task, dim=features)
        if task.public is not None:
            task = replace(task, public=smaller.public)
        subject = _of_task(replace(subject, data=smaller), task) or subject
    if clients != subject.trial.task.clients:
        subject = _of_task(subject, replace(subject.trial.task, clients=clients)) or subject
    return subject


def _of_task(subject: Subject, task: Task) -> Subject | None:
    """The subject with another task; None if the algorithm refuses it."""
    changed = replace(subject, trial=replace(subject.trial, task=task))
    try:
        changed.algorithm.check_setting()
        return varied(changed)
    except UserError:
        return None


def train(
    algorithm: Algorithm,
    pool: LocalPool,
    plan: PrivacyPlan | None,
    seed: int,
    resume: Checkpoint | None = None,
) -> Training:
    """All rounds, with every global random state at a fixed start."""
    progress: list[Checkpoint] = []
    fix_random_states()
    steps = rounds.train(
        algorithm, pool, plan, Seeds(seed), resume, lambda capture: progress.append(capture())
    )
    return Training(*rounds.to_the_end(steps), progress)


def fix_random_states() -> dict[str, Any]:
    """Start torch's, numpy's and Python's global generators at 0; returns their states."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (the global state is what is looked at)
    random.seed(0)
    return random_states()


def random_states() -> dict[str, Any]:
    """The states of the global generators."""
    numpy = pickle.dumps(np.random.get_state())  # noqa: NPY002
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": numpy,
        "random": random.getstate(),
    }


def raised(error: BaseException, subject: Subject) -> str:
    """An exception of the algorithm, with its place."""
    return f"{said(error)[:300]} ({blamed(error, lookup(subject.trial.cell.algorithm))})"


def same(first: Tensor, second: Tensor) -> bool:
    """Whether all numbers are equal, or none in both: that they are not finite is a fault of its
    own.
    """
    return torch.allclose(first, second, rtol=0, atol=0, equal_nan=True)


def drawn(made: Product, data: Embeddings, clients: int) -> Tensor:
    """Answers to fixed questions, those of every client's own version too: rows ``[n, d]``, or
    probabilities ``[n, C]``.
    """
    labels = torch.arange(data.classes).repeat(2)
    x = torch.from_numpy(data.x_test[:20])
    if is_personal(made):
        versions = [made, *(own(made, client) for client in range(clients))]
    else:
        versions = [made]
    said = [
        one.probabilities(x)
        if is_classifier(one)
        else one.sample(labels, torch.Generator().manual_seed(0))
        for one in versions
    ]
    return torch.cat([torch.as_tensor(answer) for answer in said])
