"""The white-box audit: pairs of trainings without and with a unit, and what an adversary who sees every noisy output makes of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedsim.audit.bounds import Bound, bound
from fedsim.audit.evidence import evidence
from fedsim.audit.setting import Setting
from fedsim.audit.worlds import Canary, observed
from fedsim.seeds import Seeds


@dataclass(frozen=True)
class Pair:
    """What two trainings showed.

    Attributes:
        number: counted from 0; its noise and its samples follow from it.
        absent, present: the scores without and with the unit.
        ratio, most: what the unit adds to a step, root mean square and largest, in units of the claimed sensitivity.
    """

    number: int
    absent: float
    present: float
    ratio: float
    most: float


def pair(setting: Setting, canary: Canary, root: int, number: int) -> Pair:
    """Train without and with the unit; noise, samples and draws for rows of either are its own, everything else follows from ``root``."""
    seeds, bound = [Seeds(root, _secret(root, number, present)) for present in (0, 1)], setting.plan.sensitivity
    without, with_ = (evidence(observed(setting, canary, seeds[present], present=bool(present)), bound) for present in (0, 1))
    return Pair(number, without.score, with_.score, with_.ratio, with_.most)


def pairs(setting: Setting, canary: Canary, root: int, numbers: Sequence[int]) -> list[Pair]:
    """Pairs by their numbers."""
    return [pair(setting, canary, root, number) for number in numbers]


def bound_of(setting: Setting, found: list[Pair]) -> Bound:
    """What the pairs refute."""
    return bound([each.absent for each in found], [each.present for each in found], setting.events, setting.plan.delta)


def _secret(root: int, number: int, world: int) -> int:
    """Different for every world of every pair; what an adversary may not know follows from it."""
    return ((root << 64) + (number << 1) + world + 1) << 32
