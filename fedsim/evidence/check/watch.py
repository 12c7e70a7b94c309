"""Clients and a pool that note what an algorithm does with them, and that can be told what the noise made of it.

All noise of clients is drawn in :meth:`fedsim.methods.clients.Clients.add_noise`, all Poisson samples in ``poisson``, all per-row draws in
``draws``, so whoever watches these sees every query that a mechanism answers. Two draws of
:class:`fedsim.methods.local_training.LocalTraining` go past them: who takes part in a round, and what a local step draws for its rows; an
update is clipped whole, whatever it was computed from. A second world can be *forced*: its queries are noted, and in place of their own
noisy answers it gets those of the first world. Two worlds that differ in one unit then see the same outputs, as the definition of
differential privacy has it, and what still differs between them are the queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.methods.clients import Clients, Noised
from fedsim.methods.messages import Message, Round, Tensors
from fedsim.methods.parameters import add_in_order
from fedsim.privacy.plan import Release
from fedsim.training.cohort import Cohort, CohortSpec, LocalPool
from fedsim.training.state import copied


class Divergence(Exception):
    """A forced world asked for something else than the first one: which mechanisms run depends on the data."""


@dataclass(frozen=True)
class Query:
    """One call of ``add_noise``.

    Attributes:
        round: the round it was made in.
        release: its mechanism.
        step: the number that its noise was drawn with.
        members: the clients it is about.
        sent, kept: before the noise.
        noised: after it.
        sampled: whether the hidden row was in the Poisson sample that the query was computed on.
    """

    round: int
    release: Release
    step: int
    members: tuple[int, ...]
    sent: Tensors
    kept: Tensors
    noised: Noised
    sampled: bool

    @property
    def shapes(self) -> dict[tuple[str, str], torch.Size]:
        """By part and name: of what is sent, and of what is kept of one client."""
        sent = {("sent", name): value.shape for name, value in self.sent.items()}
        return sent | {("kept", name): value.shape[1:] for name, value in self.kept.items()}


@dataclass(frozen=True)
class Sample:
    """One call of ``poisson``: what it was asked, the rows that it returned, and whether the hidden row, if any, is among them."""

    round: int
    step: int
    rate: float
    client_rate: float
    rows: list[Tensor]
    hidden: bool


@dataclass
class Tape:
    """What happened, in order.

    Attributes:
        round: the running round.
        queries: every call of ``add_noise``.
        samples: every call of ``poisson``.
        taken: the rows of every batch, with its round.
        draws: by (client, step), the draws for each of its batches, but for the hidden row's.
        messages: what the cohorts sent, by the round's number.
    """

    round: int = -1
    queries: list[Query] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    taken: list[tuple[int, list[Tensor]]] = field(default_factory=list)
    draws: dict[tuple[int, int], list[Tensors]] = field(default_factory=dict)
    messages: dict[int, list[Message]] = field(default_factory=dict)

    def sums(self, round_: int) -> Tensors:
        """What all clients sent in ``round_``, added up."""
        return add_in_order([message.sums for message in self.messages[round_]])


@dataclass(frozen=True)
class Hidden:
    """The unit of a client, a row or a group of rows, that the other world lacks.

    Attributes:
        client: whose.
        sampled: ``every``: it is put into every Poisson sample; ``first``: into the first one only; ``alone``: every sample is all rows of
            its client and no other, in both worlds.
        position: where it stands among its client's units: 0 first, 1 last.
        present: whether this world has it.
    """

    client: int
    sampled: Literal["every", "first", "alone"] = "every"
    position: float = 1.0
    present: bool = True

    def index(self, others: int) -> int:
        """Its number among its client's units, of which there are ``others`` more."""
        return round(self.position * others)

    def within(self, units: Tensor, held: int, first: bool) -> Tensor:
        """A sample ``units`` of its client, who holds ``held``, with the hidden one in or out as it should be.

        The last draw of a sample is taken for the hidden unit's, so that all others are sampled alike in both worlds.
        """
        if self.sampled == "alone":
            return torch.arange(held)
        if not self.present:
            return units
        own = self.index(held - 1)
        others = units[units != held - 1]
        others = others + (others >= own)
        return torch.cat([others, torch.tensor([own])]).sort().values if first or self.sampled == "every" else others


@dataclass(frozen=True)
class Block:
    """Rows of a client that are sampled in the first steps only, if at all: what they are, no later query may tell.

    Attributes:
        client: whose.
        start: the number of the first of them; the block is all from there on.
        steps: how many Poisson samples they may be in.
    """

    client: int
    start: int
    steps: int


@dataclass
class WatchedClients(Clients):
    """Clients that note every query, sample and draw.

    Attributes:
        tape: what they did.
        hidden: the unit that is looked at, or the block of rows, if there is one.
        script: another world's tape, whose answers are given; None: their own.
    """

    tape: Tape = field(default_factory=Tape)
    hidden: Hidden | Block | None = None
    script: Tape | None = None
    placed: dict[int, Tensor] = field(default_factory=dict)
    """Where the hidden unit's rows stand in the batch that is being made, by client."""

    def add_noise(self, release: Release, round_: int, sent: Tensors, kept: Tensors | None = None) -> Noised:
        """As every client's; the answer is the script's where there is one, as far as clients noise it."""
        asked, held = copied(sent), copied(kept or {})
        noised = super().add_noise(release, round_, sent, kept)
        own = replace(noised, sent=copied(noised.sent), kept=copied(noised.kept))
        query = Query(self.tape.round, release, round_, self.members, asked, held, own, self._sampled(release))
        self.tape.queries.append(query)
        return noised if self.script is None else self._told(self.script, query, noised)

    def _sampled(self, release: Release) -> bool:
        latest = [sample.hidden for sample in self.tape.samples if sample.round == self.tape.round][-1:]
        return release.sample_rate == 1 or not latest or latest[0]

    def _told(self, script: Tape, query: Query, noised: Noised) -> Noised:
        index = len(self.tape.queries) - 1
        told = script.queries[index] if index < len(script.queries) else None
        if told is None or (told.round, told.release, told.step) != (query.round, query.release, query.step):
            raise Divergence(f"round {query.round} asks for noise on '{query.release.name}' only in the one of two neighbouring data sets")
        positions = torch.tensor([told.members.index(client) for client in self.members])
        own, others = query.shapes, told.shapes
        # a client that is missing may have been the only one to send a tensor of that name
        compared = own | others if query.members == told.members else own
        if different := next((name for part, name in compared if own.get((part, name)) != others.get((part, name))), None):
            raise Divergence(f"round {query.round}: name or shape of '{different}' in what is to be noised depends on the data")
        silo = self.plan is not None and self.plan.trust == "silo"
        sent = copied(told.noised.sent) if silo else noised.sent
        return replace(noised, sent=sent, kept={name: told.noised.kept[name][positions] for name in query.kept})

    def poisson(self, round_: int, rate: float, client_rate: float = 1.0) -> list[Tensor]:
        """As every client's, with the hidden unit in or out as it should be; the other units' draws do not depend on it."""
        rows, hidden = super().poisson(round_, rate, client_rate), True
        if isinstance(self.hidden, Block):
            hidden = len(self.tape.samples) < self.hidden.steps
            own = self.members.index(self.hidden.client)
            rows[own] = rows[own] if hidden else rows[own][rows[own] < self.hidden.start]
        for position, client in enumerate(self.members if isinstance(self.hidden, Hidden) else ()):
            assert isinstance(self.hidden, Hidden)
            if client == self.hidden.client:
                held, sampled = self.units(position), rows[position]
                sampled = sampled if self.groups is None else torch.unique_consecutive(self.groups[position][sampled])
                units = self.hidden.within(sampled, held, not self.tape.samples)
                rows[position] = self.rows_of(position, units)
                hidden = not self.hidden.present or self.hidden.index(held - 1) in units
            elif self.hidden.sampled == "alone":
                rows[position] = rows[position][:0]
        self.tape.samples.append(Sample(self.tape.round, round_, rate, client_rate, [chosen.clone() for chosen in rows], hidden))
        return rows

    def drawn(self, rows: Sequence[Tensor], round_: int, shapes: Mapping[str, tuple[int, ...]]) -> list[Tensors]:
        """As every client's; the rows are noted."""
        self.tape.taken.append((self.tape.round, [chosen.clone() for chosen in rows]))
        for position, (client, chosen) in enumerate(zip(self.members, rows, strict=True)):
            if isinstance(self.hidden, Hidden) and client == self.hidden.client and self.hidden.present:
                hidden = self.rows_of(position, torch.tensor([self.hidden.index(self.units(position) - 1)]))
                self.placed[client] = torch.isin(chosen, hidden).nonzero()[:, 0]
        made = super().drawn(rows, round_, shapes)
        self.placed.clear()
        return made

    def draws(self, client: int, rows: int, round_: int, shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
        """As every client's; in a forced world the first world's, without the hidden unit's."""
        made = super().draws(client, rows, round_, shapes)
        noted = self.tape.draws.setdefault((client, round_), [])
        if self.script is not None:
            told = self.script.draws.get((client, round_), [])[len(noted) : len(noted) + 1]
            if told and told[0].keys() == made.keys() and all(len(told[0][name]) >= rows for name in made):
                made = {name: told[0][name][:rows].clone() for name in made}
        others = torch.ones(rows, dtype=torch.bool)
        others[self._hidden_in(client, rows)] = False
        noted.append({name: value[others] for name, value in made.items()})
        return made

    def _hidden_in(self, client: int, rows: int) -> Tensor:
        """The positions of the hidden unit's draws among those of ``rows`` rows."""
        if not isinstance(self.hidden, Hidden) or client != self.hidden.client or not self.hidden.present or not rows:
            return torch.empty(0, dtype=torch.long)
        if client in self.placed:
            return self.placed[client]
        # whoever asks without a batch means all rows, in order
        position = self.members.index(client)
        return self.rows_of(position, torch.tensor([self.hidden.index((rows if self.groups is None else self.units(position)) - 1)]))


class WatchedPool(LocalPool):
    """A pool that notes the messages of every round, and gives another world's where there is a script.

    Args:
        cohorts: from :func:`watched`; the tape is the first one's.
        order: the positions of the cohorts in the order in which they are computed; messages are in client order in any case.
        script: as for :class:`WatchedClients`.
    """

    def __init__(self, cohorts: Sequence[Cohort], order: Sequence[int] | None = None, script: Tape | None = None) -> None:
        super().__init__(cohorts)
        self.order = range(len(cohorts)) if order is None else order
        self.script = script

    @property
    def tapes(self) -> list[Tape]:
        """One a cohort."""
        return [tape_of(cohort) for cohort in self.cohorts]

    @property
    def tape(self) -> Tape:
        """The first cohort's, which holds all messages."""
        return self.tapes[0]

    def round(self, round_: Round, broadcast: Tensors) -> list[Message]:
        """See :class:`fedsim.methods.messages.Pool`."""
        for tape in self.tapes:
            tape.round = round_.number
        messages = {i: self.cohorts[i].round(round_, broadcast) for i in self.order}
        sent = [messages[i] for i in range(len(self.cohorts))]
        self.tape.messages[round_.number] = [replace(message, sums=copied(message.sums)) for message in sent]
        return sent if self.script is None else [replace(m, sums=copied(m.sums)) for m in self.script.messages[round_.number]]


def watched(
    spec: CohortSpec, x: NDArray[np.float32], y: NDArray[np.int64], hidden: Hidden | Block | None = None, script: Tape | None = None
) -> Cohort:
    """A cohort whose clients are watched."""
    cohort = Cohort(spec, x, y)
    given: dict[str, Any] = {each.name: getattr(cohort.clients, each.name) for each in fields(Clients)}
    cohort.clients = WatchedClients(**given, hidden=hidden, script=script)
    return cohort


def tape_of(cohort: Cohort) -> Tape:
    """What a watched cohort did."""
    clients = cohort.clients
    assert isinstance(clients, WatchedClients)
    return clients.tape
