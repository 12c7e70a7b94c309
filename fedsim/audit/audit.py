"""An audit: what was looked at, how often, and what it says of the claim."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.audit.bounds import CONFIDENCE, Bound, at_best, least_pairs, one_run_epsilon
from fedsim.audit.one_run import Scored
from fedsim.audit.setting import Setting
from fedsim.audit.white_box import Pair, bound_of
from fedsim.errors import UserError
from fedsim.methods.registry import lookup
from fedsim.methods.source_hash import module_hash, source_hash
from fedsim.words import number

MOST = 1.001
"""Of the claimed sensitivity: what is above is no rounding."""
WHITE_BOX, ONE_RUN, BLACK_BOX = "white box", "one run", "black box, one run"


@dataclass(frozen=True)
class Audit:
    """The outcome.

    Attributes:
        method: how it was looked.
        claim: the epsilon that is claimed.
        mechanism: the largest epsilon of the claimed mechanism with other noise that is refuted; None where that was not asked.
        clopper_pearson: the largest epsilon of any mechanism that is refuted.
        pairs: pairs of trainings, or canaries of one.
        ratio: what the canary adds to a step, in units of the claimed sensitivity; nan where nobody sees it.
        most: the most that it added; the same.
        heuristic: whether the claim is no theorem, so that it does not stand on a sensitivity.
        best: what the best adversary expects of so many pairs of the planned mechanism; None where nobody knows.
        params: what was audited.
    """

    method: str
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
    def epsilon_lower(self) -> float:
        """The sharpest bound."""
        return max(self.mechanism or 0.0, self.clopper_pearson)

    @property
    def refuted(self) -> bool:
        """Whether the claim is below a bound, or a theorem that stands on a sensitivity which a canary exceeds."""
        return self.epsilon_lower > self.claim or (self.excessive and not self.heuristic)

    @property
    def excessive(self) -> bool:
        """Whether a canary added more than the claimed sensitivity allows, which needs no statistics."""
        return self.most > MOST

    @property
    def told_ratio(self) -> float:
        """The ratio that is told: the largest where it is too large."""
        return self.most if self.excessive else self.ratio

    def words(self) -> str:
        """The outcome on a line."""
        parts = [] if self.mechanism is None else [f"ε ≥ {number(self.mechanism, 3)} (refuted mechanism)"]
        parts.append(f"ε ≥ {number(self.clopper_pearson, 3)} ({'Clopper-Pearson' if self.mechanism is not None else 'any mechanism'})")
        told = f"{self.pairs} {'pairs' if self.method == WHITE_BOX else 'canaries'}"
        if self.best is not None:
            told += f" (at best ε ≥ {number(self.best.mechanism, 3)} and {number(self.best.clopper_pearson, 3)})"
        told += "" if math.isnan(self.ratio) else f", canary {self.told_ratio:.2f} of the claimed sensitivity"
        told += ", which is exceeded" if self.excessive else ""
        verdict = "REFUTED" if self.refuted else "not refuted"
        return f"{verdict}: ε = {number(self.claim)} claimed, {', '.join(parts)}; {self.method}, {told}"


def white_box_audit(setting: Setting, found: Sequence[Pair]) -> Audit:
    """What pairs of trainings say."""
    bounds, claim = bound_of(setting, list(found)), setting.plan.epsilon_target
    best = at_best(tuple(setting.events), setting.plan.delta, len(found))
    ratio = math.sqrt(float(np.mean([each.ratio**2 for each in found])))
    most = max(each.most for each in found)
    told = bounds.mechanism, bounds.clopper_pearson, len(found), ratio, most
    return Audit(WHITE_BOX, claim, *told, _heuristic(setting), best, setting.params)


GUESSES = (0.1, 0.25, 0.5, 1.0)
"""Shares of the canaries that are guessed of; every one is tried, at its part of what a bound may be wrong with."""


def one_run_audit(setting: Setting, found: Sequence[Scored]) -> Audit:
    """What the canaries of one training say."""
    inside = np.array([each.inside for each in found])
    lower = _guessed([np.array([each.score for each in found])], inside, setting.plan.delta)
    ratio = math.sqrt(float(np.mean([each.ratio**2 for each in found])))
    return Audit(
        ONE_RUN, setting.plan.epsilon_target, None, lower, len(found), ratio, max(each.ratio for each in found), _heuristic(setting)
    )


def black_box_audit(claim: float, delta: float, scores: Sequence[NDArray[np.float64]], inside: NDArray[np.bool_]) -> Audit:
    """What guesses by any of several scores of one training's rows say."""
    return Audit(BLACK_BOX, claim, None, _guessed(scores, inside, delta), len(inside), math.nan, math.nan)


def _heuristic(setting: Setting) -> bool:
    return setting.plan.claim == "heuristic"


def _guessed(scores: Sequence[NDArray[np.float64]], inside: NDArray[np.bool_], delta: float) -> float:
    """The largest epsilon that guesses refute: of the highest scores that they are in, of the lowest that they are out."""
    count, tries, best = len(inside), len(scores) * len(GUESSES), 0.0
    for each in scores:
        order = np.argsort(each, kind="stable")
        for share in GUESSES:
            half = min(max(1, round(share * count / 2)), count // 2)
            correct = int((~inside[order[:half]]).sum() + inside[order[-half:]].sum())
            best = max(best, one_run_epsilon(count, 2 * half, correct, delta, (1 - CONFIDENCE) / tries))
    return best


def check_pairs(pairs: int, delta: float) -> None:
    """Check that so many pairs can refute anything.

    Raises:
        UserError: they cannot.
    """
    if pairs < (least := least_pairs(delta)):
        raise UserError("pairs", f"{pairs} are too few: even an attack without an error would bound nothing", f"give {least} or more")


def key_of(setting: Setting, method: str, root: int) -> str:
    """16 hex digits that are equal for equal audits: of the same code, parameters, claim and seeds, however many pairs."""
    task = [setting.task.dim, setting.task.classes, setting.task.clients, setting.task.unit, setting.task.trust]
    return key(setting.algorithm, setting.params, [*task, setting.plan.epsilon_target, setting.plan.delta, setting.rows, method, root])


def key(algorithm: str, params: Mapping[str, Any], facts: Sequence[Any]) -> str:
    """The key of an audit of these parameters and of the code that is here."""
    code = [source_hash(lookup(algorithm)), module_hash("fedsim.audit.run")]
    asked = {"algorithm": algorithm, "code": code, "params": params, "facts": facts}
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:16]
