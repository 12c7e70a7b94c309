"""The audit's canary: what a unit that was made to saturate the claimed sensitivity adds to the noisy outputs of whole trainings."""

from __future__ import annotations

from dataclasses import replace

from fedsim.audit.audit import MOST
from fedsim.audit.canaries import saturating
from fedsim.audit.setting import brief, setting_of
from fedsim.audit.white_box import pairs
from fedsim.audit.worlds import in_clean_processes
from fedsim.kit.checks.subject import DELTA, EPSILON, Subject
from fedsim.kit.checks.verdict import Verdict, failed, idle, passed
from fedsim.methods.claims import PROMISES
from fedsim.words import counted

PAIRS = 2
ROOT = 0
FIX = "let sensitivity() and plan() claim what one unit can add to a query, through every client and whatever the process saw before"


def canary(subject: Subject) -> Verdict:
    """The canary adds no more than the sensitivity that the plan claims; nothing is said of bounds, which takes many more pairs."""
    claim, cell, task = subject.algorithm.claim(), subject.trial.cell, subject.trial.task
    if subject.plan is None or claim not in PROMISES:
        return idle("not private, nothing is claimed" if subject.plan is None else f"claim {claim}, nothing is promised")
    params = {**cell.params, **brief(cell.algorithm, ("rounds",) if subject.quick else ())}
    setting = setting_of(cell.algorithm, params, task.unit, task.trust, EPSILON, DELTA)
    if subject.quick:
        setting = replace(setting, apart=False)
    ((found, unit),) = in_clean_processes(setting, saturating, [(setting, ROOT)])
    (seen,) = in_clean_processes(setting, pairs, [(found, unit, ROOT, range(1 if subject.quick else PAIRS))])
    most = max(each.most for each in seen)
    text = (
        f"{unit.label} adds {most:.3f} of the claimed sensitivity to a step, over {counted(len(seen), 'pair')} of fedsim audit's trainings"
    )
    return failed(text, FIX) if most > MOST else passed(text)
