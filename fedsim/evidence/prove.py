"""Trainings proved again: every epsilon by an accountant that is not the one that counted, every
plan by the algorithm that made it.

And what several releases of the same data cost together: the composition of all their mechanisms.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedsim.errors import UserError
from fedsim.evidence.records import contradictions
from fedsim.files import unread
from fedsim.grid.models import Tuning
from fedsim.json_lines import decode, dump, load, plain_json, reasons
from fedsim.plugins.claims import may_leave
from fedsim.plugins.code_hash import source_hash
from fedsim.plugins.registry import EXTERNAL, check_installed, lookup
from fedsim.plugins.untouched import replaced
from fedsim.privacy.accountant import INTEGER_ORDERS, ORDERS
from fedsim.privacy.mechanism import Mechanism, merged
from fedsim.privacy.plan import Claim, PrivacyPlan
from fedsim.privacy.selection import Curve, composed_by_renyi, converted
from fedsim.results.columns import Line, Row, large_deltas
from fedsim.results.join import RunResults, id_of_run
from fedsim.words import Printed, at_most, counted, number, print_line

if TYPE_CHECKING:
    from fedsim.methods.algorithm import Algorithm

Verdict = Literal["proved", "differs", "not proved", "no claim"]
COLOURS = {"proved": "green", "differs": "red", "not proved": "yellow"}
MOST_ABOVE = 0.01
MOST_BELOW = 1e-3
"""Relative differences by which a tight accountant may be above another that is still agreement,
and below, where a row would claim less than it spent.
"""
_SOLVED = 2e-3
"""Relative difference of noise that was solved with two versions of an accountant."""
_FINEST = 1e-4
_MESH = 0.02
_MOST_POINTS = 1e8
"""Of a loss distribution: its finest mesh, that mesh in units of what it spends, and points that
take some GiB.
"""


@dataclass(frozen=True)
class Proof:
    """A row's epsilon beside dp-accounting's, and why it is not proved.

    Attributes:
        verdict: ``differs`` where ledger, plan and epsilon contradict each other or the algorithm's
            plan; ``not proved`` where epsilon cannot be computed, the code here does not make the
            plan, or the record contradicts itself; ``no claim`` where the row claims no epsilon.
        why: what differs, or why it is not proved.
        epsilon: by dp-accounting.
        rebuilt: whether the code here made a plan of the row's parameters.
        training_id: names the training that ran, which equal cells share; empty where that is not
            known.
    """

    row: Row
    verdict: Verdict
    why: str = ""
    epsilon: float | None = None
    rebuilt: bool = False
    training_id: str = ""

    @property
    def ratio(self) -> float | None:
        """The row's epsilon over the recomputed one."""
        spent: float | None = self.row.epsilon_spent
        epsilon = self.epsilon
        if spent is None or epsilon is None:
            return None
        if spent == epsilon:
            return 1.0
        if epsilon:
            return spent / epsilon
        return math.inf


def prove(row: Row, line: Line, *, trust_plugin: bool = False) -> Proof:
    """Compare ledger, plan and epsilon of a training's line with each other, with the algorithm's
    plan, and with dp-accounting; and all that the line says twice.

    By dp-accounting's privacy loss distribution (pessimistic, both orders, connecting the dots), or
    its Rényi accountant where the row's is one. The plan of an algorithm that is the path of a
    class is rebuilt only if it is trusted.
    """
    if row.status in ("failed", "unaccounted", "refuted") or not _claims_epsilon(line):
        return Proof(row, "no claim")
    found = _against_algorithm(row, line, trust_plugin=trust_plugin)
    if line["cell"]["algorithm"] == EXTERNAL:  # their epsilon is their author's word
        return Proof(row, "not proved" if found.doubts else "no claim", "; ".join(found.doubts))
    against = [*found.faults, *found.doubts]
    try:
        plan = _plan_of(line)
    except ValidationError as error:
        why = f"its plan cannot be read ({'; '.join(reasons(error))})"
        return Proof(row, "not proved", "; ".join([why, *against]), rebuilt=found.rebuilt)
    try:
        ran = _by_release(row.ran)
        planned = _by_release(plan.mechanisms)
        epsilon = _recomputed(row, plan)
    except (ArithmeticError, TypeError, ValueError, MemoryError) as error:
        # of numbers that no training has
        why = f"dp-accounting cannot compose its mechanisms ({unread(error)})"
        return Proof(row, "not proved", "; ".join([why, *against]), rebuilt=found.rebuilt)
    faults: list[str] = []
    ratio = Proof(row, "proved", epsilon=epsilon).ratio or 0.0
    if not 1 - MOST_BELOW <= ratio <= 1 + MOST_ABOVE:
        if ratio > 1:
            loose = ", a bound that holds and is loose"
        else:
            loose = ""
        faults.append(f"ε is {ratio:.3f} of what its mechanisms spend{loose}")
    if not _alike(ran, planned):
        faults.append("what ran is not what was planned")
    verdict: Verdict = "proved"
    if found.doubts:
        verdict = "not proved"
    if faults or found.faults:
        verdict = "differs"
    return Proof(row, verdict, "; ".join([*faults, *against]), epsilon, found.rebuilt)


def _claims_epsilon(line: Line) -> bool:
    """Whether a training's line claims a finite epsilon, be it of rows that were made elsewhere."""
    epsilons = [line["cell"]["epsilon"], (line["plan"] or {}).get("epsilon_target")]
    return any(epsilon is not None and math.isfinite(epsilon) for epsilon in epsilons)


def _plan_of(line: Line) -> PrivacyPlan:
    return TypeAdapter(PrivacyPlan).validate_json(plain_json(line["plan"]))


def _by_release(mechanisms: Sequence[Mechanism]) -> dict[str, list[dict[str, Any]]]:
    """The mechanisms of each release, equal ones added up."""
    names = sorted({one.release for one in mechanisms})
    return {
        name: list(map(asdict, merged(one for one in mechanisms if one.release == name)))
        for name in names
    }


def _recomputed(row: Row, plan: PrivacyPlan) -> float:
    """The epsilon of what ran, or of the search that it was part of, by dp-accounting."""
    if plan.selection:
        return plan.selection.spent(plan.delta, _curve)
    return recomputed(row.ran, plan.delta, row.accountant == "rdp")


def proofs_of(
    rows: Sequence[Row], results: RunResults, *, trust_plugin: bool = False
) -> list[Proof]:
    """The proofs of rows of a run, each by the line of its training."""
    proofs = []
    for row in rows:
        line = results.trained[row.cell_id]
        proof = prove(row, line, trust_plugin=trust_plugin)
        proofs.append(replace(proof, training_id=id_of_run(line)))
    return proofs


@dataclass(frozen=True)
class _Comparison:
    """What the code here says of a training's line.

    Attributes:
        faults: what contradicts the plan that the code that ran makes.
        doubts: why nothing is proved, although nothing is known to be wrong.
        rebuilt: whether the code here made a plan.
    """

    faults: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    rebuilt: bool = False


def _against_algorithm(row: Row, line: Line, *, trust_plugin: bool) -> _Comparison:
    """Compare a line with itself and its plan with the one that its algorithm makes here."""
    cell = line["cell"]
    try:
        if not trust_plugin:
            check_installed(cell["algorithm"], "")
        cls = lookup(cell["algorithm"], "")
    except UserError as error:
        return _Comparison(doubts=(f"its plan was not rebuilt: {error}",))
    doubts = tuple(contradictions(line, cls, row.judged))
    if cell["algorithm"] == EXTERNAL:
        return _Comparison(doubts=doubts)
    differences, rebuilt = _differences_from(cls, line)
    if differences and cell["source"] != source_hash(cls):
        said = "; ".join(differences)
        doubt = f"the code here is not the one that ran, and plans something else: {said}"
        return _Comparison((), (doubt, *doubts), rebuilt)
    return _Comparison(tuple(differences), doubts, rebuilt)


def _differences_from(cls: type[Algorithm], line: Line) -> tuple[list[str], bool]:
    """In what a line's plan is not the one that a class makes of its cell, and whether it makes
    any.
    """
    cell = line["cell"]
    facts = [cell["params"], cell["tuning"], line["task"], cell["epsilon"], cell["delta"]]
    try:
        # what was made before somebody replaced code is not what the class makes now
        name = replaced()
        make = _made if name is None else _made.__wrapped__
        plan, noise_at = make(cls, dump(facts))
        recorded = line["plan"] and asdict(_plan_of(line))
        if not recorded:
            return ["it has no plan, and its algorithm makes one"], True
        recorded["noise_at"] = (line["ledger"] or {}).get("noise_at")
        differences = list(_differences(recorded, asdict(plan) | {"noise_at": noise_at}))
        if differences and name is not None:
            differences.append(f"somebody replaced {name} in this process")
    except (Exception, SystemExit) as error:
        # whatever an algorithm makes of parameters that it was not given
        if isinstance(error, Exception):
            why = "; ".join(reasons(error))
        else:
            why = "it exits"
        return [f"its algorithm makes no plan of its parameters ({why})"], False
    return differences, True


@lru_cache(maxsize=4096)
def _made(cls: type[Algorithm], facts: str) -> tuple[PrivacyPlan, str]:
    """The plan that a class makes, and where its noise is added.

    Args:
        cls: the class.
        facts: parameters, tuning, task, epsilon and delta as JSON.
    """
    from fedsim.evaluation.tuning import plans_of
    from fedsim.methods.messages import PublicRows, Task  # late: they import torch

    params, tuning, task, epsilon, delta = decode(load(facts))
    how = tuning and Tuning.model_validate_json(plain_json(tuning))
    known = Task(**task, public=PublicRows.made_up(task["dim"], task["classes"]))
    for candidate in plans_of(cls, params, how, known, epsilon, delta):
        if how is None or dump(candidate.params) == dump(params):
            if candidate.plan is None:
                raise ValueError("epsilon has no meaning for it")
            algorithm = cls(cls.Params.model_validate(candidate.params), known)
            return candidate.plan, "clients" if algorithm.noise_at_clients() else "sum"
    raise ValueError("its parameters are no point of the space that was searched")


def _differences(plan: Mapping[str, Any], made: Mapping[str, Any]) -> Iterator[str]:
    claims = get_args(Claim)
    if claims.index(plan["claim"]) < claims.index(made["claim"]):
        yield f"it claims '{plan['claim']}' and its algorithm '{made['claim']}'"
    for name, value in plan.items():
        if name != "claim" and not _alike(value, made[name]):
            yield f"its {name} is {value} and in its algorithm's plan {made[name]}"


def _alike(one: Any, other: Any) -> bool:
    """Whether two values are the same, numbers as nearly as accountants solve them."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(
            _alike(value, other[name]) for name, value in one.items()
        )
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=_SOLVED)
    return bool(one == other)


@lru_cache(maxsize=4096)
def recomputed(mechanisms: tuple[Mechanism, ...], delta: float, renyi: bool) -> float:
    """Epsilon of mechanisms that ran by dp-accounting: by privacy loss distributions, or by Rényi
    composition.
    """
    from dp_accounting.pld import privacy_loss_distribution

    costly = merged(mechanisms)
    if not costly or any(one.noise_multiplier == 0 for one in costly):
        if costly:
            return math.inf
        return 0.0
    rough = float(composed_by_renyi(costly, ORDERS if renyi else INTEGER_ORDERS).get_epsilon(delta))
    if renyi:
        return rough
    # connecting the dots widens the sum's variance by a share of steps * mesh^2
    mesh = min(_FINEST, _MESH * max(rough, 1e-3) / math.sqrt(sum(one.count for one in costly)))
    if not rough < _MOST_POINTS * mesh:
        raise ValueError(f"they spend up to {number(rough)}")
    total: Any = privacy_loss_distribution.identity(mesh)
    for one in costly:
        losses = privacy_loss_distribution.from_gaussian_mechanism(
            one.noise_multiplier,
            sampling_prob=one.sample_rate,
            value_discretization_interval=mesh,
            pessimistic_estimate=True,
            use_connect_dots=True,
        )
        total = total.compose(losses.self_compose(one.count))
    return float(total.get_epsilon_for_delta(delta))


def _curve(mechanisms: Sequence[Mechanism]) -> Curve:
    return np.asarray(composed_by_renyi(mechanisms)._rdp, np.float64)


@dataclass(frozen=True, repr=False)
class Proofs(Printed):
    """The proofs of a run's rows, with its name."""

    name: str
    proofs: tuple[Proof, ...]

    @property
    def sound(self) -> bool:
        """Whether every claimed epsilon is proved."""
        return all(proof.verdict in ("proved", "no claim") for proof in self.proofs)

    def show(self, console: Console) -> None:
        """Print a line a row that claims an epsilon, which equal ones share, what releases cost
        together, and warnings.
        """
        table = Table(
            title=f"{self.name}: every ε again, by dp-accounting",
            title_justify="left",
            show_edge=False,
        )
        for head in (
            "rows",
            "method",
            "unit, trust",
            "δ",
            "ε in the row",
            "recomputed",
            "ratio",
            "verdict",
            "",
        ):
            table.add_column(
                head,
                justify="left" if head in ("method", "unit, trust", "verdict", "") else "right",
                no_wrap=head != "",
            )
        for line, count in Counter(
            _line(proof) for proof in self.proofs if proof.verdict != "no claim"
        ).items():
            table.add_row(
                str(count),
                *map(Text, line[:-2]),
                Text(line[-2], style=COLOURS[line[-2]]),
                Text(line[-1]),
            )
        console.print(table)
        counts = Counter(proof.verdict for proof in self.proofs)
        words = (
            f"{counts['proved']} of {len(self.proofs)} rows proved: each plan is its "
            "algorithm's, each ε what dp-accounting computes, "
        )
        words += f"at most {MOST_BELOW:.1%} below and {MOST_ABOVE:.0%} above"
        claiming = len(self.proofs) - counts["no claim"]
        rebuilt = sum(proof.rebuilt for proof in self.proofs)
        others: dict[Verdict, str] = {
            "differs": "differ",
            "not proved": "cannot be proved",
            "no claim": "claim no ε of this run's",
        }
        words += "".join(
            f"; {counts[verdict]} {what}" for verdict, what in others.items() if counts[verdict]
        )
        costs = together(
            [proof.row for proof in self.proofs if proof.verdict == "proved"],
            {proof.row.cell_id: proof.training_id for proof in self.proofs if proof.training_id},
        )
        plans = f"the code here rebuilt {rebuilt} of {counted(claiming, 'plan')}"
        for text in (words, plans, *costs):
            console.print(text, highlight=False, markup=False)
        for text in large_deltas([proof.row for proof in self.proofs]):
            print_line(console, f"warning: {text}", "yellow")


def _line(proof: Proof) -> tuple[str, ...]:
    row = proof.row
    if proof.ratio is None:
        ratio = "–"
    else:
        ratio = f"{proof.ratio:.4f}"
    numbers = (
        number(row.delta),
        number(row.epsilon_spent, 5) or "–",
        number(proof.epsilon, 5) or "–",
        ratio,
    )
    return row.label, f"{row.unit}, {row.trust}", *numbers, proof.verdict, proof.why


def together(rows: Sequence[Row], trainings: Mapping[str, str] | None = None) -> Iterator[str]:
    """For every data set and unit with two releasable generators or more: what releasing all of
    them costs, in a sentence.

    Each has noise of its own, and a unit is in the data of all, so their mechanisms compose (Dwork
    and Roth 2014, section 3.5). Clients of two partitions are not the same units: each partition is
    then counted by itself. Cells that share a training have one generator between them, whose
    noise was drawn once: it is counted once.

    Args:
        rows: the rows.
        trainings: by a cell's id the id of the training that ran for it; a cell that is not named
            has a training of its own.
    """
    shared = trainings or {}
    groups: dict[tuple[str | None, ...], dict[str, Row]] = {}
    for row in rows:
        is_private = (
            row.noise == "secret" and row.status == "ok" and may_leave(row.claim, row.check)
        )
        if row.generator and is_private and row.mechanisms and row.delta:
            if row.unit == "client":
                clients = row.partition_hash
            else:
                clients = None
            releases = groups.setdefault((row.dataset_hash, row.unit, clients), {})
            releases.setdefault(shared.get(row.cell_id, row.cell_id), row)
    for own in (list(releases.values()) for releases in groups.values() if len(releases) > 1):
        delta = max(row.delta for row in own)
        spent = f"ε = {at_most(_composed(own, delta))} at δ = {number(delta)} (unit {own[0].unit})"
        yield (
            f"{len(own)} generators of {own[0].dataset} may be released, each under its ε; all "
            f"of them together cost {spent}"
        )


def _composed(rows: Sequence[Row], delta: float) -> float:
    if not any(row.selection for row in rows):
        try:
            return recomputed(
                merged(one for row in rows for one in row.ran),
                delta,
                any(row.accountant == "rdp" for row in rows),
            )
        except (
            ValueError
        ):  # more than loss distributions hold, as of a thousand generators at ε = 8
            pass
    # of a search the larger divergence of a unit in training and one in the score
    curves = [
        np.max(row.search.curves(_curve), axis=0) if row.search is not None else _curve(row.ran)
        for row in rows
    ]
    return converted(np.sum(curves, axis=0), delta)
