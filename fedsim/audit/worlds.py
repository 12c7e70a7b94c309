"""Trainings with and without a unit through the real rounds, watched by an adversary who sees every noisy output.

The unit is a row, the last one of the last client, a group of its last rows, or that client. A world is a whole training of all clients.
The live one draws its own noise; two more are *forced*: the one without the unit, and the one with the unit in every sample, whose clients
get the live one's noisy answers and whose server gets its sums. What differs between these two is what the unit adds to a query, through
whichever client, and what is left of a live output without the unit is noise, or noise and the unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import starmap
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fedsim.audit.setting import Labels, Rows, Setting
from fedsim.errors import UserError
from fedsim.methods.clients import Clients, Noised
from fedsim.methods.messages import Message, Round, Tensors
from fedsim.methods.own_errors import own_errors
from fedsim.methods.registry import lookup
from fedsim.privacy.plan import Release
from fedsim.seeds import Seeds
from fedsim.simulation.cohort import Cohort, CohortSpec, LocalPool
from fedsim.simulation.fresh import ProcessEnded, forked, in_fresh_processes
from fedsim.simulation.rounds import train
from fedsim.simulation.state import copied

Result = TypeVar("Result")

OWN_STREAM = 2**31
"""Number of the stream of a canary's draws, so that those of the other rows are the same with and without it; no client's."""


@dataclass(frozen=True)
class Canary:
    """A unit to look for: one row, a group of rows, or all rows of a client.

    Attributes:
        x: ``[n, d]``, of norm 1.
        y: ``[n]``.
        label: what is special about it.
    """

    x: Rows
    y: Labels
    label: str


@dataclass(frozen=True)
class Query:
    """One call of ``add_noise``: what was asked, and what the noise of the live world made of it."""

    release: Release
    step: int
    sent: Tensors
    kept: Tensors
    noised: Noised


@dataclass
class ToldClients(Clients):
    """Clients that note their queries, and that may be told the answers that others got.

    Attributes:
        canary: how many of the only member's last rows are a canary; its draws then come from a stream of its own.
        always: whether it is in every Poisson sample.
        told: another world's queries, whose noisy answers they get; None: they draw their own noise.
        queries: what they asked, in order.
        in_batch: whether the canary is among the rows that draws are made for.
    """

    canary: int = 0
    always: bool = False
    told: Sequence[Query] | None = None
    queries: list[Query] = field(default_factory=list)
    in_batch: bool = True

    def poisson(self, round_: int, rate: float, client_rate: float = 1.0) -> list[Tensor]:
        """As every client's; with the canary where it is in every sample."""
        rows = super().poisson(round_, rate, client_rate)
        if self.canary and self.always:
            own = torch.arange(len(self.x[0]) - self.canary, len(self.x[0]))
            rows = [torch.cat([rows[0][rows[0] < own[0]], own])]
        return rows

    def drawn(self, rows: Sequence[Tensor], round_: int, shapes: Mapping[str, tuple[int, ...]]) -> list[Tensors]:
        """As every client's; looks whether the canary is among ``rows``."""
        self.in_batch = len(self.x[0]) - 1 in rows[0].tolist()
        made = super().drawn(rows, round_, shapes)
        self.in_batch = True
        return made

    def draws(self, client: int, rows: int, round_: int, shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
        """As every client's; those of the canary, which comes last, do not move the others'."""
        if not (self.canary and self.in_batch and rows):
            return super().draws(client, rows, round_, shapes)
        others = super().draws(client, rows - self.canary, round_, shapes)
        own = super().draws(OWN_STREAM, self.canary, round_, shapes)
        return {name: torch.cat([others[name], own[name]]) for name in shapes}

    def add_noise(self, release: Release, round_: int, sent: Tensors, kept: Tensors | None = None) -> Noised:
        """As every client's, or what the others got."""
        asked, held = copied(sent), copied(kept or {})
        # what comes next may change what is kept in place, so that copies are noted
        if self.told is None:
            noised = super().add_noise(release, round_, sent, kept)
            heard = Noised(copied(noised.sent), copied(noised.kept))
        elif len(self.queries) == len(self.told):
            raise ValueError(f"step {round_}: how often noise is added depends on the unit")
        else:
            heard = self.told[len(self.queries)].noised
            silo = self.plan is not None and self.plan.trust == "silo"
            noised = Noised(copied(heard.sent) if silo else sent, copied(heard.kept) if held else {})
        self.queries.append(Query(release, round_, asked, held, heard))
        return noised


Output = tuple[Tensor, Tensor, float]
"""A noisy output's residual, its shift and the standard deviation of its noise; see :class:`Step`."""


@dataclass(frozen=True)
class Step:
    """What a round's or a local step's noisy outputs are to the adversary, flat, all outputs that share one sample together.

    Attributes:
        rate: probability that the unit is in the sample.
        residuals: each output less what it would be without unit and noise.
        shifts: what the unit adds to each, if it is in the sample.
        stds: standard deviation of each one's noise, as planned.
    """

    rate: float
    residuals: tuple[Tensor, ...]
    shifts: tuple[Tensor, ...]
    stds: tuple[float, ...]


@dataclass(frozen=True)
class Heard:
    """A round of a training: what every client asked and sent, and the sum as the server has it."""

    round: Round
    queries: tuple[tuple[Query, ...], ...]
    sums: tuple[Tensors, ...]
    noisy: Tensors


Tape = list[Heard]


class WatchedPool(LocalPool):
    """Clients, a cohort each, whose rounds are noted.

    Args:
        cohorts: the unit's client last.
        script: the tape whose messages are given in place of theirs; None: their own.
    """

    def __init__(self, cohorts: Sequence[Cohort], script: Tape | None) -> None:
        super().__init__(cohorts)
        self.script = script
        self.tape: Tape = []
        self._sums: tuple[Tensors, ...] = ()

    def round(self, round_: Round, broadcast: Tensors) -> list[Message]:
        """See :class:`fedsim.methods.messages.Pool`."""
        # the unit's client first: what a process keeps of the first rows that it saw then depends on the unit
        messages = [cohort.round(round_, broadcast) for cohort in reversed(self.cohorts)][::-1]
        self._sums = tuple(copied(message.sums) for message in messages)
        return messages if self.script is None else [Message(sums=copied(sums)) for sums in self.script[len(self.tape)].sums]

    def watch(self, round_: Round, noisy: Tensors) -> None:
        """Note a round; ``noisy`` is the sum as the server has it."""
        starts = [sum(len(heard.queries[k]) for heard in self.tape) for k in range(len(self.cohorts))]
        queries = tuple(tuple(clients_of(cohort).queries[start:]) for cohort, start in zip(self.cohorts, starts, strict=True))
        self.tape.append(Heard(round_, queries, self._sums, copied(noisy)))


@dataclass(frozen=True)
class Member:
    """A client of a world.

    Attributes:
        client: its number.
        x, y: its rows.
        canary: how many of the last ones are a canary that is no client.
        always: whether the unit is in every sample.
    """

    client: int
    x: Rows
    y: Labels
    canary: int = 0
    always: bool = False


def members_of(setting: Setting, canary: Canary | None, *, always: bool = False) -> list[Member]:
    """All clients, the last one with the unit behind its rows if there is one."""
    last = setting.canary_client
    x, y = setting.others[last]
    if canary is not None:
        x, y = np.concatenate([x, canary.x]), np.concatenate([y, canary.y])
    rows = 0 if canary is None or setting.task.unit == "client" else len(canary.x)
    return [*(Member(k, *setting.others[k]) for k in range(last)), Member(last, x, y, rows, always)]


def world(setting: Setting, seeds: Seeds, members: Sequence[Member], script: Tape | None = None) -> Tape:
    """Train in one world; in a process of its own, as this one is, where the setting asks for that.

    Args:
        setting: what is audited.
        seeds: of the training.
        members: its clients; in a forced world those that are asked.
        script: the live world's tape; None: this is the live world.

    Raises:
        PluginError: a class that is not shipped raised an exception.
        ProcessEnded: it ended its process.
    """
    return forked(_world, setting, seeds, members, script) if setting.apart else _world(setting, seeds, members, script)


def _world(setting: Setting, seeds: Seeds, members: Sequence[Member], script: Tape | None) -> Tape:
    # where it is raised, for no traceback leaves a process
    with own_errors(setting.algorithm):
        algorithm = setting.build()
        pool = WatchedPool([_cohort(setting, seeds, member, script) for member in members], script)
        steps = train(algorithm, pool, setting.plan, seeds, watch=pool.watch)
        # what is made after the last round follows from what was seen
        for _ in range(sum(phase.release.rounds for phase in algorithm.phases())):
            next(steps)
        steps.close()
        return pool.tape


def _cohort(setting: Setting, seeds: Seeds, member: Member, script: Tape | None) -> Cohort:
    params, client = dict(setting.params), member.client
    if member.always and setting.task.unit == "client" and "client_rate" in params:
        params["client_rate"] = 1.0
    groups = setting.groups(client, member.canary)
    held = ((np.arange(len(member.x)),), None if groups is None else (groups,))
    cohort = Cohort(CohortSpec(setting.algorithm, params, setting.task, setting.plan, seeds, (client,), *held), member.x, member.y)
    given: dict[str, Any] = {each.name: getattr(cohort.clients, each.name) for each in fields(Clients)}
    told = None if script is None else [query for heard in script for query in heard.queries[client]]
    cohort.clients = ToldClients(**given, canary=member.canary, always=member.always, told=told)
    return cohort


def clients_of(cohort: Cohort) -> ToldClients:
    """The clients of a cohort from here."""
    assert isinstance(cohort.clients, ToldClients)
    return cohort.clients


def in_clean_processes(setting: Setting, function: Callable[..., Result], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Result]:
    """``function(*each)`` for each of ``arguments``, in order, in fresh processes where the setting keeps them apart.

    Raises:
        UserError: the function raised it.
        ProcessEnded: such a process ended.
    """
    if not setting.apart:
        yield from starmap(function, arguments)
        return
    for outcome in in_fresh_processes(partial(_or_error, function), arguments, lookup(setting.algorithm).__module__):
        if isinstance(outcome, UserError | ProcessEnded):
            raise outcome
        yield outcome


def _or_error(function: Callable[..., Result], *arguments: Any) -> Result | UserError | ProcessEnded:
    try:
        return function(*arguments)
    except (UserError, ProcessEnded) as error:
        return error


@dataclass(frozen=True)
class Observed:
    """The adversary's notes of one training.

    Attributes:
        steps: its noisy outputs.
        others_noise: the noise of other clients, which whoever knows their data knows, and its standard deviation: it must not be the
            noise of an output that the unit changes.
    """

    steps: list[Step]
    others_noise: list[tuple[float, Tensor]]


def observed(setting: Setting, canary: Canary, seeds: Seeds, *, present: bool) -> Observed:
    """Train with or without the canary, and in the worlds beside it.

    Raises:
        ValueError: which mechanisms run depends on the unit.
    """
    sampled = any(rate < 1 for _, rate, _ in setting.events)
    live = world(setting, seeds, members_of(setting, canary if present else None))
    absent = world(setting, seeds, members_of(setting, None), live) if present else live
    always = world(setting, seeds, members_of(setting, canary, always=True), live) if sampled or not present else live
    found, at_clients = Observed([], []), setting.build().noise_at_clients()
    for heard in zip(live, absent, always, strict=True):
        groups = _at_clients(setting, found, heard, note_others=at_clients)
        groups[0] += _uncovered(heard) if at_clients else [_of_sum(setting, heard)]
        found.steps.extend(_step(heard[0].round.release.sample_rate, group) for group in groups if group)
    return found


Worlds = tuple[Heard, Heard, Heard]
"""A round in the live world, without the unit, and with it in every sample."""


def _at_clients(setting: Setting, found: Observed, worlds: Worlds, *, note_others: bool) -> list[list[Output]]:
    """The outputs that clients noised, of each local step; of other clients than the unit's those that the unit changes."""
    silo, clients = setting.task.trust == "silo", range(setting.task.clients)
    live, absent, always = (heard.queries for heard in worlds)
    if any(not len(live[k]) == len(absent[k]) == len(always[k]) for k in clients):
        raise ValueError(f"round {worlds[0].round.number}: how often noise is added depends on the unit")
    groups: list[list[Output]] = [[] for _ in range(max(1, *map(len, live)))]
    for k in clients:
        for group, one, *others in zip(groups, live[k], absent[k], always[k], strict=False):
            outputs = _named(one.noised, silo=silo, kept=bool(one.kept))
            if not outputs:
                continue
            residual, shift = _apart(outputs, *(_named(Noised(each.sent, each.kept), silo=silo) for each in others))
            std = setting.plan.noise_std(one.release.name)
            if k == setting.canary_client or shift.any():
                group.append((residual, shift, std))
            elif note_others:
                found.others_noise.append((std, residual))
    return groups


def _named(noised: Noised, *, silo: bool, kept: bool = True) -> dict[tuple[str, str], Tensor]:
    """What of a query is noised at the client."""
    told = {("kept", name): value for name, value in noised.kept.items()} if kept else {}
    return told | ({("sent", name): value for name, value in noised.sent.items()} if silo else {})


def _of_sum(setting: Setting, worlds: Worlds) -> Output:
    """The sum that the server noised."""
    live, absent, always = worlds
    base, whole = (_total(each.sums, live.noisy) for each in (absent, always))
    return (*_apart(live.noisy, base, whole), setting.plan.noise_std(live.round.release.name))


def _total(sums: Sequence[Tensors], names: Iterable[str]) -> Tensors:
    """The sum of all clients' sums in float64, so that what does not depend on the unit cancels."""
    return {name: torch.stack([each[name].double() for each in sums if name in each]).sum(0) for name in names}


def _uncovered(worlds: Worlds) -> Iterator[Output]:
    """What messages tell beside noisy outputs, which are equal in all worlds: where the unit changes it, no noise hides that."""
    for sent, without, with_ in zip(*(heard.sums for heard in worlds), strict=True):
        part = {name: value for name, value in sent.items() if name in without and name in with_}
        residual, shift = _apart(part, without, with_)
        size = float(shift.norm())
        if size > 1e-4 * (1e-3 + float(flat(part).norm())):
            yield residual, shift, 1e-2 * size


def _apart(outputs: Mapping[Any, Tensor], without: Mapping[Any, Tensor], with_: Mapping[Any, Tensor]) -> tuple[Tensor, Tensor]:
    """Residual and shift of outputs, flat."""
    base = {name: without[name].double() for name in outputs}
    return flat({n: outputs[n].double() - base[n] for n in outputs}), flat({n: with_[n].double() - base[n] for n in outputs})


def flat(tensors: Mapping[Any, Tensor]) -> Tensor:
    """All numbers in a row, in float64."""
    return torch.cat([torch.zeros(0, dtype=torch.double), *(value.detach().double().flatten() for value in tensors.values())])


def _step(rate: float, group: Sequence[Output]) -> Step:
    residuals, shifts, stds = zip(*group, strict=True)
    return Step(rate, residuals, shifts, stds)
