"""What several releases of the same data cost together: the composition of all their mechanisms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedsim.evidence.prove import recomputed
from fedsim.privacy.accountant import Event
from fedsim.privacy.plan import RELEASABLE
from fedsim.results.groups import grouped
from fedsim.results.rows import Row
from fedsim.words import at_most, number


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
    two partitions are not the same units: each partition is then told by itself.

    Raises:
        UserError: dp-accounting is not installed.
    """
    groups = grouped(_releasable(rows), lambda row: (row.dataset_hash, *_units(row)))
    return [_composed(members) for members in groups.values() if len(members) > 1]


def apart_words(rows: Sequence[Row]) -> Iterator[str]:
    """Generators that may cost more together than is told for each: of units of two kinds or partitions, and of several data sets."""
    for members in grouped(_releasable(rows), lambda row: row.dataset_hash).values():
        if len(kinds := {_units(row) for row in members}) > 1:
            of = " and ".join(dict.fromkeys(f"unit {row.unit}" for row in members))
            what = f"may be released whose units are of {len(kinds)} kinds or partitions ({of})"
            yield f"{len(members)} generators of {members[0].dataset} {what}: a row is in all of them, and pays for all"
    sets = {row.dataset_hash: row.dataset for row in _releasable(rows)}
    if len(sets) > 1:
        names = ", ".join(dict.fromkeys(sets.values()))
        pays = "a unit that is in several, as in cuts or encodings of one, pays for all"
        yield f"generators of {len(sets)} data sets may be released ({names}): {pays}"


def _units(row: Row) -> tuple[str | None, str | None]:
    """What a row's budget protects: units of a kind, and clients of a partition."""
    return row.unit, row.partition_hash if row.unit == "client" else None


def _releasable(rows: Sequence[Row]) -> Iterator[Row]:
    for row in rows:
        if row.generator and row.noise == "secret" and row.status == "ok" and row.claim in RELEASABLE and row.mechanisms and row.delta:
            yield row


def _composed(rows: Sequence[Row]) -> Together:
    events: Counter[tuple[float, float]] = Counter()
    for each in (each for row in rows for each in row.mechanisms or ()):
        events[each.noise_multiplier, each.sample_rate] += each.count
    composed: tuple[Event, ...] = tuple(sorted((noise, rate, count) for (noise, rate), count in events.items()))
    delta = max(row.delta or 0.0 for row in rows)
    try:
        epsilon = recomputed(composed, delta, any(row.accountant == "rdp" for row in rows))
    except ValueError:  # more than loss distributions hold, as of a thousand generators at ε = 8
        epsilon = recomputed(composed, delta, renyi=True)
    return Together(rows[0].dataset, rows[0].unit or "example", len(rows), delta, epsilon)


def together_words(found: Sequence[Together]) -> Iterator[str]:
    """A sentence for each."""
    for each in found:
        cost = f"ε = {at_most(each.epsilon)} at δ = {number(each.delta)} (unit {each.unit})"
        yield f"{each.generators} generators of {each.dataset} may be released, each under its ε; all of them together cost {cost}"
