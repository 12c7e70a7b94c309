"""All checks of an algorithm, in order, in every privacy setting that it states."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from fedsim.errors import UserError
from fedsim.kit.checks.budget import budget, sampling
from fedsim.kit.checks.canary import canary
from fedsim.kit.checks.noise import noise
from fedsim.kit.checks.per_example import per_example
from fedsim.kit.checks.repeat import determinism, packing, resume
from fedsim.kit.checks.secret_key import secret_key
from fedsim.kit.checks.sensitivity import sensitivity
from fedsim.kit.checks.subject import Subject, subject
from fedsim.kit.checks.traces import data_untouched, global_random, made, restored, sent_bytes, serialisable
from fedsim.kit.checks.verdict import Finding, Verdict, failed, idle, passed, raised
from fedsim.methods.registry import lookup
from fedsim.privacy.plan import Trust, Unit
from fedsim.simulation.fresh import start_server


@dataclass(frozen=True)
class Check:
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
    Check("per-example loss", per_example),
    Check("trains", trains),
    Check("global random state", global_random, ("trains",)),
    Check("data untouched", data_untouched, ("trains",)),
    Check("determinism", determinism, ("trains",)),
    Check("packing", packing, ("per-example loss", "determinism")),
    Check("sampling", sampling, ("trains",)),
    Check("sensitivity", sensitivity, ("per-example loss", "determinism")),
    Check("canary", canary, ("sensitivity",)),
    Check("noise", noise, ("determinism",)),
    Check("secret key", secret_key, ("determinism",)),
    Check("budget", budget, ("trains",)),
    Check("serialisable", serialisable, ("trains",)),
    Check("resume", resume, ("global random state", "determinism", "serialisable")),
    Check("restored", restored, ("determinism",)),
    Check("result", made, ("trains",)),
    Check("bytes sent", sent_bytes, ("trains",)),
)

REFUSED_FIX = "leave it out of units or trusts, or mend the plan that the default parameters have there"

OF_PRIVACY = ("per-example loss", "sampling", "sensitivity", "canary", "noise", "secret key", "budget")
"""Checks whose fault is one of the claim."""


def check_algorithm(
    name: str, params: Sequence[str] = (), unit: Unit | None = None, trust: Trust | None = None, *, quick: bool = False
) -> Iterator[Finding]:
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
        yield Finding("setting", f"{own_unit}, {own_trust} (refused)", verdict)


def _refusal(name: str, unit: Unit, trust: Trust, *, quick: bool) -> str:
    """What is wrong with a setting under the default parameters; empty where nothing is."""
    try:
        subject(name, [], unit, trust, quick=quick)
    except UserError as error:
        return str(error)
    return ""


def check_subject(subject: Subject) -> Iterator[Finding]:
    """Run every check in one setting; what needs a check that failed is not run."""
    without: dict[str, str] = {}
    if subject.plan is not None:
        start_server()  # it imports beside the first checks
    for check in CHECKS:
        lost = next((without[need] for need in check.needs if need in without), None)
        verdict = _guarded(check, subject) if lost is None else idle(f"not checked: needs '{lost}'")
        if check.name == "trains" and verdict.passed is False and "per-example loss" in without:
            # the engines refuse to train such a loss: one fault, told once
            lost, verdict = "per-example loss", idle(f"does not, see 'per-example loss': {verdict.reason}")
        if lost is not None or verdict.passed is False:
            without[check.name] = lost or check.name
        yield Finding(check.name, subject.setting, verdict)


def _guarded(check: Check, subject: Subject) -> Verdict:
    """The check's verdict; an exception, or an exit, is a fault of the algorithm, told with its place."""
    try:
        return check.run(subject)
    except (Exception, SystemExit) as error:
        return raised(error, lookup(subject.trial.cell.algorithm))


MARKS = {True: Text("passed", "green"), False: Text("failed", "red"), None: Text("-", "dim")}


def findings_table(name: str, findings: Sequence[Finding]) -> Table:
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
