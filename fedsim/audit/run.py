"""Running an audit: what is not on file yet is run, appended as it comes, and bounded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import torch

from fedsim.audit.audit import WHITE_BOX, Audit, black_box_audit, check_pairs, key, key_of, one_run_audit, white_box_audit
from fedsim.audit.black_box import LIRA, TRAININGS, BlackBox
from fedsim.audit.canaries import saturating
from fedsim.audit.one_run import Scored, check_one_run, one_run
from fedsim.audit.setting import DIM, OTHERS, Setting, brief, setting_of
from fedsim.audit.white_box import Pair, pairs
from fedsim.audit.worlds import in_clean_processes
from fedsim.grid.read import grid_of_options
from fedsim.grid.resolve import resolve
from fedsim.methods.registry import lookup
from fedsim.privacy.plan import Trust, Unit

Attack = Literal["white-box", "one-run", "black-box"]
"""How an audit looks."""
MANY = 256
"""Dimensions where many canaries are in one training, so that they stand apart."""
AT_ONCE = 8
"""Pairs that a process takes: a fresh one is a tenth of a second in starting, and what it has not handed over is lost with it."""
ROOT = 0
"""Seed of all that an adversary may know."""


def parameters(algorithm: str, params: Sequence[str], unit: Unit, trust: Trust, epsilon: float, delta: float) -> dict[str, Any]:
    """All parameters of an algorithm, from ``key=YAML`` texts.

    Raises:
        UserError: a parameter or a number does not do.
    """
    options: dict[str, Any] = {"algorithm": algorithm, "dataset": "digits", "encoder": None, "partition": "iid", "alpha": 1.0, "clients": 2}
    # groups are made here, of a column that no data set has
    options |= {"unit": "{column: canary}" if unit == "group" else unit}
    options |= {"epsilon": epsilon, "delta": delta, "trust": trust, "seed": 0, "per-class": 1}
    (variant,) = resolve(grid_of_options(options, params)).variants
    return variant.params


def setting_of_options(
    algorithm: str, params: Sequence[str], unit: Unit, trust: Trust, epsilon: float, delta: float, dim: int = DIM, rows: int = OTHERS
) -> Setting:
    """The setting that a command line asks for; parameters that it does not give are brief ones.

    Raises:
        UserError: as :func:`fedsim.audit.setting.setting_of`, or a parameter does not do.
    """
    given = {text.partition("=")[0].strip() for text in params}
    known = parameters(algorithm, params, unit, trust, epsilon, delta)
    return setting_of(algorithm, {**known, **brief(algorithm, given)}, unit, trust, epsilon, delta, dim=dim, rows=rows)


@dataclass(frozen=True)
class Reached:
    """What an audit says, a line each, and whether it refutes the claim."""

    words: tuple[str, ...]
    refuted: bool


Append = Callable[[Sequence[dict[str, Any]]], None]
"""Keeps lines, as they come."""
Told = Callable[[int], None]
"""Is told how many lines there are."""


class Command(Protocol):
    """An audit as the command line runs it.

    Attributes:
        key: of what it saw.
        count: how many lines it takes.
    """

    key: str
    count: int

    def completed(self, found: Sequence[dict[str, Any]], append: Append, told: Told) -> Reached:
        """Run what ``found`` lacks, and say what all of it says."""


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

    def missing(self, found: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """Run what ``found`` lacks: a line a pair, or a line a canary."""
        # on so small tensors a second thread only waits
        torch.set_num_threads(1)
        done = {line["pair"] for line in found}
        left = [number for number in range(self.count) if number not in done]
        if not left:
            return
        if self.attack == "one-run":
            # one training has them all, also those that are told already
            (scored,) = in_clean_processes(self.setting, one_run, [(self.setting, self.count, ROOT)])
            yield from (_line(each) for each in scored if each.number not in done)
            return
        ((setting, canary),) = in_clean_processes(self.setting, saturating, [(self.setting, ROOT)])
        parts = ((setting, canary, ROOT, left[start : start + AT_ONCE]) for start in range(0, len(left), AT_ONCE))
        for some in in_clean_processes(setting, pairs, parts):
            yield from map(_line, some)

    def outcome(self, found: Sequence[Mapping[str, Any]]) -> Audit:
        """What all lines say."""
        own = [{"number" if key == "pair" else key: value for key, value in line.items()} for line in found if line["pair"] < self.count]
        if self.attack == "one-run":
            return one_run_audit(self.setting, [Scored(**line) for line in own])
        return white_box_audit(self.setting, [Pair(**line) for line in own])

    def completed(self, found: Sequence[dict[str, Any]], append: Append, told: Told) -> Reached:
        """Run it to its end; see :class:`Command`."""
        audit = self.outcome(_lines(self.missing(found), found, append, told))
        return Reached((audit.words(),), audit.refuted)


class BlackBoxRun:
    """Trainings to their end, and attacks on what they release.

    Args:
        algorithm: as a grid gives it.
        params: all its parameters.
        unit: what the claim protects.
        trust: who may see what.
        epsilon: the claim.
        delta: of the claim.
        canaries: rows that are in a training by a coin.

    Raises:
        UserError: as :class:`fedsim.audit.black_box.BlackBox`.
    """

    def __init__(
        self, algorithm: str, params: Mapping[str, Any], unit: Unit, trust: Trust, epsilon: float, delta: float, canaries: int
    ) -> None:
        private = lookup(algorithm).private
        self.box = BlackBox(algorithm, params, unit, trust, epsilon if private else None, delta, canaries)
        self.key = key(algorithm, params, [unit, trust, epsilon, delta, "black-box", canaries])
        self.count = TRAININGS

    def completed(self, found: Sequence[dict[str, Any]], append: Append, told: Told) -> Reached:
        """Run it to its end; see :class:`Command`."""
        torch.set_num_threads(1)
        done = {line["pair"] for line in found}
        lines = _lines((self.box.line(number) for number in range(self.count) if number not in done), found, append, told)
        outcome = list(self.box.outcome(sorted(lines, key=lambda line: int(line["pair"]))))
        words, plan, refuted = [reached.words() for _, _, reached in outcome], self.box.plan, False
        # where a whole client is protected, a row of one may be told
        if plan is not None and math.isfinite(plan.epsilon_target):
            scores = [first for name, first, _ in outcome if not name.startswith(LIRA)]
            audit = black_box_audit(plan.epsilon_target, plan.delta, scores, self.box.coins(0))
            words, refuted = [audit.words(), *words], audit.refuted
        return Reached(tuple(words), refuted)


def _line(found: Pair | Scored) -> dict[str, Any]:
    """A pair or a canary as a line of a file has it."""
    return {"pair" if name == "number" else name: value for name, value in asdict(found).items()}


def _lines(missing: Iterable[dict[str, Any]], found: Sequence[dict[str, Any]], append: Append, told: Told) -> list[dict[str, Any]]:
    lines = list(found)
    told(len(lines))
    for line in missing:
        append([line])
        lines.append(line)
        told(len(lines))
    return lines
