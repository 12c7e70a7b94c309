"""The ledger: the spent privacy budget, counted from the mechanisms that ran."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable

from fedsim.privacy import accountant
from fedsim.privacy.mechanism import Mechanism
from fedsim.privacy.plan import PrivacyPlan


class Ledger:
    """How often every mechanism ran on every client's data, with the noise that was really added.

    Two ledgers are equal if the same mechanisms ran equally often on the same clients, in any
    order; the JSON form keeps every float exactly, so a resumed run equals an uninterrupted one.
    """

    def __init__(self) -> None:
        self._counts: dict[int, Counter[Mechanism]] = {}

    def record(self, clients: Iterable[int], mechanism: Mechanism) -> None:
        """``mechanism`` ran on the data of each of the ``clients``."""
        if not (
            mechanism.noise_multiplier >= 0
            and 0 < mechanism.sample_rate <= 1
            and mechanism.count >= 1
        ):
            raise ValueError(f"cannot have run: {mechanism}")
        for client in clients:
            self._counts.setdefault(client, Counter())[mechanism.times(1)] += mechanism.count

    def of_client(self, client: int) -> tuple[Mechanism, ...]:
        """The mechanisms that ran on a client's data, sorted."""
        return tuple(
            sorted(one.times(count) for one, count in self._counts.get(client, Counter()).items())
        )

    def epsilon(self, delta: float) -> tuple[float, str]:
        """The (epsilon, accountant) spent so far: the largest over clients.

        Under add-or-remove-one, neighbours differ in one client's data, so only the mechanisms that
        ran on that client's data count (parallel composition over disjoint data, cf. McSherry 2009,
        theorem 4); each client's composition is
        :func:`fedsim.privacy.accountant.epsilon`.
        """
        histories = dict.fromkeys(map(self.of_client, self._counts))
        return max(
            (accountant.epsilon(history, delta) for history in _undominated(histories)),
            default=(0.0, "none"),
        )

    def unaccounted(self, plan: PrivacyPlan, clients: int) -> str:
        """The first difference between what ran and ``plan``; "" if exactly the plan's mechanisms
        ran on every client's data.

        A missing step was either not run or ran without being counted, and then its cost is
        unknown.
        """
        planned = {one.release: one for one in plan.mechanisms}
        for client in dict.fromkeys((*range(clients), *sorted(self._counts))):
            counts: Counter[str] = Counter()
            for one in self.of_client(client):
                if one.release not in planned:
                    return (
                        f"client {client} has {one.count} steps of '{one.release}', which is "
                        "not in the plan"
                    )
                wanted = planned[one.release]
                if (
                    not math.isclose(one.noise_multiplier, wanted.noise_multiplier, rel_tol=1e-6)
                    or one.sample_rate != wanted.sample_rate
                ):
                    ran, asked = (
                        f"{each.noise_multiplier:.4g} at rate {each.sample_rate:g}"
                        for each in (one, wanted)
                    )
                    return (
                        f"client {client}, '{one.release}': noise multiplier {ran} ran, "
                        f"{asked} was planned"
                    )
                counts[one.release] += one.count
            for name, wanted in planned.items():
                if counts[name] != wanted.count:
                    return (
                        f"client {client} has {counts[name]} steps of '{name}' in the ledger, "
                        f"the plan {wanted.count}"
                    )
        return ""

    def mechanisms(self) -> tuple[Mechanism, ...] | None:
        """The mechanisms that ran on every client's data, by release; None if they differ between
        clients.
        """
        first, *others = dict.fromkeys(map(self.of_client, self._counts)) or [()]
        if others:
            return None
        return tuple(sorted(first, key=lambda one: (one.release, one)))

    def to_json(self) -> str:
        """The ledger as text: clients with equal mechanisms share one record, floats round-trip
        exactly.
        """
        clients_of: dict[tuple[Mechanism, ...], list[int]] = {}
        for client in sorted(self._counts):
            clients_of.setdefault(self.of_client(client), []).append(client)
        return json.dumps(
            [
                {"clients": clients, "ran": [vars(one) for one in history]}
                for history, clients in clients_of.items()
            ]
        )

    @classmethod
    def from_json(cls, text: str) -> Ledger:
        """The ledger that :meth:`to_json` wrote."""
        ledger = cls()
        for record in json.loads(text):
            for one in record["ran"]:
                ledger.record(record["clients"], Mechanism(**one))
        return ledger

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Ledger):
            return self._counts == other._counts
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]


def _undominated(histories: Iterable[tuple[Mechanism, ...]]) -> list[tuple[Mechanism, ...]]:
    """The histories that no other one dominates by running every mechanism at least as often: only
    they can cost the most.
    """
    kept: list[dict[Mechanism, int]] = []
    for history in sorted(
        histories, key=lambda history: (-sum(one.count for one in history), history)
    ):
        counts = {one.times(1): one.count for one in history}
        if not any(
            all(larger.get(one, 0) >= count for one, count in counts.items()) for larger in kept
        ):
            kept.append(counts)
    return [tuple(one.times(count) for one, count in counts.items()) for counts in kept]
