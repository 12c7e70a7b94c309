"""Rehearsals: very short trainings on made-up examples.

They show mistakes of a method before the real training starts, such as a loss that is not computed
per example. Their results are thrown away.
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
"""The number of made-up examples per client: enough for several labels, few enough to be fast."""
BRIEF_PARAMS = {"sample_rate": 1.0, "client_rate": 1.0, "local_steps": 2}
"""The parameters of a rehearsal: every example is sampled, and local training is short."""


def rehearse(trial: Trial) -> None:
    """Train for two rounds of each release on made-up examples, then draw a few samples.

    If the trial has a privacy plan, the algorithm's contract is tested after each round
    (:meth:`fedsim.methods.algorithm.Algorithm.check_contract`): a loss that is not computed per
    example would void the plan. The rounds run by :func:`fedsim.training.rounds.train`, as in a
    real training.

    Raises:
        PluginError: a function of the algorithm broke its contract.
    """
    clients = min(2, trial.task.clients)
    trial = replace(trial, task=replace(trial.task, clients=clients))
    cohort = made_up_cohort(trial, MADE_UP_ROWS)
    # The server gets its own instance of the algorithm, as in a real training.
    client_algorithm = cohort.algorithm
    algorithm = type(client_algorithm)(client_algorithm.params, client_algorithm.task)
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
        # After two rounds on made-up examples a generator may be too poor to sample from. A whole
        # training would not leave it so.
        return


def made_up_cohort(trial: Trial, count: int) -> Cohort:
    """Return a cohort of all clients of a cell, each with ``count`` made-up examples of unit norm.

    Public examples are made up too, unless the task has some. If the algorithm allows it,
    :data:`BRIEF_PARAMS` replace its parameters. The public size is 1, so that all examples are
    sampled. If the unit is a group, a group is two examples.

    Args:
        trial: the cell.
        count: the number of examples of every client.
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
    """Return the parameters with :data:`BRIEF_PARAMS`, or unchanged if that is not allowed."""
    params_class = lookup(name).Params
    brief = params | params_class.brief(BRIEF_PARAMS, ())
    try:
        params_class.model_validate(brief)
    except ValidationError:
        return params
    return brief


def first_rounds(algorithm: Algorithm, count: int) -> list[Round]:
    """Return the first ``count`` rounds of each release."""
    return [round_ for round_ in algorithm.schedule() if round_.step < count]
