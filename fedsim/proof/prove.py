"""Rows proved again: every epsilon recomputed from the row alone, by an accountant that is not the one that counted."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from fedsim.errors import UserError
from fedsim.privacy.accountant import INTEGER_ORDERS, MOST_REPLACED, ORDERS, Event
from fedsim.regular import unread
from fedsim.results.rows import Row
from fedsim.words import number

Verdict = Literal["proved", "differs", "not proved", "no claim"]
TOLERANCE = 0.01
"""Relative difference by which a tight accountant may be above another that is still agreement."""
BELOW = 1e-3
"""The same below, where a row would claim less than it spent."""
_FINEST, _MESH = 1e-4, 0.02
_MOST_POINTS = 1e8
"""Of a loss distribution; as many take some GiB."""


@dataclass(frozen=True)
class Proof:
    """A row's epsilons beside what dp-accounting finds.

    Attributes:
        row: the row.
        verdict: whether they agree; ``not proved`` where the row does not hold what it takes, ``no claim`` where it claims no epsilon.
        why: what is missing or what differs; "" where nothing is.
        epsilon: recomputed under add-or-remove-one.
        replace_one: recomputed under replace-one.
    """

    row: Row
    verdict: Verdict
    why: str = ""
    epsilon: float | None = None
    replace_one: float | None = None

    @property
    def ratio(self) -> float | None:
        """The row's epsilon over the recomputed one."""
        return _ratio(self.row.epsilon_spent, self.epsilon)

    @property
    def replace_one_ratio(self) -> float | None:
        """The same under replace-one."""
        return _ratio(self.row.epsilon_spent_replace_one, self.replace_one)


def prove(row: Row) -> Proof:
    """Recompute a row's epsilons from its mechanisms and its delta.

    Under add-or-remove-one by dp-accounting's privacy loss distribution (connect the dots, pessimistic, both orders), or where the row's
    accountant is Rényi's by dp-accounting's Rényi accountant. Under replace-one by the same theorem as the row
    (:func:`fedsim.privacy.accountant.replace_one_epsilon`), which is an upper bound: a row differs that tells less.

    Raises:
        UserError: dp-accounting is not installed.
    """
    if row.epsilon_target is None and row.epsilon_spent is not None:
        return Proof(row, "not proved", "the row holds an ε and no target")
    if row.epsilon_target is None or math.isinf(row.epsilon_target) or row.status == "failed":
        return Proof(row, "no claim")
    if row.status == "unaccounted":
        return Proof(row, "no claim", "unaccounted: nothing is known of its ε, and the row claims none")
    if row.status == "refuted":
        return Proof(row, "no claim", "refuted: an audit contradicts the ε that the row claimed")
    missing = [
        name
        for name in ("mechanisms", "delta", "epsilon_spent", "epsilon_spent_replace_one", "relation", "sensitivity")
        if getattr(row, name) is None
    ]
    if missing:
        older = "; it is older than these fields" if "mechanisms" in missing else ""
        return Proof(row, "not proved", f"the row does not hold its {', '.join(missing)}{older}")
    assert row.mechanisms is not None
    assert row.delta is not None
    if impossible := list(_impossible(row)):
        return Proof(row, "differs", "; ".join(impossible))
    events = tuple(sorted((m.noise_multiplier, m.sample_rate, m.count) for m in row.mechanisms))
    try:
        epsilon, replaced = recomputed(events, row.delta, row.accountant == "rdp")
    except (ArithmeticError, ValueError, MemoryError) as error:  # of numbers that no training has
        return Proof(row, "not proved", f"dp-accounting cannot compose its mechanisms ({unread(error)})")
    proof = Proof(row, "proved", "", epsilon, replaced)
    told = list(_contradictions(row))
    # what sampling spends under replace-one is told by an upper bound, which an accountant may find a little larger than another
    limits = (("ε", proof.ratio, BELOW, TOLERANCE), ("ε under replace-one", proof.replace_one_ratio, TOLERANCE, math.inf))
    for name, ratio, below, above in limits:
        if ratio is not None and not 1 - below <= ratio <= 1 + above:
            holds = ", a bound that holds and is loose" if ratio > 1 else ""
            told.append(f"{name} is {ratio:.3f} of what its mechanisms spend{holds}")
    return Proof(row, "differs", "; ".join(told), epsilon, replaced) if told else proof


def _impossible(row: Row) -> Iterable[str]:
    """Why no private training wrote these."""
    for name, value, most in (("δ", row.delta, 1.0), ("sensitivity", row.sensitivity, math.inf)):
        if value is not None and not 0 < value < most:
            yield f"no mechanism of a finite target has {name} {number(value)}"
    if not row.mechanisms:
        yield "the row has a finite target and no mechanism"
    for each in row.mechanisms or ():
        if not (0 < each.noise_multiplier < math.inf and 0 < each.sample_rate <= 1 and each.count >= 1):
            told = f"noise multiplier {number(each.noise_multiplier)}, sample rate {number(each.sample_rate)}, count {each.count}"
            yield f"no mechanism of a finite target has {told}"


def _contradictions(row: Row) -> Iterable[str]:
    """Where a row's mechanisms and its own fields say different things."""
    mechanisms = row.mechanisms or ()
    count = sum(m.count for m in mechanisms)
    if row.steps is not None and row.steps != count:
        yield f"the row says {row.steps} steps and holds {count} mechanisms"
    if row.sample_rate is not None and row.sample_rate not in {m.sample_rate for m in mechanisms}:
        yield f"the row says a sample rate of {number(row.sample_rate)} and no mechanism has it"
    if any((m.kind == "gaussian") != (m.sample_rate == 1) for m in mechanisms):
        yield "a mechanism's kind and its sample rate do not fit"


def _ratio(recorded: float | None, found: float | None) -> float | None:
    if recorded is None or found is None:
        return None
    if recorded == found:
        return 1.0
    return math.inf if found == 0 else recorded / found


@lru_cache(maxsize=4096)
def recomputed(events: tuple[Event, ...], delta: float, renyi: bool) -> tuple[float, float]:
    """Epsilon under add-or-remove-one and under replace-one, by dp-accounting.

    Args:
        events: (noise multiplier, sample rate, count) each.
        delta: of both.
        renyi: by Rényi composition.

    Raises:
        UserError: dp-accounting is not installed.
        ValueError: they spend more than a loss distribution can hold; Rényi composition can tell.
    """
    costly = tuple(event for event in events if event[2] and event[1] and not math.isinf(event[0]))
    if not costly:
        return 0.0, 0.0
    if any(noise == 0 for noise, _, _ in costly):
        return math.inf, math.inf
    try:
        from dp_accounting.pld import privacy_loss_distribution  # noqa: F401
    except ImportError as error:
        right = "install it: python -m pip install 'fedsim[proof]'"
        raise UserError("fedsim prove", "dp-accounting, which recomputes, is not installed", right) from error
    spends = _Renyi(costly) if renyi else _Losses(costly, delta)
    if all(rate == 1 for _, rate, _ in costly):
        halved = [(noise / 2, rate, count) for noise, rate, count in costly]
        return spends.epsilon(delta), (_Renyi(halved) if renyi else _Losses(halved, delta)).epsilon(delta)
    # a loss distribution that was cut off says nothing of a delta below what was cut
    twice = _group(spends, delta)
    return spends.epsilon(delta), twice if math.isfinite(twice) else _group(_Renyi(costly), delta)


class _Losses:
    """Composition of privacy loss distributions."""

    def __init__(self, events: Sequence[Event], delta: float) -> None:
        from dp_accounting.pld import privacy_loss_distribution

        count = sum(steps for *_, steps in events)
        rough = _Renyi(events, INTEGER_ORDERS).epsilon(delta)
        # connecting the dots widens the sum's variance by a share of steps * mesh^2
        mesh = min(_FINEST, _MESH * max(rough, 1e-3) / math.sqrt(count))
        if not rough < _MOST_POINTS * mesh:
            raise ValueError(f"they spend up to {number(rough)}")
        total: Any = privacy_loss_distribution.identity(mesh)
        for noise, rate, steps in events:
            one = privacy_loss_distribution.from_gaussian_mechanism(
                noise, sampling_prob=rate, value_discretization_interval=mesh, pessimistic_estimate=True, use_connect_dots=True
            )
            total = total.compose(one.self_compose(steps))
        self._total = total

    def epsilon(self, delta: float) -> float:
        return float(self._total.get_epsilon_for_delta(delta))


class _Renyi:
    """Rényi composition."""

    def __init__(self, events: Sequence[Event], orders: Sequence[float] = ORDERS) -> None:
        import dp_accounting
        from dp_accounting.rdp import RdpAccountant

        # it warns of every order whose series does not converge, and leaves it out, which is what is wanted
        logging.getLogger("absl").setLevel(logging.ERROR)
        self._accountant: Any = RdpAccountant(orders)
        for noise, rate, steps in events:
            one = dp_accounting.GaussianDpEvent(noise)
            sampled = one if rate == 1 else dp_accounting.PoissonSampledDpEvent(rate, one)
            self._accountant.compose(dp_accounting.SelfComposedDpEvent(sampled, steps))

    def epsilon(self, delta: float) -> float:
        return float(self._accountant.get_epsilon(delta))


def _group(spends: _Losses | _Renyi, delta: float) -> float:
    """Twice the least e with (1 + exp(e)) d(e) at most delta: replacing is removing and adding."""
    low = high = max(spends.epsilon(delta), 1e-6)
    while spends.epsilon(delta / (1 + math.exp(high))) > high:
        low, high = high, 1.3 * high
        if high > MOST_REPLACED:
            return math.inf
    while high - low > 1e-5 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if spends.epsilon(delta / (1 + math.exp(middle))) <= middle else (middle, high)
    return 2 * high


def proofs_table(name: str, proofs: Sequence[Proof]) -> Table:
    """A line a row that claims an epsilon; equal ones share it."""
    lines = Counter(_line(proof) for proof in proofs if proof.verdict != "no claim")
    table = Table(title=f"{name}: every ε again, by dp-accounting", title_justify="left", show_edge=False)
    pair = ("recomputed", "ratio")
    for head in ("rows", "method", "unit, trust", "δ", "ε in the row", *pair, "replace-one", *pair, "verdict", ""):
        table.add_column(head, justify="left" if head in ("method", "unit, trust", "verdict", "") else "right", no_wrap=head != "")
    for line, count in lines.items():
        colour = {"proved": "green", "differs": "red"}.get(line[-2], "yellow")
        table.add_row(str(count), *map(Text, line[:-2]), Text(line[-2], style=colour), Text(line[-1]))
    return table


def _line(proof: Proof) -> tuple[str, ...]:
    row = proof.row

    def three(recorded: float | None, found: float | None, ratio: float | None) -> tuple[str, str, str]:
        return number(recorded, 5) or "–", number(found, 5) or "–", "–" if ratio is None else f"{ratio:.4f}"

    return (
        row.label,
        f"{row.unit}, {row.trust}",
        number(row.delta),
        *three(row.epsilon_spent, proof.epsilon, proof.ratio),
        *three(row.epsilon_spent_replace_one, proof.replace_one, proof.replace_one_ratio),
        proof.verdict,
        proof.why,
    )


def proofs_words(proofs: Sequence[Proof]) -> str:
    """How many rows are proved, in a sentence."""
    counts = Counter(proof.verdict for proof in proofs)
    limits = f"at most {BELOW:.1%} below and {TOLERANCE:.0%} above"
    told = [f"{counts['proved']} of {len(proofs)} rows proved: each ε is what dp-accounting finds from the row alone, {limits}"]
    others: dict[Verdict, str] = {"differs": "differ", "not proved": "cannot be proved", "no claim": "claim no ε"}
    told += [f"{counts[verdict]} {words}" for verdict, words in others.items() if counts[verdict]]
    return "; ".join(told)
