"""Rehearsals: very short trainings on made-up examples.

They find mistakes of a method, such as a loss that is not computed per example, before the real
training starts. Nothing of them is kept.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from fedsim.data.embeddings import PublicRows
from fedsim.errors import PluginError
from fedsim.methods.algorithm import Algorithm
from fedsim.methods.messages import Round
from fedsim.methods.products import is_classifier
from fedsim.plugins.registry import lookup
from fedsim.seeds import Seeds
from fedsim.training.cohort import Cohort, CohortSpec, LocalPool
from fedsim.training.rounds import to_the_end, train
from fedsim.training.trial import Trial

MADE_UP_ROWS = 8
"""Made-up examples per client in a rehearsal: a few labels, and a moment of time."""
BRIEF_PARAMS = {"sample_rate": 1.0, "client_rate": 1.0, "local_steps": 2}
"""Parameters of a rehearsal: every example is sampled, and local training is short."""


def rehearse(trial: Trial) -> None:
    """Train for two rounds of each release on made-up examples, then draw one sample.

    With a plan, the algorithm's contract is tested after each round
    (:meth:`fedsim.methods.algorithm.Algorithm.check_contract`): a loss that is not computed per
    example would void the plan. The rounds run by :func:`fedsim.training.rounds.train`, as in a
    real training.

    Raises:
        PluginError: a function of the algorithm broke its contract.
    """
    clients = min(2, trial.task.clients)
    trial = replace(trial, task=replace(trial.task, clients=clients))
    cohort = made_up_cohort(trial, MADE_UP_ROWS)
    of_clients = cohort.algorithm
    algorithm = type(of_clients)(of_clients.params, of_clients.task)
    tried = None
    if trial.plan is not None:
        tried = algorithm
    pool = LocalPool([cohort], tried)
    schedule = first_rounds(algorithm, 2)
    steps = train(
        algorithm,
        pool,
        trial.plan,
        Seeds(0),
        schedule=schedule,
    )
    _, trained = to_the_end(steps)
    if is_classifier(trained.made):
        return
    labels = torch.cat(cohort.clients.y).to(torch.int64)
    try:
        trained.made.sample(labels, torch.Generator().manual_seed(0))
    except PluginError:
        raise
    except Exception:
        # Two rounds on made-up data may leave numbers that nothing can be sampled from. A whole
        # training does not.
        return


def made_up_cohort(trial: Trial, count: int) -> Cohort:
    """Return a cohort of all clients of a cell, each with ``count`` made-up examples of unit norm.

    Public examples are made up too, unless the task has some. :data:`BRIEF_PARAMS` replace the
    parameters of an algorithm that allows it, and the public size is 1, so that all examples are
    sampled. If the unit is a group, two examples are one.
    """
    cell = trial.cell
    task = replace(trial.task, public_size=1)
    clients = task.clients
    if task.public is None:
        public = PublicRows.made_up(task.dim, task.classes)
        task = replace(task, public=public)
    total = count * clients
    stream = np.random.default_rng(0)
    x = stream.standard_normal((total, task.dim), dtype=np.float32)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    y = np.arange(total) % task.classes
    numbers = np.arange(total)
    groups = None
    if task.unit == "group":
        groups = (np.arange(count) // 2,) * clients
    spec = CohortSpec(
        cell.algorithm,
        _brief_params(cell.algorithm, cell.params),
        task,
        trial.plan,
        Seeds(0),
        members=tuple(range(clients)),
        rows=tuple(np.split(numbers, clients)),
        groups=groups,
    )
    return Cohort(spec, x, y)


def _brief_params(name: str, params: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters with :data:`BRIEF_PARAMS`, if the algorithm allows them together."""
    known = lookup(name).Params
    brief = params | known.brief(BRIEF_PARAMS, ())
    try:
        known.model_validate(brief)
    except ValidationError:
        return params
    return brief


def first_rounds(algorithm: Algorithm, count: int) -> list[Round]:
    """Return the first ``count`` rounds of each release."""
    return [round_ for round_ in algorithm.schedule() if round_.step < count]
