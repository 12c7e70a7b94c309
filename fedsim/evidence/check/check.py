"""All checks of an algorithm, in order, in every privacy setting that it states."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, product
from typing import Any, get_args

from rich.table import Table
from rich.text import Text

from fedsim.errors import UserError
from fedsim.evidence.check import others
from fedsim.evidence.check.sensitivity import canary, sampling, sensitivity
from fedsim.evidence.check.subject import Subject, subject
from fedsim.evidence.check.verdict import Verdict, failed, idle, raised
from fedsim.evidence.forked import ProcessEnded, alone, forked, in_forks
from fedsim.plugins.code_hash import harness_hash, source_hash
from fedsim.plugins.registry import lookup
from fedsim.privacy.plan import Trust, Unit
from fedsim.words import counted

QUICK_DRAWS, FULL_DRAWS = 40, 400
"""Random pairs of neighbouring worlds, which the settings share."""
REFUSED_FIX = "leave it out of units or trusts, or mend the plan that the default parameters have there"
OF_PRIVACY = ("per-example loss", "public rows", "sensitivity", "noise not reused", "budget")
"""Checks whose fault is one of the claim."""


@dataclass(frozen=True)
class CheckResult:
    """What one check says in one privacy setting (unit and trust)."""

    check: str
    setting: str
    verdict: Verdict

    @property
    def passed(self) -> bool | None:
        """None where there was nothing to check."""
        return self.verdict.passed


@dataclass(frozen=True)
class Check:
    """A function of a check, which may have several; without those that it ``needs`` it says nothing."""

    name: str
    run: Callable[[Subject], Verdict]
    needs: tuple[str, ...] = ("trains",)


_SOUND = ("per-example loss", "public rows", "determinism")
CHECKS = (
    Check("per-example loss", others.per_example, ()),
    Check("trains", others.trains, ()),
    Check("result finite", others.finite),
    Check("per-example loss", others.predictions, ("result finite",)),
    Check("global random state", others.global_random),
    Check("public rows", others.public_rows),
    Check("determinism", others.determinism),
    Check("determinism", others.data_untouched),
    Check("packing", others.serialisable),
    Check("packing", others.packing, (*_SOUND, "packing")),
    Check("sensitivity", sampling),
    Check("sensitivity", sensitivity, (*_SOUND, "sensitivity")),
    Check("sensitivity", canary, ("sensitivity",)),
    Check("noise not reused", others.noise, ("determinism",)),
    Check("budget", others.budget),
    Check("resume", others.resume, ("per-example loss", "determinism", "packing", "global random state")),
    Check("restored", others.restored, ("determinism",)),
)


def check_algorithm(
    name: str, params: Sequence[str] = (), unit: Unit | None = None, trust: Trust | None = None, *, quick: bool = False
) -> list[CheckResult]:
    """Run every check in every setting; last come the settings that are refused while others are not.

    Args:
        name: of the algorithm, as in a grid.
        params: ``key=YAML`` texts; parameters that make a training long are short where nothing is given.
        unit: this one only; default: all that the class states.
        trust: this one only; default: all that the class states.
        quick: fewer random pairs of neighbouring data sets.

    Raises:
        UserError: the algorithm, a parameter or every setting does not do.
    """
    return alone(_findings, lookup(name).__module__, name, params, unit, trust, quick)


def _findings(name: str, params: Sequence[str], unit: Unit | None, trust: Trust | None, quick: bool) -> list[CheckResult]:
    cls = lookup(name)
    settings = list(product((unit,) if unit else cls.units, (trust,) if trust else cls.trusts))
    settings = settings if cls.private else settings[:1]
    count = (QUICK_DRAWS if quick else FULL_DRAWS) // len(settings)
    subjects, refused = list[Subject](), list[tuple[Unit, Trust, UserError]]()
    for number, (own_unit, own_trust) in enumerate(settings):
        try:
            subjects.append(subject(name, params, own_unit, own_trust, range(number * count, (number + 1) * count)))
        except UserError as error:
            refused.append((own_unit, own_trust, error))
    if len(refused) == len(settings):
        raise refused[0][2]
    _import_for(subjects[0])
    found = list(chain.from_iterable(in_forks(check_subject, ((own,) for own in subjects))))
    for own_unit, own_trust, refusal in refused:
        by_default = _refusal(name, own_unit, own_trust) if params else str(refusal)
        if by_default == str(refusal):
            verdict = failed(f"the class states it, and: {refusal}", REFUSED_FIX)
        else:
            verdict = idle(f"the parameters rule it out: {refusal}")
        # by a name of its own: nothing is known of the setting itself
        found.append(CheckResult("setting", f"{own_unit}, {own_trust} (refused)", verdict))
    return found


def _import_for(subject: Subject) -> None:
    """What a training and its accountant import late, so that no fork does; they run in one."""

    def imported() -> list[str]:
        known = len(sys.modules)
        attempted(others.budget, subject)
        return list(sys.modules)[known:]

    with suppress(ProcessEnded):
        for module in forked(imported):
            with suppress(ImportError):
                importlib.import_module(module)


def _refusal(name: str, unit: Unit, trust: Trust) -> str:
    """What is wrong with a setting under the default parameters; empty where nothing is."""
    try:
        subject(name, [], unit, trust)
    except UserError as error:
        return str(error)
    return ""


def check_subject(subject: Subject) -> list[CheckResult]:
    """Run every check in one setting, each function in a process of its own, in which nothing has trained."""
    found, without = dict[str, list[Verdict]](), dict[str, str]()
    for check in CHECKS:
        lost = next((without[need] for need in check.needs if need in without), None)
        verdict = guarded(check.run, subject) if lost is None else idle(f"not checked: needs '{lost}'")
        if check.name == "trains" and verdict.passed is False and "per-example loss" in without:
            # the engines refuse to train such a loss: one fault, told once
            lost, verdict = "per-example loss", idle(f"does not, see 'per-example loss': {verdict.reason}")
        if lost is not None or verdict.passed is False:
            without.setdefault(check.name, lost or check.name)
        found.setdefault(check.name, []).append(verdict)
    return [CheckResult(name, subject.setting, _joined(verdicts)) for name, verdicts in found.items()]


def guarded(run: Callable[[Subject], Verdict], subject: Subject) -> Verdict:
    """What a function says of a subject in a fork; that it ends that process is a fault of the algorithm."""
    try:
        return forked(attempted, run, subject)
    except ProcessEnded as error:
        return raised(error, lookup(subject.trial.cell.algorithm))


def attempted(run: Callable[[Subject], Verdict], subject: Subject) -> Verdict:
    """The same in this process; an exception, or an exit, is a fault of the algorithm, told with its place."""
    try:
        return run(subject)
    except (Exception, SystemExit) as error:
        return raised(error, lookup(subject.trial.cell.algorithm))


def _joined(verdicts: Sequence[Verdict]) -> Verdict:
    """The first fault; else all that was seen, or why nothing was."""
    fault = next((verdict for verdict in verdicts if verdict.passed is False), None)
    seen = [verdict.reason for verdict in verdicts if verdict.passed] or [verdicts[0].reason]
    return fault or Verdict(True if any(verdict.passed for verdict in verdicts) else None, "; ".join(seen))


def check_lines(name: str, params: Mapping[str, Any], findings: Sequence[CheckResult], *, quick: bool) -> list[dict[str, Any]]:
    """A result line for every setting of which a check said something: that it passed, or a fault in what the claim rests on.

    Args:
        name: of the algorithm.
        params: all its parameters as a row has them, which a check shortens for itself.
        findings: of all settings.
        quick: whether it was a quick check, which only refutes.
    """
    source, lines = source_hash(lookup(name)), []
    for unit, trust in product(get_args(Unit), get_args(Trust)):
        own = [finding for finding in findings if finding.setting == f"{unit}, {trust}"]
        refuted = any(finding.passed is False and finding.check in OF_PRIVACY for finding in own)
        if own and (refuted or all(finding.passed is not False for finding in own)):
            facts = {"algorithm": name, "source": source, "unit": unit, "trust": trust, "params": params, "check": harness_hash("evidence")}
            lines.append({**facts, "full": not quick, "ended": "failed" if refuted else "passed"})
    return lines


MARKS = {True: Text("passed", "green"), False: Text("failed", "red"), None: Text("-", "dim")}


def in_a_line(name: str, findings: Sequence[CheckResult]) -> str:
    """How many checks passed, and in which settings."""
    settings = list(dict.fromkeys(finding.setting for finding in findings))
    passed, ran = (sum(map(keep, findings)) for keep in (lambda one: one.passed is True, lambda one: one.passed is not None))
    return f"fedsim check {name}: {passed} of {counted(ran, 'check')} passed ({'; '.join(settings)})"


def findings_table(findings: Sequence[CheckResult], *, verbose: bool) -> Table:
    """A row for every check and distinct verdict, ``verbose`` or a fault; settings that share one share a row."""
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("unit, trust", max_width=19)
    table.add_column("what was seen, and the fix")
    settings = list(dict.fromkeys(finding.setting for finding in findings))
    rows: dict[tuple[str, Verdict], list[str]] = {}
    for finding in findings:
        if verbose or finding.passed is False:
            rows.setdefault((finding.check, finding.verdict), []).append(finding.setting)
    for (check, verdict), own in rows.items():
        where = "all" if own == settings else "\n".join(own)
        text = f"{verdict.reason}\nfix: {verdict.fix}" if verdict.fix else verdict.reason
        table.add_row(check, MARKS[verdict.passed], where, Text(text))
    return table
