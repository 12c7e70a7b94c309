"""Trainings whose clients are watched, or are given the noisy outputs of another training.

Every query that a mechanism answers goes through three methods of
:class:`fedsim.methods.clients.Clients`: all noise of clients is drawn in ``add_noise``, all Poisson
samples in ``poisson``, and all random numbers for rows in ``draws``. So whoever watches these
methods sees every query. Two draws of :class:`fedsim.methods.local_training.LocalTraining` are not
seen: who takes part in a round, and what a local step draws for its rows. They do not matter,
because an update is clipped whole, whatever it was computed from.

A second world can be *forced*: its queries are recorded, and in place of its own noisy answers it
gets those of the first world. Two worlds that differ in one unit then see the same outputs, as in
the definition of differential privacy, and what still differs between them are the queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.methods.clients import Clients, Noised
from fedsim.methods.messages import Message, Round, Tensors
from fedsim.privacy.plan import Release
from fedsim.training.cohort import Cohort, CohortSpec, LocalPool
from fedsim.training.state import copied

HIDDEN_STREAM = 2**31
"""The number of the stream from which a hidden unit's random numbers are drawn.

It is no client's number, so the other rows get the same random numbers with and without the unit.
"""


class Divergence(Exception):
    """A forced world asked for another output than the first one: the mechanisms depend on data."""


@dataclass(frozen=True)
class Query:
    """One call of ``add_noise``.

    Attributes:
        round: the number of the round.
        release: the mechanism.
        step: the number that its noise was drawn with.
        members: the clients whose data it is about.
        sent: sums over the members, before the noise.
        kept: per-client tensors ``[members, ...]``, before the noise.
        noised: both, after the noise.
        sampled: whether the hidden unit was in the Poisson sample.
    """

    round: int
    release: Release
    step: int
    members: tuple[int, ...]
    sent: Tensors
    kept: Tensors
    noised: Noised
    sampled: bool

    def shapes(self) -> dict[tuple[str, str], torch.Size]:
        """Return shapes by ``(sent or kept, name)``; of a kept tensor that of one client."""
        shapes = {("sent", name): value.shape for name, value in self.sent.items()}
        for name, value in self.kept.items():
            shapes["kept", name] = value.shape[1:]
        return shapes


@dataclass(frozen=True)
class Sample:
    """One call of ``poisson``.

    Attributes:
        round: the number of the round.
        step: the number that it was drawn with.
        rate: the sampling rate.
        hidden: whether the hidden unit, if there is any, is in the sample.
    """

    round: int
    step: int
    rate: float
    hidden: bool


@dataclass
class Tape:
    """What the clients of a cohort did, in order.

    Attributes:
        round: the number of the round that runs; -1 before the first.
        queries: every call of ``add_noise``.
        samples: every call of ``poisson``.
        messages: the message of each round, by its number.
    """

    round: int = -1
    queries: list[Query] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    messages: dict[int, Message] = field(default_factory=dict)


@dataclass(frozen=True)
class Hidden:
    """A row or a group of rows of a client that the other world lacks.

    Attributes:
        client: the number of its client.
        sampled: ``chance`` samples it as every unit; ``every`` and ``first`` put it into every
            Poisson sample, or into the first one only. With ``alone`` every sample is all rows of
            its client and of no other, in both worlds.
        position: where it stands among its client's units: 0 is first, 1 is last.
        present: whether this world has it.
    """

    client: int
    sampled: Literal["chance", "every", "first", "alone"] = "every"
    position: float = 1.0
    present: bool = True

    def index(self, others: int) -> int:
        """Return its number among its client's units, of which there are ``others`` more."""
        return round(self.position * others)

    def within(self, units: Tensor, count: int, first: bool) -> Tensor:
        """Return a Poisson sample of its client with the hidden unit in or out, as it should be.

        The last unit's draw is taken for the hidden unit, so that all other units are sampled alike
        in both worlds.

        Args:
            units: the numbers of the sampled units, int64 and ascending.
            count: the number of units of the client.
            first: whether this is the first sample of the training.
        """
        if self.sampled == "alone":
            return torch.arange(count)
        if not self.present:
            return units
        number = self.index(count - 1)
        others = units[units != count - 1]
        was_drawn = len(others) < len(units)
        others = others + (others >= number)
        is_sampled = {"chance": was_drawn, "every": True, "first": first}[self.sampled]
        if is_sampled:
            return torch.cat([others, torch.tensor([number])]).sort().values
        return others


@dataclass(frozen=True)
class RowBlock:
    """The last rows of a client, which no Poisson sample holds after the first ``steps``.

    Later queries must not depend on these rows.

    Attributes:
        client: the number of the client.
        start: the number of the first row of the block.
        steps: the number of samples that may hold the block.
    """

    client: int
    start: int
    steps: int


@dataclass
class WatchedClients(Clients):
    """Clients that record every query and every sample.

    Attributes:
        tape: what they did.
        hidden: the unit, or the block of rows, in which two worlds differ.
        script: the tape of another world, whose noisy outputs they are given; None for their own.
        hidden_places: by client, where the rows of the hidden unit stand in the batch that is being
            made.
    """

    tape: Tape = field(default_factory=Tape)
    hidden: Hidden | RowBlock | None = None
    script: Tape | None = None
    hidden_places: dict[int, Tensor] = field(default_factory=dict)

    def add_noise(
        self, release: Release, round_: int, sent: Tensors, kept: Tensors | None = None
    ) -> Noised:
        """Add noise, record the query, and return the noisy tensors.

        With a script those that clients noise come from the script.

        Raises:
            Divergence: the script has no such query.
        """
        sent_before = copied(sent)
        kept_before = copied(kept or {})
        noised = super().add_noise(release, round_, sent, kept)
        query = Query(
            self.tape.round,
            release,
            round_,
            self.members,
            sent_before,
            kept_before,
            replace(noised, sent=copied(noised.sent), kept=copied(noised.kept)),
            release.sample_rate == 1 or self._last_sample_has_hidden(),
        )
        self.tape.queries.append(query)
        if self.script is None:
            return noised
        return self._outputs_of_script(self.script, query, noised)

    def _last_sample_has_hidden(self) -> bool:
        """Return whether the last sample of this round has the hidden unit; True without any."""
        for sample in reversed(self.tape.samples):
            if sample.round == self.tape.round:
                return sample.hidden
        return True

    def _outputs_of_script(self, script: Tape, query: Query, noised: Noised) -> Noised:
        """Return the noisy outputs of the script for a query, as far as clients noise them."""
        number = len(self.tape.queries) - 1
        if number >= len(script.queries) or not _ask_the_same(script.queries[number], query):
            raise Divergence(
                f"round {query.round} asks for noise on '{query.release.name}' only in the "
                "one of two neighbouring data sets"
            )
        first = script.queries[number]
        differing = _differing_shape(query, first)
        if differing:
            raise Divergence(
                f"round {query.round}: name or shape of '{differing}' in what is to be "
                "noised depends on the data"
            )
        if self.plan is not None and self.plan.trust == "silo":
            sent = copied(first.noised.sent)
        else:
            sent = noised.sent
        positions = torch.tensor([first.members.index(client) for client in self.members])
        kept = {name: first.noised.kept[name][positions] for name in query.kept}
        return replace(noised, sent=sent, kept=kept)

    def poisson(self, round_: int, rate: float, client_rate: float = 1.0) -> list[Tensor]:
        """Return each member's Poisson sample, with the hidden unit in or out as it should be.

        The samples of the other units do not depend on the hidden one.
        """
        rows = super().poisson(round_, rate, client_rate)
        has_hidden = True
        if isinstance(self.hidden, RowBlock):
            has_hidden = len(self.tape.samples) < self.hidden.steps
            if not has_hidden:
                position = self.members.index(self.hidden.client)
                rows[position] = rows[position][rows[position] < self.hidden.start]
        elif self.hidden is not None:
            for position, client in enumerate(self.members):
                if client == self.hidden.client:
                    units = self._units_with_hidden(self.hidden, position, rows[position])
                    rows[position] = self.rows_of(position, units)
                    number = self.hidden.index(self.units(position) - 1)
                    has_hidden = not self.hidden.present or number in units
                elif self.hidden.sampled == "alone":
                    rows[position] = rows[position][:0]
        self.tape.samples.append(Sample(self.tape.round, round_, rate, has_hidden))
        return rows

    def _units_with_hidden(self, hidden: Hidden, position: int, rows: Tensor) -> Tensor:
        """Return the sampled units of the hidden unit's client, of which ``rows`` were drawn."""
        units = rows
        if self.groups is not None:
            units = torch.unique_consecutive(self.groups[position][rows])
        return hidden.within(units, self.units(position), not self.tape.samples)

    def drawn(
        self, rows: Sequence[Tensor], round_: int, shapes: Mapping[str, tuple[int, ...]]
    ) -> list[Tensors]:
        """Return the random numbers of a batch; its rows of the hidden unit get their own."""
        for position, (client, numbers) in enumerate(zip(self.members, rows, strict=True)):
            if self._hides(client):
                hidden_rows = self._hidden_rows(position, self.units(position))
                self.hidden_places[client] = torch.isin(numbers, hidden_rows).nonzero()[:, 0]
        draws = super().drawn(rows, round_, shapes)
        self.hidden_places.clear()
        return draws

    def draws(
        self, client: int, rows: int, round_: int, shapes: Mapping[str, tuple[int, ...]]
    ) -> Tensors:
        """Return standard normal draws ``[rows, ...]`` by name for the batch of one member.

        Those of the hidden unit come from a stream of their own and do not move the others'.
        """
        if not rows or not self._hides(client):
            return super().draws(client, rows, round_, shapes)
        places = self.hidden_places.get(client)
        if places is None:
            places = self._places_without_batch(client, rows)
        hidden = torch.zeros(rows, dtype=torch.bool)
        hidden[places] = True
        if not hidden.any():
            return super().draws(client, rows, round_, shapes)
        others = super().draws(client, int((~hidden).sum()), round_, shapes)
        of_hidden = super().draws(HIDDEN_STREAM, int(hidden.sum()), round_, shapes)
        draws = {name: torch.empty(rows, *shape) for name, shape in shapes.items()}
        for name, values in draws.items():
            values[~hidden] = others[name]
            values[hidden] = of_hidden[name]
        return draws

    def _places_without_batch(self, client: int, rows: int) -> Tensor:
        """Return the hidden unit's rows; an algorithm that made no batch means all rows."""
        position = self.members.index(client)
        units = rows
        if self.groups is not None:
            units = self.units(position)
        return self._hidden_rows(position, units)

    def _hides(self, client: int) -> bool:
        """Return whether a client has the hidden unit in this world."""
        hidden = self.hidden
        return isinstance(hidden, Hidden) and hidden.present and client == hidden.client

    def _hidden_rows(self, position: int, units: int) -> Tensor:
        """Return the hidden unit's rows among those of its client, who has ``units`` units."""
        assert isinstance(self.hidden, Hidden)
        return self.rows_of(position, torch.tensor([self.hidden.index(units - 1)]))


def _ask_the_same(query: Query, other: Query) -> bool:
    """Return whether two queries are of the same round, mechanism and step."""
    same_round = query.round == other.round and query.step == other.step
    return same_round and query.release == other.release


def _differing_shape(query: Query, first: Query) -> str | None:
    """Return the name of a tensor that is missing, or has another shape, in one of two queries."""
    shapes = query.shapes()
    first_shapes = first.shapes()
    compared = shapes
    # A client that is missing may have been the only one to send a tensor of that name.
    if query.members == first.members:
        compared = shapes | first_shapes
    for key in compared:
        if shapes.get(key) != first_shapes.get(key):
            return key[1]
    return None


class WatchedPool(LocalPool):
    """A pool of watched cohorts.

    Args:
        cohorts: the cohorts.
        order: the order in which they compute; None for that of their numbers.
        script: tapes of another world, whose messages the server is given in place of these
            cohorts' messages.
    """

    def __init__(
        self,
        cohorts: Sequence[Cohort],
        order: Sequence[int] | None = None,
        script: Sequence[Tape] | None = None,
    ) -> None:
        super().__init__(cohorts)
        self.order = range(len(cohorts)) if order is None else order
        self.script = script

    @property
    def tapes(self) -> list[Tape]:
        """The tape of each cohort."""
        return [tape_of(cohort) for cohort in self.cohorts]

    def round(self, round_: Round, broadcast: Tensors) -> list[Message]:
        """Run one round of all cohorts and return their messages, or those of the script."""
        messages: dict[int, Message] = {}
        for number in self.order:
            cohort = self.cohorts[number]
            tape = tape_of(cohort)
            tape.round = round_.number
            messages[number] = cohort.round(round_, broadcast)
            tape.messages[round_.number] = _copy_of(messages[number])
        if self.script is None:
            return [messages[number] for number in range(len(self.cohorts))]
        return [_copy_of(tape.messages[round_.number]) for tape in self.script]


def watched(
    spec: CohortSpec,
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    hidden: Hidden | RowBlock | None = None,
    script: Tape | None = None,
) -> Cohort:
    """Return a cohort whose clients are watched.

    Args:
        spec: the cohort.
        x: the rows of the data set.
        y: their labels.
        hidden: the unit, or the block of rows, in which two worlds differ.
        script: the tape of another world, whose noisy outputs the clients are given.
    """
    return Cohort(spec, x, y, clients=partial(WatchedClients, hidden=hidden, script=script))


def tape_of(cohort: Cohort) -> Tape:
    """Return the tape of a watched cohort."""
    assert isinstance(cohort.clients, WatchedClients)
    return cohort.clients.tape


def _copy_of(message: Message) -> Message:
    return replace(message, sums=copied(message.sums))
