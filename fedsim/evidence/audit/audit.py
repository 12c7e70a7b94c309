"""An audit: a lower bound of epsilon, with confidence, from how well trainings with and without a
unit are distinguished.

A test with a rate of false positives F and of true positives T refutes every mechanism whose
trade-off function is above 1 - T at F (Dong, Roth & Su 2022). The rates are known to a confidence:
both get an exact interval (Clopper and Pearson 1934), which hold together with 95 %. The test's
threshold is the log likelihood ratio 0, fixed beforehand, where the two errors are fewest together.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import beta

from fedsim.errors import UserError, at
from fedsim.evidence.audit.bound import refuted_epsilon
from fedsim.evidence.audit.white_box import (
    MOST_ADDED,
    Setting,
    TrainingPair,
    brief,
    pair,
    saturating,
    setting_of,
)
from fedsim.grid.models import AuditSpec, Grid
from fedsim.plugins.code_hash import harness_hash, source_hash
from fedsim.plugins.registry import lookup
from fedsim.privacy.mechanism import Mechanism
from fedsim.results.join import claim_of
from fedsim.training.trial import Trial
from fedsim.words import number

_EACH = 0.025
"""What each of the two rates may be wrong with, so that both hold together with 95 %."""
LEAST_PAIRS = 6
"""Pairs with which an attack without a single error would refute an epsilon above 0."""


def interval(count: float, total: int) -> tuple[float, float]:
    """The least and the largest rate of ``count`` of ``total``; each is exceeded with a probability
    of 2.5 %.
    """
    if count > 0:
        low = float(beta.ppf(_EACH, count, total - count + 1))
    else:
        low = 0.0
    return low, float(beta.ppf(1 - _EACH, count + 1, total - count)) if count < total else 1.0


def bound(
    absent: Sequence[float], present: Sequence[float], mechanisms: Sequence[Mechanism], delta: float
) -> float:
    """The largest epsilon of the claimed mechanisms with other noise that log likelihood ratios
    without and with the unit refute.
    """
    (_, false), (true, _) = (
        interval(sum(score >= 0 for score in scores), len(scores)) for scores in (absent, present)
    )
    return refuted_epsilon(mechanisms, delta, false, true)[0]


@dataclass(frozen=True)
class Audit:
    """The outcome: the claimed epsilon, the largest refuted one, and what the canary adds to a step
    in units of the claimed sensitivity.
    """

    claim: float
    epsilon: float
    pairs: int
    ratio: float
    heuristic: bool

    @property
    def refuted(self) -> bool:
        """Whether the claim is below the bound, or a theorem that stands on a sensitivity which a
        canary exceeds.
        """
        return self.epsilon > self.claim or (self.ratio > MOST_ADDED and not self.heuristic)

    def words(self) -> str:
        """The outcome on a line."""
        reached = f"ε ≥ {number(self.epsilon, 3)} by {self.pairs} pairs"
        canary = (
            f"canary {self.ratio:.2f} of the claimed "
            f"sensitivity{', which is exceeded' if self.ratio > MOST_ADDED else ''}"
        )
        return (
            f"{'REFUTED' if self.refuted else 'not refuted'}: ε = {number(self.claim)} "
            f"claimed, {reached}, {canary}"
        )


def outcome_of(setting: Setting, seen: Sequence[TrainingPair]) -> Audit:
    """What pairs of trainings say."""
    plan = setting.plan
    mechanisms = setting.plan.mechanisms
    reached = bound(
        [each.absent for each in seen], [each.present for each in seen], mechanisms, plan.delta
    )
    ratio = math.sqrt(float(np.mean([each.ratio**2 for each in seen])))
    most = max(each.most for each in seen)
    if most > MOST_ADDED:
        added = most
    else:
        added = ratio
    return Audit(plan.epsilon_target, reached, len(seen), added, plan.claim == "heuristic")


def key_of(setting: Setting) -> str:
    """16 hex digits that are equal for equal audits: of the same code, parameters and claim,
    however many pairs.
    """
    task = setting.task
    code = [source_hash(lookup(setting.algorithm)), harness_hash("evidence")]
    facts = [
        task.dim,
        task.classes,
        task.clients,
        task.unit,
        task.trust,
        setting.plan.epsilon_target,
        setting.plan.delta,
    ]
    hashed = {
        "algorithm": setting.algorithm,
        "code": code,
        "params": setting.params,
        "facts": facts,
    }
    return hashlib.sha256(json.dumps(hashed, sort_keys=True, default=str).encode()).hexdigest()[:16]


class AuditRun:
    """One audit that is under way: so many pairs of trainings of a setting."""

    def __init__(self, setting: Setting, count: int) -> None:
        if count < LEAST_PAIRS:
            what = f"{count} are too few: even an attack without an error would bound nothing"
            raise UserError("pairs", what, f"give {LEAST_PAIRS} or more")
        self.setting = setting
        self.count = count
        self.key = key_of(setting)

    def missing(self, lines: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """Run what ``lines`` lack: a line a pair."""
        # on so small tensors a second thread only waits
        torch.set_num_threads(1)
        done = {line["pair"] for line in lines}
        if left := [number for number in range(self.count) if number not in done]:
            own, canary = saturating(self.setting)
            yield from (pair(own, canary, number)._asdict() for number in left)

    def outcome(self, lines: Sequence[Mapping[str, Any]]) -> Audit:
        """What all recorded pairs say, also those beyond what was asked for now."""
        return outcome_of(self.setting, [TrainingPair(**line) for line in lines])


@dataclass(frozen=True)
class ClaimAudit:
    """The audit of one claim of a grid, and the cells that make it; every row of the claim shows
    its bound.
    """

    run: AuditRun
    trials: tuple[Trial, ...]

    @property
    def words(self) -> str:
        """What it is, for a log."""
        return (
            f"the audit of {self.trials[0].cell.label} at ε = "
            f"{number(self.run.setting.plan.epsilon_target)}"
        )

    def line(self, audit: Audit) -> dict[str, Any]:
        """The result line; ``params`` are those that the audit changed to be short, and what they
        were there.
        """
        cell = self.trials[0].cell
        claim = claim_of(cell.model_dump(mode="json"))
        changed = {
            name: value
            for name, value in self.run.setting.params.items()
            if cell.params.get(name, self) != value
        }
        found = {
            "epsilon_lower": audit.epsilon,
            "pairs": audit.pairs,
            "canary_ratio": audit.ratio,
            "refuted": audit.refuted,
        }
        return {"audit": self.run.key, "claim": claim, **found, "params": changed}


def audits_of(grid: Grid, asked: AuditSpec, trials: Sequence[Trial]) -> tuple[ClaimAudit, ...]:
    """An audit for every claim of a finite epsilon, but of a search; cells of other data or seeds
    share it.
    """
    cells: dict[str, list[Trial]] = {}
    for trial in trials:
        if (
            trial.plan is not None
            and math.isfinite(trial.plan.epsilon_target)
            and trial.cell.tuning is None
        ):
            cells.setdefault(claim_of(trial.cell.model_dump(mode="json")), []).append(trial)
    audits = []
    for own in cells.values():
        cell = own[0].cell
        short = brief(cell.algorithm) | (
            {"rounds": asked.rounds} if "rounds" in cell.params else {}
        )
        setting = setting_of(
            cell.algorithm,
            {**cell.params, **short},
            cell.unit,
            cell.trust,
            float(cell.epsilon or 0),
            cell.delta,
        )
        with at(grid.location("audit")):
            audits.append(ClaimAudit(AuditRun(setting, asked.pairs), tuple(own)))
    return tuple(audits)
