"""Audits a claim of ε: computes a lower bound of ε with 95 % confidence, from pairs of trainings.

In each pair, one training is without a unit and one is with it. A test says of each training
whether it had the unit. The trade-off function of a mechanism is the least false-negative rate that
a test can have at each false-positive rate. So a test with the false-positive rate F and the
true-positive rate T refutes every mechanism whose trade-off function is above 1 - T at F (Dong,
Roth & Su 2022). Both rates are unknown. So the upper confidence limit of F and the lower one of T
are used (Clopper and Pearson 1934), which hold together with 95 %. The threshold of the test is a
log likelihood ratio of 0. It is fixed beforehand, and the sum of both error rates is smallest
there.
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

_TAIL = 0.025
"""The probability that a rate is beyond one end of its interval.

A bound uses one end of each of two intervals, so it is wrong with at most 5 %.
"""
LEAST_PAIRS = 6
"""The number of pairs with which an attack without a single error would refute an ε above 0."""


def interval(count: float, total: int) -> tuple[float, float]:
    """Return the lower and the upper confidence limit of a rate (Clopper and Pearson 1934).

    The rate is beyond each limit with a probability of at most 2.5 %.

    Args:
        count: the number of trials in which the event happened.
        total: the number of trials.
    """
    low = 0.0
    high = 1.0
    if count > 0:
        low = float(beta.ppf(_TAIL, count, total - count + 1))
    if count < total:
        high = float(beta.ppf(1 - _TAIL, count + 1, total - count))
    return low, high


def bound(
    absent: Sequence[float],
    present: Sequence[float],
    mechanisms: Sequence[Mechanism],
    delta: float,
) -> float:
    """Return the lower bound of ε: the largest ε that the scores refute.

    Every ε stands for the claimed mechanisms with another amount of noise.

    Args:
        absent: log likelihood ratios of trainings without the unit.
        present: log likelihood ratios of trainings with the unit.
        mechanisms: the mechanisms that are claimed to have run.
        delta: the δ of the claim.
    """
    # The test says that a training had the unit if its ratio is 0 or more.
    _, false_positives = interval(sum(score >= 0 for score in absent), len(absent))
    true_positives, _ = interval(sum(score >= 0 for score in present), len(present))
    return refuted_epsilon(mechanisms, delta, false_positives, true_positives)


@dataclass(frozen=True)
class Audit:
    """The outcome of an audit.

    Attributes:
        claim: the claimed ε.
        epsilon: the largest ε that is refuted, a lower bound of the true one.
        pairs: the number of pairs of trainings.
        ratio: the norm that the unit (the canary) adds to a step, in units of the claimed
            sensitivity. It is the largest of all steps if that is more than the claim allows, and
            otherwise the root mean square.
        heuristic: whether the claim is heuristic, that is, not proved.
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
        """Return the outcome as one line of text."""
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
        """Run the pairs that are not among ``known``, and yield the results of each."""
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
        plan = self.setting.plan
        absent = [line["absent"] for line in pairs]
        present = [line["present"] for line in pairs]
        epsilon = bound(absent, present, plan.mechanisms, plan.delta)
        # One step above the sensitivity is enough to refute a proof, so it decides the ratio.
        added = max(line["most"] for line in pairs)
        if added <= MOST_ADDED:
            added = math.sqrt(float(np.mean([line["ratio"] ** 2 for line in pairs])))
        is_heuristic = plan.claim == "heuristic"
        return Audit(plan.epsilon_target, epsilon, len(pairs), added, is_heuristic)


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
        """Return the line of the run folder; its ``params`` are those that the audit changed."""
        cell = self.trials[0].cell
        changed = {
            name: value
            for name, value in self.run.setting.params.items()
            if cell.params.get(name) != value
        }
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
        asked: the numbers of pairs and rounds.
        trials: the cells of the grid.

    Raises:
        UserError: there are too few pairs, or the algorithm has no plan for a claim.
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
