"""Trainings with and without a unit through the real rounds, watched by an adversary who sees every noisy output.

The unit is a row, the last one of the last client, a group of its last rows, or that client. A world is a whole training of all clients.
The live one draws its own noise; two more are *forced*: the one without the unit, and the one with the unit in every sample, whose clients
get the live one's noisy answers and whose server gets its sums. What differs between these two is what the unit adds to a query, through
whichever client, and what is left of a live output without the unit is noise, or noise and the unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import starmap
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from fedsim.evidence.audit.setting import Labels, Rows, Setting
from fedsim.evidence.forked import forked, in_forks
from fedsim.evidence.worlds import Divergence, Hidden, Tape, WatchedPool, choice_range, watched
from fedsim.methods.clients import Noised
from fedsim.methods.messages import Round, Tensors
from fedsim.methods.phase import Phase
from fedsim.plugins.own_errors import own_errors
from fedsim.seeds import Seeds
from fedsim.training.cohort import Cohort, CohortSpec
from fedsim.training.rounds import train
from fedsim.training.state import copied

Result = TypeVar("Result")


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


class NoisyOutput(NamedTuple):
    """A noisy output as the adversary has it, flat.

    Attributes:
        residual: the output less what it would be without unit and noise.
        shift: what the unit adds to it, if it is in the sample.
        std: standard deviation of its noise, as planned.
        rate: probability that the unit is in the sample.
    """

    residual: Tensor
    shift: Tensor
    std: float
    rate: float


@dataclass(frozen=True)
class Heard:
    """A training as the adversary hears it.

    Attributes:
        tapes: what every client did.
        noisy: every round, with the sum as the server has it.
    """

    tapes: tuple[Tape, ...]
    noisy: tuple[tuple[Round, Tensors], ...]

    def sums(self, round_: Round) -> list[Tensors]:
        """What every client sent."""
        return [tape.messages[round_.number].sums for tape in self.tapes]


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


def train_in(setting: Setting, seeds: Seeds, members: Sequence[Member], script: Heard | None = None) -> Heard:
    """Train in one world; in a process of its own, as this one is, where the setting asks for that.

    Args:
        setting: what is audited.
        seeds: of the training.
        members: its clients; in a forced world those that are asked.
        script: the live world, whose noisy outputs are given; None: this is the live world.

    Raises:
        Divergence: which mechanisms run depends on the unit.
        PluginError: a class that is not shipped raised an exception.
        ProcessEnded: it ended its process.
    """
    return forked(_train_in, setting, seeds, members, script) if setting.apart else _train_in(setting, seeds, members, script)


def _train_in(setting: Setting, seeds: Seeds, members: Sequence[Member], script: Heard | None) -> Heard:
    # where it is raised, for no traceback leaves a process
    with own_errors(setting.algorithm):
        algorithm, noisy = setting.build(), list[tuple[Round, Tensors]]()
        cohorts = [_cohort(setting, seeds, member, script) for member in members]
        # the unit's client first: what a process keeps of the first rows that it saw then depends on the unit
        pool = WatchedPool(cohorts, range(len(members))[::-1], None if script is None else script.tapes)
        steps = train(algorithm, pool, setting.plan, seeds, watch=lambda round_, total: noisy.append((round_, copied(total))))
        # what is made after the last round follows from what was seen
        for _ in range(sum(phase.release.rounds for phase in algorithm.phases())):
            next(steps)
        steps.close()
        return Heard(tuple(tape.without_diagnostics() for tape in pool.tapes), tuple(noisy))


def _cohort(setting: Setting, seeds: Seeds, member: Member, script: Heard | None) -> Cohort:
    params, client = dict(setting.params), member.client
    if member.always and setting.task.unit == "client" and "client_rate" in params:
        params["client_rate"] = 1.0
    groups = setting.groups(client, member.canary)
    held = ((np.arange(len(member.x)),), None if groups is None else (groups,))
    spec = CohortSpec(setting.algorithm, params, setting.task, setting.plan, seeds, (client,), *held)
    hidden = Hidden(client, "every" if member.always else "chance") if member.canary else None
    return watched(spec, member.x, member.y, hidden, None if script is None else script.tapes[client])


def in_clean_processes(setting: Setting, function: Callable[..., Result], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Result]:
    """The function's result for each of ``arguments``, in order, in fresh processes where the setting keeps them apart.

    Raises:
        UserError: the function raised it.
        ProcessEnded: such a process ended.
    """
    if setting.apart:
        yield from in_forks(function, arguments)
    else:
        yield from starmap(function, arguments)


@dataclass(frozen=True)
class Observed:
    """The adversary's notes of one training.

    Attributes:
        steps: its noisy outputs; those of a round or a local step, which share one sample, together.
        others: the noise of other clients, which whoever knows their data knows: it must not be the noise of an output that the unit
            changes.
    """

    steps: list[list[NoisyOutput]]
    others: list[NoisyOutput]


def observed(setting: Setting, canary: Canary, seeds: Seeds, *, present: bool) -> Observed:
    """Train with or without the canary, and in the worlds beside it.

    Raises:
        Divergence: which mechanisms run depends on the unit.
    """
    sampled = any(event.sample_rate < 1 for event in setting.events)
    live = train_in(setting, seeds, members_of(setting, canary if present else None))
    absent = train_in(setting, seeds, members_of(setting, None), live) if present else live
    always = train_in(setting, seeds, members_of(setting, canary, always=True), live) if sampled or not present else live
    algorithm, notes, banded = setting.build(), Observed([], []), dict[int, list[NoisyOutput]]()
    phases, at_clients = algorithm.phases(), algorithm.noise_at_clients()
    for round_, noisy in live.noisy:
        steps, others = _at_clients(setting, round_, (live, absent, always))
        notes.others.extend(others if at_clients else ())
        sums = [heard.sums(round_) for heard in (live, absent, always)]
        outputs = _uncovered(round_, *sums) if at_clients else [_of_sum(setting, round_, noisy, *sums[1:])]
        (banded.setdefault(round_.phase, []) if phases[round_.phase].correlation else steps[0]).extend(outputs)
        notes.steps.extend(step for step in steps if step)
    for number, outputs in banded.items():
        start = next(round_.number for round_, _ in live.noisy if round_.phase == number)
        notes.steps.extend(_decorrelated(outputs, phases[number], setting.canary_client - start))
    return notes


def _decorrelated(outputs: Sequence[NoisyOutput], phase: Phase, first: int) -> Iterator[list[NoisyOutput]]:
    """The rows of ``C x + z``, whose noise is independent, by the turns of a client who has its ``first`` in that round of the phase.

    A turn's rows share one sample, and no other turn of the client changes them.
    """

    def row(t: int) -> NoisyOutput:
        terms = [(c, outputs[t - j]) for j, c in enumerate(phase.correlation[: t + 1])]
        residual, shift = torch.stack([c * o.residual for c, o in terms]).sum(0), torch.stack([c * o.shift for c, o in terms]).sum(0)
        return outputs[t]._replace(residual=residual, shift=shift)

    rows, turns = list(map(row, range(len(outputs)))), phase.release.turns
    for start in range(first % turns, len(rows), turns):
        yield rows[start : start + turns]


def _at_clients(setting: Setting, round_: Round, worlds: Sequence[Heard]) -> tuple[list[list[NoisyOutput]], list[NoisyOutput]]:
    """The outputs that clients noised, of each local step; apart, those of other clients that the unit does not change.

    Args:
        setting: what is audited.
        round_: the round.
        worlds: the live one, the one without the unit, and the one with it in every sample.
    """
    silo, clients = setting.task.trust == "silo", range(setting.task.clients)
    live, absent, always = ([heard.tapes[k].queries_of(round_.number) for k in clients] for heard in worlds)
    if any(not len(live[k]) == len(absent[k]) == len(always[k]) for k in clients):
        raise Divergence(f"round {round_.number}: how often noise is added depends on the unit")
    steps, unchanged = [list[NoisyOutput]() for _ in range(max(1, *map(len, live)))], list[NoisyOutput]()
    for k in clients:
        for step, query, *others in zip(steps, live[k], absent[k], always[k], strict=False):
            outputs = _named(query.noised, silo=silo, kept=bool(query.kept))
            if not outputs:
                continue
            residual, shift = apart(outputs, *(_named(Noised(other.sent, other.kept), silo=silo) for other in others))
            output = NoisyOutput(residual, shift, setting.plan.noise_std(query.release.name), round_.release.sample_rate)
            if k == setting.canary_client or shift.any():
                step.append(output)
            else:
                unchanged.append(output._replace(rate=0.0))
    return steps, unchanged


def _named(noised: Noised, *, silo: bool, kept: bool = True) -> dict[tuple[str, str], Tensor]:
    """What of a query is noised at the client."""
    held = {("kept", name): value for name, value in noised.kept.items()} if kept else {}
    return held | ({("sent", name): value for name, value in noised.sent.items()} if silo else {})


def _of_sum(setting: Setting, round_: Round, noisy: Tensors, absent: Sequence[Tensors], always: Sequence[Tensors]) -> NoisyOutput:
    """The sum that the server noised, beside what all clients sent without the unit and with it in every sample."""
    base, whole = (_total(sums, noisy) for sums in (absent, always))
    if round_.release.mechanism == "exponential":
        return _of_choice(noisy, base, whole, setting.plan.noise_scale(round_.release.name))
    return NoisyOutput(*apart(noisy, base, whole), setting.plan.noise_std(round_.release.name), round_.release.sample_rate)


def _of_choice(chosen: Tensors, base: Tensors, whole: Tensors, scale: float) -> NoisyOutput:
    """What an exponential mechanism chose, as an output of one dimension that has the log likelihood ratio of the choice."""
    ratio = 0.0
    for name, at in chosen.items():
        log_chances = [torch.log_softmax(scores[name] / scale, -1).gather(-1, at.cpu()[..., None]) for scores in (whole, base)]
        ratio += float((log_chances[0] - log_chances[1]).sum())
    shift = choice_range(whole, base)
    residual = (ratio * scale**2 + shift**2 / 2) / shift if shift else 0.0
    return NoisyOutput(torch.tensor([residual]).double(), torch.tensor([shift]).double(), scale, 1.0)


def _total(sums: Sequence[Tensors], names: Iterable[str]) -> Tensors:
    """The sum of all clients' sums in float64, so that what does not depend on the unit cancels."""
    return {name: torch.stack([sent[name].double() for sent in sums if name in sent]).sum(0) for name in names}


def _uncovered(round_: Round, live: Sequence[Tensors], absent: Sequence[Tensors], always: Sequence[Tensors]) -> Iterator[NoisyOutput]:
    """What messages hold beside noisy outputs, which are equal in all worlds: where the unit changes it, no noise hides that."""
    for sent, without, with_ in zip(live, absent, always, strict=True):
        part = {name: value for name, value in sent.items() if name in without and name in with_}
        residual, shift = apart(part, without, with_)
        size = float(shift.norm())
        if size > 1e-4 * (1e-3 + float(flat(part).norm())):
            yield NoisyOutput(residual, shift, 1e-2 * size, round_.release.sample_rate)


def apart(outputs: Mapping[Any, Tensor], without: Mapping[Any, Tensor], with_: Mapping[Any, Tensor]) -> tuple[Tensor, Tensor]:
    """Residual and shift of outputs, flat."""
    base = {name: without[name].double() for name in outputs}
    return flat({n: outputs[n].double() - base[n] for n in outputs}), flat({n: with_[n].double() - base[n] for n in outputs})


def flat(tensors: Mapping[Any, Tensor]) -> Tensor:
    """All numbers in a row, in float64."""
    return torch.cat([torch.zeros(0, dtype=torch.double), *(value.detach().double().flatten() for value in tensors.values())])
