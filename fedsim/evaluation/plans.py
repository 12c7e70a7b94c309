"""The plans of a cell: one, or one for every parameter setting among which a tuned cell chooses.

The budget of a tuned cell pays for all its trainings and their scores (:mod:`fedsim.privacy.selection`). Each training has an ordinary
plan, solved for the largest epsilon at which the whole costs no more than the cell's; the same one for all settings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedsim.errors import UserError
from fedsim.grid.models import Tuning
from fedsim.methods.algorithm import Algorithm, solved_plan
from fedsim.methods.messages import Task
from fedsim.plugins.claims import allowed
from fedsim.privacy import accountant
from fedsim.privacy.mechanism import Mechanism
from fedsim.privacy.plan import PrivacyPlan, Release
from fedsim.privacy.selection import SCORE, Selection, distinct, solved_noise
from fedsim.training.trial import Candidate

_LESS = 0.995
"""By how much the epsilon of trainings is lowered where the whole costs too much."""


def plans_of(
    cls: type[Algorithm], params: Mapping[str, Any], tuning: Tuning | None, task: Task, epsilon: float | None, delta: float
) -> tuple[Candidate, ...]:
    """The parameters of a cell with their plan; one candidate unless the cell is tuned, else one a point of its space.

    Points replace those of all ``params`` that are in their space. The budget is of all trainings and scores together; an ``epsilon`` of
    None has no meaning for the algorithm.
    """
    points = [{}] if tuning is None else tuning.points
    settings = [cls.Params.model_validate({**params, **point}) for point in points]
    algorithms = [cls(setting, task) for setting in settings]
    complete = [setting.model_dump(mode="json") for setting in settings]
    if tuning is None or tuning.free or epsilon is None:
        plans = [_plan(algorithm, epsilon, delta) for algorithm in algorithms]
        if tuning is not None and epsilon is not None and math.isfinite(epsilon):
            plans = [plan and replace(plan, claim="heuristic") for plan in plans]
    else:
        plans = list(_tuned(algorithms, tuning, epsilon, delta))
    return tuple(Candidate(*pair) for pair in zip(complete, plans, strict=True))


def _plan(algorithm: Algorithm, epsilon: float | None, delta: float) -> PrivacyPlan | None:
    plan = solved_plan(algorithm, epsilon, delta)
    return plan and replace(plan, claim=allowed(plan.claim, algorithm))


def _tuned(algorithms: Sequence[Algorithm], tuning: Tuning, epsilon: float, delta: float) -> list[PrivacyPlan]:
    how = tuning.trials, tuning.distribution
    noise, inner = 0.0, math.inf
    if math.isfinite(epsilon):
        for algorithm in algorithms:
            solved_plan(algorithm, epsilon, delta)  # refuses what has no plan at all
        try:
            noise = solved_noise(*how, epsilon, delta, lambda sigma: [Mechanism(sigma)])
            inner = min(_largest(releases, how, epsilon, delta) for releases in {_steps(algorithm) for algorithm in algorithms})
        except ValueError as error:
            raise UserError("epsilon", str(error), "give a larger one, or a smaller mean number of trials") from error
    while True:
        plans = [plan for algorithm in algorithms if (plan := _plan(algorithm, inner, delta))]
        ran = [tuple(one for one in plan.mechanisms if one.release != SCORE) for plan in plans]
        selection = Selection(*how, distinct(ran), noise)
        reached = selection.epsilon(delta)
        if reached <= epsilon:
            return [_with_score(plan, selection, epsilon, reached) for plan in plans]
        inner = float(f"{_LESS * inner:.6g}")


def _steps(algorithm: Algorithm) -> tuple[Mechanism, ...]:
    """The mechanisms of an algorithm at a noise multiplier of 1."""
    return tuple(sorted(release.mechanism for release in algorithm.releases() if release.steps))


def _largest(steps: tuple[Mechanism, ...], how: tuple[float, Any], epsilon: float, delta: float) -> float:
    """The epsilon of a training alone with the least noise at which the best of the trainings costs ``epsilon``."""

    def scaled(sigma: float) -> list[Mechanism]:
        return [one.scaled(sigma) for one in steps]

    return accountant.epsilon(scaled(solved_noise(*how, epsilon, delta, scaled)), delta)[0]


def _with_score(plan: PrivacyPlan, selection: Selection, epsilon: float, reached: float) -> PrivacyPlan:
    score = Release(SCORE, 1.0, 1, selection.score / plan.sigma if plan.sigma else 1.0, main=False)
    return replace(
        plan,
        epsilon_target=epsilon,
        epsilon_reached=reached,
        accountant="rdp" if plan.sigma else "none",
        releases=(*plan.releases, score),
        selection=selection,
    )
