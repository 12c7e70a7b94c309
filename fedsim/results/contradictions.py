"""Rows cross-checked: fields against each other, and against the plan that the row's algorithm makes of its parameters."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from fedsim.errors import UserError
from fedsim.grid.models import Tuning
from fedsim.json_lines import decode, dump, load, reasons
from fedsim.plugins.code_hash import source_hash
from fedsim.plugins.registry import check_installed, lookup
from fedsim.privacy import accountant
from fedsim.privacy.mechanism import Mechanism
from fedsim.privacy.plan import MOST_DELTA, PrivacyPlan, Release, Trust, Unit, large_delta
from fedsim.privacy.selection import SCORE, SEEN
from fedsim.results.columns import Result
from fedsim.words import number

if TYPE_CHECKING:
    from fedsim.methods.algorithm import Algorithm
    from fedsim.methods.messages import Task

MOST_ABOVE = 0.01
"""Relative difference by which a tight accountant may be above another that is still agreement."""
MOST_BELOW = 1e-3
"""The same below, where a row would claim less than it spent."""
DIMS = (16, 1024)
"""A row does not hold its dimension: what of a plan is equal at both of these does not depend on it."""
MOST_CLASSES = 10**6
_SOLVED = 2e-3  # relative difference of noise that was solved with two versions of an accountant
_THEOREMS = ("proved", "checked", "stated")


@dataclass(frozen=True)
class CrossCheck:
    """What does not fit together.

    Attributes:
        contradictions: sentences; a row with one proves nothing.
        notes: what was not compared, and why.
    """

    contradictions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def cross_check(row: Result, *, composed: float | None = None, dims: Sequence[int] = DIMS, trust_plugin: bool = False) -> CrossCheck:
    """Hold a row's fields against each other, its epsilon against its mechanisms, and all against its algorithm's plan.

    The plan is rebuilt from parameters, unit, trust, numbers of clients and classes, target and delta, if the algorithm's code may run.
    Where that is other code than the row's, a difference is a note.

    Args:
        row: the row.
        composed: what its mechanisms spend, if that is known.
        dims: dimensions of the embeddings to rebuild the plan for.
        trust_plugin: also run the code of an algorithm that is a file or a module that is not installed.
    """
    alone = within_row(row)
    if alone.contradictions or not _promises(row):
        return alone
    differences, note, reached = _against_plan(row, dims, trust_plugin)
    if composed is None:
        composed = reached if reached is not None else _spent(row)
    return CrossCheck((*_against_epsilon(row, composed), *differences), (note,) if note else ())


def within_row(row: Result) -> CrossCheck:
    """Only the row's fields against each other: no code runs and nothing is composed."""
    if row.status not in ("ok", "overspent"):
        return CrossCheck()
    if not _promises(row):
        return CrossCheck(tuple(_without_budget(row)))
    return CrossCheck(impossible(row) or tuple(_unlike(row)))


def impossible(row: Result) -> tuple[str, ...]:
    """Why no private training wrote these numbers."""
    faults = [f"δ {number(row.delta)}"] if row.delta is not None and not 0 < row.delta <= MOST_DELTA else []
    for name, value in (("clip", row.plan["clip"]), ("sensitivity", row.plan["sensitivity"]), ("σ", row.plan["sigma"])):
        if value is not None and not 0 < value < math.inf:
            faults.append(f"{name} {number(value)}")
    for m in row.ran:
        if not (0 < m.noise_multiplier < math.inf and 0 < m.sample_rate <= 1 and m.count >= 1):
            faults.append(f"noise multiplier {number(m.noise_multiplier)}, sample rate {number(m.sample_rate)}, count {m.count}")
    nothing = ["the row has a finite target and no mechanism"] if row.mechanisms == [] else []
    return (*(f"no mechanism of a finite target has {fault}" for fault in faults), *nothing)


def large_deltas(rows: Sequence[Result]) -> list[str]:
    """Warnings of budgets whose delta is too large for the data, each once (:func:`fedsim.privacy.plan.large_delta`)."""
    settings = dict.fromkeys((row.unit, row.delta, row.units, row.dataset) for row in rows if _promises(row))
    return [
        text
        for unit, delta, units, dataset in settings
        if unit is not None and delta is not None and units is not None and (text := large_delta(unit, delta, units, dataset))
    ]


def ratio(recorded: float, composed: float) -> float:
    """A row's epsilon over what its mechanisms spend."""
    return 1.0 if recorded == composed else recorded / composed if composed else math.inf


def _promises(row: Result) -> bool:
    return row.epsilon_target is not None and math.isfinite(row.epsilon_target)


def _without_budget(row: Result) -> Iterator[str]:
    if row.epsilon_spent is not None and math.isfinite(row.epsilon_spent):
        yield f"the row holds an ε of {number(row.epsilon_spent)} and no finite target"
    if row.claim not in (None, "none"):
        yield f"the row claims '{row.claim}' and has no finite target"


def _unlike(row: Result) -> Iterator[str]:
    """Where a row's fields say different things."""
    clip, sensitivity = row.plan["clip"], row.plan["sensitivity"]
    if sensitivity < clip * (1 - 1e-9):
        what = f"a unit that is clipped to norm {number(clip)} may move a sum by as much"
        yield f"sensitivity {number(sensitivity)} is below the clip: {what}"
    if row.status == "overspent" and row.epsilon_spent is not None and row.epsilon_spent <= (row.epsilon_target or 0.0):
        yield f"the row is overspent and holds ε {number(row.epsilon_spent)} of a target of {number(row.epsilon_target)}"
    if row.mechanisms is None:
        return
    yield from _of_search(row, row.ran)


def _of_search(row: Result, mechanisms: Sequence[Mechanism]) -> Iterator[str]:
    """Where a row says different things of the trainings among which its parameters were chosen."""
    tuning, selection = row.tuning, row.search
    if tuning is not None and row.trust == "silo":
        yield f"its parameters were chosen by a search under trust: silo: {SEEN}"
    if tuning is None or tuning["free"]:
        if tuning is not None and row.claim in _THEOREMS:
            yield f"it claims '{row.claim}' and its parameters were chosen by scores that nothing pays for"
        if selection is not None:
            yield "the row holds the cost of a search that it did not run"
        return
    if selection is None:
        yield "its parameters were chosen by a search, whose cost it does not hold"
        return
    if (selection.mean, selection.distribution) != (tuning["trials"], tuning["distribution"]):
        yield "the search and its cost differ in the number of trainings"
    training = sorted(mechanism for mechanism in mechanisms if mechanism.release != SCORE)
    scores = [mechanism for mechanism in mechanisms if mechanism.release == SCORE]
    if not any(_alike(training, planned) for planned in selection.trainings):
        yield "its mechanisms are those of no training that its search pays for"
    if not _alike(scores, [Mechanism(selection.score)]):
        yield "the noise of its score is not the one that its search pays for"


def _alike(ran: Sequence[Mechanism], planned: Sequence[Mechanism]) -> bool:
    return len(ran) == len(planned) and all(_agree(one, other, 1e-6) for one, other in zip(ran, sorted(planned), strict=True))


def _against_epsilon(row: Result, composed: float | None) -> Iterator[str]:
    if composed is None or row.epsilon_spent is None:
        return
    share = ratio(row.epsilon_spent, composed)
    if not 1 - MOST_BELOW <= share <= 1 + MOST_ABOVE:
        holds = ", a bound that holds and is loose" if share > 1 else ""
        yield f"ε is {share:.3f} of what its mechanisms spend{holds}"


def _spent(row: Result) -> float | None:
    """What a row's mechanisms spend, by the accountant that counts; None where it cannot say."""
    if not row.mechanisms or row.delta is None:
        return None
    if row.search is not None:
        return row.search.epsilon(row.delta)
    try:
        return accountant.epsilon(row.ran, row.delta)[0]
    except (ArithmeticError, ValueError, MemoryError):  # of numbers that no training has
        return None


def _against_plan(row: Result, dims: Sequence[int], trust_plugin: bool) -> tuple[list[str], str, float | None]:
    """Differences from the algorithm's plan, what was not compared, and epsilon of the plan where all of it is the row's."""
    from fedsim.methods.messages import PublicRows, Task  # and torch, which a report does without

    classes = round(1 / row.chance) if row.chance else 0
    if not row.clients or not 1 <= classes <= MOST_CLASSES or row.delta is None:
        return [], "its plan was not rebuilt: the row does not hold its number of classes or clients", None
    try:
        if not trust_plugin:
            check_installed(row.algorithm, "")
    except UserError:
        return [], "its plan was not rebuilt: its algorithm is a plug-in, whose code only runs with --trust-plugin", None
    try:
        cls = lookup(row.algorithm)
    except UserError as error:
        return [], f"its plan was not rebuilt: {error}", None
    unit: Unit = row.unit if row.unit in ("example", "client") else "group"  # type: ignore[assignment]
    trust: Trust = row.trust or "aggregate"
    tasks = [Task(dim, classes, row.clients, unit, trust, public=PublicRows.made_up(dim, classes)) for dim in dims]
    note, reached = "", None
    try:
        tuning = row.tuning and dump({name: value for name, value in row.tuning.items() if name not in ("chosen", "trained")})
        plans = [_planned(cls, dump(row.params), tuning, task, row.epsilon_target or math.inf, row.delta) for task in tasks]
    except (Exception, SystemExit) as error:  # whatever an algorithm makes of parameters that it was not given
        why = "; ".join(reasons(error)) if isinstance(error, Exception) else "it exits"
        differences = [f"its algorithm makes no plan of its parameters ({why})"]
    else:
        first, *others = [_of_plan(None if plan is None else asdict(plan), ()) for plan in plans]
        same = {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}
        differences = [*_differences(row, same, first.keys() - same.keys()), *_claimed(row, plans[0])]
        if len(same) < len(first):
            note = "what of its plan depends on the dimension, which the row does not hold, was not compared"
        elif not differences and plans[0] is not None:
            reached = plans[0].epsilon_reached
    if differences and row.source != source_hash(cls):
        why = "is not the one that ran" if row.source else "may not be the one that ran, which the row does not say"
        return [], f"the code here {why}, and differs: {'; '.join(differences)}", None
    return differences, note, reached


@lru_cache(maxsize=4096)
def _planned(cls: type[Algorithm], params: str, tuning: str | None, task: Task, epsilon: float, delta: float) -> PrivacyPlan | None:
    """The plan of some parameters; of a tuned cell that of its candidate with them.

    Raises:
        ValueError: a tuned cell has no such candidate.
    """
    from fedsim.evaluation.plans import plans_of  # late, as above

    how = Tuning.model_validate_json(tuning) if tuning else None
    for candidate in plans_of(cls, decode(load(params)), how, task, epsilon, delta):
        if how is None or dump(candidate.params) == params:
            return candidate.plan
    raise ValueError("its parameters are no point of the space that was searched")


_Value = str | float | Mechanism
"""Of a field, or a release."""


def _of_plan(plan: Mapping[str, Any] | None, mechanisms: Sequence[Mechanism]) -> dict[str, _Value]:
    """What a plan says, with the mechanisms that ran; without these its own."""
    if plan is None:
        return {}
    names = {"σ": "sigma", "sensitivity": "sensitivity", "clip": "clip", "scope": "scope"}
    held: dict[str, _Value] = {name: plan[key] for name, key in names.items()}
    if (selection := plan["selection"]) is not None:
        held |= {"noise of scores": selection["score"], "number of different trainings": len(selection["trainings"])}
    own = [Release(**release).mechanism.scaled(plan["sigma"]) for release in plan["releases"] if release["steps"]]
    for m in mechanisms or own:
        name = f"release '{m.release}'"
        held[f"another {name}" if name in held else name] = m
    return held


def _differences(row: Result, made: Mapping[str, _Value], left_out: Container[str]) -> Iterator[str]:
    """Where a row says otherwise than a plan, but for what is ``left_out``; a field that it lacks is newer than the row."""
    held = _of_plan(row.plan or None, row.ran)
    for name in dict.fromkeys((*made, *held)):
        here, there = held.get(name), made.get(name)
        newer = here is None and not name.startswith("release")
        if name not in left_out and not newer and not _agree(here, there, _SOLVED if name == "σ" or isinstance(here, Mechanism) else 1e-9):
            yield f"{name} is {_said(here)} and in its plan {_said(there)}"


def _agree(here: _Value | None, there: _Value | None, tolerance: float) -> bool:
    if isinstance(here, Mechanism) and isinstance(there, Mechanism):
        same = (here.sample_rate, here.count) == (there.sample_rate, there.count)
        return same and math.isclose(here.noise_multiplier, there.noise_multiplier, rel_tol=tolerance)
    if isinstance(here, int | float) and isinstance(there, int | float):
        return math.isclose(here, there, rel_tol=tolerance)
    return here == there


def _said(value: _Value | None) -> str:
    if isinstance(value, Mechanism):
        return f"of noise multiplier {number(value.noise_multiplier)} at rate {number(value.sample_rate)}, {value.count} times"
    return "missing" if value is None else value if isinstance(value, str) else number(value)


def _claimed(row: Result, plan: PrivacyPlan | None) -> Iterator[str]:
    too_much = ("proved",) if plan is not None and plan.claim in _THEOREMS else _THEOREMS
    if plan is not None and row.claim in too_much and row.claim != plan.claim:
        yield f"it claims '{row.claim}' and its algorithm '{plan.claim}'"
