"""Checks of the noise that is really there: its standard deviation, that no two draws are alike, and that nothing takes it off again.

Seeded noise can be drawn again by whoever guesses the seed; it has to move a training as far as noise of a secret key does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.evidence.check.subject import CHECKED_CLIENTS, Subject, drawn, fixed_random_states, varied
from fedsim.evidence.check.verdict import Verdict, failed, idle, passed
from fedsim.evidence.fresh import in_fresh_processes
from fedsim.evidence.worlds import Query, WatchedPool
from fedsim.keystream import Keystream
from fedsim.methods.messages import Tensors
from fedsim.methods.parameters import add_in_order, rounded
from fedsim.plugins.registry import lookup
from fedsim.privacy.plan import PrivacyPlan
from fedsim.seeds import Purpose, Seeds
from fedsim.training import rounds
from fedsim.training.cohort import Cohort, LocalPool

DEVIATIONS = 6.0
"""How many standard errors of an estimate are put down to chance."""

SAME_DRAW = 1e-5
"""Relative difference of two short draws that is put down to rounding."""

REUSE_FIX = (
    "call Clients.add_noise with round_.stream (further steps: what follows) and all of the cohort's members; draw no noise elsewhere"
)
SCALE_FIX = "add the noise by Clients.add_noise alone; it has the plan's standard deviation"
KEY_ROUNDS = 2
"""Rounds of the trainings under seeded noise and under a secret key, where an algorithm has such a parameter."""
KEY = 2**255 + 1
LEAST_SHARE = 0.1
"""Honest seeded noise moves a training by at least this share of what noise of a secret key does."""
KEY_FIX = "use what Clients.add_noise returns and what the server receives as it is; draw Purpose.NOISE from no Seeds of your own"


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
    if again := next((i for i, one in enumerate(prints) if one in prints[:i]), None):
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
    noisy, quiet = (WatchedPool(kind.cohorts((1,) * CHECKED_CLIENTS)) for kind in (subject, silent))
    server = algorithm.initial_server(seeds)
    server.plan = plan
    draws: list[Draw] = []
    phases = algorithm.phases()
    for round_ in algorithm.schedule():
        phase, release = phases[round_.phase], round_.release
        quiet.load_state(noisy.state())
        broadcast = {name: value.clone() for name, value in phase.broadcast(server).items()}
        messages = noisy.round(round_, broadcast)
        own = [tape.queries_of(round_.number) for tape in noisy.tapes]
        # what is sent may follow from what was kept, whose noise is then seen there
        black_box = plan.trust == "silo" and release.per_round == 1 and any(query.sent for queries in own for query in queries)
        if black_box:
            plain = quiet.round(round_, {name: value.clone() for name, value in broadcast.items()})
            for client, (one, two) in enumerate(zip(messages, plain, strict=True)):
                draws.append(Draw(release.name, round_.stream, client, _flat({n: one.sums[n] - two.sums[n] for n in two.sums})))
        for client, queries in enumerate(own):
            for query in queries:
                draws.append(Draw(release.name, query.step, client, _flat(_added(query, sent=plan.trust == "silo" and not black_box))))
        phase.at_server(server, round_, rounded(add_in_order([message.sums for message in messages])))
    return [draw for draw in draws if len(draw.values)]


def _added(query: Query, *, sent: bool) -> Tensors:
    added = {name: query.noised.kept[name] - value for name, value in query.kept.items()}
    return added | ({f"sent {name}": query.noised.sent[name] - value for name, value in query.sent.items()} if sent else {})


def _flat(added: Tensors) -> Tensor:
    """The tensors that noise was added to; what the others depend on is measured as sensitivity."""
    return torch.cat([torch.zeros(0, dtype=torch.double), *(value.double().flatten() for value in added.values() if value.any())])


def _alike(draws: Sequence[Draw]) -> Verdict | None:
    for length in {len(draw.values) for draw in draws}:
        own = [draw for draw in draws if len(draw.values) == length]
        unit = torch.stack([draw.values / draw.values.norm() for draw in own])
        correlation = (unit @ unit.T).abs().fill_diagonal_(0)
        # a few numbers are often nearly parallel by chance, but not equal
        if length < DEVIATIONS**2:
            values = torch.stack([draw.values for draw in own])
            correlation *= torch.cdist(values, values) <= SAME_DRAW * values.norm(dim=1)
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
    for round_, record in zip(subject.algorithm.schedule(), subject.records, strict=True):
        count = sum(value.numel() for value in subject.tape.messages[round_.number].sums.values())
        measured, planned = record.values["noise_norm"] / math.sqrt(count), plan.noise_std(round_.release.name)
        if fault := _judged(measured, count, planned, f"the server's noise in round {round_.number}"):
            return fault
    return None


def _judged(measured: float, count: int, planned: float, whose: str) -> Verdict | None:
    if abs(measured / planned - 1) <= max(DEVIATIONS / math.sqrt(2 * count), 1e-3):
        return None
    return failed(f"{whose} has standard deviation {measured:.4g}, planned is {planned:.4g}", SCALE_FIX)


def secret_key(subject: Subject) -> Verdict:
    """Noise that follows from the seed moves what is kept of a training about as far as noise that cannot be drawn again."""
    if subject.plan is None:
        return idle("not private")
    short, module = varied(subject, rounds=KEY_ROUNDS), lookup(subject.trial.cell.algorithm).__module__
    seeded, secret = in_fresh_processes(noise_moves, [(short, Seeds(0)), (short, Seeds(0, KEY))], module)
    if secret == 0:
        return idle("noise changes nothing that is kept of a training")
    text = f"seeded noise moves what is kept of a training by {seeded:.3g} of its size, noise of a secret key by {secret:.3g}"
    return failed(f"{text}: the seeded noise is drawn again and taken off", KEY_FIX) if seeded < LEAST_SHARE * secret else passed(text)


def noise_moves(subject: Subject, seeds: Seeds) -> float:
    """How far noise moves a training with otherwise the same streams: 0 not at all, 1 wholly; the median over tensors.

    For a process of its own, in which every stream of noise is silent afterwards.
    """
    noisy = _kept(subject, seeds)
    _silence()
    plain = _kept(subject, seeds)
    changes = [_change(value, plain[name]) for name, value in noisy.items() if name in plain and value.shape == plain[name].shape]
    # what noise does not reach says nothing
    return median([change for change in changes if change] or [0.0])


def _change(one: Tensor, two: Tensor) -> float:
    """The median change of those numbers that change, relative to their size: no number that noise makes huge decides."""
    moved = (one - two).abs() / (one.abs() + two.abs()).clamp_min(torch.finfo(torch.double).tiny)
    return float(moved[moved > 0].median()) if moved.any() else 0.0


def _kept(subject: Subject, seeds: Seeds) -> Tensors:
    """What is kept of a training and what its result says, in float64."""
    data = subject.data
    pool = LocalPool([Cohort(spec, data.x_train, data.y_train) for spec in subject.trial.cohorts(seeds)])
    with fixed_random_states([]):
        trained = rounds.to_the_end(rounds.train(subject.build(), pool, subject.plan, seeds))[1]
    shares = {} if trained.shares is None else {"label shares": torch.from_numpy(trained.shares)}
    kept = trained.state | shares | {"answers": drawn(trained.made, data, CHECKED_CLIENTS)}
    return {name: value.double() for name, value in kept.items() if value.is_floating_point()}


def _silence() -> None:
    """From now on a stream of noise gives none, whoever draws from it: the plan, and what an algorithm makes of it, is as it was."""
    given = Seeds.keystream

    def keystream(self: Seeds, purpose: Purpose, *which: Any, **named: Any) -> Keystream:
        stream = given(self, purpose, *which, **named)
        if purpose == Purpose.NOISE:
            stream.words = _largest  # type: ignore[method-assign]
        return stream

    Seeds.keystream = keystream  # type: ignore[method-assign]


def _largest(count: int) -> NDArray[np.uint32]:
    """The words of which :func:`fedsim.privacy.noise.fill_gaussian` makes 1e-9 of a standard deviation or less."""
    return np.full(count, 2**32 - 1, np.uint32)
