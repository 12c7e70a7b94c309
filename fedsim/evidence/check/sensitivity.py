"""Remove-one sensitivity, measured: what one unit changes in every query while both worlds see the same noisy outputs.

Then the audit's canary: what a unit that was made to saturate the claimed sensitivity adds to the noisy outputs of whole trainings.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

from fedsim.evidence.audit.setting import brief, setting_of
from fedsim.evidence.audit.white_box import MOST_ADDED, ROOT, in_clean_processes, saturating
from fedsim.evidence.audit.white_box import pairs as trained_pairs
from fedsim.evidence.check.client_pairs import client_pairs
from fedsim.evidence.check.comparison import PairResult, comparisons, seen_words
from fedsim.evidence.check.example_pairs import example_pairs
from fedsim.evidence.check.neighbours import Pair
from fedsim.evidence.check.subject import DELTA, EPSILON, Subject
from fedsim.evidence.check.verdict import Verdict, failed, idle, passed
from fedsim.plugins.claims import PROMISES
from fedsim.privacy.plan import Claim
from fedsim.words import counted

CLEAR_RATIO = 1.2
"""Change, in units of the bound, that is no rounding: below it a later pair may show more."""

FEW_FIX = "give parameters (--param) under which a few rows matter, such as a lower threshold"
STATE_FIX = "give everything that is kept and depends on an example to Clients.add_noise as 'kept', or state claim 'heuristic'"
CANARY_PAIRS = 2
"""Pairs of trainings with the audit's canary in a full check."""
CANARY_FIX = "let sensitivity() and plan() claim what one unit can add to a query, through every client and whatever the process saw before"


def sensitivity(subject: Subject) -> Verdict:
    """Every query's change is within the plan's sensitivity; what no noise covers does not change at all.

    What is measured is a lower bound of the truth: that no pair breaks the claim is no proof of it.
    """
    if subject.plan is None or subject.algorithm.claim() == "none":
        return idle("not private, nothing is claimed")
    return judged(subject, client_pairs(subject) if subject.trial.task.unit == "client" else example_pairs(subject))


def judged(subject: Subject, pairs: Iterator[Pair]) -> Verdict:
    """The verdict on these pairs of worlds."""
    claim, unit = subject.algorithm.claim(), subject.trial.task.unit
    results, narrow = list[PairResult](), list[PairResult]()
    with closing(comparisons(subject, pairs)) as compared:
        for result in compared:
            results.append(result)
            fault = result.fault or (None if unit == "client" else _remembered(result))
            if result.fault is not None and 1 < result.ratio < CLEAR_RATIO:
                narrow.append(result)
            elif fault is not None:
                return _of(claim, fault)
    if narrow:
        return _of(claim, max(narrow, key=lambda result: result.ratio).fault)
    most, seen = max((result for result in results if result.bounded), key=lambda result: result.ratio), seen_words(results)
    if most.ratio == 0:
        return failed(f"nothing that is released depends on any unit that was tried, {seen}: nothing was measured", FEW_FIX)
    # of an example's pairs without a bound, some are there to change nothing
    if unit == "client" and not any(result.ratio for result in results if not result.bounded):
        return failed(f"no query changes with a client's rows, over {seen}: nothing was measured of what is kept", FEW_FIX)
    text = f"the largest change seen is {most.ratio:.3f} of the claimed bound ({most.pair}), over {seen}"
    if claim not in PROMISES:
        return idle(f"claim {claim}, nothing is promised; measured: {text}")
    return passed(f"{text}; a lower bound of the truth, which may be larger")


def _of(claim: Claim, fault: Verdict | None) -> Verdict:
    """The fault of an algorithm that promises something."""
    assert fault is not None
    return fault if claim in PROMISES else idle(f"claim {claim}, nothing is promised; measured: {fault.reason}")


def _remembered(result: PairResult) -> Verdict | None:
    """A row that is not in a step's sample changes nothing in that step."""
    if result.outsider is None:
        return None
    round_, name, share = result.outsider
    text = f"round {round_}: {result.pair}, not in the round's sample, changes '{name}' by {share:.3g} of the bound"
    return failed(f"{text}: state without noise remembers it, or the rows are not sampled", STATE_FIX)


def canary(subject: Subject) -> Verdict:
    """The canary adds no more than the sensitivity that the plan claims; nothing is said of bounds, which takes many more pairs."""
    claim, cell, task = subject.algorithm.claim(), subject.trial.cell, subject.trial.task
    if subject.plan is None or claim not in PROMISES:
        return idle("not private, nothing is claimed" if subject.plan is None else f"claim {claim}, nothing is promised")
    params = {**cell.params, **brief(cell.algorithm, ("rounds",) if subject.quick else ())}
    setting = setting_of(cell.algorithm, params, task.unit, task.trust, EPSILON, DELTA)
    if subject.quick:
        setting = replace(setting, apart=False)
    ((tight, unit),) = in_clean_processes(setting, saturating, [(setting, ROOT)])
    (seen,) = in_clean_processes(setting, trained_pairs, [(tight, unit, ROOT, range(1 if subject.quick else CANARY_PAIRS))])
    most, count = max(pair.most for pair in seen), counted(len(seen), "pair")
    text = f"{unit.label} adds {most:.3f} of the claimed sensitivity to a step, over {count} of fedsim audit's trainings"
    return failed(text, CANARY_FIX) if most > MOST_ADDED else passed(text)
