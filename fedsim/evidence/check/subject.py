"""The small cell that an algorithm is checked on.

It has 200 examples of digits and 4 clients, and its training takes a moment. Its public examples
are made up. A check may give the clients other examples: each such data set is a *world*
(:mod:`fedsim.evidence.check.neighbours`). Two worlds that are compared have the same public
examples.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim.data.embeddings import Embeddings, PublicRows, unit_norm
from fedsim.errors import UserError, at
from fedsim.evaluation.plans import plans_of
from fedsim.evidence.worlds import WatchedPool, watched
from fedsim.grid.cells import expand, loaded, partition_of, resolve, task_of
from fedsim.grid.read import one_cell
from fedsim.methods.algorithm import Algorithm
from fedsim.methods.messages import Task
from fedsim.methods.products import Product, is_classifier, is_personal, own
from fedsim.plugins.registry import blamed, lookup, said
from fedsim.privacy.plan import PrivacyPlan, Trust, Unit
from fedsim.seeds import Seeds
from fedsim.training import rounds
from fedsim.training.cohort import Cohort, build_algorithm
from fedsim.training.rounds import RoundRecord, Trained
from fedsim.training.state import Checkpoint
from fedsim.training.trial import Trial

BRIEF = {"rounds": 3, "local_steps": 3, "meta_steps": 2, "generator_steps": 2}
"""Short values of the parameters that make a training long; tests use these."""
FEWEST_STEPS: Mapping[str, Any] = {**BRIEF, "local_steps": 2, "meta_steps": 1}
"""Even shorter values of the same parameters; checks use these."""
NARROW: Mapping[str, Any] = {
    "latent": 4,
    "hidden": [8],
    "encoder_hidden": [8],
    "discriminator_hidden": [8],
    "candidates": 40,
    "votes": 4,
}
"""Small values of the parameters that make a step slow; only quick checks use these."""
EPSILON = 4.0
"""The ε of the small cell."""
DELTA = 1e-4
"""The δ of the small cell."""
CHECKED_CLIENTS = 4
"""The number of clients of the small cell."""
CELL: Mapping[str, Any] = {
    "dataset": {"name": "digits", "limit": 200},
    "partition": {"scheme": "dirichlet"},
    "alpha": 1.0,
    "clients": CHECKED_CLIENTS,
    "epsilon": EPSILON,
    "delta": DELTA,
    "seeds": 0,
}
"""The small cell, as the keys of a grid file."""
ROWS_OF_A_GROUP = 2
"""The number of neighbouring examples of a client that form a group, where the unit is a group.

The digits do not say who wrote them, so the groups are made up.
"""


class Fault(Exception):
    """An algorithm breaks its contract; the arguments are what was seen, and how to fix it."""


class Idle(Exception):
    """There is nothing to check, or no way to check it; the argument says why."""


class Training(NamedTuple):
    """A whole training, as :meth:`Subject.train` returns it.

    Attributes:
        records: a record per round.
        trained: the outcome.
        progress: a checkpoint after each round.
        pool: the clients.
    """

    records: list[RoundRecord]
    trained: Trained
    progress: list[Checkpoint]
    pool: WatchedPool


@dataclass(frozen=True)
class Subject:
    """An algorithm with its parameters, in one privacy setting, on the small cell.

    Attributes:
        trial: the cell, its task, plan and partition.
        data: the data set.
        draws: the numbers of the random pairs of neighbouring worlds that the check of the
            sensitivity tries.
        rounds: the default of the parameter ``rounds`` if the small cell shortens it; else None.
    """

    trial: Trial
    data: Embeddings
    draws: range = range(0)
    rounds: int | None = None

    @property
    def plan(self) -> PrivacyPlan | None:
        """The plan of the cell; None for an algorithm that is not private."""
        return self.trial.plan

    @property
    def task(self) -> Task:
        """The public facts of the cell."""
        return self.trial.task

    @property
    def setting(self) -> str:
        """Unit and trust, as a table names them; ``not private`` if there is no plan."""
        if self.plan is not None:
            return f"{self.task.unit}, {self.task.trust}"
        return "not private"

    @cached_property
    def algorithm(self) -> Algorithm:
        """An instance of the algorithm that all callers share, so none may change it."""
        return self.build()

    def build(self) -> Algorithm:
        """Return a new instance of the algorithm."""
        return build_algorithm(
            self.trial.cell.algorithm,
            self.trial.cell.params,
            self.task,
        )

    def cohorts(
        self,
        sizes: tuple[int, ...] = (CHECKED_CLIENTS,),
        seed: int = 0,
    ) -> list[Cohort]:
        """Return the clients of the cell in cohorts of ``sizes``, which record what they do."""
        specs = replace(self.trial, sizes=sizes).cohorts(Seeds(seed))
        return [watched(spec, self.data.x_train, self.data.y_train) for spec in specs]

    def train(
        self,
        pool: WatchedPool | None = None,
        seed: int = 0,
        resume: Checkpoint | None = None,
    ) -> Training:
        """Run a whole training, before which all global random generators are seeded with 0.

        Args:
            pool: the clients; None for all of them in one new cohort.
            seed: the seed of the cell.
            resume: the checkpoint to go on from; None to begin.
        """
        pool = pool or WatchedPool(self.cohorts(seed=seed))
        progress: list[Checkpoint] = []

        def keep(capture: Callable[[], Checkpoint], is_last: bool) -> None:
            progress.append(capture().kept())

        fix_random_states()
        steps = rounds.train(
            self.build(),
            pool,
            self.plan,
            Seeds(seed),
            resume,
            keep,
        )
        return Training(*rounds.to_the_end(steps), progress, pool)

    @cached_property
    def first(self) -> Training:
        """The training that most checks look at."""
        return self.train()

    def answers(self, product: Product, *, personal: bool = True) -> Tensor:
        """Return what a generator or classifier returns for fixed questions.

        Args:
            product: the generator or classifier.
            personal: whether the version of every client answers, too, if the product has versions.

        Returns:
            Synthetic embeddings ``[n, d]``, or class probabilities ``[n, C]``.
        """
        labels = torch.arange(self.data.classes).repeat(2)
        x = torch.from_numpy(self.data.x_test[:20])
        versions = [product]
        if personal and is_personal(product):
            versions += [own(product, client) for client in range(self.task.clients)]
        answers = []
        for version in versions:
            if is_classifier(version):
                answer = version.probabilities(x)
            else:
                answer = version.sample(labels, torch.Generator().manual_seed(0))
            answers.append(torch.as_tensor(answer))
        return torch.cat(answers)


def shortened(
    name: str,
    params: Sequence[str],
    *,
    quick: bool,
) -> dict[str, Any]:
    """Return the parameters that a check of an algorithm changes, with their small values.

    Args:
        name: the algorithm, as in a grid file.
        params: ``key=YAML`` texts; a parameter that they give is not changed.
        quick: whether the check is quick. A full check changes only numbers of steps, so that what
            passes is what a grid trains.
    """
    given = {text.partition("=")[0].strip() for text in params}
    values = dict(FEWEST_STEPS)
    if quick:
        values |= NARROW
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
    """Return the small cell of an algorithm in one privacy setting.

    Args:
        name: the algorithm, as in a grid file.
        params: ``key=YAML`` texts.
        unit: the unit of privacy.
        trust: whom clients trust.
        draws: numbers of the random pairs of neighbouring worlds to try.
        quick: whether the check is quick, see :func:`shortened`.

    Raises:
        UserError: a parameter is wrong, or the algorithm refuses the setting.
    """
    cls = lookup(name)
    brief = shortened(name, params, quick=quick)
    texts = list(params)
    texts += [f"{key}={value}" for key, value in brief.items()]
    unit_of_data = unit
    if unit == "group":
        # The data set has no groups. They are made up below.
        unit_of_data = "example"
    grid = one_cell(name, texts, unit=unit_of_data, trust=trust, **CELL)
    ((key, data),) = loaded(grid).items()
    data = replace(data, public=PublicRows.made_up(data.dim, data.classes))
    (cell,) = expand(resolve(grid), {key: data})
    partition = partition_of(cell, data)
    if unit == "group":
        cell = cell.model_copy(update={"unit": unit})
        groups = tuple(np.arange(len(numbers)) // ROWS_OF_A_GROUP for numbers in partition.rows)
        partition = replace(partition, groups=groups)
    task = task_of(cell, data, partition)
    with at(lambda where: f"{where} with {cell.label}"):
        (candidate,) = plans_of(
            cls,
            cell.params,
            cell.tuning,
            task,
            cell.epsilon,
            cell.delta,
        )
    trial = Trial(
        cell,
        task,
        candidate.plan,
        partition,
        (CHECKED_CLIENTS,),
        key,
    )
    default_rounds = None
    if "rounds" in brief:
        field = cls.Params.model_fields["rounds"]
        if not field.is_required():
            default_rounds = field.get_default()
    return Subject(trial, data, draws, default_rounds)


def with_params(subject: Subject, **params: Any) -> Subject:
    """Return the subject with other parameters.

    Those that its algorithm lacks, and values that it does not allow, are ignored. The plan keeps
    its noise multiplier, and takes releases, clip norm and sensitivity from the algorithm with the
    new parameters.
    """
    cell = subject.trial.cell
    changes = lookup(cell.algorithm).Params.brief(params, ())
    trial = subject.trial.of(cell.params | changes, subject.plan)
    changed = replace(subject, trial=trial)
    if subject.plan is None:
        return changed
    algorithm = changed.algorithm
    plan = replace(
        subject.plan,
        releases=algorithm.releases(),
        clip=algorithm.clip(),
        sensitivity=algorithm.sensitivity(),
    )
    return replace(subject, trial=replace(trial, plan=plan))


def with_size(subject: Subject, clients: int, features: int | None) -> Subject:
    """Return the subject with another number of clients and of features.

    A number that the algorithm refuses stays as it was.

    Args:
        subject: the small cell.
        clients: the number of clients.
        features: the number of features; None for that of its data.
    """
    if features is not None and features != subject.data.dim:
        data = _projected(subject.data, features)
        task = replace(subject.task, dim=features)
        if task.public is not None:
            task = replace(task, public=data.public)
        subject = _with_task(subject, task, data)
    if clients != subject.task.clients:
        task = replace(subject.task, clients=clients)
        subject = _with_task(subject, task, subject.data)
    return subject


def _projected(data: Embeddings, features: int) -> Embeddings:
    """Return the data set projected to ``features`` random axes and scaled to norm 1."""
    stream = np.random.default_rng(0)
    orthogonal, _ = np.linalg.qr(stream.standard_normal((data.dim, features)))
    axes = orthogonal.astype(np.float32)
    return replace(
        data,
        x_train=unit_norm(data.x_train @ axes),
        x_test=unit_norm(data.x_test @ axes),
        public=PublicRows.made_up(features, data.classes),
    )


def _with_task(subject: Subject, task: Task, data: Embeddings) -> Subject:
    """Return the subject with another task and data set, or as it was if its algorithm refuses."""
    changed = replace(subject, data=data, trial=replace(subject.trial, task=task))
    try:
        changed.algorithm.check_setting()
        return with_params(changed)
    except UserError:
        return subject


def fix_random_states() -> dict[str, Any]:
    """Start torch's, numpy's and Python's global generators at 0, and return their states."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (the global state is what is looked at)
    random.seed(0)
    return random_states()


def random_states() -> dict[str, Any]:
    """Return the states of the global random generators, by the name of the module."""
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": pickle.dumps(np.random.get_state()),  # noqa: NPY002
        "random": random.getstate(),
    }


def blame(error: BaseException, subject: Subject) -> str:
    """Describe an exception of the algorithm, with the line of its code that raised it."""
    cls = lookup(subject.trial.cell.algorithm)
    return f"{said(error)[:300]} ({blamed(error, cls)})"


def equal(first: Tensor, second: Tensor) -> bool:
    """Return whether all numbers are equal; NaN equals itself here.

    Another check finds numbers that are not finite.
    """
    return torch.allclose(first, second, rtol=0, atol=0, equal_nan=True)
