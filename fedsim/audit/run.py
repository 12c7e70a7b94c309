"""Running an audit: what is not on file yet is run, appended as it comes, and bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch

from fedsim.audit.audit import WHITE_BOX, Audit, check_pairs, key_of, one_run_audit, white_box_audit
from fedsim.audit.canaries import saturating
from fedsim.audit.one_run import Scored, check_one_run, one_run
from fedsim.audit.setting import Setting, brief, setting_of
from fedsim.audit.white_box import Pair, pair
from fedsim.grid.read import grid_of_options
from fedsim.grid.resolve import resolve
from fedsim.privacy.plan import Trust, Unit

Attack = Literal["white-box", "one-run"]
ROOT = 0
"""Seed of all that an adversary may know."""


def setting_of_options(
    algorithm: str, params: Sequence[str], unit: Unit, trust: Trust, epsilon: float, delta: float, *, whole: bool = False
) -> Setting:
    """The setting that a command line asks for; parameters that it does not give are brief ones, unless they are asked for as they are.

    Raises:
        UserError: as :func:`fedsim.audit.setting.setting_of`, or a parameter does not do.
    """
    given = {text.partition("=")[0].strip() for text in params}
    options: dict[str, Any] = {"algorithm": algorithm, "dataset": "digits", "encoder": None, "partition": "iid", "alpha": 1.0, "clients": 2}
    options |= {"epsilon": epsilon, "delta": delta, "unit": unit, "trust": trust, "seed": 0, "per-class": 1}
    (variant,) = resolve(grid_of_options(options, params)).variants
    short = {} if whole else brief(algorithm, given)
    return setting_of(algorithm, {**variant.params, **short}, unit, trust, epsilon, delta)


class AuditRun:
    """One audit that is under way.

    Args:
        setting: what is audited.
        attack: how.
        count: pairs of trainings, or canaries in one training.

    Raises:
        UserError: so many say nothing, or the algorithm is not of the kind that the attack needs.
    """

    def __init__(self, setting: Setting, attack: Attack = "white-box", count: int = 1000) -> None:
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
            yield from (scored.to_json() for scored in one_run(self.setting, self.count, ROOT))
            return
        setting, canary = saturating(self.setting, ROOT)
        for number in left:
            yield pair(setting, canary, ROOT, number).to_json()

    def outcome(self, found: Sequence[Mapping[str, Any]]) -> Audit:
        """What all lines say."""
        own = [{"number" if key == "pair" else key: value for key, value in line.items()} for line in found if line["pair"] < self.count]
        if self.attack == "one-run":
            return one_run_audit(self.setting, [Scored(**line) for line in own])
        return white_box_audit(self.setting, [Pair(**line) for line in own])


def completed(
    run: AuditRun, found: Sequence[dict[str, Any]], append: Callable[[Sequence[dict[str, Any]]], None], told: Callable[[int], None]
) -> Audit:
    """Run an audit to its end.

    Args:
        run: the audit.
        found: what earlier runs of it saw.
        append: keeps lines, as they come.
        told: of how many lines there are.
    """
    lines = list(found)
    told(len(lines))
    for line in run.missing(lines):
        append([line])
        lines.append(line)
        told(len(lines))
    return run.outcome(lines)
