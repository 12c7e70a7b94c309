"""Remove-one sensitivity, measured: what one unit changes in every query while both worlds see the same noisy outputs."""

from __future__ import annotations

from contextlib import closing

from fedsim.evidence.check.client_pairs import client_pairs
from fedsim.evidence.check.comparison import Compared, comparisons, sampled_seen
from fedsim.evidence.check.example_pairs import example_pairs
from fedsim.evidence.check.subject import Subject
from fedsim.evidence.check.verdict import Verdict, failed, idle, passed
from fedsim.plugins.claims import PROMISES
from fedsim.privacy.plan import Claim

CLEAR = 1.2
"""Change, in units of the bound, that nobody takes for rounding: below it a later pair may show more."""

FEW_FIX = "give parameters (--param) under which a few rows matter, such as a lower threshold"
STATE_FIX = "give everything that is kept and depends on an example to Clients.add_noise as 'kept', or state claim 'heuristic'"


def sensitivity(subject: Subject) -> Verdict:
    """Every query's change is within the plan's sensitivity; what no noise covers does not change at all.

    What is measured is a lower bound of the truth: that no pair breaks the claim is no proof of it.
    """
    claim = subject.algorithm.claim()
    if subject.plan is None or claim == "none":
        return idle("not private, nothing is claimed")
    unit, found, narrow = subject.trial.task.unit, list[Compared](), list[Compared]()
    with closing(comparisons(subject, client_pairs(subject) if unit == "client" else example_pairs(subject))) as each:
        for compared in each:
            found.append(compared)
            fault = compared.fault or (None if unit == "client" else _remembered(compared))
            if compared.fault is not None and 1 < compared.ratio < CLEAR:
                narrow.append(compared)
            elif fault is not None:
                return _of(claim, fault)
    if narrow:
        return _of(claim, max(narrow, key=lambda compared: compared.ratio).fault)
    most = max((compared for compared in found if compared.bounded), key=lambda compared: compared.ratio)
    if most.ratio == 0:
        return failed(f"nothing that is released depends on any unit that was tried, {sampled_seen(found)}: nothing was measured", FEW_FIX)
    # of an example's pairs without a bound, some are there to change nothing
    if unit == "client" and not any(compared.ratio for compared in found if not compared.bounded):
        return failed(f"no query changes with a client's rows, over {sampled_seen(found)}: nothing was measured of what is kept", FEW_FIX)
    text = f"the largest change seen is {most.ratio:.3f} of the claimed bound ({most.pair}), over {sampled_seen(found)}"
    if claim not in PROMISES:
        return idle(f"claim {claim}, nothing is promised; measured: {text}")
    return passed(f"{text}; a lower bound of the truth, which may be larger")


def _of(claim: Claim, fault: Verdict | None) -> Verdict:
    """The fault of an algorithm that promises something."""
    assert fault is not None
    return fault if claim in PROMISES else idle(f"claim {claim}, nothing is promised; measured: {fault.reason}")


def _remembered(compared: Compared) -> Verdict | None:
    """A row that is not in a step's sample changes nothing in that step."""
    if compared.outsider is None:
        return None
    round_, name, share = compared.outsider
    text = f"round {round_}: {compared.pair}, not in the round's sample, changes '{name}' by {share:.3g} of the bound"
    return failed(f"{text}: state without noise remembers it, or the rows are not sampled", STATE_FIX)
