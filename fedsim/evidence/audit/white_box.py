"""The white-box audit: how well an adversary who sees everything tells whether a unit took part.

The unit (the *canary*) is an example, a group of examples, or the last client. Trainings run in
pairs, without and with it. Each training runs the real rounds of all clients in up to three worlds:

* The *live* world has the canary or not, and draws its own noise.
* The *absent* world is without the canary.
* The *always* world has it in every Poisson sample.

The last two are *forced*: their clients get the noisy answers of the live world, and their server
gets the sums of the live world. So they differ only in what the unit adds to the queries of all
clients. This difference is the *shift*. A live output minus the output of the absent world before
noise is the *residual*.

The residual of a step is ``b shift + noise``. In a training without the unit b is 0. In a training
with the unit b is 1 if the unit is in the sample, which happens with probability q. If the noise is
as planned, the log likelihood ratio of a step is

    log(1 - q + q exp(sum (<residual, shift> - |shift|^2 / 2) / std^2))

and that of a training is the sum over its steps. By the lemma of Neyman and Pearson this is the
best test between the worlds. In one dimension the two distributions of the residual are the very
pair that the accountant composes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedsim.data.embeddings import PublicRows, unit_norm
from fedsim.errors import PluginError, UserError, at
from fedsim.evidence.worlds import (
    Divergence,
    Hidden,
    Tape,
    WatchedPool,
    flat,
    noised_by_clients,
    watched,
)
from fedsim.grid.cells import public_size, resolve
from fedsim.grid.read import one_cell
from fedsim.methods.algorithm import Algorithm, solved_plan
from fedsim.methods.messages import Round, Task, Tensors
from fedsim.methods.parameters import add_in_order
from fedsim.plugins.registry import lookup
from fedsim.privacy.plan import PrivacyPlan, Release, Trust, Unit
from fedsim.results.records import TrainingPair
from fedsim.seeds import Seeds
from fedsim.training.cohort import Cohort, CohortSpec, build_algorithm
from fedsim.training.rounds import train
from fedsim.training.state import copied

ROW_DIM = 16
"""The dimension of the made-up examples."""
AUDIT_CLASSES = 2
"""The number of classes of the made-up examples."""
AUDIT_CLIENTS = 2
"""The number of clients; the last one is the canary or holds it."""
OTHER_ROWS = 2
"""The number of examples of each client beside the canary.

The adversary knows these examples, so few of them are as good as many, and faster.
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
"""Small values of the parameters that make a training long or a network large.

A parameter that the caller gives keeps its value. The noise is solved for the values that are used.
"""
MOST_ADDED = 1.001
"""The most that a canary may add, in units of the claimed sensitivity, with room for rounding."""
UNIT_ROWS: dict[Unit, int] = {"example": 1, "group": 4, "client": 32}
"""The number of examples of a canary; those of a client are so many that few samples are empty."""
CLIPS = (1.0, 0.1, 0.01)
"""Shares of the clip norm that are tried until a canary adds enough.

Noise is in units of the clip norm, so a claim is the same under any.
"""
ENOUGH = 0.98
"""If a canary adds this share of the claimed sensitivity, no smaller clip norm is tried."""

Rows = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Setting:
    """An algorithm at a claim, and the small made-up data set beside which a canary is put.

    Attributes:
        algorithm: its name, as in a grid file.
        params: all its parameters.
        task: the shapes of the data set, unit and trust.
        plan: the plan at the claimed ε and δ.
    """

    algorithm: str
    params: Mapping[str, Any]
    task: Task
    plan: PrivacyPlan

    def build(self) -> Algorithm:
        """Return a new instance of the algorithm."""
        return build_algorithm(self.algorithm, dict(self.params), self.task)

    def clipped(self, share: float) -> Setting:
        """Return the setting with ``share`` times the clip norm, and noise that shrinks with it.

        A clip norm that the algorithm does not allow stays as it was.
        """
        wanted = {"clip": share * self.params["clip"]}
        allowed = lookup(self.algorithm).Params.brief(wanted, ())
        changed = replace(self, params={**self.params, **allowed})
        algorithm = changed.build()
        # The plan may claim another sensitivity than the class, so both change by one factor.
        class_sensitivity = self.build().sensitivity()
        sensitivity = algorithm.sensitivity() * self.plan.sensitivity / class_sensitivity
        plan = replace(
            self.plan,
            clip=algorithm.clip(),
            sensitivity=sensitivity,
        )
        return replace(changed, plan=plan)

    @cached_property
    def others(self) -> list[tuple[Rows, Labels]]:
        """The examples and labels of each client beside the canary.

        A client that is the canary has none.
        """
        stream = np.random.default_rng(0)
        others = []
        for client in range(self.task.clients):
            count = OTHER_ROWS
            if self.task.unit == "client" and self.has_canary(client):
                count = 0
            x = stream.standard_normal((count, self.task.dim)).astype(np.float32)
            others.append((unit_norm(x), np.arange(count) % self.task.classes))
        return others

    def has_canary(self, client: int) -> bool:
        """Return whether a client is the canary or holds it; the last one does."""
        return client == self.task.clients - 1


def brief(algorithm: str, given: Container[str] = ()) -> dict[str, Any]:
    """Return the values of :data:`SHORT` that an algorithm allows, without those that are given."""
    return lookup(algorithm).Params.brief(SHORT, given)


def setting_of(
    name: str,
    params: Mapping[str, Any],
    unit: Unit,
    trust: Trust,
    epsilon: float,
    delta: float,
) -> Setting:
    """Return the setting in which a claim is audited.

    Args:
        name: the algorithm, as in a grid file.
        params: parameters; those that are not given are the algorithm's defaults.
        unit: the unit of the claim.
        trust: whom clients trust.
        epsilon: the claimed ε.
        delta: the claimed δ.

    Raises:
        UserError: the algorithm is not private, ε is not positive and finite, or the algorithm has
            no plan for this claim.
    """
    cls = lookup(name)
    if not cls.private:
        raise UserError(
            f"algorithm {name}",
            "claims no privacy, so there is nothing to audit",
            "give a private algorithm; `fedsim algorithms` lists them",
        )
    if not 0 < epsilon < math.inf:
        raise UserError(
            "epsilon",
            f"no audit can refute a claim of ε = {epsilon:g}",
            "give a positive, finite number",
        )
    public = PublicRows.made_up(ROW_DIM, AUDIT_CLASSES)
    task = Task(
        ROW_DIM,
        AUDIT_CLASSES,
        AUDIT_CLIENTS,
        unit,
        trust,
        public=public,
        public_size=public_size(OTHER_ROWS * AUDIT_CLIENTS),
    )
    all_params = cls.Params.model_validate(dict(params)).model_dump(mode="json")
    with at(lambda where: f"{where} with {name}"):
        plan = solved_plan(
            build_algorithm(name, all_params, task),
            epsilon,
            delta,
        )
    assert plan is not None
    return Setting(name, all_params, task, plan)


def parameters(algorithm: str, params: Sequence[str]) -> dict[str, Any]:
    """Return all parameters of an algorithm, with its defaults where ``params`` give no value.

    Args:
        algorithm: the algorithm, as in a grid file.
        params: ``key=YAML`` texts.
    """
    with at(lambda where: where.removeprefix("algorithms[0].").replace("params.", "params ", 1)):
        (variant,) = resolve(one_cell(algorithm, params, dataset="digits")).variants
    return variant.params


class Canary(NamedTuple):
    """A unit that the adversary looks for.

    Attributes:
        x: examples ``[n, d]`` of norm 1.
        y: their labels ``[n]``.
    """

    x: Rows
    y: Labels


class NoisyOutput(NamedTuple):
    """A noisy output as the adversary sees it.

    Attributes:
        residual: the output less what it would be without unit and noise, flat.
        shift: what the unit adds to the output if the unit is in the sample, flat.
        std: the planned standard deviation of the noise.
        rate: the probability that the unit is in the sample.
    """

    residual: Tensor
    shift: Tensor
    std: float
    rate: float


Step = list[NoisyOutput]
"""The noisy outputs of a round, or of a local step of one, which share one sample."""


class _World(NamedTuple):
    """What happened in the training of one world.

    Attributes:
        tapes: what each client did.
        noisy: every round with the noisy sum as the server has it.
    """

    tapes: list[Tape]
    noisy: list[tuple[Round, Tensors]]

    def sums(self, round_: Round) -> Tensors:
        """Return the sums over all clients of what they sent in a round, by name.

        They are in float64, so that what does not depend on the canary cancels.
        """
        in_float64 = []
        for tape in self.tapes:
            sent = tape.messages[round_.number].sums
            in_float64.append({name: value.double() for name, value in sent.items()})
        return add_in_order(in_float64)


def _train_world(
    setting: Setting,
    seeds: Seeds,
    canary: Canary | None,
    live: _World | None = None,
    *,
    always: bool = False,
) -> _World:
    """Train in one world.

    Args:
        setting: the algorithm and the examples beside the canary.
        seeds: the seeds of noise, samples and initial weights.
        canary: the unit; None for a world without it.
        live: the world whose noisy outputs this one is given; None for its own.
        always: whether the canary is in every sample.
    """
    algorithm = setting.build()
    script = live and live.tapes
    cohorts = []
    for client in range(setting.task.clients):
        of_client = canary if setting.has_canary(client) else None
        tape = script[client] if script else None
        cohorts.append(_cohort(setting, seeds, client, of_client, tape, always=always))
    # The canary's client computes first, so that what a process remembers of the first examples
    # that it saw depends on the canary.
    pool = WatchedPool(cohorts, range(len(cohorts))[::-1], script)
    noisy: list[tuple[Round, Tensors]] = []

    def watch(round_: Round, total: Tensors) -> None:
        noisy.append((round_, copied(total)))

    steps = train(algorithm, pool, setting.plan, seeds, watch=watch)
    # What is made after the last round follows from what was seen, so it is not run.
    for _ in algorithm.schedule():
        next(steps)
    steps.close()
    return _World(pool.tapes, noisy)


def _cohort(
    setting: Setting,
    seeds: Seeds,
    client: int,
    canary: Canary | None,
    script: Tape | None,
    *,
    always: bool,
) -> Cohort:
    """Return a cohort of one client, whose own examples come first and the canary, if any, last."""
    x, y = setting.others[client]
    own_rows = len(x)
    params = dict(setting.params)
    unit = setting.task.unit
    hidden = None
    if canary is not None:
        x = np.concatenate([x, canary.x])
        y = np.concatenate([y, canary.y])
        if unit != "client":
            hidden = Hidden(client, "every" if always else "chance")
        elif always and "client_rate" in params:
            params["client_rate"] = 1.0
    numbers = np.arange(len(x))
    groups = None
    if unit == "group":
        # Each of a client's own examples is a group.
        groups = (np.minimum(numbers, own_rows),)
    spec = CohortSpec(
        setting.algorithm,
        params,
        setting.task,
        setting.plan,
        seeds,
        (client,),
        (numbers,),
        groups,
    )
    return watched(spec, x, y, hidden, script)


def observed(
    setting: Setting,
    canary: Canary,
    seeds: Seeds,
    *,
    present: bool,
) -> list[Step]:
    """Return the adversary's view of one training, with or without the canary.

    It trains in the live world, and in each of the other two worlds that differs from it.

    Raises:
        PluginError: which tensors are sent depends on the canary.
        Divergence: which noise is added depends on it.
    """
    is_sampled = any(mechanism.sample_rate < 1 for mechanism in setting.plan.mechanisms)
    live = _train_world(setting, seeds, canary if present else None)
    absent = live
    if present:
        absent = _train_world(setting, seeds, None, live)
    always = live
    if is_sampled or not present:
        always = _train_world(setting, seeds, canary, live, always=True)
    at_clients = setting.build().noise_at_clients()
    steps: list[Step] = []
    for round_, noisy in live.noisy:
        absent_sums = absent.sums(round_)
        always_sums = always.sums(round_)
        _check_same_tensors(setting, round_, absent_sums, always_sums)
        outputs = _outputs_of_clients(setting, round_, live, absent, always)
        if not at_clients:
            # The server's sum is compared with what all clients sent in the two other worlds.
            output = _noisy_output(
                setting,
                round_,
                round_.release,
                noisy,
                absent_sums,
                always_sums,
            )
            outputs[0].append(output)
        steps += [outputs[step] for step in sorted(outputs)]
    return steps


def _check_same_tensors(setting: Setting, round_: Round, absent: Tensors, always: Tensors) -> None:
    """Raise PluginError if the names or shapes of what is sent differ between two worlds."""
    absent_shapes = {(name, value.shape) for name, value in absent.items()}
    differing = absent_shapes ^ {(name, value.shape) for name, value in always.items()}
    if differing:
        name, _ = min(differing)
        raise PluginError(
            f"algorithm {setting.algorithm}",
            f"whether '{name}' is sent in round {round_.number}, or its shape, depends on the "
            "unit, so it tells whether the unit takes part",
            "send tensors of the same names and shapes, whatever the data are",
        )


def _outputs_of_clients(
    setting: Setting,
    round_: Round,
    live: _World,
    absent: _World,
    always: _World,
) -> defaultdict[int, Step]:
    """Return the outputs that clients noised in a round, by the number of the local step.

    Those of a client without the canary count only where the canary changes them.

    Raises:
        Divergence: the number of queries depends on the canary.
    """
    trust = setting.task.trust
    outputs: defaultdict[int, Step] = defaultdict(list)
    for client in range(setting.task.clients):
        tapes = [world.tapes[client] for world in (live, absent, always)]
        queries = [tape.queries_of(round_.number) for tape in tapes]
        if len(set(map(len, queries))) > 1:
            raise Divergence(f"round {round_.number}: how often noise is added depends on the unit")
        for step, (query, absent_query, always_query) in enumerate(zip(*queries, strict=True)):
            noised = noised_by_clients(query.noised, trust)
            if not noised:
                continue
            output = _noisy_output(
                setting,
                round_,
                query.release,
                noised,
                noised_by_clients(absent_query.plain, trust),
                noised_by_clients(always_query.plain, trust),
            )
            if setting.has_canary(client) or output.shift.any():
                outputs[step].append(output)
    return outputs


def _noisy_output(
    setting: Setting,
    round_: Round,
    release: Release,
    noised: Tensors,
    absent: Tensors,
    always: Tensors,
) -> NoisyOutput:
    """Return what the adversary sees of noisy tensors.

    Args:
        setting: the claim.
        round_: the round.
        release: the release that got the noise.
        noised: the noisy tensors of the live world.
        absent: the same tensors of the world without the canary, before the noise.
        always: the same tensors of the world whose samples all hold the canary, before the noise.
    """
    base = flat(absent[name] for name in noised)
    residual = flat(noised.values()) - base
    shift = flat(always[name] for name in noised) - base
    std = setting.plan.noise_std(release.name)
    return NoisyOutput(residual, shift, std, round_.release.sample_rate)


class Evidence(NamedTuple):
    """What one training shows.

    Attributes:
        score: the log likelihood ratio of a training with the unit to one without it.
        ratio: what the unit adds to a step (root mean square), in units of the claimed sensitivity.
        most: the most that it adds to a step, in the same units.
    """

    score: float
    ratio: float
    most: float


def evidence(steps: Sequence[Step], sensitivity: float) -> Evidence:
    """Return the evidence of a training that was observed, at the claimed sensitivity."""
    shifts = []
    for step in steps:
        squares = [float(output.shift.square().sum()) for output in step]
        shifts.append(math.sqrt(sum(squares)))
    score = sum(map(_log_ratio, steps))
    root_mean_square = math.sqrt(float(np.mean(np.square(shifts))))
    return Evidence(
        score,
        root_mean_square / sensitivity,
        max(shifts) / sensitivity,
    )


def _log_ratio(step: Step) -> float:
    """Return the log likelihood ratio of a step, by the equation of this module."""
    exponents = []
    for output in step:
        product = output.residual @ output.shift - output.shift @ output.shift / 2
        exponents.append(float(product) / output.std**2)
    exponent = sum(exponents)
    rate = step[0].rate
    if rate == 1:
        return exponent
    return float(np.logaddexp(math.log(1 - rate), math.log(rate) + exponent))


def _canaries(setting: Setting) -> Iterator[Canary]:
    """Yield canaries of equal examples of norm 1, in three directions and of every label.

    The directions are a single feature, a random one, and the one against the other examples.
    """
    task = setting.task
    count = UNIT_ROWS[task.unit]
    spike = np.eye(task.dim)[0]
    random = np.random.default_rng(1).standard_normal(task.dim)
    against = -np.sum([x.sum(0) for x, _ in setting.others], axis=0)
    for direction in (spike, random, against):
        rows = np.tile(direction.astype(np.float32), (count, 1))
        for label in range(task.classes):
            yield Canary(unit_norm(rows), np.full(count, label))


def saturating(setting: Setting) -> tuple[Setting, Canary]:
    """Return the canary that adds most to the steps of a training, the first of equal ones.

    Smaller clip norms are tried until a canary adds :data:`ENOUGH`, so the setting is returned with
    the clip norm of the best canary.

    Raises:
        PluginError: whatever the canary is, a released number is not finite.
    """
    shares: Sequence[float] = CLIPS[:1]
    if isinstance(setting.params.get("clip"), int | float):
        shares = CLIPS
    ratios = []
    pairs = []
    for share in shares:
        tried = setting
        if share != 1:
            tried = setting.clipped(share)
        for canary in _canaries(tried):
            steps = observed(tried, canary, Seeds(0), present=True)
            shown = evidence(steps, tried.plan.sensitivity)
            # Canaries whose ratios agree to three decimals count as equal.
            ratios.append(round(shown.ratio, 3))
            pairs.append((tried, canary))
        if any(ratio >= ENOUGH for ratio in ratios):
            break
    if np.isnan(ratios).all():
        raise PluginError(
            f"algorithm {setting.algorithm}",
            "every unit that was tried makes a released number infinite or NaN",
            "bound every number before it is sent",
        )
    return pairs[np.nanargmax(ratios)]


def pair(setting: Setting, canary: Canary, number: int) -> TrainingPair:
    """Train without and with the canary and return what both trainings showed.

    Each has its own noise, samples and random numbers for examples. Everything else, such as the
    initial weights, is the same and known to the adversary.
    """
    results = []
    for is_present in (False, True):
        secret = (2 * number + is_present + 1) << 32
        steps = observed(setting, canary, Seeds(0, secret), present=is_present)
        results.append(evidence(steps, setting.plan.sensitivity))
    absent, present = results
    return {
        "pair": number,
        "absent": absent.score,
        "present": present.score,
        "ratio": present.ratio,
        "most": present.most,
    }
