"""Verifies the results of a run: it computes every ε again and makes every plan again.

The verdict `proved` means that the recorded ε and plan agree with those that are made again. The
claim `proved` of a plan means something else: that a theorem exists.

dp-accounting computes every ε again, which the training counted with Opacus. There is one
exception: what it costs to choose the best training of a private search is computed by
dp-accounting both times. A plan is compared with the one that the algorithm makes here. This file
also says what several releases of the same data cost together, by the composition of all their
mechanisms.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedsim.errors import UserError
from fedsim.evidence.audit.bound import composed_losses
from fedsim.evidence.records import contradictions
from fedsim.files import unread
from fedsim.grid.models import Tuning
from fedsim.json_lines import decode, dump, load, plain_json, reasons
from fedsim.plugins.claims import may_leave
from fedsim.plugins.code_hash import source_hash
from fedsim.plugins.registry import EXTERNAL, check_installed, lookup
from fedsim.plugins.untouched import replaced
from fedsim.privacy.accountant import INTEGER_ORDERS
from fedsim.privacy.mechanism import Mechanism, merged
from fedsim.privacy.plan import Claim, PrivacyPlan
from fedsim.privacy.selection import Curve, composed_by_renyi, converted
from fedsim.results.columns import Row, large_deltas
from fedsim.results.join import RunResults, id_of_run
from fedsim.results.records import TrainingRecord
from fedsim.words import Printed, at_most, counted, number, print_line

if TYPE_CHECKING:
    from fedsim.methods.algorithm import Algorithm

Verdict = Literal["proved", "differs", "not proved", "no claim"]
"""How a proof ended, see :class:`Proof`."""
COLOURS = {"proved": "green", "differs": "red", "not proved": "yellow"}
"""The colour of a verdict on a terminal."""
MOST_ABOVE = 0.01
"""How far a recorded ε may be above the recomputed one, as a share of it.

A tight accountant may be that much above another.
"""
MOST_BELOW = 1e-3
"""How far a recorded ε may be below the recomputed one, as a share of it.

It is smaller than :data:`MOST_ABOVE`, because a recorded ε that is too small claims less than was
spent.
"""
_SOLVER_TOLERANCE = 2e-3
"""The largest relative difference of two numbers that count as alike.

Two versions of an accountant may solve for noise that differs by as much.
"""
_WIDEST_MESH = 1e-4
"""The widest mesh of a privacy loss distribution."""
_MESH_SHARE = 0.02
"""The largest mesh for one step, as a share of ε; for n steps it is divided by the root of n."""
_MOST_POINTS = 1e8
"""The largest number of points of a mesh; so many points take some GiB of memory."""


@dataclass(frozen=True)
class Proof:
    """The ε of a result beside the one that dp-accounting computes.

    Attributes:
        row: the result.
        verdict: ``proved`` if everything agrees. ``differs`` if ledger, plan and ε do not fit each
            other, or the plan is not the one that the same code makes now. ``not proved`` if ε
            cannot be computed, the plan was not rebuilt, other code makes another plan here, or the
            line records one fact in two ways. ``no claim`` if fedsim counted no ε for the result,
            or if its status is ``failed``, ``unaccounted`` or ``refuted``.
        why: what differs, or why it is not proved.
        epsilon: the ε that dp-accounting computes; None if it computed none.
        rebuilt: whether the code here made a plan of the parameters.
        training_id: the id of the training that ran, which equal cells share; empty if it is not
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
        """The recorded ε over the recomputed one; None if one of them is missing."""
        spent = self.row.epsilon_spent
        if self.epsilon is None or spent is None:
            return None
        if spent == self.epsilon:
            return 1.0  # Both may be 0 or infinite.
        if self.epsilon == 0:
            return math.inf
        return float(spent / self.epsilon)


@dataclass(frozen=True)
class _Comparison:
    """What the code here says of a training's line.

    Attributes:
        faults: how the record differs from the plan that the same code makes now.
        doubts: why nothing is proved, although nothing is known to be wrong.
        rebuilt: whether the code here made a plan.
    """

    faults: Sequence[str] = ()
    doubts: Sequence[str] = ()
    rebuilt: bool = False


def prove(row: Row, line: TrainingRecord, *, trust_plugin: bool) -> Proof:
    """Verify the ε of a result by its ledger, its plan, its algorithm and dp-accounting.

    dp-accounting computes ε again from privacy loss distributions. It uses a pessimistic
    discretisation ("connecting the dots") and covers both adding and removing a unit. If the
    training was counted by a Rényi accountant, dp-accounting uses its own Rényi accountant. Facts
    that the line records twice must agree, too.

    Args:
        row: the result of a cell.
        line: the line of its training.
        trust_plugin: whether to import an algorithm that is named by the path of its class. The
            plan of such an algorithm is not rebuilt otherwise.
    """
    if row.status in ("failed", "unaccounted", "refuted") or not _claims_epsilon(line):
        return Proof(row, "no claim")
    compared = _compare_with_algorithm(row, line, trust_plugin=trust_plugin)
    verdict: Verdict = "not proved"
    if line["cell"]["algorithm"] == EXTERNAL:
        # The ε of external samples is as stated by their author.
        if not compared.doubts:
            verdict = "no claim"
        return Proof(row, verdict, "; ".join(compared.doubts))
    epsilon = None
    try:
        plan = _plan_of(line)
        ran = _by_release(row.ran)
        planned = _by_release(plan.mechanisms)
        epsilon = _recompute_row(row, plan)
        proof = Proof(row, verdict, epsilon=epsilon)
        faults = _faults_of_epsilon(proof.ratio)
        if not _are_alike(ran, planned):
            faults.append("what ran is not what was planned")
        if faults or compared.faults:
            verdict = "differs"
        elif not compared.doubts:
            verdict = "proved"
    except ValidationError as error:
        faults = [f"its plan cannot be read ({'; '.join(reasons(error))})"]
    except (ArithmeticError, TypeError, ValueError, MemoryError) as error:
        # The record was changed, or its ε is too large to mean anything.
        faults = [f"dp-accounting cannot compose its mechanisms ({unread(error)})"]
    why = "; ".join([*faults, *compared.faults, *compared.doubts])
    return Proof(row, verdict, why, epsilon, compared.rebuilt)


def _faults_of_epsilon(ratio: float | None) -> list[str]:
    """Return the fault of an ε that is ``ratio`` times the recomputed one; none if they agree.

    The ratio is None if no ε is recorded.
    """
    if ratio is None:
        return ["it records no ε"]
    if 1 - MOST_BELOW <= ratio <= 1 + MOST_ABOVE:
        return []
    fault = f"ε is {ratio:.3f} of what its mechanisms spend"
    if ratio > 1:
        fault += ": the bound holds, but it is loose"
    return [fault]


def _claims_epsilon(line: TrainingRecord) -> bool:
    """Return whether a line claims a finite ε; that of external samples counts, too."""
    plan = line["plan"] or {}
    epsilons = (line["cell"]["epsilon"], plan.get("epsilon_target"))
    return any(epsilon is not None and math.isfinite(epsilon) for epsilon in epsilons)


def _plan_of(line: TrainingRecord) -> PrivacyPlan:
    """Return the recorded plan; raises a ``ValidationError`` if it cannot be read."""
    return TypeAdapter(PrivacyPlan).validate_json(plain_json(line["plan"]))


def _by_release(mechanisms: Sequence[Mechanism]) -> dict[str, Any]:
    """Return the mechanisms of each release as dictionaries; equal ones are added up."""
    groups = defaultdict(list)
    for mechanism in mechanisms:
        groups[mechanism.release].append(mechanism)
    return {name: list(map(vars, merged(group))) for name, group in groups.items()}


def _recompute_row(row: Row, plan: PrivacyPlan) -> float:
    """Return dp-accounting's ε of what ran; for a training of a private search, of the search."""
    if plan.selection:
        return plan.selection.spent(plan.delta, _curve)
    return recomputed(row.ran, plan.delta, row.accountant == "rdp")


def proofs_of(
    rows: Sequence[Row],
    results: RunResults,
    *,
    trust_plugin: bool = False,
) -> list[Proof]:
    """Return the proofs of results of a run, each by the line of its training.

    Args:
        rows: the results.
        results: the lines of the run.
        trust_plugin: whether to import algorithms that are named by the path of their class.
    """
    proofs = []
    for row in rows:
        line = results.trained[row.cell_id]
        proof = prove(row, line, trust_plugin=trust_plugin)
        proofs.append(replace(proof, training_id=id_of_run(line)))
    return proofs


def _compare_with_algorithm(
    row: Row,
    line: TrainingRecord,
    *,
    trust_plugin: bool,
) -> _Comparison:
    """Compare a line with itself, and its plan with the one that its algorithm makes here."""
    cell = line["cell"]
    try:
        if not trust_plugin:
            check_installed(cell["algorithm"], "")
        cls = lookup(cell["algorithm"], "")
    except UserError as error:
        return _Comparison(doubts=[f"its plan was not rebuilt: {error}"])
    doubts = list(contradictions(line, cls, row.evaluation_source))
    if cell["algorithm"] == EXTERNAL:
        return _Comparison(doubts=doubts)
    differences, rebuilt = _differences_from_class(cls, line)
    if differences and cell["source"] != source_hash(cls):
        text = "; ".join(differences)
        doubt = f"the code here is not the one that ran, and plans something else: {text}"
        return _Comparison([], [doubt, *doubts], rebuilt)
    return _Comparison(differences, doubts, rebuilt)


def _differences_from_class(cls: type[Algorithm], line: TrainingRecord) -> tuple[list[str], bool]:
    """Compare the plan of a line with the one that a class makes of its cell.

    Returns:
        The differences in words, and whether the class made a plan.
    """
    cell = line["cell"]
    facts = dump([cell["params"], cell["tuning"], line["task"], cell["epsilon"], cell["delta"]])
    try:
        replaced_name = replaced()
        make_plan: Callable[..., dict[str, Any]] = _make_plan
        if replaced_name is not None:
            # The cache may hold plans from before somebody replaced code, so it is not used.
            make_plan = _make_plan.__wrapped__
        rebuilt = make_plan(cls, facts)
        if not line["plan"]:
            return ["it has no plan, and its algorithm makes one"], True
        recorded = asdict(_plan_of(line))
        recorded["noise_at"] = (line["ledger"] or {}).get("noise_at")
        differences = list(_plan_differences(recorded, rebuilt))
    except (Exception, SystemExit) as error:
        # An algorithm may do anything with parameters that it was not made for.
        why = "; ".join(reasons(error)) if isinstance(error, Exception) else "it exits"
        return [f"its plan cannot be compared with one of its algorithm ({why})"], False
    if differences and replaced_name is not None:
        differences.append(f"somebody replaced {replaced_name} in this process")
    return differences, True


@lru_cache(maxsize=4096)
def _make_plan(cls: type[Algorithm], facts: str) -> dict[str, Any]:
    """Return the fields of the plan that a class makes, and where its noise is added.

    Args:
        cls: the class.
        facts: parameters, tuning, task, ε and δ as JSON.

    Raises:
        ValueError: the class cannot make a plan from these parameters.
    """
    from fedsim.evaluation.plans import plans_of
    from fedsim.methods.messages import PublicRows, Task  # late: they import torch

    params, tuning_facts, task_facts, epsilon, delta = decode(load(facts))
    tuning = tuning_facts and Tuning.model_validate_json(plain_json(tuning_facts))
    public = PublicRows.made_up(task_facts["dim"], task_facts["classes"])
    task = Task(**task_facts, public=public)
    for candidate in plans_of(cls, params, tuning, task, epsilon, delta):
        if tuning is None or dump(candidate.params) == dump(params):
            if candidate.plan is None:
                raise ValueError("epsilon has no meaning for it")
            algorithm = cls(cls.Params.model_validate(candidate.params), task)
            noise_at = "clients" if algorithm.noise_at_clients() else "sum"
            return {**asdict(candidate.plan), "noise_at": noise_at}
    raise ValueError("the recorded parameters are no candidate of tune")


def _plan_differences(plan: Mapping[str, Any], rebuilt: Mapping[str, Any]) -> Iterator[str]:
    """Yield in words how a recorded plan differs from a rebuilt one.

    A recorded claim that is weaker than the rebuilt one is no difference.
    """
    claims = get_args(Claim)  # the strongest claim comes first
    if claims.index(plan["claim"]) < claims.index(rebuilt["claim"]):
        yield f"it claims '{plan['claim']}' and its algorithm '{rebuilt['claim']}'"
    for name, value in plan.items():
        if name != "claim" and not _are_alike(value, rebuilt[name]):
            yield f"its {name} is {value} and in its algorithm's plan {rebuilt[name]}"


def _are_alike(value: Any, other: Any) -> bool:
    """Return whether two values are equal; floats may differ by :data:`_SOLVER_TOLERANCE`."""
    if isinstance(value, Mapping) and isinstance(other, Mapping):
        return _are_alike(sorted(value.items()), sorted(other.items()))
    if isinstance(value, list | tuple) and isinstance(other, list | tuple):
        return len(value) == len(other) and all(map(_are_alike, value, other))
    if isinstance(value, float) and isinstance(other, float):
        return math.isclose(value, other, rel_tol=_SOLVER_TOLERANCE)
    return bool(value == other)


@lru_cache(maxsize=4096)
def recomputed(
    mechanisms: tuple[Mechanism, ...],
    delta: float,
    renyi: bool,
) -> float:
    """Return dp-accounting's ε of mechanisms that ran.

    Args:
        mechanisms: what ran.
        delta: the δ of the claim.
        renyi: whether to use Rényi composition in place of privacy loss distributions.

    Raises:
        ValueError: they spend too much for a privacy loss distribution.
    """
    costly = merged(mechanisms)
    if not costly:
        return 0.0
    if any(mechanism.noise_multiplier == 0 for mechanism in costly):
        return math.inf
    if renyi:
        return float(composed_by_renyi(costly).get_epsilon(delta))
    renyi_epsilon = float(composed_by_renyi(costly, INTEGER_ORDERS).get_epsilon(delta))
    # The discretisation adds to the variance of the sum in proportion to steps * mesh^2, so more
    # steps need a finer mesh.
    steps = sum(mechanism.count for mechanism in costly)
    mesh = min(_WIDEST_MESH, _MESH_SHARE * max(renyi_epsilon, 1e-3) / math.sqrt(steps))
    if not renyi_epsilon < _MOST_POINTS * mesh:
        raise ValueError(f"they spend up to {number(renyi_epsilon)}")
    return float(composed_losses(costly, mesh).get_epsilon_for_delta(delta))


def _curve(mechanisms: Sequence[Mechanism]) -> Curve:
    """Return the Rényi divergence of the mechanisms at each order of dp-accounting."""
    return np.asarray(composed_by_renyi(mechanisms)._rdp, np.float64)


@dataclass(frozen=True, repr=False)
class Proofs(Printed):
    """The proofs of a run's results.

    Attributes:
        name: the name of the run.
        proofs: one per result.
    """

    name: str
    proofs: tuple[Proof, ...]

    @property
    def sound(self) -> bool:
        """Whether every claimed ε is proved."""
        return all(proof.verdict in ("proved", "no claim") for proof in self.proofs)

    def show(self, console: Console) -> None:
        """Print a table of all claims, a summary, what releases cost together, and warnings.

        Equal results share a line of the table.
        """
        console.print(self._table())
        rows = [proof.row for proof in self.proofs]
        proved = [proof.row for proof in self.proofs if proof.verdict == "proved"]
        trainings = {
            proof.row.cell_id: proof.training_id for proof in self.proofs if proof.training_id
        }
        for text in (*self._summary(), *together(proved, trainings)):
            console.print(text, highlight=False, markup=False)
        for text in large_deltas(rows):
            print_line(console, f"warning: {text}", "yellow")

    def _table(self) -> Table:
        """Return the table, with a line for each of the distinct claims."""
        table = Table(
            title=f"{self.name}: every ε, recomputed by dp-accounting",
            title_justify="left",
            show_edge=False,
        )
        for head, justify in _COLUMNS.items():
            table.add_column(head, justify=justify, no_wrap=head != "")
        claiming = [proof for proof in self.proofs if proof.verdict != "no claim"]
        count_of_line = Counter(map(_table_line, claiming))
        for (*cells, verdict, why), count in count_of_line.items():
            texts = map(Text, cells)
            table.add_row(
                str(count),
                *texts,
                Text(verdict, style=COLOURS[verdict]),
                Text(why),
            )
        return table

    def _summary(self) -> tuple[str, str]:
        """Return what was proved, and how many plans were rebuilt, in a sentence each."""
        counts = Counter(proof.verdict for proof in self.proofs)
        words = (
            f"{counts['proved']} of {len(self.proofs)} results proved: each plan is the one that "
            f"its algorithm makes, and each ε is at most {MOST_BELOW:.1%} below and "
            f"{MOST_ABOVE:.0%} above the one that dp-accounting computes"
        )
        for verdict, text in _NOT_PROVED.items():
            if counts[verdict]:
                words += f"; {counts[verdict]} {text}"
        # External samples may contradict themselves, but they have no plan.
        planned = sum(
            proof.verdict != "no claim" and not proof.row.is_external for proof in self.proofs
        )
        rebuilt = sum(proof.rebuilt for proof in self.proofs)
        return words, f"the code here rebuilt {rebuilt} of {counted(planned, 'plan')}"


_NOT_PROVED: dict[Verdict, str] = {
    "differs": "differ",
    "not proved": "cannot be proved",
    "no claim": "claim no ε of this run",
}
"""How the summary counts the results that are not proved."""
_COLUMNS: dict[str, Literal["left", "right"]] = {
    "results": "right",
    "method": "left",
    "unit, trust": "left",
    "δ": "right",
    "recorded ε": "right",
    "recomputed": "right",
    "ratio": "right",
    "verdict": "left",
    "": "left",
}
"""The heads of the table's columns and where their texts stand."""


def _table_line(proof: Proof) -> tuple[str, ...]:
    """Return the texts of a result in the table, without the number of equal results."""
    row = proof.row
    ratio = proof.ratio
    return (
        row.label,
        f"{row.unit}, {row.trust}",
        number(row.delta),
        number(row.epsilon_spent, 5) or "–",
        number(proof.epsilon, 5) or "–",
        "–" if ratio is None else f"{ratio:.4f}",
        proof.verdict,
        proof.why,
    )


def together(rows: Sequence[Row], trainings: Mapping[str, str]) -> Iterator[str]:
    """Yield one sentence for each data set and unit on what releasing all its generators costs.

    Data sets and units with fewer than two generators that may be released are left out. Each
    generator has noise of its own, and a unit is in the data of all, so their mechanisms compose
    (Dwork and Roth 2014, section 3.5). Clients of two partitions are not the same units, so each
    partition is counted by itself. Cells that share a training share its generator, whose noise was
    drawn once, so it is counted once.

    Args:
        rows: the results.
        trainings: maps the id of a cell to the id of the training that ran for it. A cell that is
            not named has a training of its own.
    """
    by_units: defaultdict[tuple[Any, ...], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        if _may_be_released(row):
            partition = row.partition_hash if row.unit == "client" else None
            releases = by_units[row.dataset_hash, row.unit, partition]
            releases.setdefault(trainings.get(row.cell_id, row.cell_id), row)
    for releases in by_units.values():
        if len(releases) == 1:
            continue
        group = list(releases.values())
        delta = max(row.delta for row in group)
        epsilon = at_most(_composed_epsilon(group, delta))
        yield (
            f"{len(group)} generators of {group[0].dataset} may be released, each under its ε; all "
            f"of them together cost ε = {epsilon} at δ = {number(delta)} (unit {group[0].unit})"
        )


def _may_be_released(row: Row) -> bool:
    """Return whether a result is a private generator that may leave the simulation."""
    is_finished = row.generator and row.status == "ok"
    is_private = row.mechanisms and row.delta and row.noise == "secret"
    return bool(is_finished and is_private and may_leave(row.claim, row.check))


def _composed_epsilon(rows: Sequence[Row], delta: float) -> float:
    """Return the ε of all mechanisms of several results together."""
    if not any(row.selection for row in rows):
        is_renyi = "rdp" in [row.accountant for row in rows]
        # A privacy loss distribution cannot hold what a thousand generators at ε = 8 spend.
        with suppress(ValueError):
            mechanisms = merged(mechanism for row in rows for mechanism in row.ran)
            return recomputed(mechanisms, delta, is_renyi)
    curves = []
    for row in rows:
        if row.search is None:
            curves.append(_curve(row.ran))
        else:
            # A unit is in a training or in the score: the larger divergence counts.
            curves.append(np.max(row.search.curves(_curve), axis=0))
    return converted(np.sum(curves, axis=0), delta)
