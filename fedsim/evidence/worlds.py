"""Trainings whose clients are watched, or are given the noisy outputs of another training.

Every query that a mechanism answers goes through methods of
:class:`fedsim.methods.clients.Clients`. All noise of clients is drawn in ``add_noise``, all Poisson
samples in ``poisson``, and all random numbers for examples in ``drawn`` and ``draws``. So whoever
watches these methods sees every query. Three draws of
:class:`fedsim.methods.local_training.LocalTraining` are not seen: who takes part in a round, which
examples a local step takes, and what the step draws for them. They do not matter, because an update
is clipped whole, whatever it was computed from.

A second world can be *forced*: its queries are recorded, and in place of its own noisy answers it
gets those of the first world. Two worlds that differ in one unit then see the same outputs, as in
the definition of differential privacy. Only the queries still differ between them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.methods.algorithm import Algorithm
from fedsim.methods.clients import Clients, Noised
from fedsim.methods.messages import Message, Round, Shapes, Tensors
from fedsim.privacy.plan import Release, Trust
from fedsim.training.cohort import Cohort, CohortSpec, LocalPool
from fedsim.training.state import copied, nested

HIDDEN_STREAM = 2**31
"""The number of the stream from which a hidden unit's random numbers are drawn.

It is no client's number, so the other examples get the same random numbers with the unit and
without it.
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
        plain: the tensors before the noise.
        noised: the tensors after the noise.
        sampled: whether the hidden unit or block was in the last Poisson sample of the round. It is
            true if all units take part, if there was no sample, or if nothing is hidden.
    """

    round: int
    release: Release
    step: int
    members: tuple[int, ...]
    plain: Noised
    noised: Noised
    sampled: bool

    def shapes(self) -> set[tuple[str, torch.Size]]:
        """Return name and shape of every sum, and of one client's part of every kept tensor."""
        sent = {(f"sent.{name}", value.shape) for name, value in self.plain.sent.items()}
        kept = {(f"kept.{name}", value.shape[1:]) for name, value in self.plain.kept.items()}
        return sent | kept

    def is_same_step_as(self, other: Query) -> bool:
        """Return whether another query is of the same round, step and mechanism."""
        same_step = self.round == other.round and self.step == other.step
        return same_step and self.release == other.release


def noised_by_clients(tensors: Noised, trust: Trust) -> Tensors:
    """Return the tensors of a query that get noise from clients.

    These are the kept tensors. Under ``trust: silo`` they are the sums, too.
    """
    kept = nested("kept", tensors.kept)
    if trust == "silo":
        return kept | nested("sent", tensors.sent)
    return kept


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """Return all numbers of the tensors one after another, in float64."""
    parts = [value.detach().double().flatten() for value in tensors]
    return torch.cat([torch.zeros(0).double(), *parts])


@dataclass(frozen=True)
class Sample:
    """One call of ``poisson``.

    Attributes:
        round: the number of the round.
        step: the number that it was drawn with.
        rate: the sampling rate.
        hidden: whether the hidden unit or block is in the sample; true if this world has none.
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

    def queries_of(self, round_: int) -> list[Query]:
        """Return the queries of the round with this number."""
        return [query for query in self.queries if query.round == round_]


@dataclass(frozen=True)
class Hidden:
    """An example or a group of examples of a client that only one of two worlds has.

    Attributes:
        client: the number of its client.
        sampled: which Poisson samples hold it. With ``chance`` it is sampled like any other unit.
            With ``every`` all samples hold it, and with ``first`` only the first one does. With
            ``alone`` every sample is all examples of its client and of no other client, in both
            worlds.
        position: where it stands among its client's units: 0 is first, 1 is last.
        present: whether this world has it.
    """

    client: int
    sampled: Literal["chance", "every", "first", "alone"]
    position: float = 1.0
    present: bool = True

    def index(self, others: int) -> int:
        """Return its number among its client's units, of which there are ``others`` more."""
        return round(self.position * others)

    def changed_sample(self, units: Tensor, count: int, is_first: bool) -> Tensor:
        """Return a Poisson sample of its client, with the hidden unit as ``sampled`` says.

        The last unit's draw is taken for the hidden unit, so that all other units are sampled alike
        in both worlds.

        Args:
            units: the numbers of the sampled units, int64 and ascending.
            count: the number of units of the client.
            is_first: whether this is the first sample of the training.
        """
        if self.sampled == "alone":
            return torch.arange(count)
        if not self.present:
            return units
        number = self.index(count - 1)
        others = units[units != count - 1]
        was_drawn = len(others) < len(units)
        # Units behind the hidden one have a number that is higher by one.
        others = others + (others >= number)
        is_sampled = {"chance": was_drawn, "every": True, "first": is_first}[self.sampled]
        if is_sampled:
            return torch.cat([others, torch.tensor([number])]).sort().values
        return others


@dataclass(frozen=True)
class RowBlock:
    """The last examples of a client, which no Poisson sample after the first ``steps`` ones holds.

    Later queries must not depend on these examples.

    Attributes:
        client: the number of the client.
        start: the number of the first example of the block.
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
        hidden: the unit, or the block of examples, in which two worlds differ.
        script: the tape of another world, whose noisy outputs they are given; None for their own.
        last_sample: the examples of each client's last Poisson sample, by its number.
    """

    tape: Tape = field(default_factory=Tape)
    hidden: Hidden | RowBlock | None = None
    script: Tape | None = None
    last_sample: dict[int, Tensor] = field(default_factory=dict)

    def add_noise(
        self,
        release: Release,
        round_: int,
        sent: Tensors,
        kept: Tensors | None = None,
    ) -> Noised:
        """Add noise, record the query, and return the noisy tensors.

        With a script, the tensors that clients noise come from the script.

        Raises:
            Divergence: the script has no such query.
        """
        plain = Noised(copied(sent), copied(kept or {}))
        noised = super().add_noise(release, round_, sent, kept)
        tape = self.tape
        in_sample = [sample.hidden for sample in tape.samples if sample.round == tape.round]
        # The last sample counts. If the round has drawn no sample, its query is about all units.
        is_sampled = release.sample_rate == 1 or all(in_sample[-1:])
        query = Query(
            tape.round,
            release,
            round_,
            self.members,
            plain,
            Noised(copied(noised.sent), copied(noised.kept)),
            is_sampled,
        )
        tape.queries.append(query)
        if self.script is None:
            return noised
        return self._outputs_of_script(self.script, query, noised)

    def _outputs_of_script(
        self,
        script: Tape,
        query: Query,
        noised: Noised,
    ) -> Noised:
        """Return the noisy outputs of the script for a query, as far as clients noise them."""
        number = len(self.tape.queries) - 1
        if number >= len(script.queries) or not script.queries[number].is_same_step_as(query):
            raise Divergence(
                f"round {query.round} asks for noise on '{query.release.name}' in only one of "
                "the two data sets"
            )
        first = script.queries[number]
        # A client that is missing may have been the only one to send a tensor of some name.
        differing = query.shapes() - first.shapes()
        if query.members == first.members:
            differing = query.shapes() ^ first.shapes()
        if differing:
            path, _ = min(differing)
            _, _, name = path.partition(".")
            raise Divergence(
                f"round {query.round}: the name or the shape of '{name}', which gets noise, "
                "depends on the data"
            )
        sent = noised.sent
        if self.plan is not None and self.plan.trust == "silo":
            sent = copied(first.noised.sent)
        positions = torch.tensor([first.members.index(client) for client in self.members])
        kept = {name: first.noised.kept[name][positions] for name in query.plain.kept}
        return Noised(sent, kept)

    def poisson(
        self,
        round_: int,
        rate: float,
        client_rate: float = 1.0,
    ) -> list[Tensor]:
        """Return each member's Poisson sample, changed as :attr:`hidden` says.

        The samples of the other units do not depend on the hidden one.
        """
        rows = super().poisson(round_, rate, client_rate)
        has_hidden = True
        hidden = self.hidden
        if isinstance(hidden, RowBlock):
            has_hidden = len(self.tape.samples) < hidden.steps
            # Clients.only may have left the client of the block out.
            if not has_hidden and hidden.client in self.members:
                position = self.members.index(hidden.client)
                rows[position] = rows[position][rows[position] < hidden.start]
        elif hidden is not None:
            for position, client in enumerate(self.members):
                if client == hidden.client:
                    rows[position] = self._sample_with_hidden(hidden, position, rows[position])
                    hidden_rows = self._hidden_rows(position)
                    has_hidden = bool(torch.isin(hidden_rows, rows[position]).all())
                elif hidden.sampled == "alone":
                    rows[position] = rows[position][:0]
        self.tape.samples.append(Sample(self.tape.round, round_, rate, has_hidden))
        self.last_sample.update(zip(self.members, rows, strict=True))
        return rows

    def _sample_with_hidden(
        self,
        hidden: Hidden,
        position: int,
        rows: Tensor,
    ) -> Tensor:
        """Return the examples sampled of the hidden unit's client, of which ``rows`` were drawn."""
        units = rows
        if self.groups is not None:
            units = torch.unique_consecutive(self.groups[position][rows])
        is_first = not self.tape.samples
        units = hidden.changed_sample(units, self.units(position), is_first)
        return self.rows_of(position, units)

    def drawn(
        self,
        rows: Sequence[Tensor],
        round_: int,
        shapes: Shapes,
    ) -> list[Tensors]:
        """Return the draws of a batch; examples of the hidden unit draw from their own stream."""
        return [
            self._draws_of_rows(position, numbers, round_, shapes)
            for position, numbers in enumerate(rows)
        ]

    def draws(
        self,
        client: int,
        rows: int,
        round_: int,
        shapes: Shapes,
    ) -> Tensors:
        """Return standard normal draws ``[rows, ...]`` by name for examples of one member.

        These are the examples of the member's last Poisson sample if it has as many, else all
        examples of the member. Where the hidden unit is among other examples is not known.
        """
        position = self.members.index(client)
        numbers = torch.arange(rows)
        sample = self.last_sample.get(client, numbers)
        if len(sample) == rows:
            numbers = sample
        return self._draws_of_rows(position, numbers, round_, shapes)

    def _draws_of_rows(
        self,
        position: int,
        numbers: Tensor,
        round_: int,
        shapes: Shapes,
    ) -> Tensors:
        """Return standard normal draws ``[n, ...]`` by name for examples of one member.

        The hidden unit has a stream of its own, so the draws of all others do not depend on it.

        Args:
            position: the position of the member.
            numbers: the numbers of the examples ``[n]``.
            round_: the number of the step.
            shapes: by name, the shape of one example's draws.
        """
        client = self.members[position]
        is_hidden = torch.isin(numbers, self._hidden_rows(position))
        count = int(is_hidden.sum())
        others = super().draws(client, len(numbers) - count, round_, shapes)
        if not count:
            return others
        of_hidden = super().draws(HIDDEN_STREAM, count, round_, shapes)
        # Where each example is found if those of the hidden unit are put behind the others.
        places = is_hidden.to(torch.uint8).argsort(stable=True).argsort()
        return {name: torch.cat([others[name], of_hidden[name]])[places] for name in shapes}

    def _hidden_rows(self, position: int) -> Tensor:
        """Return the hidden unit's examples among those of a member; none if it is elsewhere."""
        hidden = self.hidden
        client = self.members[position]
        if isinstance(hidden, Hidden) and hidden.present and hidden.client == client:
            number = hidden.index(self.units(position) - 1)
            return self.rows_of(position, torch.tensor([number]))
        return torch.zeros(0, dtype=torch.long)


class WatchedPool(LocalPool):
    """A pool of watched cohorts.

    Args:
        cohorts: the cohorts.
        order: the order in which they compute; None for that of their numbers.
        script: tapes of another world, whose messages the server is given in place of these
            cohorts' messages.
        tried: an algorithm whose contract is tested after each round; None for no test.
    """

    def __init__(
        self,
        cohorts: Sequence[Cohort],
        order: Sequence[int] | None = None,
        script: Sequence[Tape] | None = None,
        tried: Algorithm | None = None,
    ) -> None:
        super().__init__(cohorts, tried)
        self.order = order or range(len(cohorts))
        self.script = script

    @property
    def tapes(self) -> list[Tape]:
        """The tape of each cohort."""
        of_cohorts = [cast(WatchedClients, cohort.clients) for cohort in self.cohorts]
        return [clients.tape for clients in of_cohorts]

    def round(self, round_: Round, broadcast: Tensors) -> list[Message]:
        """Run one round of all cohorts and return their messages, or those of the script."""
        for number in self.order:
            tape = self.tapes[number]
            tape.round = round_.number
            message = self.cohorts[number].round(round_, broadcast)
            tape.messages[round_.number] = _copy_of(message)
        if self.tried is not None:
            self.tried.check_contract(round_, broadcast)
        tapes = self.script or self.tapes
        return [_copy_of(tape.messages[round_.number]) for tape in tapes]


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
        x: the examples of the data set.
        y: their labels.
        hidden: the unit, or the block of examples, in which two worlds differ.
        script: the tape of another world, whose noisy outputs the clients are given.
    """
    return Cohort(
        spec,
        x,
        y,
        clients=partial(WatchedClients, hidden=hidden, script=script),
    )


def _copy_of(message: Message) -> Message:
    return replace(message, sums=copied(message.sums))
