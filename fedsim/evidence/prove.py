"""Rows proved again: every epsilon by an accountant that is not the one that counted, every plan by the algorithm that made it.

What is proved is the line of a training: its ledger is its plan, its plan is what its algorithm plans for its task, and its epsilon is what
its mechanisms spend. And what several releases of the same data cost together: the composition of all their mechanisms.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedsim.errors import UserError
from fedsim.files import unread
from fedsim.grid.models import Tuning
from fedsim.json_lines import decode, dump, load, reasons
from fedsim.plugins.claims import may_leave
from fedsim.plugins.code_hash import source_hash
from fedsim.plugins.registry import check_installed, lookup
from fedsim.privacy.accountant import INTEGER_ORDERS, ORDERS
from fedsim.privacy.mechanism import Mechanism, merged
from fedsim.privacy.plan import Claim, PrivacyPlan
from fedsim.privacy.selection import SCORE, SEEN, Curve, Selection, composed_by_renyi, composed_event, converted
from fedsim.results.columns import Line, Row, large_deltas
from fedsim.results.run import RunResults
from fedsim.words import Printed, at_most, number, print_line

if TYPE_CHECKING:
    from fedsim.methods.algorithm import Algorithm

Verdict = Literal["proved", "differs", "not proved", "no claim"]
MOST_ABOVE, MOST_BELOW = 0.01, 1e-3
"""Relative differences by which a tight accountant may be above another that is still agreement, and below, where a row would claim less
than it spent."""
_SOLVED = 2e-3
"""Relative difference of noise that was solved with two versions of an accountant."""
_FINEST, _MESH = 1e-4, 0.02
_MOST_POINTS = 1e8
"""Of a loss distribution; as many take some GiB."""


@dataclass(frozen=True)
class Proof:
    """A row's epsilon beside dp-accounting's.

    Attributes:
        row: the row.
        verdict: whether they agree; ``not proved`` where that cannot be computed, ``no claim`` where it claims no epsilon.
        why: what differs or was not compared; "" where nothing is.
        epsilon: recomputed.
    """

    row: Row
    verdict: Verdict
    why: str = ""
    epsilon: float | None = None

    @property
    def ratio(self) -> float | None:
        """The row's epsilon over the recomputed one."""
        spent, epsilon = self.row.epsilon_spent, self.epsilon
        return None if spent is None or epsilon is None else 1.0 if spent == epsilon else spent / epsilon if epsilon else math.inf


_NO_CLAIM = {
    "failed": "",
    "unaccounted": "unaccounted: nothing is known of its ε, and the row claims none",
    "refuted": "refuted: an audit contradicts the ε that the row claimed",
}


def prove(row: Row, line: Line, *, trust_plugin: bool = False) -> Proof:
    """Compare ledger, plan and epsilon of a training with each other, with the algorithm's plan, and with dp-accounting.

    By dp-accounting's privacy loss distribution (pessimistic, both orders, connecting the dots), or its Rényi accountant where the row's
    is one.

    Args:
        row: the row of a cell.
        line: of its training.
        trust_plugin: also rebuild the plan of an algorithm that is the path of a class.
    """
    if row.epsilon_target is None or math.isinf(row.epsilon_target) or row.status in _NO_CLAIM:
        return Proof(row, "no claim", _NO_CLAIM.get(row.status, ""))
    plan: PrivacyPlan = TypeAdapter(PrivacyPlan).validate_json(dump(line["plan"]))
    ran = row.ran
    try:
        costly = merged(ran)
        epsilon = recomputed(ran, plan.delta, row.accountant == "rdp") if plan.selection is None else searched(plan.selection, plan.delta)
    except (ArithmeticError, ValueError, MemoryError) as error:  # of numbers that no training has
        return Proof(row, "not proved", f"dp-accounting cannot compose its mechanisms ({unread(error)})")
    proof = Proof(row, "proved", epsilon=epsilon)
    faults = []
    if not 1 - MOST_BELOW <= (proof.ratio or 0.0) <= 1 + MOST_ABOVE:
        loose = ", a bound that holds and is loose" if (proof.ratio or 0.0) > 1 else ""
        faults.append(f"ε is {proof.ratio or 0.0:.3f} of what its mechanisms spend{loose}")
    if not _alike(list(map(asdict, costly)), list(map(asdict, merged(plan.mechanisms)))):
        faults.append("what ran is not what was planned")
    if plan.selection is not None and not _alike_any(merged(one for one in ran if one.release != SCORE), plan.selection.trainings):
        faults.append("its mechanisms are those of no training that its search pays for")
    if (trust := line["cell"]["trust"]) != plan.trust:
        faults.append(f"its cell has trust: {trust}, and its plan trust: {plan.trust}")
    if row.tuning is not None and row.trust == "silo":
        faults.append(f"its parameters were chosen by a search under trust: silo: {SEEN}")
    differences, note = _against_algorithm(line, plan, trust_plugin=trust_plugin)
    faults += differences
    return Proof(row, "differs" if faults else "proved", "; ".join(faults) or note, epsilon)


def proofs_of(rows: Sequence[Row], results: RunResults, *, trust_plugin: bool = False) -> list[Proof]:
    """The proofs of rows of a run, each by the line of its training."""
    return [prove(row, results.trained[row.cell_id], trust_plugin=trust_plugin) for row in rows]


def _against_algorithm(line: Line, plan: PrivacyPlan, *, trust_plugin: bool) -> tuple[list[str], str]:
    """Where a plan is not what its algorithm makes of the cell, and why that was not compared, or says nothing."""
    cell = line["cell"]
    try:
        if not trust_plugin:
            check_installed(cell["algorithm"], "")
    except UserError:
        return [], "its plan was not rebuilt: its algorithm is a plug-in, whose code only runs with --trust-plugin"
    try:
        cls = lookup(cell["algorithm"])
    except UserError as error:
        return [], f"its plan was not rebuilt: {error}"
    try:
        made = _made(cls, dump([cell["params"], cell["tuning"], line["task"], cell["epsilon"], cell["delta"]]))
        differences = ["its algorithm plans none"] if made is None else list(_differences(plan, made))
    except (Exception, SystemExit) as error:  # whatever an algorithm makes of parameters that it was not given
        why = "; ".join(reasons(error)) if isinstance(error, Exception) else "it exits"
        differences = [f"its algorithm makes no plan of its parameters ({why})"]
    if differences and cell["source"] != source_hash(cls):
        return [], f"the code here is not the one that ran, and differs: {'; '.join(differences)}"
    return differences, ""


@lru_cache(maxsize=4096)
def _made(cls: type[Algorithm], facts: str) -> PrivacyPlan | None:
    """The plan of a cell; of a tuned one that of the candidate with its parameters.

    Raises:
        ValueError: a tuned cell has no such candidate.
    """
    from fedsim.evaluation.plans import plans_of
    from fedsim.methods.messages import PublicRows, Task  # late: they import torch

    params, tuning, task, epsilon, delta = decode(load(facts))
    how = tuning and Tuning.model_validate_json(dump(tuning))
    known = Task(**task, public=PublicRows.made_up(task["dim"], task["classes"]))
    for candidate in plans_of(cls, params, how, known, epsilon, delta):
        if how is None or dump(candidate.params) == dump(params):
            return candidate.plan
    raise ValueError("its parameters are no point of the space that was searched")


def _differences(plan: PrivacyPlan, made: PrivacyPlan) -> Iterator[str]:
    """Where a plan says otherwise than another; a claim may be the weaker one."""
    claims = get_args(Claim)
    if claims.index(plan.claim) < claims.index(made.claim):
        yield f"it claims '{plan.claim}' and its algorithm '{made.claim}'"
    there = asdict(made)
    for name, value in asdict(plan).items():
        if name != "claim" and not _alike(value, there[name]):
            yield f"its {name} is {value} and in its algorithm's plan {there[name]}"


def _alike(one: Any, other: Any) -> bool:
    """Whether two values are the same, numbers as nearly as accountants solve them."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_alike(value, other[name]) for name, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=_SOLVED)
    return bool(one == other)


def _alike_any(training: Sequence[Mechanism], others: Sequence[Sequence[Mechanism]]) -> bool:
    return any(_alike(list(map(asdict, training)), list(map(asdict, merged(other)))) for other in others)


@lru_cache(maxsize=4096)
def recomputed(mechanisms: tuple[Mechanism, ...], delta: float, renyi: bool) -> float:
    """Epsilon by dp-accounting.

    Args:
        mechanisms: that ran.
        delta: of epsilon.
        renyi: by Rényi composition.

    Raises:
        ValueError: they spend more than a loss distribution can hold; Rényi composition has no such limit.
    """
    costly = merged(mechanisms)
    if not costly:
        return 0.0
    if any(one.noise_multiplier == 0 for one in costly):
        return math.inf
    return _of_renyi(costly, delta) if renyi else _of_losses(costly, delta)


def searched(selection: Selection, delta: float) -> float:
    """Epsilon of the best of a random number of trainings, from their mechanisms alone, by dp-accounting; see :class:`Selection`."""
    return selection.spent(delta, _divergence)


def _divergence(mechanisms: Sequence[Mechanism]) -> Curve:
    """The Rényi divergence of some mechanisms at each of the orders."""
    return np.asarray(composed_by_renyi(composed_event(mechanisms), ORDERS)._rdp, np.float64)


def _of_losses(mechanisms: Sequence[Mechanism], delta: float) -> float:
    """By composition of privacy loss distributions."""
    from dp_accounting.pld import privacy_loss_distribution

    rough, steps = _of_renyi(mechanisms, delta, INTEGER_ORDERS), sum(one.count for one in mechanisms)
    # connecting the dots widens the sum's variance by a share of steps * mesh^2
    mesh = min(_FINEST, _MESH * max(rough, 1e-3) / math.sqrt(steps))
    if not rough < _MOST_POINTS * mesh:
        raise ValueError(f"they spend up to {number(rough)}")
    total: Any = privacy_loss_distribution.identity(mesh)
    for one in mechanisms:
        losses = privacy_loss_distribution.from_gaussian_mechanism(
            one.noise_multiplier,
            sampling_prob=one.sample_rate,
            value_discretization_interval=mesh,
            pessimistic_estimate=True,
            use_connect_dots=True,
        )
        total = total.compose(losses.self_compose(one.count))
    return float(total.get_epsilon_for_delta(delta))


def _of_renyi(mechanisms: Sequence[Mechanism], delta: float, orders: Sequence[float] = ORDERS) -> float:
    """By Rényi composition."""
    return float(composed_by_renyi(composed_event(mechanisms), orders).get_epsilon(delta))


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
        """Print a table of them, what releases cost together, and warnings."""
        console.print(proofs_table(self.name, self.proofs))
        proved = [proof.row for proof in self.proofs if proof.verdict == "proved"]
        for line in (proofs_words(self.proofs), *together_words(together(proved)), *apart_words(proved)):
            console.print(line, highlight=False, markup=False)
        for text in large_deltas([proof.row for proof in self.proofs]):
            print_line(console, f"warning: {text}", "yellow")


def proofs_table(name: str, proofs: Sequence[Proof]) -> Table:
    """A line a row that claims an epsilon; equal ones share it."""
    lines = Counter(_line(proof) for proof in proofs if proof.verdict != "no claim")
    table = Table(title=f"{name}: every ε again, by dp-accounting", title_justify="left", show_edge=False)
    for head in ("rows", "method", "unit, trust", "δ", "ε in the row", "recomputed", "ratio", "verdict", ""):
        table.add_column(head, justify="left" if head in ("method", "unit, trust", "verdict", "") else "right", no_wrap=head != "")
    for line, count in lines.items():
        colour = {"proved": "green", "differs": "red"}.get(line[-2], "yellow")
        table.add_row(str(count), *map(Text, line[:-2]), Text(line[-2], style=colour), Text(line[-1]))
    return table


def _line(proof: Proof) -> tuple[str, ...]:
    row = proof.row
    return (
        row.label,
        f"{row.unit}, {row.trust}",
        number(row.delta),
        number(row.epsilon_spent, 5) or "–",
        number(proof.epsilon, 5) or "–",
        "–" if proof.ratio is None else f"{proof.ratio:.4f}",
        proof.verdict,
        proof.why,
    )


def proofs_words(proofs: Sequence[Proof]) -> str:
    """How many rows are proved, in a sentence."""
    counts = Counter(proof.verdict for proof in proofs)
    limits = f"at most {MOST_BELOW:.1%} below and {MOST_ABOVE:.0%} above"
    parts = [f"{counts['proved']} of {len(proofs)} rows proved: each plan is its algorithm's, each ε what dp-accounting computes, {limits}"]
    others: dict[Verdict, str] = {"differs": "differ", "not proved": "cannot be proved", "no claim": "claim no ε"}
    parts += [f"{counts[verdict]} {words}" for verdict, words in others.items() if counts[verdict]]
    return "; ".join(parts)


@dataclass(frozen=True)
class Together:
    """Generators of one data set that may each be released under its own epsilon, and what all of them cost.

    Attributes:
        dataset: its name.
        unit: what every one of them protects.
        generators: how many there are.
        delta: the largest of theirs.
        epsilon: of all, at that delta.
    """

    dataset: str
    unit: str
    generators: int
    delta: float
    epsilon: float


def together(rows: Sequence[Row]) -> list[Together]:
    """For every data set and unit with two releasable generators or more: what releasing all of them costs.

    Each has noise of its own, and a unit is in the data of all, so their mechanisms compose (Dwork and Roth 2014, section 3.5). Clients of
    two partitions are not the same units: each partition is then counted by itself.
    """
    groups: dict[tuple[str | None, ...], list[Row]] = {}
    for row in _releasable(rows):
        groups.setdefault((row.dataset_hash, *_units(row)), []).append(row)
    return [_composed(members) for members in groups.values() if len(members) > 1]


def apart_words(rows: Sequence[Row]) -> Iterator[str]:
    """Generators that may cost more together than one of them: of units of two kinds or partitions, and of several data sets."""
    sets: dict[str, list[Row]] = {}
    for row in _releasable(rows):
        sets.setdefault(row.dataset_hash, []).append(row)
    for members in sets.values():
        if len(kinds := {_units(row) for row in members}) > 1:
            of = " and ".join(dict.fromkeys(f"unit {row.unit}" for row in members))
            what = f"may be released whose units are of {len(kinds)} kinds or partitions ({of})"
            yield f"{len(members)} generators of {members[0].dataset} {what}: a row is in all of them, and pays for all"
    if len(sets) > 1:
        names = ", ".join(dict.fromkeys(members[0].dataset for members in sets.values()))
        pays = "a unit that is in several, as in cuts or encodings of one, pays for all"
        yield f"generators of {len(sets)} data sets may be released ({names}): {pays}"


def _units(row: Row) -> tuple[str | None, str | None]:
    """What a row's budget protects: units of a kind, and clients of a partition."""
    return row.unit, row.partition_hash if row.unit == "client" else None


def _releasable(rows: Sequence[Row]) -> Iterator[Row]:
    for row in rows:
        if (
            row.generator
            and row.noise == "secret"
            and row.status == "ok"
            and may_leave(row.claim, row.check)
            and row.mechanisms
            and row.delta
        ):
            yield row


def _composed(rows: Sequence[Row]) -> Together:
    delta = max(row.delta or 0.0 for row in rows)
    if any(row.selection for row in rows):
        whole = np.sum([*map(_whole, rows)], axis=0)
        return Together(rows[0].dataset, rows[0].unit or "example", len(rows), delta, converted(whole, delta))
    composed = merged(one for row in rows for one in row.ran)
    try:
        epsilon = recomputed(composed, delta, any(row.accountant == "rdp" for row in rows))
    except ValueError:  # more than loss distributions hold, as of a thousand generators at ε = 8
        epsilon = recomputed(composed, delta, renyi=True)
    return Together(rows[0].dataset, rows[0].unit or "example", len(rows), delta, epsilon)


def _whole(row: Row) -> Curve:
    """The Rényi divergence of all that a row paid for; of a search the larger one of a unit in training and one in the score."""
    if row.search is not None:
        return np.max(row.search.curves(_divergence), axis=0)  # type: ignore[no-any-return]
    return _divergence(row.ran)


def together_words(costs: Sequence[Together]) -> Iterator[str]:
    """A sentence for each data set and unit."""
    for cost in costs:
        spent = f"ε = {at_most(cost.epsilon)} at δ = {number(cost.delta)} (unit {cost.unit})"
        yield f"{cost.generators} generators of {cost.dataset} may be released, each under its ε; all of them together cost {spent}"
