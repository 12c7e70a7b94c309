"""The audit of a claim: a lower bound of ε, with confidence, from pairs of trainings.

The pairs are trained without and with a unit, and a test tells the two apart. A test with a rate F
of false positives and a rate T of true positives refutes every mechanism whose trade-off function
is above 1 - T at F (Dong, Roth & Su 2022). The rates are known to a confidence: each has an exact
interval (Clopper and Pearson 1934), and both intervals hold together with 95 %. The threshold of
the test is a log likelihood ratio of 0. It is fixed beforehand, and it has the fewest errors of
both kinds together.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import beta

from fedsim.errors import UserError, at
from fedsim.evidence.audit.bound import refuted_epsilon
from fedsim.evidence.audit.white_box import (
    MOST_ADDED,
    Setting,
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
from fedsim.results.records import AuditRecord, TrainingPair
from fedsim.training.trial import Trial
from fedsim.words import number

_EACH = 0.025
"""The probability with which each of the two rates may be outside of its interval: together 5 %."""
LEAST_PAIRS = 6
"""The number of pairs with which an attack without a single error would refute an ε above 0."""


def interval(count: float, total: int) -> tuple[float, float]:
    """Return the lower and upper confidence limits of a rate, each exceeded with 2.5 %.

    Args:
        count: how often something was seen.
        total: the number of trials.
    """
    low = 0.0
    high = 1.0
    if count > 0:
        low = float(beta.ppf(_EACH, count, total - count + 1))
    if count < total:
        high = float(beta.ppf(1 - _EACH, count + 1, total - count))
    return low, high


def bound(
    absent: Sequence[float],
    present: Sequence[float],
    mechanisms: Sequence[Mechanism],
    delta: float,
) -> float:
    """Return the largest ε of the claimed mechanisms with other noise that the scores refute.

    Args:
        absent: log likelihood ratios of trainings without the unit.
        present: log likelihood ratios of trainings with the unit.
        mechanisms: what is claimed to have run.
        delta: the δ of the claim.
    """
    # The test says that the unit is there if a ratio is 0 or more.
    _, false_positives = interval(sum(score >= 0 for score in absent), len(absent))
    true_positives, _ = interval(sum(score >= 0 for score in present), len(present))
    return refuted_epsilon(mechanisms, delta, false_positives, true_positives)[0]


@dataclass(frozen=True)
class Audit:
    """The outcome of an audit.

    Attributes:
        claim: the claimed ε.
        epsilon: the largest ε that is refuted, a lower bound of the true one.
        pairs: the number of pairs of trainings.
        ratio: what the canary adds to a step, in units of the claimed sensitivity.
        heuristic: whether the claim is no theorem.
    """

    claim: float
    epsilon: float
    pairs: int
    ratio: float
    heuristic: bool

    @property
    def refuted(self) -> bool:
        """Whether ε is above the claim, or the canary exceeds the sensitivity of a theorem."""
        is_exceeded = self.ratio > MOST_ADDED and not self.heuristic
        return self.epsilon > self.claim or is_exceeded

    def words(self) -> str:
        """Return the outcome on a line."""
        outcome = "not refuted"
        if self.refuted:
            outcome = "REFUTED"
        exceeded = ""
        if self.ratio > MOST_ADDED:
            exceeded = ", more than it may"
        return (
            f"{outcome}: ε = {number(self.claim)} claimed; {self.pairs} pairs of trainings show "
            f"ε ≥ {number(self.epsilon, 3)}; the canary adds {self.ratio:.2f} of the claimed "
            f"sensitivity{exceeded}"
        )


def outcome_of(setting: Setting, seen: Sequence[TrainingPair]) -> Audit:
    """Return the outcome of an audit from its pairs of trainings."""
    plan = setting.plan
    absent = [pair["absent"] for pair in seen]
    present = [pair["present"] for pair in seen]
    epsilon = bound(absent, present, plan.mechanisms, plan.delta)
    added = max(pair["most"] for pair in seen)
    if added <= MOST_ADDED:
        added = math.sqrt(float(np.mean([pair["ratio"] ** 2 for pair in seen])))
    return Audit(
        plan.epsilon_target,
        epsilon,
        len(seen),
        added,
        plan.claim == "heuristic",
    )


def key_of(setting: Setting) -> str:
    """Return 16 hex digits that are equal for audits of the same code, parameters and claim.

    The number of pairs does not count, so that more pairs can be added to an audit.
    """
    task = setting.task
    plan = setting.plan
    shape = [task.dim, task.classes, task.clients]
    claim = [task.unit, task.trust, plan.epsilon_target, plan.delta]
    hashed = {
        "algorithm": setting.algorithm,
        "code": [source_hash(lookup(setting.algorithm)), harness_hash("evidence")],
        "params": setting.params,
        "facts": shape + claim,
    }
    text = json.dumps(hashed, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class AuditRun:
    """An audit that can be interrupted and resumed.

    Attributes:
        setting: the claim and how it is audited.
        count: the number of pairs of trainings.
        key: names the audit, see :func:`key_of`.
    """

    def __init__(self, setting: Setting, count: int) -> None:
        if count < LEAST_PAIRS:
            raise UserError(
                "pairs",
                f"{count} are too few: even an attack without an error would bound nothing",
                f"give {LEAST_PAIRS} or more",
            )
        self.setting = setting
        self.count = count
        self.key = key_of(setting)

    def missing(self, known: Sequence[TrainingPair]) -> Iterator[TrainingPair]:
        """Run and yield the pairs that are not known."""
        # On such small tensors a second thread only waits.
        torch.set_num_threads(1)
        missing = sorted(set(range(self.count)) - {line["pair"] for line in known})
        if not missing:
            return
        setting, canary = saturating(self.setting)
        for pair_number in missing:
            yield pair(setting, canary, pair_number)

    def outcome(self, pairs: Sequence[TrainingPair]) -> Audit:
        """Return the outcome of all recorded pairs, also of those beyond ``count``."""
        return outcome_of(self.setting, pairs)


@dataclass(frozen=True)
class ClaimAudit:
    """The audit of one claim of a grid.

    Attributes:
        run: the audit.
        trials: the cells that make the claim; the results of all of them show its bound.
    """

    run: AuditRun
    trials: tuple[Trial, ...]

    @property
    def words(self) -> str:
        """The name of the audit in a log."""
        return (
            f"the audit of {self.trials[0].cell.label} at ε = "
            f"{number(self.run.setting.plan.epsilon_target)}"
        )

    def line(self, audit: Audit) -> AuditRecord:
        """Return the result line, in which ``params`` are those that the audit changed."""
        cell = self.trials[0].cell
        changed = dict(self.run.setting.params)
        for name, value in cell.params.items():
            if changed.get(name) == value:
                del changed[name]
        return {
            "audit": self.run.key,
            "claim": claim_of(cell.model_dump(mode="json")),
            "epsilon_lower": audit.epsilon,
            "pairs": audit.pairs,
            "canary_ratio": audit.ratio,
            "refuted": audit.refuted,
            "params": changed,
        }


def audits_of(
    grid: Grid,
    asked: AuditSpec,
    trials: Sequence[Trial],
) -> tuple[ClaimAudit, ...]:
    """Return an audit for every claim of a finite ε in a grid.

    Cells of other data or seeds share the audit of their claim. Claims of a search for parameters
    are left out.

    Args:
        grid: the grid, whose key ``audit`` is named in errors.
        asked: the number of pairs and of rounds.
        trials: the cells of the grid.
    """
    trials_of_claim = defaultdict(list)
    for trial in trials:
        is_private = trial.plan is not None and math.isfinite(trial.plan.epsilon_target)
        if is_private and trial.cell.tuning is None:
            trials_of_claim[claim_of(trial.cell.model_dump(mode="json"))].append(trial)
    audits = []
    for same_claim in trials_of_claim.values():
        cell = same_claim[0].cell
        params = cell.params | brief(cell.algorithm)
        if "rounds" in cell.params:
            params["rounds"] = asked.rounds
        epsilon = float(cell.epsilon or 0)
        setting = setting_of(
            cell.algorithm,
            params,
            cell.unit,
            cell.trust,
            epsilon,
            cell.delta,
        )
        with at(grid.location("audit")):
            audits.append(ClaimAudit(AuditRun(setting, asked.pairs), tuple(same_claim)))
    return tuple(audits)
