"""An audit: pairs that are not on file yet are run, appended as they come, and bounded; and the audits that a grid asks for."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from fedsim.errors import UserError, at
from fedsim.evidence.audit.bounds import Bound, at_best, bound, least_pairs
from fedsim.evidence.audit.setting import Setting, brief, setting_of, tuned_setting
from fedsim.evidence.audit.white_box import MOST_ADDED, ROOT, TrainingPair, in_clean_processes, pairs, saturating
from fedsim.grid.models import AuditSpec, Grid
from fedsim.plugins.code_hash import harness_hash, source_hash
from fedsim.plugins.registry import lookup
from fedsim.results.run import claim_of
from fedsim.training.trial import Trial
from fedsim.words import number

PAIRS_AT_ONCE = 8
"""Pairs that a process takes: a fresh one is a tenth of a second in starting, and what it has not handed over is lost with it."""


@dataclass(frozen=True)
class Audit:
    """The outcome.

    Attributes:
        claim: the epsilon that is claimed.
        mechanism: the largest epsilon of the claimed mechanism with other noise that is refuted; None where that was not asked.
        clopper_pearson: the largest epsilon of any mechanism that is refuted.
        pairs: pairs of trainings.
        ratio: what the canary adds to a step, in units of the claimed sensitivity.
        most: the most that it added; the same.
        heuristic: whether the claim is no theorem, so that it does not stand on a sensitivity.
        best: what the best adversary expects of so many pairs of the planned mechanism; None where that is not known.
        params: what was audited.
    """

    claim: float
    mechanism: float | None
    clopper_pearson: float
    pairs: int
    ratio: float
    most: float
    heuristic: bool = False
    best: Bound | None = None
    params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def refuted(self) -> bool:
        """Whether the claim is below a bound, or a theorem that stands on a sensitivity which a canary exceeds."""
        return max(self.mechanism or 0.0, self.clopper_pearson) > self.claim or (self.excessive and not self.heuristic)

    @property
    def excessive(self) -> bool:
        """Whether a canary added more than the claimed sensitivity allows, which needs no statistics."""
        return self.most > MOST_ADDED

    @property
    def printed_ratio(self) -> float:
        """The ratio, or the largest one where that is too large."""
        return self.most if self.excessive else self.ratio

    def words(self) -> str:
        """The outcome on a line."""
        bounds = [] if self.mechanism is None else [f"ε ≥ {number(self.mechanism, 3)} (refuted mechanism)"]
        bounds.append(f"ε ≥ {number(self.clopper_pearson, 3)} ({'Clopper-Pearson' if self.mechanism is not None else 'any mechanism'})")
        text = f"{self.pairs} pairs"
        if self.best is not None:
            text += f" (at best ε ≥ {number(self.best.mechanism, 3)} and {number(self.best.clopper_pearson, 3)})"
        text += f", canary {self.printed_ratio:.2f} of the claimed sensitivity{', which is exceeded' if self.excessive else ''}"
        return f"{'REFUTED' if self.refuted else 'not refuted'}: ε = {number(self.claim)} claimed, {', '.join(bounds)}; white box, {text}"


def outcome_of(setting: Setting, seen: Sequence[TrainingPair]) -> Audit:
    """What pairs of trainings say."""
    plan, mechanisms = setting.plan, setting.plan.mechanisms
    bounds = bound([pair.absent for pair in seen], [pair.present for pair in seen], mechanisms, plan.delta)
    ratio, most = math.sqrt(float(np.mean([pair.ratio**2 for pair in seen]))), max(pair.most for pair in seen)
    # of a search no other noise is known whose best training is as likely, so only what holds for any mechanism is refuted
    mechanism = bounds.mechanism if setting.tuning is None else None
    best = at_best(mechanisms, plan.delta, len(seen)) if setting.tuning is None else None
    reached = mechanism, bounds.clopper_pearson, len(seen), ratio, most
    return Audit(plan.epsilon_target, *reached, plan.claim == "heuristic", best, setting.params)


def check_pairs(pairs: int, delta: float) -> None:
    """Check that so many pairs can refute anything.

    Raises:
        UserError: they cannot.
    """
    if pairs < (least := least_pairs(delta)):
        raise UserError("pairs", f"{pairs} are too few: even an attack without an error would bound nothing", f"give {least} or more")


def key_of(setting: Setting, root: int) -> str:
    """16 hex digits that are equal for equal audits: of the same code, parameters, claim and seeds, however many pairs."""
    task = [setting.task.dim, setting.task.classes, setting.task.clients, setting.task.unit, setting.task.trust]
    search = None if setting.tuning is None else setting.tuning.model_dump(mode="json")
    hashed = {
        "algorithm": setting.algorithm,
        "code": [source_hash(lookup(setting.algorithm)), harness_hash("evidence")],
        "params": setting.params,
        "facts": [*task, setting.plan.epsilon_target, setting.plan.delta, setting.rows, root, search],
    }
    return hashlib.sha256(json.dumps(hashed, sort_keys=True, default=str).encode()).hexdigest()[:16]


class AuditRun:
    """One audit that is under way: so many pairs of trainings of a setting.

    Raises:
        UserError: so many pairs say nothing.
    """

    def __init__(self, setting: Setting, count: int = 1000) -> None:
        check_pairs(count, setting.plan.delta)
        self.setting, self.count, self.key = setting, count, key_of(setting, ROOT)

    def missing(self, lines: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """Run what ``lines`` lack: a line a pair."""
        # on so small tensors a second thread only waits
        torch.set_num_threads(1)
        done = {line["pair"] for line in lines}
        left = [number for number in range(self.count) if number not in done]
        if not left:
            return
        ((setting, canary),) = in_clean_processes(self.setting, saturating, [(self.setting, ROOT)])
        parts = ((setting, canary, ROOT, left[start : start + PAIRS_AT_ONCE]) for start in range(0, len(left), PAIRS_AT_ONCE))
        for some in in_clean_processes(setting, pairs, parts):
            yield from map(asdict, some)

    def outcome(self, lines: Sequence[Mapping[str, Any]]) -> Audit:
        """What all lines say."""
        return outcome_of(self.setting, [TrainingPair(**line) for line in lines if line["pair"] < self.count])

    def completed(self, lines: Sequence[dict[str, Any]], append: Callable[[dict[str, Any]], None], count: Callable[[int], None]) -> Audit:
        """Run what ``lines`` lack, keep each as it comes, tell how many there are, and say what all of them say."""
        whole = list(lines)
        count(len(whole))
        for line in self.missing(lines):
            append(line)
            whole.append(line)
            count(len(whole))
        return self.outcome(whole)


@dataclass(frozen=True)
class ClaimAudit:
    """The audit of one claim of a grid, and the cells that make it; every row of the claim shows its bound."""

    run: AuditRun
    trials: tuple[Trial, ...]

    @property
    def words(self) -> str:
        """What it is, for a log."""
        return f"the audit of {self.trials[0].cell.label} at ε = {number(self.run.setting.plan.epsilon_target)}"

    def line(self, audit: Audit) -> dict[str, Any]:
        """The result line; ``params`` are those that the audit changed to be short, and what they were there."""
        cell = self.trials[0].cell
        return {
            "audit": self.run.key,
            "claim": _claim_of(self.trials[0]),
            "epsilon_lower": audit.mechanism,
            "epsilon_any": audit.clopper_pearson,
            "method": "white box",
            "pairs": audit.pairs,
            "canary_ratio": audit.printed_ratio,
            "refuted": audit.refuted,
            "params": {name: value for name, value in audit.params.items() if cell.params.get(name, audit) != value},
        }


def audits_of(grid: Grid, asked: AuditSpec, trials: Sequence[Trial]) -> tuple[ClaimAudit, ...]:
    """An audit for every algorithm, its parameters, unit, trust and finite epsilon; cells of other data or seeds share it.

    Of a tuned cell the whole search is audited, with the scores that tell most of the unit.

    Raises:
        UserError: the grid asks for too few pairs.
    """
    with at(grid.place("audit")):
        check_pairs(asked.pairs, grid.delta)
    cells: dict[str, list[Trial]] = {}
    for trial in trials:
        free = trial.cell.tuning is not None and trial.cell.tuning.free  # claims nothing that an audit could refute
        if trial.plan is not None and math.isfinite(trial.plan.epsilon_target) and not free:
            cells.setdefault(_claim_of(trial), []).append(trial)
    audits = []
    for own in cells.values():
        cell = own[0].cell
        short = brief(cell.algorithm) | ({"rounds": asked.rounds} if "rounds" in cell.params else {})
        setting = setting_of(cell.algorithm, {**cell.params, **short}, cell.unit, cell.trust, float(cell.epsilon or 0), cell.delta)
        if cell.tuning is not None:
            setting = tuned_setting(setting, cell.tuning, short)
        audits.append(ClaimAudit(AuditRun(setting, asked.pairs), tuple(own)))
    return tuple(audits)


def _claim_of(trial: Trial) -> str:
    return claim_of(trial.cell.model_dump(mode="json"))
