"""How much more likely an adversary's notes are with the unit than without it.

A step's outputs are ``b shift + noise`` with ``b`` 1 where the unit is in the sample; without the unit ``b`` is 0. If the noise is what the
plan says, the log likelihood ratio of a step is log(1 - q + q exp(sum (<residual, shift> - |shift|^2 / 2) / std^2)), and that of a training
the sum of its steps': the best test of the worlds (Neyman and Pearson), and in one dimension the very pair that the accountant composes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from fedsim.audit.worlds import Observed, Step

SAME = 1e-3
"""Standard deviations by which two draws of one noise differ in rounding; fresh ones do so with a probability of SAME to the dimension."""
FEWEST = 6
"""Numbers of a draw below which nothing is said about its being used twice."""
MOST_PAIRS = 2048
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
    shifts = [math.sqrt(sum(float(shift.square().sum()) for shift in step.shifts)) for step in seen.steps]
    told = sum(map(_log_ratio, seen.steps)) + _of_used_twice(seen)
    return Evidence(told, math.sqrt(float(np.mean(np.square(shifts)))) / sensitivity, max(shifts) / sensitivity)


def _log_ratio(step: Step) -> float:
    exponent = 0.0
    for residual, shift, std in zip(step.residuals, step.shifts, step.stds, strict=True):
        exponent += float(residual @ shift - shift @ shift / 2) / std**2
    return float(np.logaddexp(_log(1 - step.rate), _log(step.rate) + exponent))


@dataclass(frozen=True)
class _Draw:
    residual: Tensor
    shift: Tensor
    std: float
    rate: float


def _of_used_twice(seen: Observed) -> float:
    """The log ratio of what is left of two outputs when one is taken from the other, where both carry the same noise; 0 where none do."""
    draws = [_Draw(r, s, std, step.rate) for step in seen.steps for r, s, std in zip(step.residuals, step.shifts, step.stds, strict=True)]
    others = [_Draw(noise, torch.zeros_like(noise), std, 0.0) for std, noise in seen.others_noise]
    candidates = [draw for draw in draws if len(draw.residual) >= FEWEST]
    pairs = [(a, b) for i, a in enumerate(candidates) for b in [*candidates[i + 1 :], *others] if a.residual.shape == b.residual.shape]
    return sum(_log_ratio_of(a, b) for a, b in pairs[:MOST_PAIRS])


def _log_ratio_of(a: _Draw, b: _Draw) -> float:
    difference, width = a.residual - b.residual, SAME * math.sqrt(a.std * b.std)
    cases = {(i, j): float((difference - i * a.shift + j * b.shift).square().sum()) / (2 * width**2) for i, j in product((0, 1), (0, 1))}
    if min(cases.values()) > len(difference):
        return 0.0
    chances = {(i, j): (_log(a.rate) if i else _log(1 - a.rate)) + (_log(b.rate) if j else _log(1 - b.rate)) for i, j in cases}
    present = float(np.logaddexp.reduce([chances[case] - cases[case] for case in cases]))
    return present + cases[0, 0]


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf
