"""An audit: what is not on file yet is run, appended as it comes, and bounded; and what the outcome says of the claim."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.errors import UserError
from fedsim.evidence.audit.bounds import CONFIDENCE, Bound, at_best, bound, least_pairs, one_run_epsilon
from fedsim.evidence.audit.observed import in_clean_processes
from fedsim.evidence.audit.one_run import Scored, check_one_run, one_run
from fedsim.evidence.audit.setting import Setting
from fedsim.evidence.audit.white_box import TrainingPair, pairs, saturating
from fedsim.plugins.code_hash import harness_hash, source_hash
from fedsim.plugins.registry import lookup
from fedsim.words import number

MOST_ADDED = 1.001
"""Of the claimed sensitivity: what is above is no rounding."""
GUESSED_SHARES = (0.1, 0.25, 0.5, 1.0)
"""Shares of the canaries that are guessed; all are tried, and each gets its part of the bound's error probability."""
PAIRS_AT_ONCE = 8
"""Pairs that a process takes: a fresh one is a tenth of a second in starting, and what it has not handed over is lost with it."""
ROOT = 0
"""Seed of all that an adversary may know."""
WHITE_BOX, ONE_RUN, BLACK_BOX = "white box", "one run", "black box, one run"
Append = Callable[[Sequence[dict[str, Any]]], None]
"""Keeps lines, as they come."""
Count = Callable[[int], None]
"""Is called with how many lines there are."""
Reached = tuple[list[str], bool]
"""What an audit says, a line each, and whether it refutes the claim."""


@dataclass(frozen=True)
class Audit:
    """The outcome.

    Attributes:
        method: how it was looked.
        claim: the epsilon that is claimed.
        mechanism: the largest epsilon of the claimed mechanism with other noise that is refuted; None where that was not asked.
        clopper_pearson: the largest epsilon of any mechanism that is refuted.
        pairs: pairs of trainings, or canaries of one.
        ratio: what the canary adds to a step, in units of the claimed sensitivity; nan where that is not seen.
        most: the most that it added; the same.
        heuristic: whether the claim is no theorem, so that it does not stand on a sensitivity.
        best: what the best adversary expects of so many pairs of the planned mechanism; None where that is not known.
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
        return self.most > MOST_ADDED

    @property
    def printed_ratio(self) -> float:
        """The ratio, or the largest one where that is too large."""
        return self.most if self.excessive else self.ratio

    def words(self) -> str:
        """The outcome on a line."""
        bounds = [] if self.mechanism is None else [f"ε ≥ {number(self.mechanism, 3)} (refuted mechanism)"]
        bounds.append(f"ε ≥ {number(self.clopper_pearson, 3)} ({'Clopper-Pearson' if self.mechanism is not None else 'any mechanism'})")
        text = f"{self.pairs} {'pairs' if self.method == WHITE_BOX else 'canaries'}"
        if self.best is not None:
            text += f" (at best ε ≥ {number(self.best.mechanism, 3)} and {number(self.best.clopper_pearson, 3)})"
        text += "" if math.isnan(self.ratio) else f", canary {self.printed_ratio:.2f} of the claimed sensitivity"
        text += ", which is exceeded" if self.excessive else ""
        verdict = "REFUTED" if self.refuted else "not refuted"
        return f"{verdict}: ε = {number(self.claim)} claimed, {', '.join(bounds)}; {self.method}, {text}"


def white_box_audit(setting: Setting, seen: Sequence[TrainingPair]) -> Audit:
    """What pairs of trainings say."""
    plan, events = setting.plan, setting.events
    bounds = bound([pair.absent for pair in seen], [pair.present for pair in seen], events, plan.delta)
    ratio, most = math.sqrt(float(np.mean([pair.ratio**2 for pair in seen]))), max(pair.most for pair in seen)
    # of a search no other noise is known whose best training is as likely, so only what holds for any mechanism is refuted
    mechanism = bounds.mechanism if setting.tuning is None else None
    reached = mechanism, bounds.clopper_pearson, len(seen), ratio, most
    best = at_best(tuple(events), plan.delta, len(seen)) if setting.tuning is None else None
    return Audit(WHITE_BOX, plan.epsilon_target, *reached, plan.claim == "heuristic", best, setting.params)


def one_run_audit(setting: Setting, seen: Sequence[Scored]) -> Audit:
    """What the canaries of one training say."""
    plan, ratios = setting.plan, np.array([canary.ratio for canary in seen])
    inside, scores = np.array([canary.inside for canary in seen]), np.array([canary.score for canary in seen])
    reached = _guessed([scores], inside, plan.delta), len(seen), math.sqrt(float(np.mean(ratios**2))), float(ratios.max())
    return Audit(ONE_RUN, plan.epsilon_target, None, *reached, plan.claim == "heuristic")


def black_box_audit(claim: float, delta: float, scores: Sequence[NDArray[np.float64]], inside: NDArray[np.bool_]) -> Audit:
    """What guesses by any of several scores of one training's rows say."""
    return Audit(BLACK_BOX, claim, None, _guessed(scores, inside, delta), len(inside), math.nan, math.nan)


def _guessed(scores: Sequence[NDArray[np.float64]], inside: NDArray[np.bool_], delta: float) -> float:
    """The largest epsilon that guesses refute: ``in`` for the canaries with the highest scores, ``out`` for those with the lowest."""
    count, tries, best = len(inside), len(scores) * len(GUESSED_SHARES), 0.0
    for score in scores:
        order = np.argsort(score, kind="stable")
        for share in GUESSED_SHARES:
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
    search = [] if setting.tuning is None else [setting.tuning.model_dump(mode="json")]
    facts = [*task, setting.plan.epsilon_target, setting.plan.delta, setting.rows, method, root, *search]
    return key(setting.algorithm, setting.params, facts)


def key(algorithm: str, params: Mapping[str, Any], facts: Sequence[Any]) -> str:
    """The key of an audit of these parameters and of the code that is here."""
    code = [source_hash(lookup(algorithm)), harness_hash("evidence")]
    hashed = {"algorithm": algorithm, "code": code, "params": params, "facts": facts}
    return hashlib.sha256(json.dumps(hashed, sort_keys=True, default=str).encode()).hexdigest()[:16]


class AuditRun:
    """One audit that is under way.

    Args:
        setting: what is audited.
        attack: how.
        count: pairs of trainings, or canaries in one training.

    Raises:
        UserError: so many say nothing, or the algorithm is not of the kind that the attack needs.
    """

    def __init__(self, setting: Setting, attack: Literal["white-box", "one-run"] = "white-box", count: int = 1000) -> None:
        self.setting, self.attack, self.count = setting, attack, count
        if attack == "white-box":
            check_pairs(count, setting.plan.delta)
        else:
            check_one_run(setting, count)
        self.key = key_of(setting, f"{attack} {count}" if attack == "one-run" else WHITE_BOX, ROOT)

    def missing(self, lines: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """Run what ``lines`` lack: a line a pair, or a line a canary."""
        # on so small tensors a second thread only waits
        torch.set_num_threads(1)
        done = {line["pair"] for line in lines}
        left = [number for number in range(self.count) if number not in done]
        if not left:
            return
        if self.attack == "one-run":
            # one training has them all, also those that are on file already
            (scored,) = in_clean_processes(self.setting, one_run, [(self.setting, self.count, ROOT)])
            yield from (asdict(canary) for canary in scored if canary.pair not in done)
            return
        ((setting, canary),) = in_clean_processes(self.setting, saturating, [(self.setting, ROOT)])
        parts = ((setting, canary, ROOT, left[start : start + PAIRS_AT_ONCE]) for start in range(0, len(left), PAIRS_AT_ONCE))
        for some in in_clean_processes(setting, pairs, parts):
            yield from map(asdict, some)

    def outcome(self, lines: Sequence[Mapping[str, Any]]) -> Audit:
        """What all lines say."""
        own = [line for line in lines if line["pair"] < self.count]
        if self.attack == "one-run":
            return one_run_audit(self.setting, [Scored(**line) for line in own])
        return white_box_audit(self.setting, [TrainingPair(**line) for line in own])

    def completed(self, lines: Sequence[dict[str, Any]], append: Append, count: Count) -> Reached:
        """Run what ``lines`` lack, and say what all of them say."""
        audit = self.outcome(with_missing(self.missing(lines), lines, append, count))
        return [audit.words()], audit.refuted


def with_missing(missing: Iterable[dict[str, Any]], lines: Sequence[dict[str, Any]], append: Append, count: Count) -> list[dict[str, Any]]:
    """The lines that are there, and those that were missing; each new one is appended as it comes."""
    whole = list(lines)
    count(len(whole))
    for line in missing:
        append([line])
        whole.append(line)
        count(len(whole))
    return whole
