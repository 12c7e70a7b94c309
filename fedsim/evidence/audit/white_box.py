"""The white-box audit: pairs of trainings without and with a unit, and how much likelier an
adversary's view is with it.

The unit is a row, a group of rows, or the last client. Each training runs the real rounds of all
clients. The live world draws its own noise; two more are *forced*: the one without the unit, and
the one with the unit in every sample, whose clients get the live one's noisy answers and whose
server gets its sums. What differs between these two is what the unit adds to a query, through
whichever client, and what is left of a live output without the unit is noise, or noise and the
unit.

A step's outputs are ``b shift + noise`` with ``b`` 1 where the unit is in the sample; without the
unit ``b`` is 0. If the noise is what the plan says, the log likelihood ratio of a step is log(1 - q
+ q exp(sum (<residual, shift> - |shift|^2 / 2) / std^2)), and that of a training the sum of its
steps': the best test of the worlds (Neyman and Pearson), and in one dimension the very pair that
the accountant composes.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.data.embeddings import PublicRows, unit_norm
from fedsim.errors import UserError, at
from fedsim.evidence.worlds import Divergence, Hidden, Tape, WatchedPool, watched
from fedsim.grid.cells import resolve
from fedsim.grid.read import one_cell
from fedsim.methods.algorithm import Algorithm, solved_plan
from fedsim.methods.clients import Noised
from fedsim.methods.messages import Round, Task, Tensors
from fedsim.plugins.registry import lookup
from fedsim.privacy.plan import PrivacyPlan, Trust, Unit
from fedsim.seeds import Seeds
from fedsim.training.cohort import Cohort, CohortSpec, build_algorithm
from fedsim.training.rounds import train
from fedsim.training.state import copied

ROW_DIM = 16
AUDIT_CLASSES = 2
AUDIT_CLIENTS = 2
OTHER_ROWS = 2
"""Rows of each client beside the unit: whoever audits knows them, so few are as good as many, and
faster.
"""
SHORT: dict[str, Any] = {
    "rounds": 6,
    "local_steps": 3,
    "meta_steps": 0,
    "generator_steps": 2,
    "latent": 4,
    "hidden": (8,),
    "encoder_hidden": (8,),
    "discriminator_hidden": (8,),
}
"""Parameters that make a training long or a network large, and what they become unless they are
given; noise is solved for these.
"""
MOST_ADDED = 1.001
"""Of the claimed sensitivity: what is above is no rounding."""
UNIT_ROWS: dict[Unit, int] = {"example": 1, "group": 4, "client": 32}
"""Rows of a unit that is looked for: of a client so many that hardly a sample of them is empty."""
CLIPS = (1.0, 0.1, 0.01)
ENOUGH = 0.98
"""Shares of the clip norm that are tried until a canary adds enough: noise is in units of it, so a
claim is the same under any.
"""

Rows = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Setting:
    """An algorithm at a claim, and the small made-up data set beside which a unit is put."""

    algorithm: str
    params: Mapping[str, Any]
    task: Task
    plan: PrivacyPlan

    def build(self) -> Algorithm:
        """A new instance."""
        return build_algorithm(self.algorithm, dict(self.params), self.task)

    def clipped(self, share: float) -> Setting:
        """With so much of the clip norm, and noise in units of it as before."""
        changed = replace(self, params={**self.params, "clip": share * self.params["clip"]})
        own = changed.build()
        # the plan may claim another sensitivity than the class
        sensitivity = own.sensitivity() * self.plan.sensitivity / self.build().sensitivity()
        return replace(changed, plan=replace(self.plan, clip=own.clip(), sensitivity=sensitivity))

    @cached_property
    def others(self) -> tuple[tuple[Rows, Labels], ...]:
        """Each client's rows beside the unit; the canary client has none where it is the unit."""
        stream = np.random.default_rng(0)
        held = []
        for client in range(self.task.clients):
            if self.task.unit == "client" and client == self.task.clients - 1:
                count = 0
            else:
                count = OTHER_ROWS
            x = unit_norm(stream.standard_normal((count, self.task.dim)).astype(np.float32))
            held.append((x, np.arange(count) % self.task.classes))
        return tuple(held)


def brief(algorithm: str, given: Container[str] = ()) -> dict[str, Any]:
    """Of :data:`SHORT` what the algorithm has and allows, and that is not ``given``."""
    return lookup(algorithm).Params.brief(SHORT, given)


def setting_of(
    name: str, params: Mapping[str, Any], unit: Unit, trust: Trust, epsilon: float, delta: float
) -> Setting:
    """The setting of a claim; parameters that are not given are the algorithm's defaults."""
    cls = lookup(name)
    if not cls.private:
        raise UserError(
            f"algorithm {name}",
            "has no privacy to audit",
            "give a private one, see fedsim algorithms",
        )
    if not 0 < epsilon < math.inf:
        raise UserError(
            "epsilon",
            f"{epsilon:g} is no claim that an audit could refute",
            "give a positive, finite number",
        )
    task = Task(
        ROW_DIM,
        AUDIT_CLASSES,
        AUDIT_CLIENTS,
        unit,
        trust,
        public=PublicRows.made_up(ROW_DIM, AUDIT_CLASSES),
    )
    validated = cls.Params.model_validate(dict(params)).model_dump(mode="json")
    with at(lambda where: f"{where} with {name}"):
        plan = solved_plan(build_algorithm(name, validated, task), epsilon, delta)
    assert plan is not None
    return Setting(name, validated, task, plan)


def parameters(
    algorithm: str, params: Sequence[str], unit: Unit, trust: Trust, epsilon: float, delta: float
) -> dict[str, Any]:
    """All parameters of an algorithm, from ``key=YAML`` texts."""
    # groups are made here, of a column that no data set has
    of_units = {"column": "canary"} if unit == "group" else unit
    grid = one_cell(
        algorithm,
        params,
        dataset="digits",
        unit=of_units,
        trust=trust,
        epsilon=epsilon,
        delta=delta,
    )
    (variant,) = resolve(grid).variants
    return variant.params


class Canary(NamedTuple):
    """A unit to look for: rows ``[n, d]`` of norm 1, and their labels ``[n]``."""

    x: Rows
    y: Labels


class NoisyOutput(NamedTuple):
    """A noisy output as the adversary has it, flat: the ``residual`` is the output less what it
    would be without unit and noise.

    The ``shift`` is what the unit adds to it if it is in the sample, with probability ``rate``;
    ``std`` is that of the planned noise.
    """

    residual: Tensor
    shift: Tensor
    std: float
    rate: float


Step = list[NoisyOutput]
"""The noisy outputs of a round, or of a local step of one, which share one sample."""


class _World(NamedTuple):
    """What every client of a training did, and every round with the sum as the server has it."""

    tapes: tuple[Tape, ...]
    noisy: tuple[tuple[Round, Tensors], ...]


def _world(
    setting: Setting,
    seeds: Seeds,
    canary: Canary | None,
    live: _World | None = None,
    *,
    always: bool = False,
) -> _World:
    """Train in one world, maybe with the canary, ``always`` or sometimes in the sample; given the
    noisy outputs of ``live``, if any.
    """
    algorithm = setting.build()
    noisy = list[tuple[Round, Tensors]]()
    cohorts = [
        _cohort(setting, seeds, client, canary, live, always=always)
        for client in range(setting.task.clients)
    ]
    # the unit's client first: what a process keeps of the first rows that it saw then depends on
    # the unit
    pool = WatchedPool(cohorts, range(len(cohorts))[::-1], None if live is None else live.tapes)
    steps = train(
        algorithm,
        pool,
        setting.plan,
        seeds,
        watch=lambda round_, total: noisy.append((round_, copied(total))),
    )
    # what is made after the last round follows from what was seen
    for _ in range(sum(phase.release.rounds for phase in algorithm.phases())):
        next(steps)
    steps.close()
    return _World(tuple(pool.tapes), tuple(noisy))


def _cohort(
    setting: Setting,
    seeds: Seeds,
    client: int,
    canary: Canary | None,
    live: _World | None,
    *,
    always: bool,
) -> Cohort:
    """One client; the last one is the unit, or has it behind its own rows."""
    (x, y), params, unit = setting.others[client], dict(setting.params), setting.task.unit
    last = client == setting.task.clients - 1
    own = len(x)
    always = always and last
    if canary is not None and last:
        x = np.concatenate([x, canary.x])
        y = np.concatenate([y, canary.y])
    if always and unit == "client" and "client_rate" in params:
        params["client_rate"] = 1.0
    # a client's own rows are a group each
    if unit == "group":
        groups = (np.minimum(np.arange(len(x)), own),)
    else:
        groups = None
    spec = CohortSpec(
        setting.algorithm,
        params,
        setting.task,
        setting.plan,
        seeds,
        (client,),
        (np.arange(len(x)),),
        groups,
    )
    if unit != "client" and len(x) > own:
        hidden = Hidden(client, "every" if always else "chance")
    else:
        hidden = None
    return watched(spec, x, y, hidden, None if live is None else live.tapes[client])


def observed(setting: Setting, canary: Canary, seeds: Seeds, *, present: bool) -> list[Step]:
    """The adversary's view of one training with or without the canary: it trains in the worlds
    beside it, too.
    """
    sampled = any(one.sample_rate < 1 for one in setting.plan.mechanisms)
    live = _world(setting, seeds, canary if present else None)
    if present:
        absent = _world(setting, seeds, None, live)
    else:
        absent = live
    if sampled or not present:
        always = _world(setting, seeds, canary, live, always=True)
    else:
        always = live
    at_clients = setting.build().noise_at_clients()
    found = list[Step]()
    for round_, noisy in live.noisy:
        steps = _at_clients(setting, round_, live, absent, always)
        if not at_clients:
            steps[0].append(_of_sum(setting, round_, noisy, absent, always))
        found.extend(step for step in steps if step)
    return found


def _at_clients(setting: Setting, round_: Round, *worlds: _World) -> list[Step]:
    """The outputs that clients noised, of each local step; those of other clients as far as the
    unit changes them.
    """
    silo = setting.task.trust == "silo"
    clients = range(setting.task.clients)
    live, absent, always = (
        [[one for one in tape.queries if one.round == round_.number] for tape in world.tapes]
        for world in worlds
    )
    if any(not len(live[k]) == len(absent[k]) == len(always[k]) for k in clients):
        raise Divergence(f"round {round_.number}: how often noise is added depends on the unit")
    steps = [Step() for _ in range(max(1, *map(len, live)))]
    for k in clients:
        for step, query, *others in zip(steps, live[k], absent[k], always[k], strict=False):
            if outputs := _named(query.noised, silo=silo, kept=bool(query.kept)):
                residual, shift = _apart(
                    outputs,
                    *(_named(Noised(other.sent, other.kept), silo=silo) for other in others),
                )
                if k == clients[-1] or shift.any():
                    step.append(
                        NoisyOutput(
                            residual,
                            shift,
                            setting.plan.noise_std(query.release.name),
                            round_.release.sample_rate,
                        )
                    )
    return steps


def _named(noised: Noised, *, silo: bool, kept: bool = True) -> dict[tuple[str, str], Tensor]:
    """What of a query is noised at the client."""
    if kept:
        held = {("kept", name): value for name, value in noised.kept.items()}
    else:
        held = {}
    return held | ({("sent", name): value for name, value in noised.sent.items()} if silo else {})


def _of_sum(setting: Setting, round_: Round, noisy: Tensors, *worlds: _World) -> NoisyOutput:
    """The sum that the server noised, beside what all clients sent without the unit and with it in
    every sample.
    """
    sums = ([tape.messages[round_.number].sums for tape in world.tapes] for world in worlds)
    # in float64, so that what does not depend on the unit cancels
    base, whole = (
        {
            name: torch.stack([one[name].double() for one in own if name in one]).sum(0)
            for name in noisy
        }
        for own in sums
    )
    return NoisyOutput(
        *_apart(noisy, base, whole),
        setting.plan.noise_std(round_.release.name),
        round_.release.sample_rate,
    )


def _apart(
    outputs: Mapping[Any, Tensor], without: Mapping[Any, Tensor], with_: Mapping[Any, Tensor]
) -> tuple[Tensor, Tensor]:
    """Residual and shift of outputs, flat."""
    base = {name: without[name].double() for name in outputs}
    return _flat({n: outputs[n].double() - base[n] for n in outputs}), _flat(
        {n: with_[n].double() - base[n] for n in outputs}
    )


def _flat(tensors: Mapping[Any, Tensor]) -> Tensor:
    return torch.cat(
        [
            torch.zeros(0, dtype=torch.double),
            *(value.detach().double().flatten() for value in tensors.values()),
        ]
    )


class Evidence(NamedTuple):
    """The log likelihood ratio of unit there to not there; what it adds to a step (rms, most), in
    units of the claimed sensitivity.
    """

    score: float
    ratio: float
    most: float


def evidence(steps: Sequence[Step], sensitivity: float) -> Evidence:
    """The evidence of a training that was observed, at the claimed sensitivity."""
    shifts = [
        math.sqrt(sum(float(output.shift.square().sum()) for output in step)) for step in steps
    ]
    return Evidence(
        sum(map(_log_ratio, steps)),
        math.sqrt(float(np.mean(np.square(shifts)))) / sensitivity,
        max(shifts) / sensitivity,
    )


def _log_ratio(step: Step) -> float:
    rate = step[0].rate
    exponent = sum(
        float(output.residual @ output.shift - output.shift @ output.shift / 2) / output.std**2
        for output in step
    )
    if rate == 1:
        return exponent
    return float(np.logaddexp(math.log(1 - rate), math.log(rate) + exponent))


def _canaries(setting: Setting) -> Iterator[Canary]:
    """Rows of norm 1, as all data sets have them: of a single feature, in a random direction,
    against the others; of every label.
    """
    dim = setting.task.dim
    count = UNIT_ROWS[setting.task.unit]
    spike = np.eye(1, dim, dtype=np.float32)
    random = np.random.default_rng(1).standard_normal((1, dim)).astype(np.float32)
    against = -np.sum([x.sum(0, keepdims=True) for x, _ in setting.others], axis=0)
    for row in (spike, random, against):
        for label in range(setting.task.classes):
            yield Canary(
                np.repeat(unit_norm(row.astype(np.float32)), count, 0), np.full(count, label)
            )


def saturating(setting: Setting) -> tuple[Setting, Canary]:
    """The setting, maybe under a smaller clip norm, and the canary that adds most to a training's
    steps; of equals the first.
    """
    best = -1.0
    chosen = None
    for share in CLIPS if isinstance(setting.params.get("clip"), int | float) else CLIPS[:1]:
        if share == 1:
            own = setting
        else:
            own = setting.clipped(share)
        for canary in _canaries(own):
            ratio = round(
                evidence(observed(own, canary, Seeds(0), present=True), own.plan.sensitivity).ratio,
                3,
            )
            if ratio > best:
                best = ratio
                chosen = (own, canary)
        if best >= ENOUGH:
            break
    assert chosen is not None
    return chosen


class TrainingPair(NamedTuple):
    """What two trainings showed: scores without and with the unit, and what it adds to a step, as
    :class:`Evidence` has it.
    """

    pair: int
    absent: float
    present: float
    ratio: float
    most: float


def pair(setting: Setting, canary: Canary, number: int) -> TrainingPair:
    """Train without and with the unit; noise, samples and draws for rows of either are its own,
    everything else is known.
    """
    without, with_ = (
        evidence(
            observed(
                setting, canary, Seeds(0, ((number << 1) + world + 1) << 32), present=bool(world)
            ),
            setting.plan.sensitivity,
        )
        for world in (0, 1)
    )
    return TrainingPair(number, without.score, with_.score, with_.ratio, with_.most)
