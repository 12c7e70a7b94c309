"""All checks of an algorithm, in order, in every privacy setting that it states."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from itertools import chain, product
from typing import Any, NamedTuple, get_args

from rich.table import Table
from rich.text import Text

from fedsim.errors import PluginError, UserError
from fedsim.evidence.check import others
from fedsim.evidence.check.sensitivity import sensitivity
from fedsim.evidence.check.subject import (
    DELTA,
    Fault,
    Idle,
    Subject,
    raised,
    shortened,
    subject,
)
from fedsim.evidence.forked import ProcessEnded, alone, forked, in_forks
from fedsim.plugins.code_hash import harness_hash, source_hash
from fedsim.plugins.registry import lookup
from fedsim.privacy.accountant import epsilon
from fedsim.privacy.mechanism import Mechanism
from fedsim.privacy.plan import Trust, Unit
from fedsim.words import counted

QUICK_DRAWS = 40
FULL_DRAWS = 400
"""Random pairs of neighbouring worlds, which the settings share."""
RAISED_FIX = "mend the line that raises it"
OF_PRIVACY = (
    "per-example loss",
    "predictions",
    "public rows",
    "sensitivity",
    "noise not reused",
    "budget",
)
"""Checks whose fault is one of the claim."""


class CheckResult(NamedTuple):
    """What one check says in a setting; ``passed`` is None where there was nothing to check, and
    only a fault has a ``fix``.
    """

    passed: bool | None
    reason: str
    fix: str = ""
    check: str = ""
    setting: str = ""


class Check(NamedTuple):
    """A function that says what it saw, or raises :class:`Fault` or :class:`Idle`; without the
    checks that it ``needs`` it is not run.
    """

    name: str
    run: Callable[[Subject], str]
    needs: tuple[str, ...] = ("trains",)


CHECKS = (
    Check("per-example loss", others.per_example, ()),
    Check("trains", others.trains, ("per-example loss",)),
    Check("result finite", others.finite),
    Check("predictions", others.predictions, ("result finite",)),
    Check("global random state", others.global_random),
    Check("public rows", others.public_rows),
    Check("determinism", others.determinism),
    Check("packing", others.packing, ("public rows", "determinism")),
    Check("sensitivity", sensitivity, ("public rows", "determinism")),
    Check("noise not reused", others.noise, ("determinism",)),
    Check("budget", others.budget),
    Check("resume", others.resume, ("determinism", "packing", "global random state")),
    Check("restored", others.restored, ("determinism",)),
)


def check_algorithm(
    name: str,
    params: Sequence[str] = (),
    unit: Unit | None = None,
    trust: Trust | None = None,
    *,
    quick: bool = False,
) -> list[CheckResult]:
    """Run every check in every setting; last come the settings that are refused while others are
    not.

    Args:
        name: of the algorithm, as in a grid.
        params: ``key=YAML`` texts; parameters that make a training long are short where nothing is
            given.
        unit: this one only; default: all that the class states.
        trust: this one only; default: all that the class states.
        quick: fewer random pairs of neighbouring data sets.
    """
    return alone(_findings, lookup(name).__module__, name, params, unit, trust, quick)


def _findings(
    name: str, params: Sequence[str], unit: Unit | None, trust: Trust | None, quick: bool
) -> list[CheckResult]:
    cls = lookup(name)
    settings = list(product((unit,) if unit else cls.units, (trust,) if trust else cls.trusts))
    if not (cls.private):
        settings = settings[:1]
    count = (QUICK_DRAWS if quick else FULL_DRAWS) // len(settings)
    subjects = list[Subject]()
    refused = list[tuple[Unit, Trust, UserError]]()
    for number, setting in enumerate(settings):
        try:
            draws = range(number * count, (number + 1) * count)
            subjects.append(subject(name, params, *setting, draws, quick=quick))
        except UserError as error:
            refused.append((*setting, error))
    if not subjects:
        raise refused[0][2]
    epsilon(
        (Mechanism(1.0),), DELTA
    )  # what accountants and methods import late, once and not in every fork
    import_module("sklearn.isotonic")
    found = list(chain.from_iterable(in_forks(check_subject, ((own,) for own in subjects))))
    return found + [_refused(name, params, *each) for each in refused]


def _refused(
    name: str, params: Sequence[str], unit: Unit, trust: Trust, error: UserError
) -> CheckResult:
    """A setting without a plan: a fault of the class unless its defaults have one."""
    setting = f"{unit}, {trust} (refused)"
    try:
        subject(name, [], unit, trust)
    except UserError:
        fix = (
            "leave it out of units or trusts, or mend the plan that the default parameters "
            "have there"
        )
        return CheckResult(False, f"the class states it, and: {error}", fix, "setting", setting)
    return CheckResult(None, f"the parameters rule it out: {error}", "", "setting", setting)


def check_subject(subject: Subject) -> list[CheckResult]:
    """Run every check in one setting, each in a process in which nothing has trained."""
    found = list[CheckResult]()
    without = dict[str, str]()
    for check in CHECKS:
        lost = next((without[need] for need in check.needs if need in without), None)
        if lost is None:
            verdict = guarded(check.run, subject)
        else:
            verdict = CheckResult(None, f"not checked: needs '{lost}'")
        if lost is not None or verdict.passed is False:
            without[check.name] = lost or check.name
        found.append(verdict._replace(check=check.name, setting=subject.setting))
    return found


def guarded(run: Callable[[Subject], str], subject: Subject) -> CheckResult:
    """What a check says of a subject in a fork; an exception, or an end of the process, is a fault
    of the algorithm.
    """
    try:
        return forked(_attempted, run, subject)
    except ProcessEnded as error:
        return CheckResult(False, raised(error, subject), RAISED_FIX)


def _attempted(run: Callable[[Subject], str], subject: Subject) -> CheckResult:
    try:
        return CheckResult(True, run(subject))
    except Idle as idle:
        return CheckResult(None, *idle.args)
    except Fault as fault:
        return CheckResult(False, *fault.args)
    except PluginError as error:
        return CheckResult(False, ": ".join(filter(None, (error.where, error.what))), error.hint)
    except (Exception, SystemExit) as error:
        return CheckResult(False, raised(error, subject), RAISED_FIX)


def check_lines(
    name: str,
    params: Mapping[str, Any],
    given: Sequence[str],
    findings: Sequence[CheckResult],
    *,
    quick: bool,
) -> list[dict[str, Any]]:
    """A result line for every setting of which a check said something: that it passed, or, as a
    quick one may, a fault of the claim.

    The ``params`` are all that were asked for; ``tried`` are those with which the check trained, by
    the texts that it was ``given``.
    """
    source = source_hash(lookup(name))
    lines = []
    tried = {**params, **shortened(name, given, quick=quick)}
    for unit, trust in product(get_args(Unit), get_args(Trust)):
        own = [finding for finding in findings if finding.setting == f"{unit}, {trust}"]
        refuted = any(finding.passed is False and finding.check in OF_PRIVACY for finding in own)
        if own and (refuted or all(finding.passed is not False for finding in own)):
            facts = {
                "algorithm": name,
                "source": source,
                "unit": unit,
                "trust": trust,
                "params": params,
                "tried": tried,
                "check": harness_hash("evidence"),
            }
            lines.append({**facts, "full": not quick, "ended": "failed" if refuted else "passed"})
    return lines


MARKS = {True: Text("passed", "green"), False: Text("failed", "red"), None: Text("-", "dim")}


def in_a_line(name: str, findings: Sequence[CheckResult]) -> str:
    """How many checks passed, and in which settings."""
    settings = dict.fromkeys(finding.setting for finding in findings)
    ran = [finding.passed for finding in findings]
    passed = ran.count(True)
    failed = ran.count(False)
    return (
        f"fedsim check {name}: {passed} of {counted(passed + failed, 'check')} passed "
        f"({'; '.join(settings)})"
    )


def findings_table(findings: Sequence[CheckResult], *, verbose: bool) -> Table:
    """A row for every check and distinct verdict, ``verbose`` or a fault; settings that share one
    share a row.
    """
    table = Table(
        "check", "", "unit, trust", "what was seen, and the fix", show_edge=False, pad_edge=False
    )
    rows: dict[CheckResult, list[str]] = {}
    for finding in findings:
        if verbose or finding.passed is False:
            rows.setdefault(finding._replace(setting=""), []).append(finding.setting)
    for (passed, reason, fix, check, _), settings in rows.items():
        text = Text(f"{reason}\nfix: {fix}" if fix else reason)
        table.add_row(Text(check, no_wrap=True), MARKS[passed], "\n".join(settings), text)
    return table
