"""Trainings with and without a unit through the real rounds, watched by an adversary who sees every noisy output.

The unit is a row, the last one of the last client, a group of its last rows, or that client. Beside the clients that take part in the
training, the adversary computes for itself what the unit's client would have asked for without the unit, and with the unit in every sample,
given the same outputs: the difference is what the unit adds to a query, and what is left of an output without it is noise, or noise and the
unit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.evidence.audit.setting import Labels, Rows, Setting
from fedsim.methods.clients import Clients, Noised
from fedsim.methods.messages import Message, Pool, Round, Tensors
from fedsim.methods.parameters import add_in_order
from fedsim.privacy.plan import Release
from fedsim.seeds import Seeds
from fedsim.training.cohort import Cohort, CohortSpec, LocalPool
from fedsim.training.rounds import train
from fedsim.training.state import copied

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
    """One call of ``add_noise``: what was asked, and what the noise made of it."""

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
        told: whose noisy answers they get; None: they draw their own noise.
        queries: what they asked, in order.
        in_batch: whether the canary is among the rows that draws are made for.
    """

    canary: int = 0
    always: bool = False
    told: ToldClients | None = None
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
        if self.told is None:
            noised = super().add_noise(release, round_, sent, kept)
        else:
            told = self.told.queries[len(self.queries)].noised
            noised = Noised(told.sent if self.plan and self.plan.trust == "silo" else sent, copied(told.kept) if held else {})
        # what comes next may change what is kept in place
        self.queries.append(Query(release, round_, asked, held, Noised(copied(noised.sent), copied(noised.kept))))
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


class WatchedPool(LocalPool):
    """The clients of a training, and beside them the clients that the adversary computes.

    Args:
        setting: what is audited.
        cohorts: those that take part, the unit's client last and alone.
        absent: its client without the unit; the one that takes part if that has none.
        always: its client with the unit in every sample; the one that takes part where that is so in any case.
    """

    def __init__(self, setting: Setting, cohorts: Sequence[Cohort], absent: Cohort, always: Cohort) -> None:
        super().__init__(cohorts)
        self.setting, self.absent, self.always = setting, absent, always
        self.at_clients = setting.build().noise_at_clients()
        self.steps: list[Step] = []
        self.others_noise: list[tuple[float, Tensor]] = []
        self._sent: list[Message] = []
        self._beside: dict[str, Message] = {}
        self._seen = 0

    def round(self, round_: Round, broadcast: Tensors) -> list[Message]:
        """See :class:`fedsim.methods.messages.Pool`."""
        sent = super().round(round_, broadcast)
        self._beside = {"absent": sent[-1] if self.absent is self.cohorts[-1] else self.absent.round(round_, broadcast)}
        self._beside["always"] = sent[-1] if self.always is self.cohorts[-1] else self.always.round(round_, broadcast)
        self._sent = [Message(sums=copied(message.sums)) for message in sent]
        return sent

    def watch(self, round_: Round, noisy: Tensors) -> None:
        """Take a round's outputs: ``noisy`` is the sum as the server has it."""
        live, absent, always = (clients_of(cohort) for cohort in (self.cohorts[-1], self.absent, self.always))
        start, self._seen = self._seen, len(live.queries)
        if not len(live.queries) == len(absent.queries) == len(always.queries):
            raise ValueError(f"round {round_.number}: how often noise is added depends on the unit")
        silo = self.setting.task.trust == "silo"
        groups: list[list[Output]] = []
        covered: set[str] = set()
        for one, without, with_ in zip(live.queries[start:], absent.queries[start:], always.queries[start:], strict=True):
            std = self.setting.plan.noise_std(one.release.name)
            outputs = {("kept", name): value for name, value in one.noised.kept.items()} if one.kept else {}
            asked = [{("kept", name): value for name, value in each.kept.items()} for each in (without, with_)]
            if silo:
                covered |= set(one.noised.sent)
                outputs |= {("sent", name): value for name, value in one.noised.sent.items()}
                for held, each in zip(asked, (without, with_), strict=True):
                    held |= {("sent", name): value for name, value in each.sent.items()}
            groups.append([(*_apart(outputs, *asked), std)] if outputs else [])
        groups = groups or [[]]
        base, whole = self._beside["absent"].sums, self._beside["always"].sums
        if self.at_clients:
            groups[0] += self._uncovered(covered, base, whole)
            self._note_others(start)
        else:
            known = add_in_order([message.sums for message in (*self._sent[:-1], self._beside["absent"])])
            given = {name: whole[name].double() - base[name].double() for name in whole}
            std = self.setting.plan.noise_std(round_.release.name)
            part = (flat({n: noisy[n].double() - known[n].double() for n in noisy}), flat({n: given[n] for n in noisy}), std)
            groups[0].append(part)
        self.steps += [_step(round_.release.sample_rate, group) for group in groups if group]

    def _uncovered(self, covered: set[str], without: Tensors, with_: Tensors) -> list[Output]:
        """What a message tells beside its noisy sums: where the unit changes it, no noise hides that."""
        names = [name for name in with_ if name not in covered and name in without and name in self._sent[-1].sums]
        part = {name: self._sent[-1].sums[name] for name in names}
        residual, shift = _apart(part, {name: without[name] for name in names}, {name: with_[name] for name in names})
        size = float(shift.norm())
        seen = size > 1e-4 * (1e-3 + float(flat(part).norm()))
        return [(residual, shift, 1e-2 * size)] if seen else []

    def _note_others(self, start: int) -> None:
        """The noise of other clients, which whoever knows their data knows: it must not be the unit's client's."""
        for cohort in self.cohorts[:-1]:
            for query in clients_of(cohort).queries[start:]:
                added = {name: query.noised.kept[name] - value for name, value in query.kept.items()}
                added |= {f"sent {name}": query.noised.sent[name] - value for name, value in query.sent.items()}
                self.others_noise.append((self.setting.plan.noise_std(query.release.name), flat(added)))


def observed(setting: Setting, canary: Canary, seeds: Seeds, *, present: bool) -> WatchedPool:
    """Train with or without the canary; the adversary's notes.

    Raises:
        ValueError: which mechanisms run depends on the unit.
    """
    last = setting.canary_client
    others = [cohort_of(setting, seeds, client, None) for client in range(last)]
    live = cohort_of(setting, seeds, last, canary if present else None)
    absent = live if not present else cohort_of(setting, seeds, last, None, told=clients_of(live))
    sampled = any(rate < 1 for _, rate, _ in setting.events)
    always = cohort_of(setting, seeds, last, canary, told=clients_of(live), always=True) if sampled or not present else live
    pool = WatchedPool(setting, [*others, live], absent, always)
    trained(setting, pool, seeds, pool.watch)
    return pool


def cohort_of(
    setting: Setting, seeds: Seeds, client: int, canary: Canary | None, told: ToldClients | None = None, *, always: bool = False
) -> Cohort:
    """One client with its rows, and the canary behind them.

    Args:
        setting: what is audited.
        seeds: of the training.
        client: its number.
        canary: the unit.
        told: whose answers it gets; None: its own.
        always: whether the unit is in every sample.
    """
    x, y = setting.others[client]
    if canary is not None:
        x, y = np.concatenate([x, canary.x]), np.concatenate([y, canary.y])
    rows = 0 if canary is None or setting.task.unit == "client" else len(canary.x)
    return client_of(setting, seeds, client, (x, y), told, canary=rows, always=always)


def client_of(
    setting: Setting,
    seeds: Seeds,
    client: int,
    rows: tuple[Rows, Labels],
    told: ToldClients | None = None,
    *,
    canary: int = 0,
    always: bool = False,
) -> Cohort:
    """One client with these rows, the last ``canary`` of which are one."""
    params = dict(setting.params)
    if always and setting.task.unit == "client" and "client_rate" in params:
        params["client_rate"] = 1.0
    x, y = rows
    groups = setting.groups(client, canary)
    held = ((np.arange(len(x)),), None if groups is None else (groups,))
    spec = CohortSpec(setting.algorithm, params, setting.task, setting.plan, seeds, (client,), *held)
    cohort = Cohort(spec, x, y)
    given: dict[str, Any] = {each.name: getattr(cohort.clients, each.name) for each in fields(Clients)}
    cohort.clients = ToldClients(**given, canary=canary, always=always, told=told)
    return cohort


def clients_of(cohort: Cohort) -> ToldClients:
    """The clients of a cohort from here."""
    assert isinstance(cohort.clients, ToldClients)
    return cohort.clients


def trained(setting: Setting, pool: Pool, seeds: Seeds, watch: Callable[[Round, Tensors], None]) -> None:
    """All rounds; what is made after the last one follows from what was seen, and is left out."""
    algorithm = setting.build()
    steps = train(algorithm, pool, setting.plan, seeds, watch=watch)
    for _ in range(sum(phase.release.rounds for phase in algorithm.phases())):
        next(steps)
    steps.close()


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
