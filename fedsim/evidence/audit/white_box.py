"""The white-box audit: pairs of trainings without and with a unit, and how much likelier an adversary's notes are with it.

A step's outputs are ``b shift + noise`` with ``b`` 1 where the unit is in the sample; without the unit ``b`` is 0. If the noise is what the
plan says, the log likelihood ratio of a step is log(1 - q + q exp(sum (<residual, shift> - |shift|^2 / 2) / std^2)), and that of a training
the sum of its steps': the best test of the worlds (Neyman and Pearson), and in one dimension the very pair that the accountant composes.
The unit is the one of several that adds most to what is released.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from fedsim.data.normalise import unit_norm
from fedsim.evaluation.tuning import draws
from fedsim.evidence.audit.observed import Canary, NoisyOutput, Observed, observed
from fedsim.evidence.audit.setting import Setting, clipped
from fedsim.grid.models import Tuning
from fedsim.privacy.plan import Unit
from fedsim.seeds import Seeds

SAME_NOISE = 1e-3
"""Standard deviations by which two draws of one noise differ in rounding; fresh ones do so with this probability to the dimension."""
FEWEST_NUMBERS = 6
"""Numbers of a draw below which nothing is said about its being used twice."""
MOST_DRAW_PAIRS = 2048
"""Pairs of draws that are compared."""


@dataclass(frozen=True)
class Evidence:
    """What an adversary makes of one training.

    Attributes:
        score: log likelihood ratio of unit there to not there.
        ratio: what the unit adds to a step, root mean square over steps, in units of the claimed sensitivity.
        most: the largest.
    """

    score: float
    ratio: float
    most: float


def evidence(seen: Observed, sensitivity: float) -> Evidence:
    """The evidence of a training that was observed, at the claimed sensitivity."""
    shifts = [math.sqrt(sum(float(output.shift.square().sum()) for output in step)) for step in seen.steps]
    score = sum(map(_log_ratio, seen.steps)) + _of_used_twice(seen)
    return Evidence(score, math.sqrt(float(np.mean(np.square(shifts)))) / sensitivity, max(shifts) / sensitivity)


def _log_ratio(step: Sequence[NoisyOutput]) -> float:
    exponent, rate = 0.0, step[0].rate
    for output in step:
        exponent += float(output.residual @ output.shift - output.shift @ output.shift / 2) / output.std**2
    return float(np.logaddexp(_log(1 - rate), _log(rate) + exponent))


def _of_used_twice(seen: Observed) -> float:
    """The log ratio of what is left of two outputs when one is taken from the other, where both carry the same noise; 0 where none do."""
    outputs = [output for step in seen.steps for output in step if len(output.residual) >= FEWEST_NUMBERS]
    pairs = [(a, b) for i, a in enumerate(outputs) for b in [*outputs[i + 1 :], *seen.others] if a.residual.shape == b.residual.shape]
    return sum(_log_ratio_of(a, b) for a, b in pairs[:MOST_DRAW_PAIRS])


def _log_ratio_of(a: NoisyOutput, b: NoisyOutput) -> float:
    difference, width = a.residual - b.residual, SAME_NOISE * math.sqrt(a.std * b.std)
    cases = {(i, j): float((difference - i * a.shift + j * b.shift).square().sum()) / (2 * width**2) for i, j in product((0, 1), (0, 1))}
    if min(cases.values()) > len(difference):
        return 0.0
    chances = {(i, j): (_log(a.rate) if i else _log(1 - a.rate)) + (_log(b.rate) if j else _log(1 - b.rate)) for i, j in cases}
    present = float(np.logaddexp.reduce([chances[case] - cases[case] for case in cases]))
    return present + cases[0, 0]


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


UNIT_ROWS: dict[Unit, int] = {"example": 1, "group": 4, "client": 32}
"""Rows of a unit that is looked for: of a client so many that hardly a sample of them is empty."""


def candidates(setting: Setting) -> Iterator[Canary]:
    """Rows of norm 1, as all data sets have them: of a single feature, in a random direction, against the others; of every label."""
    dim, count = setting.task.dim, UNIT_ROWS[setting.task.unit]
    spike = np.eye(1, dim, dtype=np.float32)
    random = np.random.default_rng(1).standard_normal((1, dim)).astype(np.float32)
    against = -np.sum([x.sum(0, keepdims=True) for x, _ in setting.others], axis=0)
    for words, row in (("a row of one feature", spike), ("a row in a random direction", random), ("a row against the others", against)):
        for label in range(setting.task.classes):
            x = np.repeat(unit_norm(row.astype(np.float32)), count, 0)
            yield Canary(x, np.full(count, label), f"{words}, of label {label}")


CLIPS = (1.0, 0.1, 0.01)
"""Shares of the clip norm that are tried: noise is in units of it, so a claim is the same under any, and some canary is clipped."""
ENOUGH = 0.98


def saturating(setting: Setting, root: int) -> tuple[Setting, Canary]:
    """The candidate that adds most to a training's steps, of equals the first; where none is clipped, under a smaller clip norm.

    Args:
        setting: what is audited.
        root: of all random numbers.

    Returns:
        The setting, maybe with a smaller clip norm, and the canary.
    """
    best, chosen = -1.0, None
    clip = setting.params.get("clip")
    for share in CLIPS if isinstance(clip, int | float) and setting.tuning is None else CLIPS[:1]:
        own = setting if share == 1 else clipped(setting, share * float(clip or 0))
        for canary in candidates(own):
            ratio = round(evidence(observed(own, canary, Seeds(root), present=True), own.plan.sensitivity).ratio, 3)
            if ratio > best:
                best, chosen = ratio, (own, canary)
        if best >= ENOUGH:
            break
    assert chosen is not None
    return chosen


def best_of_search(setting: Setting, tuning: Tuning, canary: Canary, seeds: Seeds, *, present: bool) -> Evidence:
    """The evidence of the training that a search releases, if its score is the evidence itself.

    The theorem holds for any score that is computed of what was trained, so also for the one that tells most of the unit.
    """
    drawn = draws(tuning, len(setting.candidates), seeds)
    settings = [setting.candidates[candidate] for candidate in drawn]
    seen = [
        evidence(observed(own, canary, seeds.run(number), present=present), own.plan.sensitivity) for number, own in enumerate(settings)
    ]
    return max(seen, key=lambda one: one.score, default=Evidence(0.0, 0.0, 0.0))


@dataclass(frozen=True)
class TrainingPair:
    """What two trainings showed.

    Attributes:
        pair: its number, counted from 0; its noise and its samples follow from it.
        absent, present: the scores without and with the unit.
        ratio, most: what the unit adds to a step, root mean square and largest, in units of the claimed sensitivity.
    """

    pair: int
    absent: float
    present: float
    ratio: float
    most: float


def pair(setting: Setting, canary: Canary, root: int, number: int) -> TrainingPair:
    """Train without and with the unit; noise, samples and draws for rows of either are its own, everything else follows from ``root``."""
    seeds, bound = [Seeds(root, _secret(root, number, present)) for present in (0, 1)], setting.plan.sensitivity
    if setting.tuning is not None:
        without, with_ = (best_of_search(setting, setting.tuning, canary, seeds[present], present=bool(present)) for present in (0, 1))
    else:
        without, with_ = (evidence(observed(setting, canary, seeds[present], present=bool(present)), bound) for present in (0, 1))
    return TrainingPair(number, without.score, with_.score, with_.ratio, with_.most)


def pairs(setting: Setting, canary: Canary, root: int, numbers: Sequence[int]) -> list[TrainingPair]:
    """Pairs by their numbers."""
    return [pair(setting, canary, root, number) for number in numbers]


def _secret(root: int, number: int, world: int) -> int:
    """Different for every world of every pair; what an adversary may not know follows from it."""
    return ((root << 64) + (number << 1) + world + 1) << 32
