"""Runs all checks of an algorithm, in order, in every privacy setting that it supports.

A setting is a unit of privacy with a trust.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
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
    blame,
    shortened,
    subject,
)
from fedsim.evidence.forked import ProcessEnded, alone, forked, in_forks
from fedsim.plugins.code_hash import harness_hash, source_hash
from fedsim.plugins.registry import lookup
from fedsim.privacy.accountant import epsilon
from fedsim.privacy.mechanism import Mechanism
from fedsim.privacy.plan import Trust, Unit
from fedsim.results.records import CheckRecord
from fedsim.words import counted

QUICK_DRAWS = 40
"""The number of random pairs of neighbouring data sets of a quick check, for all its settings.

Each setting tries an equal part of them.
"""
FULL_DRAWS = 400
"""The number of random pairs of neighbouring data sets of a full check, for all its settings."""
RAISED_FIX = "correct the line of code that raises it"
"""The fix that is shown if an algorithm raises an exception or ends its process."""
OF_PRIVACY = {
    "per-example loss",
    "predictions",
    "public rows",
    "sensitivity",
    "noise not reused",
    "budget",
}
"""The checks whose fault refutes the privacy claim."""


class CheckResult(NamedTuple):
    """The result of one check in one setting.

    Attributes:
        passed: whether the check passed; None if there was nothing to check.
        reason: what was seen, or why there was nothing to check.
        fix: how to fix a fault; empty if there is no fault.
        check: the name of the check.
        setting: ``not private``, or unit and trust, with ``(refused)`` if they were refused.
    """

    passed: bool | None
    reason: str
    fix: str = ""
    check: str = ""
    setting: str = ""


class Check(NamedTuple):
    """A check of an algorithm.

    Attributes:
        name: its name.
        run: the function that returns what was seen, or raises :class:`Fault` or :class:`Idle`.
        needs: the names of earlier checks. If one of them failed or was not run because of a
            failure, this check is not run.
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
    """Run every check of an algorithm in every setting and return the results.

    Args:
        name: the algorithm, as in a grid file.
        params: ``key=YAML`` texts. Parameters that make a training long and are not given get
            small values.
        unit: the only unit to check; None for all that the class supports.
        trust: the only trust to check; None for all that the class supports.
        quick: whether to try fewer random pairs of neighbouring data sets, with smaller networks.

    Returns:
        The results, setting by setting. Settings that the algorithm refuses come last.

    Raises:
        UserError: all settings are refused.
    """
    return alone(
        _results,
        lookup(name).__module__,
        name,
        params,
        unit,
        trust,
        quick,
    )


def _results(
    name: str,
    params: Sequence[str],
    unit: Unit | None,
    trust: Trust | None,
    quick: bool,
) -> list[CheckResult]:
    """Return the results of :func:`check_algorithm`, in a process with one thread, which forks."""
    settings = _settings_of(name, unit, trust)
    count = (QUICK_DRAWS if quick else FULL_DRAWS) // len(settings)
    subjects: list[Subject] = []
    refused: list[tuple[Unit, Trust, UserError]] = []
    for number, setting in enumerate(settings):
        draws = range(number * count, (number + 1) * count)
        try:
            subjects.append(subject(name, params, *setting, draws, quick=quick))
        except UserError as error:
            refused.append((*setting, error))
    if not subjects:
        raise refused[0][2]
    # The forks inherit what this process has imported. Without these two lines every fork would
    # import the accountants and scikit-learn again.
    epsilon((Mechanism(1.0),), DELTA)
    import_module("sklearn.isotonic")
    results = list(chain.from_iterable(in_forks(check_subject, zip(subjects))))
    return results + [_result_of_refusal(name, *refusal, quick=quick) for refusal in refused]


def _settings_of(
    name: str,
    unit: Unit | None,
    trust: Trust | None,
) -> list[tuple[Unit, Trust]]:
    """Return the settings to check; one is enough for an algorithm that is not private."""
    cls = lookup(name)
    units = (unit,) if unit else cls.units
    trusts = (trust,) if trust else cls.trusts
    settings = list(product(units, trusts))
    if not settings:
        raise PluginError(
            f"{cls.__name__}.units and trusts",
            "one of them is empty, so the method has no privacy setting",
            "name at least one unit and one trust; leave both out for the defaults",
        )
    return settings if cls.private else settings[:1]


def _result_of_refusal(
    name: str,
    unit: Unit,
    trust: Trust,
    error: UserError,
    *,
    quick: bool,
) -> CheckResult:
    """Return the result of a setting that the algorithm refuses.

    It is a fault if the algorithm refuses the setting with its default parameters, too.
    """
    setting = f"{unit}, {trust} (refused)"
    try:
        subject(name, [], unit, trust, quick=quick)
    except UserError:
        fix = (
            "take it out of the class's units or trusts, or change the default parameters so that "
            "they have a plan there"
        )
        reason = f"the class states this setting and refuses it: {error}"
        return CheckResult(False, reason, fix, "setting", setting)
    return CheckResult(
        None,
        f"these parameters rule it out: {error}",
        "",
        "setting",
        setting,
    )


def check_subject(subject: Subject) -> list[CheckResult]:
    """Run every check in one setting and return the results.

    Each check runs in its own fork, so that it finds nothing that another check left in memory.
    """
    results: list[CheckResult] = []
    # Maps each check that failed, or that was not run, to the failed check that is the reason.
    first_failure: dict[str, str] = {}
    for check in CHECKS:
        failures = [first_failure[need] for need in check.needs if need in first_failure]
        if failures:
            first_failure[check.name] = failures[0]
            result = CheckResult(None, f"not checked, because '{failures[0]}' failed")
        else:
            result = guarded(check.run, subject)
            if result.passed is False:
                first_failure[check.name] = check.name
        results.append(result._replace(check=check.name, setting=subject.setting))
    return results


def guarded(run: Callable[[Subject], str], subject: Subject) -> CheckResult:
    """Run one check in a fork and return its result.

    The result is a fault if the algorithm raises an exception or ends the process.
    """
    try:
        return forked(_result_of, run, subject)
    except ProcessEnded as error:
        return CheckResult(False, blame(error, subject), RAISED_FIX)


def _result_of(run: Callable[[Subject], str], subject: Subject) -> CheckResult:
    """Run one check in this process and return its result, whatever it raises."""
    try:
        return CheckResult(True, run(subject))
    except Idle as idle:
        return CheckResult(None, *idle.args)
    except Fault as fault:
        return CheckResult(False, *fault.args)
    except PluginError as error:
        return CheckResult(
            False,
            ": ".join(filter(None, (error.where, error.what))),
            error.hint,
        )
    except (Exception, SystemExit) as error:
        return CheckResult(False, blame(error, subject), RAISED_FIX)


def check_lines(
    name: str,
    params: dict[str, Any],
    given: Sequence[str],
    findings: Sequence[CheckResult],
    *,
    quick: bool,
) -> list[CheckRecord]:
    """Return the lines of a run folder that say how a check ended, at most one per setting.

    A setting passed if none of its checks failed. It failed if one of :data:`OF_PRIVACY` failed. If
    only other checks failed, it has no line, because that says nothing about privacy. A setting
    that was refused has none either, and an algorithm without privacy has no lines.

    Args:
        name: the algorithm, as in a grid file.
        params: all parameters of the cells that the check is about.
        given: the ``key=YAML`` texts that the check was given. The check gave small values to
            the other parameters that make a training long.
        findings: the results of all checks.
        quick: whether the check was quick.
    """
    tried = {**params, **shortened(name, given, quick=quick)}
    lines = []
    for unit, trust in product(get_args(Unit), get_args(Trust)):
        results = [result for result in findings if result.setting == f"{unit}, {trust}"]
        failed = {result.check for result in results if result.passed is False}
        refuted = failed & OF_PRIVACY
        if not results or (failed and not refuted):
            continue
        line: CheckRecord = {
            "algorithm": name,
            "source": source_hash(lookup(name)),
            "unit": unit,
            "trust": trust,
            "params": params,
            "tried": tried,
            "check": harness_hash("evidence"),
            "full": not quick,
            "ended": "failed" if refuted else "passed",
        }
        lines.append(line)
    return lines


MARKS = {True: Text("passed", "green"), False: Text("failed", "red"), None: Text("-", "dim")}
"""How a table shows :attr:`CheckResult.passed`."""


def in_a_line(name: str, findings: Sequence[CheckResult]) -> str:
    """Say on one line how many checks of an algorithm passed, and which settings were checked."""
    settings = dict.fromkeys(finding.setting for finding in findings)
    outcomes = Counter(finding.passed for finding in findings)
    checks = counted(outcomes[True] + outcomes[False], "check")
    return f"fedsim check {name}: {outcomes[True]} of {checks} passed ({'; '.join(settings)})"


def findings_table(findings: Sequence[CheckResult], *, verbose: bool) -> Table:
    """Return a table of the results, in which settings with the same result share a row.

    Args:
        findings: the results of all checks.
        verbose: whether to show all results; otherwise only faults are shown.
    """
    table = Table(
        "check",
        "",
        "unit, trust",
        "what was seen, and the fix",
        show_edge=False,
        pad_edge=False,
    )
    settings_of: dict[CheckResult, list[str]] = {}
    for finding in findings:
        if verbose or finding.passed is False:
            settings_of.setdefault(finding._replace(setting=""), []).append(finding.setting)
    for result, settings in settings_of.items():
        text = result.reason
        if result.fix:
            text += f"\nfix: {result.fix}"
        check = Text(result.check, no_wrap=True)
        table.add_row(
            check,
            MARKS[result.passed],
            "\n".join(settings),
            Text(text),
        )
    return table
