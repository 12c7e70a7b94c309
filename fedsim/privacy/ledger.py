"""The ledger: the spent privacy budget, counted from the steps that ran."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, replace

from fedsim.privacy import accountant
from fedsim.privacy.events import Event
from fedsim.privacy.plan import PrivacyPlan

History = frozenset[tuple[Event, int]]
"""How often every mechanism ran, as events of one step."""


@dataclass(frozen=True)
class LedgerEntry:
    """One step of one release on one client's data, with the noise that was really added.

    Attributes:
        release: the release's name in the plan.
        round: the round it ran in; if a round has several steps, the number of the step.
        client: the client whose data it read.
        noise_multiplier: standard deviation of the added noise over the sensitivity; 0.0 for none.
        sample_rate: the Poisson rate of the sample.
    """

    release: str
    round: int
    client: int
    noise_multiplier: float
    sample_rate: float


@dataclass(frozen=True, order=True)
class Tally:
    """How often one mechanism ran on a client's data: the number of entries that differ only in their round."""

    client: int
    release: str
    noise_multiplier: float
    sample_rate: float
    count: int


class Ledger:
    """Entries, kept as counts, so that many rounds need a few numbers a client.

    Two ledgers are equal if the same mechanisms ran equally often on the same clients, in any order; the JSON form keeps
    every float exactly, so a resumed run equals an uninterrupted one.
    """

    def __init__(self) -> None:
        self._counts: Counter[tuple[int, str, float, float]] = Counter()

    def record(self, entry: LedgerEntry, times: int = 1) -> None:
        """Add ``entry`` ``times`` times (equal steps of one round).

        Raises:
            ValueError: an impossible noise multiplier or sample rate, or ``times`` below 1.
        """
        if not (entry.noise_multiplier >= 0 and 0 < entry.sample_rate <= 1 and times >= 1):
            raise ValueError(f"cannot have run: {entry}, {times} times")
        key = (entry.client, entry.release, float(entry.noise_multiplier), float(entry.sample_rate))
        self._counts[key] += times

    @property
    def entries(self) -> tuple[Tally, ...]:
        """The steps that ran, one tally a client and mechanism, sorted."""
        return tuple(sorted(Tally(*key, count) for key, count in self._counts.items()))

    def epsilon(self, delta: float) -> tuple[float, str]:
        """The (epsilon, accountant) spent so far: the largest over clients.

        Under add-or-remove-one, neighbours differ in one client's data, so only the mechanisms that ran on that client's
        data count (parallel composition over disjoint data, cf. McSherry 2009, theorem 4); each client's composition is
        :func:`fedsim.privacy.accountant.epsilon`.
        """
        return max((accountant.epsilon(events, delta) for events in self._costly()), default=(0.0, "none"))

    def unaccounted(self, plan: PrivacyPlan, clients: int) -> str:
        """The first difference between the steps that ran and ``plan``; "" if exactly the plan's steps ran on every client's data.

        A missing step was either not run or ran without being counted, and then its cost is unknown.
        """
        ran: dict[int, list[Tally]] = {client: [] for client in range(clients)}
        for tally in self.entries:
            ran.setdefault(tally.client, []).append(tally)
        planned = {release.name: (plan.noise_multiplier(release.name), release) for release in plan.releases if release.steps}
        for client, tallies in ran.items():
            for tally in tallies:
                if tally.release not in planned:
                    return f"client {client} has {tally.count} steps of '{tally.release}', which is not in the plan"
                multiplier, release = planned[tally.release]
                if not math.isclose(tally.noise_multiplier, multiplier, rel_tol=1e-6) or tally.sample_rate != release.sample_rate:
                    what = f"noise multiplier {tally.noise_multiplier:.4g} at rate {tally.sample_rate:g} ran"
                    return f"client {client}, '{tally.release}': {what}, {multiplier:.4g} at {release.sample_rate:g} was planned"
            for name, (_, release) in planned.items():
                count = sum(tally.count for tally in tallies if tally.release == name)
                if count != release.steps:
                    return f"client {client} has {count} steps of '{name}' in the ledger, the plan {release.steps}"
        return ""

    def mechanisms(self) -> tuple[Tally, ...] | None:
        """The mechanisms that ran on every client's data, as tallies of client 0; None if they differ between clients."""
        of_client: dict[int, set[Tally]] = {}
        for tally in self.entries:
            of_client.setdefault(tally.client, set()).add(replace(tally, client=0))
        histories = list(of_client.values())
        if any(history != histories[0] for history in histories):
            return None
        return tuple(sorted(histories[0])) if histories else ()

    def to_json(self) -> str:
        """The ledger as text: clients with equal tallies share one record, floats round-trip exactly."""
        of_client: dict[int, list[tuple[str | float, ...]]] = {}
        for tally in self.entries:
            of_client.setdefault(tally.client, []).append((tally.release, tally.noise_multiplier, tally.sample_rate, tally.count))
        clients_of: dict[tuple[tuple[str | float, ...], ...], list[int]] = {}
        for client, rows in of_client.items():
            clients_of.setdefault(tuple(rows), []).append(client)
        return json.dumps([{"clients": clients, "ran": rows} for rows, clients in clients_of.items()])

    @classmethod
    def from_json(cls, text: str) -> Ledger:
        """The ledger that :meth:`to_json` wrote.

        Raises:
            ValueError: not such a text.
        """
        ledger = cls()
        try:
            for record in json.loads(text):
                for client in record["clients"]:
                    for release, noise_multiplier, sample_rate, count in record["ran"]:
                        ledger.record(LedgerEntry(release, 0, client, noise_multiplier, sample_rate), count)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a ledger: {error!r}") from error
        return ledger

    def __eq__(self, other: object) -> bool:
        return self._counts == other._counts if isinstance(other, Ledger) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Ledger({self._counts.total()} entries, {len({key[0] for key in self._counts})} clients)"

    def _costly(self) -> list[list[Event]]:
        """The events of every client that may have spent the most."""
        histories = _undominated(set(self._histories().values()))
        return [[event._replace(steps=steps) for event, steps in history] for history in histories]

    def _histories(self) -> dict[int, History]:
        """By client, how often every mechanism ran, whatever the release is called."""
        counts: dict[int, Counter[Event]] = {}
        for (client, _, noise_multiplier, sample_rate), count in self._counts.items():
            counts.setdefault(client, Counter())[Event(noise_multiplier, sample_rate, 1)] += count
        return {client: frozenset(count.items()) for client, count in counts.items()}


def _undominated(histories: set[History]) -> list[History]:
    """The histories that no other history dominates by running every mechanism at least as often: only they can cost the most."""
    kept: list[tuple[dict[Event, int], History]] = []
    for history in sorted(histories, key=lambda h: (-sum(count for _, count in h), sorted(h))):
        counts = dict(history)
        if not any(all(larger.get(mechanism, 0) >= n for mechanism, n in history) for larger, _ in kept):
            kept.append((counts, history))
    return [history for _, history in kept]
