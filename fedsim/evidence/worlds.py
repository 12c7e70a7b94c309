"""Trainings whose clients are watched, and whose clients can be given the noisy outputs of another
training.

All noise of clients is drawn in :meth:`fedsim.methods.clients.Clients.add_noise`, all Poisson
samples in ``poisson``, all draws for rows in ``draws``, so whoever watches these sees every query
that a mechanism answers. Two draws of
:class:`fedsim.methods.local_training.LocalTraining` go past them: who takes part in a round, and
what a local step draws for its rows; an update is clipped whole, whatever it was computed from. A
second world can be *forced*: its queries are noted, and in place of its own noisy answers it gets
those of the first world. Two worlds that differ in one unit then see the same outputs, as the
definition of differential privacy has it, and what still differs between them are the queries.
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
"""Number of the stream of a hidden unit's draws, so that those of the other rows are the same with
and without it; no client's.
"""


class Divergence(Exception):
    """A forced world asked for something else than the first one: which mechanisms run depends on
    the data.
    """


@dataclass(frozen=True)
class Query:
    """One call of ``add_noise``: its round, mechanism and the ``step`` that its noise was drawn
    with, the clients that it is about.

    What is ``sent`` and ``kept`` before the noise, both after it, and whether the hidden unit was
    in the Poisson sample.
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
        """By part and name: of what is sent, and of what is kept of one client."""
        sent = {("sent", name): value.shape for name, value in self.sent.items()}
        return sent | {("kept", name): value.shape[1:] for name, value in self.kept.items()}


@dataclass(frozen=True)
class Sample:
    """One call of ``poisson``: its round, step and rate, and whether the hidden unit, if any, is in
    it.
    """

    round: int
    step: int
    rate: float
    hidden: bool


@dataclass
class Tape:
    """What the clients of a cohort did, in order: every query, every sample, and the message by its
    round.
    """

    round: int = -1
    queries: list[Query] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    messages: dict[int, Message] = field(default_factory=dict)


@dataclass(frozen=True)
class Hidden:
    """The unit of a client, a row or a group of rows, that the other world lacks.

    It is ``sampled`` by chance as every unit is; or it is in every Poisson sample, or in the first
    one only; or every sample is all rows of its client ``alone``, in both worlds. Its ``position``
    among its client's units is 0 first, 1 last; it is ``present`` in one world.
    """

    client: int
    sampled: Literal["chance", "every", "first", "alone"] = "every"
    position: float = 1.0
    present: bool = True

    def index(self, others: int) -> int:
        """Its number among its client's units, of which there are ``others`` more."""
        return round(self.position * others)

    def within(self, units: Tensor, held: int, first: bool) -> Tensor:
        """A sample ``units`` of its client, who holds ``held``, with the hidden one in or out as it
        should be.

        The last draw of a sample is taken for the hidden unit's, so that all others are sampled
        alike in both worlds.
        """
        if self.sampled == "alone":
            return torch.arange(held)
        if not self.present:
            return units
        own = self.index(held - 1)
        others = units[units != held - 1]
        drawn = len(others) < len(units)
        others = others + (others >= own)
        chosen = {"chance": drawn, "every": True, "first": first}[self.sampled]
        if chosen:
            return torch.cat([others, torch.tensor([own])]).sort().values
        return others


@dataclass(frozen=True)
class RowBlock:
    """Rows of a client from ``start`` on that are in the first ``steps`` Poisson samples, if any:
    later queries must not depend on them.
    """

    client: int
    start: int
    steps: int


@dataclass
class WatchedClients(Clients):
    """Clients that note every query and sample; with a ``script``, another world's tape, they are
    given its answers.
    """

    tape: Tape = field(default_factory=Tape)
    hidden: Hidden | RowBlock | None = None
    script: Tape | None = None
    placed: dict[int, Tensor] = field(default_factory=dict)
    """Where the hidden unit's rows stand in the batch that is being made, by client."""

    def add_noise(
        self, release: Release, round_: int, sent: Tensors, kept: Tensors | None = None
    ) -> Noised:
        """As every client's; the answer is the script's where there is one, as far as clients noise
        it.
        """
        before = copied(sent)
        held = copied(kept or {})
        noised = super().add_noise(release, round_, sent, kept)
        own = replace(noised, sent=copied(noised.sent), kept=copied(noised.kept))
        sampled = release.sample_rate == 1 or next(
            (each.hidden for each in self.tape.samples[::-1] if each.round == self.tape.round), True
        )
        query = Query(self.tape.round, release, round_, self.members, before, held, own, sampled)
        self.tape.queries.append(query)
        if self.script is None:
            return noised
        return self._scripted(self.script, query, noised)

    def _scripted(self, script: Tape, query: Query, noised: Noised) -> Noised:
        index = len(self.tape.queries) - 1
        if index < len(script.queries):
            first = script.queries[index]
        else:
            first = None
        if first is None or (first.round, first.release, first.step) != (
            query.round,
            query.release,
            query.step,
        ):
            raise Divergence(
                f"round {query.round} asks for noise on '{query.release.name}' only in the "
                "one of two neighbouring data sets"
            )
        positions = torch.tensor([first.members.index(client) for client in self.members])
        own = query.shapes()
        others = first.shapes()
        # a client that is missing may have been the only one to send a tensor of that name
        if query.members == first.members:
            compared = own | others
        else:
            compared = own
        if different := next(
            (name for part, name in compared if own.get((part, name)) != others.get((part, name))),
            None,
        ):
            raise Divergence(
                f"round {query.round}: name or shape of '{different}' in what is to be "
                "noised depends on the data"
            )
        silo = self.plan is not None and self.plan.trust == "silo"
        if silo:
            sent = copied(first.noised.sent)
        else:
            sent = noised.sent
        return replace(
            noised,
            sent=sent,
            kept={name: first.noised.kept[name][positions] for name in query.kept},
        )

    def poisson(self, round_: int, rate: float, client_rate: float = 1.0) -> list[Tensor]:
        """As every client's, with the hidden unit in or out as it should be; the other units' draws
        do not depend on it.
        """
        rows = super().poisson(round_, rate, client_rate)
        present = True
        if isinstance(self.hidden, RowBlock):
            present = len(self.tape.samples) < self.hidden.steps
            own = self.members.index(self.hidden.client)
            if present:
                rows[own] = rows[own]
            else:
                rows[own] = rows[own][rows[own] < self.hidden.start]
        elif self.hidden is not None:
            for position, client in enumerate(self.members):
                if client == self.hidden.client:
                    held = self.units(position)
                    sampled = rows[position]
                    if self.groups is not None:
                        sampled = torch.unique_consecutive(self.groups[position][sampled])
                    units = self.hidden.within(sampled, held, not self.tape.samples)
                    rows[position] = self.rows_of(position, units)
                    present = not self.hidden.present or self.hidden.index(held - 1) in units
                elif self.hidden.sampled == "alone":
                    rows[position] = rows[position][:0]
        self.tape.samples.append(Sample(self.tape.round, round_, rate, present))
        return rows

    def drawn(
        self, rows: Sequence[Tensor], round_: int, shapes: Mapping[str, tuple[int, ...]]
    ) -> list[Tensors]:
        """As every client's; where the hidden unit's rows stand among these is noted."""
        for position, (client, chosen) in enumerate(zip(self.members, rows, strict=True)):
            if self._hides(client):
                self.placed[client] = torch.isin(
                    chosen, self._hidden_rows(position, self.units(position))
                ).nonzero()[:, 0]
        made = super().drawn(rows, round_, shapes)
        self.placed.clear()
        return made

    def draws(
        self, client: int, rows: int, round_: int, shapes: Mapping[str, tuple[int, ...]]
    ) -> Tensors:
        """As every client's; those of the hidden unit come from a stream of their own and do not
        move the others'.
        """
        if not rows or not self._hides(client):
            return super().draws(client, rows, round_, shapes)
        position = self.members.index(client)
        hidden = torch.zeros(rows, dtype=torch.bool)
        # whoever asks without a batch means all rows, in order
        if self.groups is None:
            units = rows
        else:
            units = self.units(position)
        hidden[self.placed.get(client, self._hidden_rows(position, units))] = True
        if not hidden.any():
            return super().draws(client, rows, round_, shapes)
        others = super().draws(client, int((~hidden).sum()), round_, shapes)
        own = super().draws(HIDDEN_STREAM, int(hidden.sum()), round_, shapes)
        made = {name: torch.empty(rows, *shape) for name, shape in shapes.items()}
        for name, value in made.items():
            value[~hidden] = others[name]
            value[hidden] = own[name]
        return made

    def _hides(self, client: int) -> bool:
        return (
            isinstance(self.hidden, Hidden) and self.hidden.present and client == self.hidden.client
        )

    def _hidden_rows(self, position: int, units: int) -> Tensor:
        """The hidden unit's rows among those of its client, who holds so many ``units``."""
        assert isinstance(self.hidden, Hidden)
        return self.rows_of(position, torch.tensor([self.hidden.index(units - 1)]))


class WatchedPool(LocalPool):
    """A pool that notes every message, and gives those of a ``script``, another world's tapes; it
    computes cohorts in ``order``.
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
        """One a cohort."""
        return [tape_of(cohort) for cohort in self.cohorts]

    def round(self, round_: Round, broadcast: Tensors) -> list[Message]:
        """See :class:`fedsim.training.cohort.LocalPool`."""
        sent: dict[int, Message] = {}
        for i in self.order:
            tape = tape_of(self.cohorts[i])
            tape.round = round_.number
            sent[i] = self.cohorts[i].round(round_, broadcast)
            tape.messages[round_.number] = _copied(sent[i])
        if self.script is None:
            return [sent[i] for i in range(len(self.cohorts))]
        return [_copied(tape.messages[round_.number]) for tape in self.script]


def watched(
    spec: CohortSpec,
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    hidden: Hidden | RowBlock | None = None,
    script: Tape | None = None,
) -> Cohort:
    """A cohort whose clients are watched."""
    return Cohort(spec, x, y, clients=partial(WatchedClients, hidden=hidden, script=script))


def tape_of(cohort: Cohort) -> Tape:
    """What a watched cohort did."""
    assert isinstance(cohort.clients, WatchedClients)
    return cohort.clients.tape


def _copied(message: Message) -> Message:
    return replace(message, sums=copied(message.sums))
