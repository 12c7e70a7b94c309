"""An audit: what was looked at, how often, and what it says of the claim."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.audit.bounds import CONFIDENCE, least_pairs, one_run_epsilon
from fedsim.audit.one_run import Scored
from fedsim.audit.setting import Setting
from fedsim.audit.white_box import Pair, bound_of
from fedsim.errors import UserError
from fedsim.methods.registry import lookup
from fedsim.methods.source_hash import source_hash
from fedsim.words import number

WHITE_BOX, ONE_RUN = "white box", "one run"


@dataclass(frozen=True)
class Audit:
    """The outcome.

    Attributes:
        method: how it was looked.
        claim: the epsilon that is claimed.
        mechanism: the largest epsilon of the claimed mechanism with other noise that is refuted; None where that was not asked.
        clopper_pearson: the largest epsilon of any mechanism that is refuted.
        pairs: pairs of trainings, or canaries of one.
        ratio: what the canary adds to a step, in units of the claimed sensitivity.
        most: the most that it added.
    """

    method: str
    claim: float
    mechanism: float | None
    clopper_pearson: float
    pairs: int
    ratio: float
    most: float

    @property
    def epsilon_lower(self) -> float:
        """The sharpest bound."""
        return max(self.mechanism or 0.0, self.clopper_pearson)

    @property
    def refuted(self) -> bool:
        """Whether the claim is below a bound."""
        return self.epsilon_lower > self.claim

    @property
    def excessive(self) -> bool:
        """Whether a canary added more than the claimed sensitivity allows, which needs no statistics."""
        return self.most > 1.001

    def words(self) -> str:
        """The outcome on a line."""
        parts = [] if self.mechanism is None else [f"ε ≥ {number(self.mechanism, 3)} (refuted mechanism)"]
        parts.append(f"ε ≥ {number(self.clopper_pearson, 3)} ({'Clopper-Pearson' if self.mechanism is not None else 'any mechanism'})")
        told = f"{self.pairs} {'pairs' if self.method == WHITE_BOX else 'canaries'}, canary {self.ratio:.2f} of the claimed sensitivity"
        verdict = "REFUTED" if self.refuted else "not refuted"
        return f"{verdict}: ε = {number(self.claim)} claimed, {', '.join(parts)}; {self.method}, {told}"


def white_box_audit(setting: Setting, found: Sequence[Pair]) -> Audit:
    """What pairs of trainings say."""
    bounds = bound_of(setting, list(found))
    ratio = math.sqrt(float(np.mean([each.ratio**2 for each in found])))
    most = max(each.most for each in found)
    return Audit(WHITE_BOX, setting.plan.epsilon_target, bounds.mechanism, bounds.clopper_pearson, len(found), ratio, most)


GUESSES = (0.1, 0.25, 0.5, 1.0)
"""Shares of the canaries that are guessed of; every one is tried, at its part of what a bound may be wrong with."""


def one_run_audit(setting: Setting, found: Sequence[Scored]) -> Audit:
    """What the canaries of one training say."""
    count, delta = len(found), setting.plan.delta
    ordered = sorted(found, key=lambda each: each.score)
    bounds = []
    for share in GUESSES:
        half = max(1, round(share * count / 2))
        # the middle one of an odd number is guessed of once
        out, inside = ordered[: min(half, count // 2)], ordered[-half:]
        correct = sum(not each.inside for each in out) + sum(each.inside for each in inside)
        bounds.append(one_run_epsilon(count, len(out) + len(inside), correct, delta, (1 - CONFIDENCE) / len(GUESSES)))
    ratio = math.sqrt(float(np.mean([each.ratio**2 for each in found])))
    return Audit(ONE_RUN, setting.plan.epsilon_target, None, max(bounds), count, ratio, max(each.ratio for each in found))


def check_pairs(pairs: int, delta: float, where: str = "pairs") -> None:
    """Check that so many pairs can refute anything.

    Raises:
        UserError: they cannot.
    """
    if pairs < (least := least_pairs(delta)):
        raise UserError(where, f"{pairs} are too few: even an attack without an error would bound nothing", f"give {least} or more")


def key_of(setting: Setting, method: str, root: int) -> str:
    """16 hex digits that are equal for equal audits: of the same code, parameters, claim and seeds, however many pairs."""
    asked: dict[str, Any] = {
        "algorithm": setting.algorithm,
        "source": source_hash(lookup(setting.algorithm)),
        "params": setting.params,
        "task": [setting.task.dim, setting.task.classes, setting.task.clients, setting.task.unit, setting.task.trust],
        "claim": [setting.plan.epsilon_target, setting.plan.delta],
        "method": method,
        "root": root,
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:16]
