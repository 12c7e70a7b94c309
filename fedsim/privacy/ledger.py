"""The ledger counts, for each client, the noisy mechanisms that ran on its data.

It computes the ε that they spent. It also compares them with the plan, because ε is unknown if a
step is missing or has other noise.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from fedsim.privacy import accountant
from fedsim.privacy.mechanism import Mechanism
from fedsim.privacy.plan import PrivacyPlan


class Ledger:
    """A count of how often every mechanism ran on every client's data, with the noise it added.

    Two ledgers are equal if the same mechanisms ran equally often on the same clients, in any
    order. The JSON form keeps every float exactly, so a resumed run equals an uninterrupted one.
    """

    def __init__(self) -> None:
        self._counts: defaultdict[int, Counter[Mechanism]] = defaultdict(Counter)

    def record(self, clients: Iterable[int], mechanism: Mechanism) -> None:
        """Count that ``mechanism`` ran on the data of each of the ``clients``.

        Raises:
            ValueError: the mechanism has a negative noise multiplier, a sample rate outside (0, 1],
                or no run.
        """
        is_valid_noise = mechanism.noise_multiplier >= 0
        is_valid_rate = 0 < mechanism.sample_rate <= 1
        if not (is_valid_noise and is_valid_rate and mechanism.count >= 1):
            raise ValueError(f"cannot have run: {mechanism}")
        single_run = mechanism.times(1)
        for client in clients:
            self._counts[client][single_run] += mechanism.count

    def of_client(self, client: int) -> tuple[Mechanism, ...]:
        """Return the mechanisms that ran on a client's data, sorted."""
        counts = self._counts.get(client, Counter())
        return tuple(sorted(mechanism.times(count) for mechanism, count in counts.items()))

    def epsilon(self, delta: float) -> tuple[float, accountant.AccountantName]:
        """Return the epsilon spent so far, the largest over clients, and its accountant's name.

        A unit lies within one client, so neighbouring data sets differ in one client. Given all
        earlier outputs, a mechanism on another client's data has the same distribution for both
        data sets. So only the mechanisms on the one client's data count (parallel composition, cf.
        McSherry 2009, theorem 4). :func:`fedsim.privacy.accountant.epsilon` composes them.
        """
        histories = {self.of_client(client) for client in self._counts}
        spent = (accountant.epsilon(history, delta) for history in histories)
        return max(spent, default=(0.0, "none"))

    def unaccounted(self, plan: PrivacyPlan, clients: int) -> str:
        """Return a sentence on the first difference between the ledger and ``plan``.

        It is empty if there is no difference. With a difference the epsilon is unknown: a step
        that is missing here did not run, or it ran and was not counted.

        Args:
            plan: the plan.
            clients: the number of clients; the whole plan must have run on each of them.
        """
        planned = {mechanism.release: mechanism for mechanism in plan.mechanisms}
        all_clients = sorted({*range(clients), *self._counts})
        differences = (self._difference(client, planned) for client in all_clients)
        return next(filter(None, differences), "")

    def _difference(
        self,
        client: int,
        planned: Mapping[str, Mechanism],
    ) -> str:
        """Return the first difference between one client's mechanisms and the planned ones."""
        counts: Counter[str] = Counter()
        for ran in self.of_client(client):
            wanted = planned.get(ran.release)
            if wanted is None:
                return (
                    f"client {client} has {ran.count} steps of '{ran.release}', which is "
                    "not in the plan"
                )
            is_same_noise = math.isclose(
                ran.noise_multiplier, wanted.noise_multiplier, rel_tol=1e-6
            )
            if not is_same_noise or ran.sample_rate != wanted.sample_rate:
                return (
                    f"client {client}, '{ran.release}': noise multiplier {_noise_and_rate(ran)} "
                    f"ran, {_noise_and_rate(wanted)} was planned"
                )
            counts[ran.release] += ran.count
        for name, wanted in planned.items():
            if counts[name] != wanted.count:
                return (
                    f"client {client} has {counts[name]} steps of '{name}' in the ledger, "
                    f"but the plan has {wanted.count}"
                )
        return ""

    def mechanisms(self) -> tuple[Mechanism, ...] | None:
        """Return the mechanisms that ran on every client's data, ordered by release.

        The result is empty if nothing ran, and None if clients differ in their mechanisms.
        """
        histories = {self.of_client(client) for client in self._counts}
        if len(histories) > 1:
            return None
        history = next(iter(histories), ())
        return tuple(sorted(history, key=lambda mechanism: mechanism.release))

    def to_json(self) -> str:
        """Return the ledger as JSON, which keeps every float exactly.

        Clients with equal mechanisms share one record.
        """
        clients_of: dict[tuple[Mechanism, ...], list[int]] = {}
        for client in sorted(self._counts):
            clients_of.setdefault(self.of_client(client), []).append(client)
        records = []
        for history, clients in clients_of.items():
            records.append({"clients": clients, "ran": [vars(mechanism) for mechanism in history]})
        return json.dumps(records)

    @classmethod
    def from_json(cls, text: str) -> Ledger:
        """Return the ledger that :meth:`to_json` wrote."""
        ledger = cls()
        for record in json.loads(text):
            for fields in record["ran"]:
                ledger.record(record["clients"], Mechanism(**fields))
        return ledger

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Ledger):
            return self._counts == other._counts
        return NotImplemented


def _noise_and_rate(mechanism: Mechanism) -> str:
    return f"{mechanism.noise_multiplier:.4g} at rate {mechanism.sample_rate:g}"
