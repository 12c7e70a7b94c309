"""All checks of an algorithm, in order, in every privacy setting that it states."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, get_args

from rich.table import Table
from rich.text import Text

from fedsim.errors import UserError
from fedsim.evidence.check.budget import budget, sampling
from fedsim.evidence.check.noise import noise, secret_key
from fedsim.evidence.check.per_example import per_example
from fedsim.evidence.check.repeat import determinism, packing, resume
from fedsim.evidence.check.sensitivity import canary, sensitivity
from fedsim.evidence.check.subject import Subject, subject
from fedsim.evidence.check.traces import data_untouched, global_random, made, predictions, public_rows, restored, sent_bytes, serialisable
from fedsim.evidence.check.verdict import Verdict, failed, idle, passed, raised
from fedsim.evidence.fresh import start_server
from fedsim.plugins.code_hash import harness_hash, source_hash
from fedsim.plugins.registry import lookup
from fedsim.privacy.plan import Trust, Unit


@dataclass(frozen=True)
class CheckResult:
    """The outcome of one check in one privacy setting.

    Attributes:
        check: its name.
        setting: unit and trust.
        verdict: what it says.
    """

    check: str
    setting: str
    verdict: Verdict

    @property
    def passed(self) -> bool | None:
        """None where there was nothing to check."""
        return self.verdict.passed


@dataclass(frozen=True)
class NamedCheck:
    """One check.

    Attributes:
        name: as the table has it.
        run: the check.
        needs: checks without which it says nothing.
    """

    name: str
    run: Callable[[Subject], Verdict]
    needs: tuple[str, ...] = ()


def trains(subject: Subject) -> Verdict:
    """A whole training runs."""
    return passed(f"{len(subject.records)} rounds on {subject.trial.task.clients} clients")


CHECKS = (
    NamedCheck("per-example loss", per_example),
    NamedCheck("trains", trains),
    NamedCheck("global random state", global_random, ("trains",)),
    NamedCheck("data untouched", data_untouched, ("trains",)),
    NamedCheck("public rows", public_rows, ("trains",)),
    NamedCheck("determinism", determinism, ("trains",)),
    NamedCheck("packing", packing, ("per-example loss", "public rows", "determinism")),
    NamedCheck("sampling", sampling, ("trains",)),
    NamedCheck("sensitivity", sensitivity, ("per-example loss", "public rows", "determinism")),
    NamedCheck("canary", canary, ("sensitivity",)),
    NamedCheck("noise", noise, ("determinism",)),
    NamedCheck("secret key", secret_key, ("determinism",)),
    NamedCheck("budget", budget, ("trains",)),
    NamedCheck("serialisable", serialisable, ("trains",)),
    NamedCheck("resume", resume, ("global random state", "determinism", "serialisable")),
    NamedCheck("restored", restored, ("determinism",)),
    NamedCheck("result", made, ("trains",)),
    NamedCheck("predictions", predictions, ("result",)),
    NamedCheck("bytes sent", sent_bytes, ("trains",)),
)

REFUSED_FIX = "leave it out of units or trusts, or mend the plan that the default parameters have there"

OF_PRIVACY = ("per-example loss", "public rows", "sampling", "sensitivity", "canary", "noise", "secret key", "budget", "predictions")
"""Checks whose fault is one of the claim."""


def check_algorithm(
    name: str, params: Sequence[str] = (), unit: Unit | None = None, trust: Trust | None = None, *, quick: bool = False
) -> Iterator[CheckResult]:
    """Run every check in every setting; findings come as they are made, last those of settings that are refused while others are not.

    Args:
        name: of the algorithm, as in a grid.
        params: ``key=YAML`` texts; parameters that make a training long are short where nothing is given.
        unit: this one only; default: all that the class states.
        trust: this one only; default: all that the class states.
        quick: three rounds and few pairs of neighbouring data sets.

    Raises:
        UserError: the algorithm, a parameter or every setting does not do.
    """
    cls = lookup(name)
    units: tuple[Unit, ...] = (unit,) if unit else cls.units
    trusts: tuple[Trust, ...] = (trust,) if trust else cls.trusts
    settings = [(u, t) for u in units for t in trusts] if cls.private else [(units[0], trusts[0])]
    refused: list[tuple[Unit, Trust, UserError]] = []
    for own_unit, own_trust in settings:
        try:
            prepared = subject(name, params, own_unit, own_trust, quick=quick)
        except UserError as error:
            refused.append((own_unit, own_trust, error))
            continue
        yield from check_subject(prepared)
    if len(refused) == len(settings):
        raise refused[0][2]
    for own_unit, own_trust, refusal in refused:
        by_default = _refusal(name, own_unit, own_trust, quick=quick) if params else str(refusal)
        if by_default == str(refusal):
            verdict = failed(f"the class states it, and: {refusal}", REFUSED_FIX)
        else:
            verdict = idle(f"the parameters rule it out: {refusal}")
        # by a name of its own: nothing is known of the setting itself
        yield CheckResult("setting", f"{own_unit}, {own_trust} (refused)", verdict)


def _refusal(name: str, unit: Unit, trust: Trust, *, quick: bool) -> str:
    """What is wrong with a setting under the default parameters; empty where nothing is."""
    try:
        subject(name, [], unit, trust, quick=quick)
    except UserError as error:
        return str(error)
    return ""


def check_subject(subject: Subject) -> Iterator[CheckResult]:
    """Run every check in one setting; what needs a check that failed is not run."""
    without: dict[str, str] = {}
    if subject.plan is not None:
        start_server()  # it imports beside the first checks
    for check in CHECKS:
        lost = next((without[need] for need in check.needs if need in without), None)
        verdict = guarded(check, subject) if lost is None else idle(f"not checked: needs '{lost}'")
        if check.name == "trains" and verdict.passed is False and "per-example loss" in without:
            # the engines refuse to train such a loss: one fault, printed once
            lost, verdict = "per-example loss", idle(f"does not, see 'per-example loss': {verdict.reason}")
        if lost is not None or verdict.passed is False:
            without[check.name] = lost or check.name
        yield CheckResult(check.name, subject.setting, verdict)


def guarded(check: NamedCheck, subject: Subject) -> Verdict:
    """The check's verdict; an exception, or an exit, is a fault of the algorithm, printed with its place."""
    try:
        return check.run(subject)
    except (Exception, SystemExit) as error:
        return raised(error, lookup(subject.trial.cell.algorithm))


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


def findings_table(name: str, findings: Sequence[CheckResult]) -> Table:
    """A row for every check and distinct verdict; settings that share one share a row."""
    table = Table(title=f"fedsim check {name}", title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("unit, trust", max_width=19)
    table.add_column("what was seen, and the fix")
    settings = list(dict.fromkeys(finding.setting for finding in findings))
    for check in dict.fromkeys(finding.check for finding in findings):
        rows: dict[Verdict, list[str]] = {}
        for finding in findings:
            if finding.check == check:
                rows.setdefault(finding.verdict, []).append(finding.setting)
        for verdict, own in rows.items():
            where = "all" if own == settings else "\n".join(own)
            text = f"{verdict.reason}\nfix: {verdict.fix}" if verdict.fix else verdict.reason
            table.add_row(check, MARKS[verdict.passed], where, Text(text))
    return table
