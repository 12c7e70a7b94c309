"""What is audited: an algorithm with its parameters at one claim, and the small data set beside which a unit is put."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.data.embeddings import PublicRows, unit_norm
from fedsim.errors import UserError, at
from fedsim.evaluation.plans import plans_of
from fedsim.grid.cells import resolve
from fedsim.grid.models import Tuning
from fedsim.grid.read import one_cell
from fedsim.methods.algorithm import Algorithm, solved_plan
from fedsim.methods.messages import Task
from fedsim.plugins.code_hash import is_shipped
from fedsim.plugins.registry import lookup
from fedsim.privacy.plan import PrivacyPlan, Trust, Unit
from fedsim.training.cohort import build_algorithm

ROW_DIM, AUDIT_CLASSES, AUDIT_CLIENTS = 16, 2, 2
OTHER_ROWS = 2
"""Rows of each client beside the unit: whoever audits knows them, so few are as good as many, and faster."""
SHORT: dict[str, Any] = {
    **{"rounds": 6, "local_steps": 3, "meta_steps": 0, "generator_steps": 2},
    **{"latent": 4, "hidden": (8,), "encoder_hidden": (8,), "discriminator_hidden": (8,)},
}
"""Parameters that make a training long or a network large, and what they become unless they are given; noise is solved for these."""

Rows = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Setting:
    """An algorithm at a claim, and the small made-up data set beside which a unit is put.

    Attributes:
        algorithm: its name, as a grid gives it.
        params: all its parameters.
        task: the public facts.
        plan: what it plans for the claim.
        rows: of each client beside the unit.
        apart: whether every training is in a process of its own, since a plug-in's module may keep what it saw.
        tuning: how a tuned cell chooses among ``candidates``; the claim is of the whole search.
        candidates: the settings of its trainings; this one is the first's.
    """

    algorithm: str
    params: Mapping[str, Any]
    task: Task
    plan: PrivacyPlan
    rows: int = OTHER_ROWS
    apart: bool = False
    tuning: Tuning | None = None
    candidates: tuple[Setting, ...] = ()

    def build(self) -> Algorithm:
        """A new instance."""
        return build_algorithm(self.algorithm, dict(self.params), self.task)

    @property
    def canary_client(self) -> int:
        """The client that is the unit, or has it: the last one."""
        return self.task.clients - 1

    @cached_property
    def others(self) -> tuple[tuple[Rows, Labels], ...]:
        """Each client's rows beside the unit; the canary client has none where it is the unit."""
        stream, held = np.random.default_rng(0), []
        for client in range(self.task.clients):
            count = 0 if self.task.unit == "client" and client == self.canary_client else self.rows
            x = unit_norm(stream.standard_normal((count, self.task.dim)).astype(np.float32))
            held.append((x, np.arange(count) % self.task.classes))
        return tuple(held)


def brief(algorithm: str, given: Container[str] = ()) -> dict[str, Any]:
    """Of :data:`SHORT` what the algorithm has and allows, and that is not ``given``."""
    return lookup(algorithm).Params.brief(SHORT, given)


def setting_of(
    name: str, params: Mapping[str, Any], unit: Unit, trust: Trust, epsilon: float, delta: float, rows: int = OTHER_ROWS
) -> Setting:
    """The setting of a claim; parameters that are not given are the algorithm's defaults.

    Raises:
        UserError: the algorithm is not private or does not support the unit or trust, or nothing could refute the claim.
    """
    cls = lookup(name)
    if not cls.private:
        raise UserError(f"algorithm {name}", "has no privacy to audit", "give a private one, see fedsim algorithms")
    if not 0 < epsilon < math.inf:
        raise UserError("epsilon", f"{epsilon:g} is no claim that an audit could refute", "give a positive, finite number")
    task = Task(ROW_DIM, AUDIT_CLASSES, AUDIT_CLIENTS, unit, trust, public=PublicRows.made_up(ROW_DIM, AUDIT_CLASSES))
    validated = cls.Params.model_validate(dict(params)).model_dump(mode="json")
    with at(lambda where: f"{where} with {name}"):
        plan = solved_plan(build_algorithm(name, validated, task), epsilon, delta)
    assert plan is not None
    return Setting(name, validated, task, plan, rows, apart=not is_shipped(cls))


def tuned_setting(setting: Setting, tuning: Tuning, short: Container[str]) -> Setting:
    """The setting of a whole search for the same claim; parameters that are ``short`` are the same in all of its trainings."""
    own = tuning.model_copy(update={"space": {name: values for name, values in tuning.space.items() if name not in short}})
    plan, cls = setting.plan, lookup(setting.algorithm)
    settings = tuple(
        replace(setting, params=candidate.params, plan=candidate.plan)
        for candidate in plans_of(cls, setting.params, own, setting.task, plan.epsilon_target, plan.delta)
        if candidate.plan is not None
    )
    return replace(settings[0], tuning=own, candidates=settings)


def clipped(setting: Setting, clip: float) -> Setting:
    """The setting with another clip norm, and noise in units of it as before."""
    changed = replace(setting, params={**setting.params, "clip": clip})
    own = changed.build()
    # the plan may claim another sensitivity than the class
    sensitivity = own.sensitivity() * setting.plan.sensitivity / setting.build().sensitivity()
    return replace(changed, plan=replace(setting.plan, clip=own.clip(), sensitivity=sensitivity))


def parameters(algorithm: str, params: Sequence[str], unit: Unit, trust: Trust, epsilon: float, delta: float) -> dict[str, Any]:
    """All parameters of an algorithm, from ``key=YAML`` texts.

    Raises:
        UserError: a parameter or a number is not valid.
    """
    # groups are made here, of a column that no data set has
    of_units = {"column": "canary"} if unit == "group" else unit
    grid = one_cell(algorithm, params, dataset="digits", unit=of_units, trust=trust, epsilon=epsilon, delta=delta)
    (variant,) = resolve(grid).variants
    return variant.params
