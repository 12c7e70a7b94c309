"""Solves the privacy plan of a cell, and those of the candidates of a tuned cell.

Each training of a tuned cell has an ordinary plan. In a private search every training gets the same
epsilon: the largest one at which all trainings and their scores together cost no more than the
cell's epsilon. In a free search every training may spend the cell's epsilon alone, so its plan
claims no more than a heuristic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedsim.errors import UserError
from fedsim.grid.models import Tuning, settings_of
from fedsim.methods.algorithm import Algorithm, solved_plan
from fedsim.methods.messages import Task
from fedsim.plugins.claims import allowed
from fedsim.privacy import accountant
from fedsim.privacy.accountant import AccountantName
from fedsim.privacy.mechanism import Mechanism
from fedsim.privacy.plan import PrivacyPlan, Release
from fedsim.privacy.selection import SCORE, SEEN, Selection, distinct, solved_noise
from fedsim.training.trial import Candidate

_LESS = 0.995
"""The factor by which the trainings' epsilon is lowered where all of them cost too much."""


def plans_of(
    cls: type[Algorithm],
    params: Mapping[str, Any],
    tuning: Tuning | None,
    task: Task,
    epsilon: float | None,
    delta: float,
) -> tuple[Candidate, ...]:
    """Return the parameters and the privacy plan of a cell, or of every candidate of a tuned cell.

    The budget of a private search is that of all its trainings and scores together.

    Args:
        cls: the class of the algorithm.
        params: the cell's parameters; those in the tuning's space are replaced.
        tuning: the grid's tuning; None for a cell that is not tuned, which has one candidate.
        task: the task of the cell.
        epsilon: the budget; None if an epsilon has no meaning for the algorithm.
        delta: the δ of the budget.

    Raises:
        UserError: the budget is too small, or the cell is tuned without a trusted aggregation.
    """
    if tuning is not None and task.trust == "silo":
        raise UserError("trust", SEEN, "give trust: aggregate, or remove tune")
    settings = [cls.Params.model_validate(values) for values in settings_of(params, tuning)]
    algorithms = [cls(setting, task) for setting in settings]
    plans: Sequence[PrivacyPlan | None]
    if tuning is None or tuning.free or epsilon is None:
        plans = [_plan(algorithm, epsilon, delta) for algorithm in algorithms]
        if tuning is not None and epsilon is not None and math.isfinite(epsilon):
            # The choice looked at test rows, so no epsilon of it can be proved.
            plans = [plan and replace(plan, claim="heuristic") for plan in plans]
    else:
        plans = _plans_of_search(
            algorithms,
            tuning,
            epsilon,
            delta,
        )
    return tuple(
        Candidate(setting.model_dump(mode="json"), plan)
        for setting, plan in zip(settings, plans, strict=True)
    )


def _plan(algorithm: Algorithm, epsilon: float | None, delta: float) -> PrivacyPlan | None:
    """Return an algorithm's plan with the strongest claim that is allowed; None if it has none."""
    plan = solved_plan(algorithm, epsilon, delta)
    return plan and replace(plan, claim=allowed(plan.claim, algorithm))


def _plans_of_search(
    algorithms: Sequence[Algorithm],
    tuning: Tuning,
    epsilon: float,
    delta: float,
) -> list[PrivacyPlan]:
    """Return the plan of every candidate of a private search, all within one budget."""
    trials = (tuning.trials, tuning.distribution)
    score_noise = 0.0
    epsilon_of_training = math.inf
    if math.isfinite(epsilon):
        # An algorithm without a plan is refused here, before a search for its noise fails.
        for algorithm in algorithms:
            solved_plan(algorithm, epsilon, delta)
        try:
            score_noise = solved_noise(*trials, epsilon, delta, lambda sigma: [Mechanism(sigma)])
            distinct_mechanisms = set(map(_unit_mechanisms, algorithms))
            epsilon_of_training = min(
                _largest_epsilon(mechanisms, trials, epsilon, delta)
                for mechanisms in distinct_mechanisms
            )
        except ValueError as error:
            raise UserError(
                "epsilon",
                str(error),
                "give a larger epsilon, or fewer trainings by tune: {trials: N}",
            ) from error
    while True:
        solved = [_plan(algorithm, epsilon_of_training, delta) for algorithm in algorithms]
        plans = [plan for plan in solved if plan]  # Here every algorithm has a plan.
        trainings = [plan.mechanisms for plan in plans]
        selection = Selection(*trials, distinct(trainings), score_noise)
        reached = selection.epsilon(delta)
        if reached <= epsilon:
            return [_with_score(plan, selection, epsilon, reached) for plan in plans]
        epsilon_of_training = float(f"{_LESS * epsilon_of_training:.6g}")


def _unit_mechanisms(algorithm: Algorithm) -> tuple[Mechanism, ...]:
    """Return the mechanisms of an algorithm at a noise multiplier of 1, in a fixed order."""
    return tuple(sorted(release.mechanism for release in algorithm.releases() if release.steps))


def _largest_epsilon(
    mechanisms: tuple[Mechanism, ...],
    trials: tuple[float, Any],
    epsilon: float,
    delta: float,
) -> float:
    """Return the largest epsilon of one training at which the search costs ``epsilon``.

    Args:
        mechanisms: the mechanisms of a training at a noise multiplier of 1.
        trials: the mean number of trainings, and the distribution of that number.
        epsilon: the budget of the search.
        delta: the δ of the budget.
    """

    def at_noise(sigma: float) -> list[Mechanism]:
        return [mechanism.scaled(sigma) for mechanism in mechanisms]

    sigma = solved_noise(*trials, epsilon, delta, at_noise)
    epsilon_of_training, _ = accountant.epsilon(at_noise(sigma), delta)
    return epsilon_of_training


def _with_score(
    plan: PrivacyPlan,
    selection: Selection,
    epsilon: float,
    reached: float,
) -> PrivacyPlan:
    """Return the plan of a training as the plan of the whole search, with a release of the score.

    Args:
        plan: the plan of the training.
        selection: the search.
        epsilon: the budget of the search.
        reached: the epsilon that the search costs.
    """
    relative_noise = 1.0
    accountant_name: AccountantName = "none"
    if plan.sigma:
        relative_noise = selection.score / plan.sigma
        accountant_name = "rdp"
    score = Release(
        SCORE,
        1.0,
        1,
        relative_noise,
        main=False,
    )
    return replace(
        plan,
        epsilon_target=epsilon,
        epsilon_reached=reached,
        accountant=accountant_name,
        releases=(*plan.releases, score),
        selection=selection,
    )
