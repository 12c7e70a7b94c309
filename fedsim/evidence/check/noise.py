"""Checks of the noise that is really there: its standard deviation, and that no two draws are the same or alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedsim.evidence.check.subject import CLIENTS, Subject
from fedsim.evidence.check.verdict import Verdict, failed, idle, passed
from fedsim.evidence.check.watch import Query, WatchedPool
from fedsim.methods.messages import Tensors
from fedsim.methods.parameters import add_in_order, rounded
from fedsim.privacy.plan import PrivacyPlan
from fedsim.seeds import Seeds

DEVIATIONS = 6.0
"""How many standard errors of an estimate are put down to chance."""

SAME = 1e-5
"""Relative difference of two short draws that is put down to rounding."""

REUSE_FIX = (
    "call Clients.add_noise with round_.stream (further steps: what follows) and all of the cohort's members; draw no noise elsewhere"
)
SCALE_FIX = "add the noise by Clients.add_noise alone; it has the plan's standard deviation"


@dataclass(frozen=True)
class Draw:
    """The noise that one client added in one step, flat; ``step`` counts over all rounds."""

    release: str
    step: int
    client: int
    values: Tensor

    def __str__(self) -> str:
        return f"client {self.client} in step {self.step}"


def noise(subject: Subject) -> Verdict:
    """Noise has the planned standard deviation, and differs for every client and round."""
    plan = subject.plan
    if plan is None:
        return idle("not private")
    prints = [record.values["noise"] for record in subject.records]
    if again := next((i for i, each in enumerate(prints) if each in prints[:i]), None):
        return failed(f"the noise of round {prints.index(prints[again])} is used again in round {again}", REUSE_FIX)
    draws = _draws(subject, plan)
    by_release = {release.name: [draw for draw in draws if draw.release == release.name] for release in plan.releases}
    for name, own in by_release.items():
        if fault := _alike(own) or _scale(own, plan.noise_std(name), name):
            return fault
    if not subject.algorithm.noise_at_clients() and (fault := _server_scale(subject, plan)):
        return fault
    parts = [f"{len(draws)} draws of clients"] if draws else []
    parts += [] if subject.algorithm.noise_at_clients() else [f"{len(prints)} of the server"]
    return passed(f"{' and '.join(parts)}, of the planned size, no two alike")


def _draws(subject: Subject, plan: PrivacyPlan) -> list[Draw]:
    """All noise of clients, one client an actor: from what they send with and without it, else from ``Clients.add_noise``."""
    algorithm, seeds = subject.build(), Seeds(0).public
    silent = Subject(replace(subject.trial, plan=replace(plan, sigma=0.0)), subject.data)
    noisy, quiet = (WatchedPool(each.cohorts((1,) * CLIENTS)) for each in (subject, silent))
    server = algorithm.initial_server(seeds)
    server.plan = plan
    draws: list[Draw] = []
    phases = algorithm.phases()
    for round_ in algorithm.schedule():
        phase, release, number = phases[round_.phase], round_.release, round_.number
        quiet.load_state(noisy.state())
        broadcast = {name: value.clone() for name, value in phase.broadcast(server).items()}
        messages = noisy.round(round_, broadcast)
        black_box = plan.trust == "silo" and release.per_round == 1
        if black_box:
            plain = quiet.round(round_, {name: value.clone() for name, value in broadcast.items()})
            for client, (one, two) in enumerate(zip(messages, plain, strict=True)):
                draws.append(Draw(release.name, round_.stream, client, _flat({n: one.sums[n] - two.sums[n] for n in two.sums})))
        for client, tape in enumerate(noisy.tapes):
            for query in (query for query in tape.queries if query.round == number):
                draws.append(Draw(release.name, query.step, client, _flat(_added(query, sent=plan.trust == "silo" and not black_box))))
        phase.at_server(server, round_, rounded(add_in_order([message.sums for message in messages])))
    return [draw for draw in draws if len(draw.values)]


def _added(query: Query, *, sent: bool) -> Tensors:
    added = {name: query.noised.kept[name] - value for name, value in query.kept.items()}
    return added | ({f"sent {name}": query.noised.sent[name] - value for name, value in query.sent.items()} if sent else {})


def _flat(added: Tensors) -> Tensor:
    """The tensors that noise was added to; the others are not the noise's business but the sensitivity's."""
    return torch.cat([torch.zeros(0, dtype=torch.double), *(value.double().flatten() for value in added.values() if value.any())])


def _alike(draws: Sequence[Draw]) -> Verdict | None:
    for length in {len(draw.values) for draw in draws}:
        own = [draw for draw in draws if len(draw.values) == length]
        unit = torch.stack([draw.values / draw.values.norm() for draw in own])
        correlation = (unit @ unit.T).abs().fill_diagonal_(0)
        # a few numbers are often nearly parallel by chance, but not equal
        if length < DEVIATIONS**2:
            values = torch.stack([draw.values for draw in own])
            correlation *= torch.cdist(values, values) <= SAME * values.norm(dim=1)
        if float(correlation.max()) > min(DEVIATIONS / math.sqrt(length), 0.999):
            first, second = divmod(int(correlation.argmax()), len(own))
            text = f"the noise of {own[first]} and of {own[second]} is used twice (correlation {float(correlation.max()):.3g})"
            return failed(text, REUSE_FIX)
    return None


def _scale(draws: Sequence[Draw], planned: float, name: str) -> Verdict | None:
    if not draws:
        return None
    values = torch.cat([draw.values for draw in draws])
    return _judged(float(values.square().mean().sqrt()), len(values), planned, f"clients' noise on '{name}'")


def _server_scale(subject: Subject, plan: PrivacyPlan) -> Verdict | None:
    for round_, record in enumerate(subject.records):
        count = sum(value.numel() for value in subject.tape.sums(round_).values())
        found = record.values["noise_norm"] / math.sqrt(count)
        if fault := _judged(found, count, plan.noise_std(record.values["release"]), f"the server's noise in round {round_}"):
            return fault
    return None


def _judged(found: float, count: int, planned: float, whose: str) -> Verdict | None:
    if abs(found / planned - 1) <= max(DEVIATIONS / math.sqrt(2 * count), 1e-3):
        return None
    return failed(f"{whose} has standard deviation {found:.4g}, planned is {planned:.4g}", SCALE_FIX)
