"""A tuned cell: the best of several trainings, by a noisy score on private rows that none of them
sees; and the plans of any cell.

The budget of a tuned cell pays for all its trainings and their scores
(:mod:`fedsim.privacy.selection`). Each training has an ordinary plan, solved for the largest
epsilon at which the whole costs no more than the cell's; the same one for all settings.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.data.embeddings import Embeddings
from fedsim.device import CPU, to_device
from fedsim.errors import UserError
from fedsim.evaluation.judge import judge_of, synthesise
from fedsim.evaluation.measures import balanced_accuracy
from fedsim.grid.models import Tuning
from fedsim.methods.algorithm import Algorithm, solved_plan
from fedsim.methods.messages import Task, Tensors
from fedsim.methods.products import Classifier, is_classifier, own
from fedsim.models.linear import folded
from fedsim.models.probe import fit_probe
from fedsim.partition import Partition
from fedsim.plugins.claims import allowed
from fedsim.privacy import accountant
from fedsim.privacy.mechanism import Mechanism
from fedsim.privacy.noise import gaussian
from fedsim.privacy.plan import PrivacyPlan, Release
from fedsim.privacy.selection import SCORE, SEEN, Selection, distinct, runs_at, solved_noise
from fedsim.seeds import Purpose, Seeds
from fedsim.training.cohort import LocalPool, build_algorithm
from fedsim.training.rounds import RoundRecord, restored
from fedsim.training.state import Checkpoint, Checkpoints, below, nested
from fedsim.training.trial import Candidate, Outcome, Trial, local_pool, run_trial, seeds_of


@dataclass(frozen=True)
class ScoredRun:
    """One training of a tuned cell, by the position of its parameters: its noisy score, and its
    outcome without the state.

    ``multiplier`` is the noise that was added to the score, over its sensitivity, which is 1.
    """

    candidate: int
    score: float
    multiplier: float
    outcome: Outcome


@dataclass(frozen=True)
class _Search:
    """The trainings so far, in their order, and the state of the best one."""

    runs: tuple[ScoredRun, ...] = ()
    best: Tensors | None = None

    @property
    def winner(self) -> ScoredRun:
        """The best one; of equal scores the first."""
        return max(self.runs, key=lambda run: run.score)

    def after(self, run: ScoredRun, state: Tensors) -> _Search:
        """With one more."""
        longer = _Search((*self.runs, run))
        return replace(longer, best=state if longer.winner is run else self.best)

    def beside(self, progress: Checkpoint, secret: int | None) -> Checkpoint:
        """A checkpoint of the training under way, with all that came before it and the key of the
        cell.
        """
        known = json.dumps(
            {"training": progress.ledger, "runs": [asdict(run) for run in self.runs]}
        )
        return replace(
            progress,
            tensors=progress.tensors | nested("best", self.best or {}),
            ledger=known,
            secret=secret,
        )

    @classmethod
    def of(cls, progress: Checkpoint) -> tuple[_Search, Checkpoint]:
        """The inverse of :meth:`beside`."""
        known = json.loads(progress.ledger)
        best = below("best", progress.tensors)
        own = {
            name: value for name, value in progress.tensors.items() if not name.startswith("best.")
        }
        return cls(tuple(map(_scored, known["runs"])), best or None), replace(
            progress, tensors=own, ledger=known["training"]
        )


def _scored(plain: dict[str, Any]) -> ScoredRun:
    ran = plain["outcome"].pop("mechanisms")
    if ran is None:
        mechanisms = None
    else:
        mechanisms = tuple(Mechanism(**one) for one in ran)
    return ScoredRun(**{**plain, "outcome": Outcome(**plain["outcome"], mechanisms=mechanisms)})


class _OfRun(Checkpoints):
    """The checkpoints of one training, which go into those of the cell; the first is not waited
    for, so that a cell keeps its draws.
    """

    def __init__(
        self,
        whole: Checkpoints | None,
        search: _Search,
        secret: int | None,
        progress: Checkpoint | None,
    ) -> None:
        self.whole = whole
        self.search = search
        self.secret = secret
        self.progress = progress
        self.first = not search.runs and progress is None

    def __call__(self, capture: Callable[[], Checkpoint]) -> None:
        """Store the progress if it is time."""
        if self.whole is None:
            return
        if self.first:
            self.whole.save(self.search.beside(capture(), self.secret))
        else:
            self.whole(lambda: self.search.beside(capture(), self.secret))
        self.first = False

    def load(self) -> Checkpoint | None:
        """Where this training stood."""
        return self.progress


def run_tuned(
    trial: Trial,
    data: Embeddings,
    make_pool: Callable[[Trial, Embeddings, Seeds], LocalPool] = local_pool,
    checkpoints: Checkpoints | None = None,
    device: torch.device = CPU,
) -> Iterator[RoundRecord | Outcome]:
    """Train a tuned cell: yields the rounds of its trainings one after another, then the outcome of
    the best.

    The number of trainings, their parameters and their keys are drawn from a secret stream, so the
    cell continues with them. Arguments are those of :func:`fedsim.training.trial.run_trial`.
    """
    started = time.perf_counter()
    trial = trial.given(data)
    tuning = cast(Tuning, trial.cell.tuning)
    if checkpoints:
        resume = checkpoints.load()
    else:
        resume = None
    seeds = seeds_of(trial, resume)
    if resume is None:
        search = _Search()
        progress = None
    else:
        search, progress = _Search.of(resume)
    drawn = draws(tuning, len(trial.candidates), seeds)
    if tuning.free:
        trained_on = trial.partition
        held = None
    else:
        trained_on, held = held_out(trial, tuning.held_out, seeds)
    tried = [
        build_algorithm(trial.cell.algorithm, trial.candidates[candidate].params, trial.task)
        for candidate in drawn
    ]
    sizes = [sum(release.rounds for release in algorithm.releases()) for algorithm in tried]
    for number, candidate in enumerate(drawn):
        if number < len(search.runs):
            continue
        chosen = trial.candidates[candidate]
        one = replace(
            trial.of(chosen.params, _training(chosen.plan)), partition=trained_on, candidates=()
        )
        if tuning.free:
            own_seeds = seeds
        else:
            own_seeds = seeds.run(number)
        kept = _OfRun(checkpoints, search, seeds.secret, progress)
        for step in run_trial(one, data, make_pool, kept, device, own_seeds):
            if isinstance(step, RoundRecord):
                values = {**step.values, "training": number + 1}
                yield RoundRecord(sum(sizes[:number]) + step.round, sum(sizes), values)
                continue
            if held is None:  # a search that nobody pays for looks at test rows
                told = judge_of(one, step.state, data, device).predictions()
                score = float(np.mean(list(map(balanced_accuracy, told))))
                multiplier = 0.0
            else:
                score, multiplier = held.noisy(
                    one, step.state, data, chosen.plan, own_seeds, device
                )
            search = search.after(
                ScoredRun(candidate, score, multiplier, replace(step, state={})), step.state
            )
        progress = None
    yield _outcome(trial, search, time.perf_counter() - started)


def draws(tuning: Tuning, candidates: int, seeds: Seeds) -> list[int]:
    """The candidates to train, in order: each once if the search is free, else a random number of
    independent ones.
    """
    if tuning.free:
        return list(range(candidates))
    stream = seeds.keystream(Purpose.SELECTION)
    runs = runs_at(float(stream.uniform(1)[0]), tuning.trials, tuning.distribution)
    return list(map(int, stream.integers(candidates, (runs,))))


def _training(plan: PrivacyPlan | None) -> PrivacyPlan | None:
    """The plan of the training alone, whose ledger holds no score."""
    return plan and replace(
        plan, releases=tuple(release for release in plan.releases if release.name != SCORE)
    )


@dataclass(frozen=True)
class HeldOut:
    """The numbers of the rows that trainings are scored on, a client after another, whose each is,
    and its weight.

    That is what it adds to the score if it is predicted right: 1, or where the unit is a group its
    share of the group.
    """

    rows: NDArray[np.int64]
    clients: NDArray[np.int64]
    weights: NDArray[np.float64]

    def noisy(
        self,
        trial: Trial,
        state: Tensors,
        data: Embeddings,
        plan: PrivacyPlan | None,
        seeds: Seeds,
        device: torch.device = CPU,
    ) -> tuple[float, float]:
        """How many units are predicted right, with the plan's noise; and the noise multiplier. One
        unit changes the number by at most 1.
        """
        count = float(self.weights @ self.correct(trial, state, data, device))
        if plan is None:
            std = 0.0
        else:
            std = plan.mechanism(SCORE).noise_multiplier
        noise = gaussian({SCORE: (1,)}, std, seeds.keystream(Purpose.SELECTION))
        return count + float(noise.parts[SCORE][0]), std

    def correct(
        self, trial: Trial, state: Tensors, data: Embeddings, device: torch.device = CPU
    ) -> NDArray[np.bool_]:
        """Whether each row is predicted right, by :func:`scored_classifier`.

        It sees one row at a time, in memory of its own: of all rows together, one could change how
        the others are rounded or predicted.
        """
        classifier, device = scored_classifier(trial, state, device)
        rows = to_device(torch.from_numpy(data.x_train[self.rows]), device)
        predicted = [
            int(own(classifier, int(client)).probabilities(row[None].clone())[0].argmax())
            for row, client in zip(rows, self.clients, strict=True)
        ]
        return np.asarray(np.array(predicted, dtype=np.int64) == data.y_train[self.rows])


def scored_classifier(
    trial: Trial, state: Tensors, device: torch.device
) -> tuple[Classifier, torch.device]:
    """Returns the classifier that held-out rows score a training by, and its device.

    A generator's classifier is a linear probe of its synthetic rows. Only the training and public
    numbers decide it: no private row is an argument, and where the evaluation's probe has a weaker
    or stronger penalty by the number of private rows, this one goes by the number of synthetic
    rows. A held-out unit therefore changes the score by its own prediction alone.
    """
    cell = trial.cell
    task = trial.task
    seeds = Seeds(cell.seed)
    algorithm = build_algorithm(cell.algorithm, cell.params, task)
    made, _ = restored(algorithm, state, trial.plan, seeds, device)
    if is_classifier(made):
        return made, device
    per_class = cell.evaluation.rows_per_class(task.dim, task.classes)
    x, y = synthesise(made, task.classes, per_class, seeds, device=device)
    probe_c = cell.evaluation.synthetic_c(per_class * task.classes, task.dim, task.classes)
    return folded(fit_probe(x, y, probe_c), task.classes), CPU


def held_out(trial: Trial, probability: float, seeds: Seeds) -> tuple[Partition, HeldOut]:
    """The partition without the rows that are held out, and those; groups stay whole.

    A unit's coin is drawn from a secret stream by its place, whatever its row holds, so units in
    training and those in the score are disjoint parts that no data decides
    (:mod:`fedsim.privacy.selection`).
    """
    partition = trial.partition
    kept = []
    kept_groups = []
    rows = []
    clients = []
    weights = []
    for client, own_rows in enumerate(partition.rows):
        if partition.groups is None:
            part = np.arange(len(own_rows))
        else:
            part = partition.groups[client]
        coins = (
            seeds.keystream(Purpose.HELD_OUT, client=client).uniform(
                int(part[-1]) + 1 if len(part) else 0
            )
            < probability
        )
        if len(part):
            out = coins[part]
        else:
            out = np.zeros(0, bool)
        kept.append(own_rows[~out])
        kept_groups.append(np.unique(part[~out], return_inverse=True)[1])
        rows.append(own_rows[out])
        clients.append(np.full(out.sum(), client))
        if trial.task.unit == "group":
            sizes = np.bincount(part)
        else:
            sizes = np.ones(len(coins), np.int64)
        weights.append(1.0 / sizes[part[out]])
    if partition.groups is None:
        groups = None
    else:
        groups = tuple(kept_groups)
    held = HeldOut(np.concatenate(rows), np.concatenate(clients), np.concatenate(weights))
    return replace(partition, rows=tuple(kept), groups=groups), held


def _outcome(trial: Trial, search: _Search, seconds: float) -> Outcome:
    """The best training's outcome, with what all of them cost."""
    winner = search.winner
    outcomes = [run.outcome for run in search.runs]
    chosen = trial.candidates[winner.candidate]
    outcome = replace(
        winner.outcome,
        unaccounted=next(filter(None, (outcome.unaccounted for outcome in outcomes)), ""),
        uplink_bytes=sum(outcome.uplink_bytes for outcome in outcomes),
        downlink_bytes=sum(outcome.downlink_bytes for outcome in outcomes),
        seconds=seconds,
        state=search.best or {},
        chosen=chosen,
        trials=len(search.runs),
    )
    plan = chosen.plan
    if plan is None or plan.selection is None:
        return outcome
    ran = [one.mechanisms for one in outcomes if one.mechanisms is not None]
    least = min(run.multiplier for run in search.runs)
    spent = replace(
        plan.selection, trainings=distinct([*plan.selection.trainings, *ran]), score=least
    )
    scored = Mechanism(winner.multiplier, release=SCORE)
    return replace(
        outcome,
        epsilon_spent=spent.epsilon(plan.delta),
        accountant=plan.accountant,
        mechanisms=winner.outcome.mechanisms and (*winner.outcome.mechanisms, scored),
    )


_LESS = 0.995
"""By how much the epsilon of trainings is lowered where the whole costs too much."""


def plans_of(
    cls: type[Algorithm],
    params: Mapping[str, Any],
    tuning: Tuning | None,
    task: Task,
    epsilon: float | None,
    delta: float,
) -> tuple[Candidate, ...]:
    """The parameters of a cell with their plan; one candidate unless the cell is tuned, else one a
    point of its space.

    Points replace those of all ``params`` that are in their space. The budget is of all trainings
    and scores together; an ``epsilon`` of None has no meaning for the algorithm.
    """
    if tuning is not None and task.trust == "silo":
        raise UserError("trust", SEEN, "tune under trust: aggregate, or leave out tune")
    if tuning is None:
        points: Sequence[Mapping[str, Any]] = [{}]
    else:
        points = tuning.points
    settings = [cls.Params.model_validate({**params, **point}) for point in points]
    algorithms = [cls(setting, task) for setting in settings]
    complete = [setting.model_dump(mode="json") for setting in settings]
    if tuning is None or tuning.free or epsilon is None:
        plans = [_plan(algorithm, epsilon, delta) for algorithm in algorithms]
        if tuning is not None and epsilon is not None and math.isfinite(epsilon):
            plans = [plan and replace(plan, claim="heuristic") for plan in plans]
    else:
        plans = list(_tuned(algorithms, tuning, epsilon, delta))
    return tuple(Candidate(*pair) for pair in zip(complete, plans, strict=True))


def _plan(algorithm: Algorithm, epsilon: float | None, delta: float) -> PrivacyPlan | None:
    plan = solved_plan(algorithm, epsilon, delta)
    return plan and replace(plan, claim=allowed(plan.claim, algorithm))


def _tuned(
    algorithms: Sequence[Algorithm], tuning: Tuning, epsilon: float, delta: float
) -> list[PrivacyPlan]:
    how = tuning.trials, tuning.distribution
    noise = 0.0
    inner = math.inf
    if math.isfinite(epsilon):
        for algorithm in algorithms:
            solved_plan(algorithm, epsilon, delta)  # refuses what has no plan at all
        try:
            noise = solved_noise(*how, epsilon, delta, lambda sigma: [Mechanism(sigma)])
            inner = min(
                _largest(releases, how, epsilon, delta)
                for releases in {_steps(algorithm) for algorithm in algorithms}
            )
        except ValueError as error:
            raise UserError(
                "epsilon", str(error), "give a larger one, or a smaller mean number of trials"
            ) from error
    while True:
        plans = [plan for algorithm in algorithms if (plan := _plan(algorithm, inner, delta))]
        ran = [tuple(one for one in plan.mechanisms if one.release != SCORE) for plan in plans]
        selection = Selection(*how, distinct(ran), noise)
        reached = selection.epsilon(delta)
        if reached <= epsilon:
            return [_with_score(plan, selection, epsilon, reached) for plan in plans]
        inner = float(f"{_LESS * inner:.6g}")


def _steps(algorithm: Algorithm) -> tuple[Mechanism, ...]:
    """The mechanisms of an algorithm at a noise multiplier of 1."""
    return tuple(sorted(release.mechanism for release in algorithm.releases() if release.steps))


def _largest(
    steps: tuple[Mechanism, ...], how: tuple[float, Any], epsilon: float, delta: float
) -> float:
    """The epsilon of a training alone with the least noise at which the best of the trainings costs
    ``epsilon``.
    """

    def scaled(sigma: float) -> list[Mechanism]:
        return [one.scaled(sigma) for one in steps]

    return accountant.epsilon(scaled(solved_noise(*how, epsilon, delta, scaled)), delta)[0]


def _with_score(
    plan: PrivacyPlan, selection: Selection, epsilon: float, reached: float
) -> PrivacyPlan:
    score = Release(SCORE, 1.0, 1, selection.score / plan.sigma if plan.sigma else 1.0, main=False)
    return replace(
        plan,
        epsilon_target=epsilon,
        epsilon_reached=reached,
        accountant="rdp" if plan.sigma else "none",
        releases=(*plan.releases, score),
        selection=selection,
    )
