"""The white-box audit: pairs of trainings without and with a unit, and how much likelier an adversary's view is with it.

The unit is a row, a group of rows, or the last client. Each training runs the real rounds of all clients. The live world draws its own
noise; two more are *forced*: the one without the unit, and the one with the unit in every sample, whose clients get the live one's noisy
answers and whose server gets its sums. What differs between these two is what the unit adds to a query, through whichever client, and what
is left of a live output without the unit is noise, or noise and the unit.

A step's outputs are ``b shift + noise`` with ``b`` 1 where the unit is in the sample; without the unit ``b`` is 0. If the noise is what the
plan says, the log likelihood ratio of a step is log(1 - q + q exp(sum (<residual, shift> - |shift|^2 / 2) / std^2)), and that of a training
the sum of its steps': the best test of the worlds (Neyman and Pearson), and in one dimension the very pair that the accountant composes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product, starmap
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from fedsim.data.embeddings import unit_norm
from fedsim.evaluation.tuning import draws
from fedsim.evidence.audit.setting import Labels, Rows, Setting, clipped
from fedsim.evidence.forked import forked, in_forks
from fedsim.evidence.worlds import Divergence, Hidden, Tape, WatchedPool, watched
from fedsim.methods.clients import Noised
from fedsim.methods.messages import Round, Tensors
from fedsim.plugins.registry import own_errors
from fedsim.privacy.plan import Unit
from fedsim.seeds import Seeds
from fedsim.training.cohort import Cohort, CohortSpec
from fedsim.training.rounds import train
from fedsim.training.state import copied

ROOT = 0
"""Seed of all that an adversary may know."""
MOST_ADDED = 1.001
"""Of the claimed sensitivity: what is above is no rounding."""
UNIT_ROWS: dict[Unit, int] = {"example": 1, "group": 4, "client": 32}
"""Rows of a unit that is looked for: of a client so many that hardly a sample of them is empty."""
CLIPS, ENOUGH = (1.0, 0.1, 0.01), 0.98
"""Shares of the clip norm that are tried until a canary adds enough: noise is in units of it, so a claim is the same under any."""
SAME_NOISE = 1e-3
"""Standard deviations by which two draws of one noise differ in rounding; fresh ones do so with this probability to the dimension."""
FEWEST_NUMBERS, MOST_DRAW_PAIRS = 6, 2048
"""Numbers of a draw below which nothing is said about its being used twice, and pairs of draws that are compared."""

Result = TypeVar("Result")


class Canary(NamedTuple):
    """A unit to look for: rows ``[n, d]`` of norm 1, their labels ``[n]``, and what is special about it."""

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


class Observed(NamedTuple):
    """The adversary's view of one training.

    Attributes:
        steps: its noisy outputs; those of a round or a local step, which share one sample, together.
        others: the noise of other clients, which whoever knows their data knows: it must not be the noise of an output that the unit
            changes.
    """

    steps: list[list[NoisyOutput]]
    others: list[NoisyOutput]


class _World(NamedTuple):
    """What every client of a training did, and every round with the sum as the server has it."""

    tapes: tuple[Tape, ...]
    noisy: tuple[tuple[Round, Tensors], ...]

    def sums(self, round_: Round) -> list[Tensors]:
        """What every client sent."""
        return [tape.messages[round_.number].sums for tape in self.tapes]


def _world(setting: Setting, seeds: Seeds, canary: Canary | None, live: _World | None = None, *, always: bool = False) -> _World:
    """Train in one world, maybe in a process of its own.

    Args:
        setting: what is audited.
        seeds: of the training.
        canary: the unit, where it is there.
        live: the world whose noisy outputs are given; None: this is that one.
        always: whether the unit is in every sample.
    """
    arguments = (setting, seeds, canary, live, always)
    return forked(_trained, *arguments) if setting.apart else _trained(*arguments)


def _trained(setting: Setting, seeds: Seeds, canary: Canary | None, live: _World | None, always: bool) -> _World:
    # where it is raised, for no traceback leaves a process
    with own_errors(setting.algorithm):
        algorithm, noisy = setting.build(), list[tuple[Round, Tensors]]()
        cohorts = [_cohort(setting, seeds, client, canary, live, always=always) for client in range(setting.task.clients)]
        # the unit's client first: what a process keeps of the first rows that it saw then depends on the unit
        pool = WatchedPool(cohorts, range(len(cohorts))[::-1], None if live is None else live.tapes)
        steps = train(algorithm, pool, setting.plan, seeds, watch=lambda round_, total: noisy.append((round_, copied(total))))
        # what is made after the last round follows from what was seen
        for _ in range(sum(phase.release.rounds for phase in algorithm.phases())):
            next(steps)
        steps.close()
        return _World(tuple(tape.without_diagnostics() for tape in pool.tapes), tuple(noisy))


def _cohort(setting: Setting, seeds: Seeds, client: int, canary: Canary | None, live: _World | None, *, always: bool) -> Cohort:
    """One client, the last one with the unit behind its own rows."""
    (x, y), params, unit = setting.others[client], dict(setting.params), setting.task.unit
    own, always = len(x), always and client == setting.canary_client
    if canary is not None and client == setting.canary_client:
        x, y = np.concatenate([x, canary.x]), np.concatenate([y, canary.y])
    if always and unit == "client" and "client_rate" in params:
        params["client_rate"] = 1.0
    # a client's own rows are a group each
    groups = (np.minimum(np.arange(len(x)), own),) if unit == "group" else None
    spec = CohortSpec(setting.algorithm, params, setting.task, setting.plan, seeds, (client,), (np.arange(len(x)),), groups)
    hidden = Hidden(client, "every" if always else "chance") if unit != "client" and len(x) > own else None
    return watched(spec, x, y, hidden, None if live is None else live.tapes[client])


def observed(setting: Setting, canary: Canary, seeds: Seeds, *, present: bool) -> Observed:
    """Train with or without the canary, and in the worlds beside it.

    Raises:
        Divergence: which mechanisms run depends on the unit.
    """
    sampled = any(one.sample_rate < 1 for one in setting.plan.mechanisms)
    live = _world(setting, seeds, canary if present else None)
    absent = _world(setting, seeds, None, live) if present else live
    always = _world(setting, seeds, canary, live, always=True) if sampled or not present else live
    at_clients, notes = setting.build().noise_at_clients(), Observed([], [])
    for round_, noisy in live.noisy:
        steps, others = _at_clients(setting, round_, (live, absent, always))
        notes.others.extend(others if at_clients else ())
        sums = [world.sums(round_) for world in (live, absent, always)]
        steps[0].extend(_uncovered(round_, *sums) if at_clients else [_of_sum(setting, round_, noisy, *sums[1:])])
        notes.steps.extend(step for step in steps if step)
    return notes


def _at_clients(setting: Setting, round_: Round, worlds: Sequence[_World]) -> tuple[list[list[NoisyOutput]], list[NoisyOutput]]:
    """The outputs that clients noised, of each local step; apart, those of other clients that the unit does not change.

    Args:
        setting: what is audited.
        round_: the round.
        worlds: the live one, the one without the unit, and the one with it in every sample.
    """
    silo, clients = setting.task.trust == "silo", range(setting.task.clients)
    live, absent, always = ([world.tapes[k].queries_of(round_.number) for k in clients] for world in worlds)
    if any(not len(live[k]) == len(absent[k]) == len(always[k]) for k in clients):
        raise Divergence(f"round {round_.number}: how often noise is added depends on the unit")
    steps, unchanged = [list[NoisyOutput]() for _ in range(max(1, *map(len, live)))], list[NoisyOutput]()
    for k in clients:
        for step, query, *others in zip(steps, live[k], absent[k], always[k], strict=False):
            outputs = _named(query.noised, silo=silo, kept=bool(query.kept))
            if not outputs:
                continue
            residual, shift = _apart(outputs, *(_named(Noised(other.sent, other.kept), silo=silo) for other in others))
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
    # in float64, so that what does not depend on the unit cancels
    base, whole = (
        {name: torch.stack([sent[name].double() for sent in sums if name in sent]).sum(0) for name in noisy} for sums in (absent, always)
    )
    return NoisyOutput(*_apart(noisy, base, whole), setting.plan.noise_std(round_.release.name), round_.release.sample_rate)


def _uncovered(round_: Round, live: Sequence[Tensors], absent: Sequence[Tensors], always: Sequence[Tensors]) -> Iterator[NoisyOutput]:
    """What messages hold beside noisy outputs, which are equal in all worlds: where the unit changes it, no noise hides that."""
    for sent, without, with_ in zip(live, absent, always, strict=True):
        part = {name: value for name, value in sent.items() if name in without and name in with_}
        residual, shift = _apart(part, without, with_)
        size = float(shift.norm())
        if size > 1e-4 * (1e-3 + float(_flat(part).norm())):
            yield NoisyOutput(residual, shift, 1e-2 * size, round_.release.sample_rate)


def _apart(outputs: Mapping[Any, Tensor], without: Mapping[Any, Tensor], with_: Mapping[Any, Tensor]) -> tuple[Tensor, Tensor]:
    """Residual and shift of outputs, flat."""
    base = {name: without[name].double() for name in outputs}
    return _flat({n: outputs[n].double() - base[n] for n in outputs}), _flat({n: with_[n].double() - base[n] for n in outputs})


def _flat(tensors: Mapping[Any, Tensor]) -> Tensor:
    return torch.cat([torch.zeros(0, dtype=torch.double), *(value.detach().double().flatten() for value in tensors.values())])


class Evidence(NamedTuple):
    """What an adversary makes of one training.

    Attributes:
        score: log likelihood ratio of unit there to not there.
        ratio: what the unit adds to a step, root mean square over steps, in units of the claimed sensitivity.
        most: the largest.
    """

    score: float
    ratio: float
    most: float


def evidence(seen: Observed, sensitivity: float) -> Evidence:
    """The evidence of a training that was observed, at the claimed sensitivity."""
    shifts = [math.sqrt(sum(float(output.shift.square().sum()) for output in step)) for step in seen.steps]
    score = sum(map(_log_ratio, seen.steps)) + _of_used_twice(seen)
    return Evidence(score, math.sqrt(float(np.mean(np.square(shifts)))) / sensitivity, max(shifts) / sensitivity)


def _log_ratio(step: Sequence[NoisyOutput]) -> float:
    exponent, rate = 0.0, step[0].rate
    for output in step:
        exponent += float(output.residual @ output.shift - output.shift @ output.shift / 2) / output.std**2
    return float(np.logaddexp(_log(1 - rate), _log(rate) + exponent))


def _of_used_twice(seen: Observed) -> float:
    """The log ratio of what is left of two outputs when one is taken from the other, where both carry the same noise; 0 where none do."""
    outputs = [output for step in seen.steps for output in step if len(output.residual) >= FEWEST_NUMBERS]
    pairs = [(a, b) for i, a in enumerate(outputs) for b in [*outputs[i + 1 :], *seen.others] if a.residual.shape == b.residual.shape]
    return sum(_log_ratio_of(a, b) for a, b in pairs[:MOST_DRAW_PAIRS])


def _log_ratio_of(a: NoisyOutput, b: NoisyOutput) -> float:
    difference, width = a.residual - b.residual, SAME_NOISE * math.sqrt(a.std * b.std)
    cases = {(i, j): float((difference - i * a.shift + j * b.shift).square().sum()) / (2 * width**2) for i, j in product((0, 1), (0, 1))}
    if min(cases.values()) > len(difference):
        return 0.0
    chances = {(i, j): (_log(a.rate) if i else _log(1 - a.rate)) + (_log(b.rate) if j else _log(1 - b.rate)) for i, j in cases}
    return float(np.logaddexp.reduce([chances[case] - cases[case] for case in cases])) + cases[0, 0]


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def _canaries(setting: Setting) -> Iterator[Canary]:
    """Rows of norm 1, as all data sets have them: of a single feature, in a random direction, against the others; of every label."""
    dim, count = setting.task.dim, UNIT_ROWS[setting.task.unit]
    spike = np.eye(1, dim, dtype=np.float32)
    random = np.random.default_rng(1).standard_normal((1, dim)).astype(np.float32)
    against = -np.sum([x.sum(0, keepdims=True) for x, _ in setting.others], axis=0)
    for words, row in (("a row of one feature", spike), ("a row in a random direction", random), ("a row against the others", against)):
        for label in range(setting.task.classes):
            x = np.repeat(unit_norm(row.astype(np.float32)), count, 0)
            yield Canary(x, np.full(count, label), f"{words}, of label {label}")


def saturating(setting: Setting, root: int) -> tuple[Setting, Canary]:
    """The setting, maybe under a smaller clip norm, and the canary that adds most to a training's steps; of equals the first."""
    best, chosen = -1.0, None
    clip = setting.params.get("clip")
    for share in CLIPS if isinstance(clip, int | float) and setting.tuning is None else CLIPS[:1]:
        own = setting if share == 1 else clipped(setting, share * float(clip or 0))
        for canary in _canaries(own):
            ratio = round(evidence(observed(own, canary, Seeds(root), present=True), own.plan.sensitivity).ratio, 3)
            if ratio > best:
                best, chosen = ratio, (own, canary)
        if best >= ENOUGH:
            break
    assert chosen is not None
    return chosen


def _seen(setting: Setting, canary: Canary, seeds: Seeds, *, present: bool) -> Evidence:
    """The evidence of one training, or of the one that a search releases, if its score is the evidence itself.

    The theorem holds for any score that is computed of what was trained, so also for the one that tells most of the unit.
    """
    if setting.tuning is None:
        return evidence(observed(setting, canary, seeds, present=present), setting.plan.sensitivity)
    drawn = [setting.candidates[candidate] for candidate in draws(setting.tuning, len(setting.candidates), seeds)]
    seen = [evidence(observed(own, canary, seeds.run(number), present=present), own.plan.sensitivity) for number, own in enumerate(drawn)]
    return max(seen, key=lambda one: one.score, default=Evidence(0.0, 0.0, 0.0))


@dataclass(frozen=True)
class TrainingPair:
    """What two trainings showed.

    Attributes:
        pair: its number, counted from 0; its noise and its samples follow from it.
        absent, present: the scores without and with the unit.
        ratio, most: what the unit adds to a step, root mean square and largest, in units of the claimed sensitivity.
    """

    pair: int
    absent: float
    present: float
    ratio: float
    most: float


def pair(setting: Setting, canary: Canary, root: int, number: int) -> TrainingPair:
    """Train without and with the unit; noise, samples and draws for rows of either are its own, everything else follows from ``root``."""
    without, with_ = (_seen(setting, canary, Seeds(root, _secret(root, number, world)), present=bool(world)) for world in (0, 1))
    return TrainingPair(number, without.score, with_.score, with_.ratio, with_.most)


def pairs(setting: Setting, canary: Canary, root: int, numbers: Sequence[int]) -> list[TrainingPair]:
    """Pairs by their numbers."""
    return [pair(setting, canary, root, number) for number in numbers]


def _secret(root: int, number: int, world: int) -> int:
    """Different for every world of every pair; what an adversary may not know follows from it."""
    return ((root << 64) + (number << 1) + world + 1) << 32


def in_clean_processes(setting: Setting, function: Callable[..., Result], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Result]:
    """The function's result for each of ``arguments``, in order, in fresh processes where the setting keeps them apart.

    Raises:
        UserError: the function raised it.
        ProcessEnded: such a process ended.
    """
    if setting.apart:
        return in_forks(function, arguments)
    return starmap(function, arguments)
