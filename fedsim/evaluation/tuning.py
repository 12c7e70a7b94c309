"""Trains a tuned cell: several trainings with different parameters, of which the best is kept.

A private search chooses the best training by a noisy score on private examples that no training
sees. The cell's budget pays for all trainings and scores (:mod:`fedsim.privacy.selection`). A free
search chooses it by the score on test examples, for which no budget pays.
:mod:`fedsim.evaluation.plans` plans both kinds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.data.embeddings import Embeddings
from fedsim.data.split import Integers
from fedsim.device import CPU, to_device
from fedsim.evaluation.evaluate import cell_evaluator, synthesise
from fedsim.evaluation.measures import balanced_accuracy
from fedsim.grid.models import Tuning
from fedsim.methods.messages import Tensors
from fedsim.methods.products import Classifier, is_classifier, own
from fedsim.models.linear import folded
from fedsim.models.probe import fit_probe
from fedsim.partition import Partition
from fedsim.privacy.mechanism import Mechanism
from fedsim.privacy.noise import gaussian
from fedsim.privacy.plan import PrivacyPlan
from fedsim.privacy.selection import SCORE, distinct, runs_at
from fedsim.seeds import Purpose, Seeds
from fedsim.training.cohort import LocalPool, build_algorithm
from fedsim.training.rounds import RoundRecord, restored
from fedsim.training.state import Checkpoint, Checkpoints, below, nested
from fedsim.training.trial import Outcome, Trial, local_pool, run_trial, seeds_of


@dataclass(frozen=True)
class ScoredRun:
    """One training of a tuned cell with its noisy score.

    Attributes:
        candidate: the position of its parameters among the trial's candidates.
        score: the noisy score, by which trainings are compared.
        multiplier: the standard deviation of the score's noise, divided by its sensitivity of 1.
        outcome: the outcome of the training, without its state.
    """

    candidate: int
    score: float
    multiplier: float
    outcome: Outcome


@dataclass(frozen=True)
class _Search:
    """The finished trainings of a tuned cell.

    Attributes:
        runs: the trainings in their order.
        best: the state of the best one; None before the first one ends.
    """

    runs: tuple[ScoredRun, ...] = ()
    best: Tensors | None = None

    @property
    def winner(self) -> ScoredRun:
        """The training with the largest score; the first of several."""
        return max(self.runs, key=lambda run: run.score)

    def after(self, run: ScoredRun, state: Tensors) -> _Search:
        """Return the search after one more training, which ended in ``state``."""
        longer = _Search((*self.runs, run), self.best)
        if longer.winner is run:
            return replace(longer, best=state)
        return longer

    def beside(self, progress: Checkpoint, secret: int | None) -> Checkpoint:
        """Return a checkpoint of the cell.

        Args:
            progress: the checkpoint of the training under way.
            secret: the key of the cell's secret random streams.
        """
        ledger = json.dumps(
            {"training": progress.ledger, "runs": [asdict(run) for run in self.runs]}
        )
        tensors = progress.tensors | nested("best", self.best or {})
        return replace(
            progress,
            tensors=tensors,
            ledger=ledger,
            secret=secret,
        )

    @classmethod
    def of(cls, whole: Checkpoint) -> tuple[_Search, Checkpoint]:
        """Return the two parts of a cell's checkpoint, which :meth:`beside` has joined.

        Args:
            whole: the checkpoint of the cell.

        Returns:
            The search, and the checkpoint of the training under way.
        """
        ledger = json.loads(whole.ledger)
        tensors = {
            name: value for name, value in whole.tensors.items() if not name.startswith("best.")
        }
        runs = tuple(map(_read_scored_run, ledger["runs"]))
        search = cls(runs, below("best", whole.tensors) or None)
        return search, replace(whole, tensors=tensors, ledger=ledger["training"])


def _read_scored_run(values: dict[str, Any]) -> ScoredRun:
    """Return the training that a checkpoint holds as plain values."""
    outcome = values["outcome"]
    if outcome["mechanisms"] is not None:
        outcome["mechanisms"] = tuple(Mechanism(**each) for each in outcome["mechanisms"])
    return ScoredRun(**{**values, "outcome": Outcome(**outcome)})


@dataclass
class _CheckpointsOfRun(Checkpoints):
    """The checkpoints of one training, which are stored in those of the cell.

    The cell's very first checkpoint is stored at once, so that the cell keeps its secret draws even
    if it is killed soon.

    Attributes:
        whole: the checkpoints of the cell.
        search: the finished trainings.
        secret: the key of the cell's secret random streams.
        progress: the checkpoint that this training continues from; None for a new training.
    """

    whole: Checkpoints
    search: _Search
    secret: int | None
    progress: Checkpoint | None

    def __post_init__(self) -> None:
        self.first = not self.search.runs and self.progress is None

    def __call__(self, capture: Callable[[], Checkpoint], is_last: bool = False) -> None:
        """Store the progress if it is time.

        The last round of a training is not the last one of the cell, so it counts like any other.
        """
        if self.first:
            self.whole.save(self.search.beside(capture(), self.secret))
        else:
            self.whole(lambda: self.search.beside(capture(), self.secret))
        self.first = False

    def load(self) -> Checkpoint | None:
        """Return the checkpoint that this training continues from."""
        return self.progress


def run_tuned(
    trial: Trial,
    data: Embeddings,
    make_pool: Callable[[Trial, Embeddings, Seeds], LocalPool] = local_pool,
    checkpoints: Checkpoints | None = None,
    device: torch.device = CPU,
) -> Iterator[RoundRecord | Outcome]:
    """Train a tuned cell and keep its best training.

    For a private search, the number of trainings, their parameters and the keys of their noise are
    drawn from a secret stream. Checkpoints keep the key of this stream, so an interrupted cell
    continues with the same draws.

    Args:
        trial: the cell with its candidates.
        data: its data set.
        make_pool: makes the pool of clients of one training.
        checkpoints: where the progress is stored; None stores nothing.
        device: the device that trains.

    Yields:
        The records of all trainings' rounds, one training after another; then the outcome of the
        best training, with what all of them cost.
    """
    started = time.perf_counter()
    trial = trial.given(data)
    tuning = cast(Tuning, trial.cell.tuning)
    resume = None
    if checkpoints is not None:
        resume = checkpoints.load()
    seeds = seeds_of(trial, resume)
    search = _Search()
    progress = None
    if resume is not None:
        search, progress = _Search.of(resume)
    drawn = draws(tuning, len(trial.candidates), seeds)
    partition = trial.partition
    held = None
    if not tuning.free:
        partition, held = held_out(trial, tuning.held_out, seeds)
    rounds = [_count_rounds(trial, position) for position in drawn]
    for number in range(len(search.runs), len(drawn)):
        candidate = trial.candidates[drawn[number]]
        plan = _without_score(candidate.plan)
        of_candidate = trial.of(candidate.params, plan)
        training = replace(of_candidate, partition=partition, candidates=())
        run_seeds = seeds if tuning.free else seeds.run(number)
        stored = None
        if checkpoints is not None:
            stored = _CheckpointsOfRun(checkpoints, search, seeds.secret, progress)
        for step in run_trial(training, data, make_pool, stored, device, run_seeds):
            if isinstance(step, RoundRecord):
                values = {**step.values, "training": number + 1}
                # Rounds are numbered through all trainings of the cell.
                round_of_cell = sum(rounds[:number]) + step.round
                yield RoundRecord(round_of_cell, sum(rounds), values)
                continue
            if held is None:
                score = _score_on_test_rows(training, step.state, data, device)
                multiplier = 0.0
            else:
                score, multiplier = held.noisy(
                    training, step.state, data, candidate.plan, run_seeds, device
                )
            scored = ScoredRun(drawn[number], score, multiplier, replace(step, state={}))
            search = search.after(scored, step.state)
        progress = None
    yield _outcome(trial, search, time.perf_counter() - started)


def _count_rounds(trial: Trial, position: int) -> int:
    """Return the number of rounds of a training with the parameters of one candidate.

    Args:
        trial: the tuned cell.
        position: the position of the candidate.
    """
    params = trial.candidates[position].params
    algorithm = build_algorithm(trial.cell.algorithm, params, trial.task)
    return sum(release.rounds for release in algorithm.releases())


def _score_on_test_rows(
    trial: Trial,
    state: Tensors,
    data: Embeddings,
    device: torch.device,
) -> float:
    """Return the balanced accuracy of a training on the test rows.

    If every client has its own classifier, it is the mean over these classifiers. Only a free
    search, which no budget pays for, looks at these rows.
    """
    predicted = cell_evaluator(trial, state, data, device).predictions()
    return float(np.mean([balanced_accuracy(predictions) for predictions in predicted]))


def draws(tuning: Tuning, candidates: int, seeds: Seeds) -> list[int]:
    """Return the candidates to train, in order.

    A free search trains every candidate once. Otherwise a random number of trainings is drawn, and
    each gets an independent random candidate.

    Args:
        tuning: the grid's tuning.
        candidates: the number of candidates.
        seeds: the seeds of the cell.
    """
    if tuning.free:
        return list(range(candidates))
    stream = seeds.keystream(Purpose.SELECTION)
    runs = runs_at(float(stream.uniform(1)[0]), tuning.trials, tuning.distribution)
    return list(map(int, stream.integers(candidates, (runs,))))


def _without_score(plan: PrivacyPlan | None) -> PrivacyPlan | None:
    """Return the plan of a training alone, without the release of its score."""
    if plan is None:
        return None
    releases = tuple(release for release in plan.releases if release.name != SCORE)
    return replace(plan, releases=releases)


@dataclass(frozen=True)
class HeldOut:
    """The private examples that trainings are scored on, one client after another.

    Attributes:
        rows: their positions among the training rows, int64 ``[k]``.
        clients: the client of each, int64 ``[k]``.
        weights: what each adds to the score if it is predicted right, ``[k]``. It is 1, or 1
            divided by the size of its group where a group is the unit of privacy.
    """

    rows: Integers
    clients: Integers
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
        """Return the noisy score of a training: the number of units that are predicted right.

        Of a group, the share of its examples that are predicted right counts. So one unit changes
        the number by at most 1, which is the sensitivity of the noise.

        Args:
            trial: the training.
            state: its state at the end.
            data: the data set.
            plan: the plan with the noise of the score; None adds no noise.
            seeds: the seeds of the training.
            device: the device that predicts.

        Returns:
            The noisy score and its noise multiplier.
        """
        count = float(self.weights @ self.correct(trial, state, data, device))
        std = 0.0
        if plan is not None:
            std = plan.mechanism(SCORE).noise_multiplier
        noise = gaussian({SCORE: (1,)}, std, seeds.keystream(Purpose.SELECTION))
        return count + float(noise.parts[SCORE][0]), std

    def correct(
        self,
        trial: Trial,
        state: Tensors,
        data: Embeddings,
        device: torch.device = CPU,
    ) -> NDArray[np.bool_]:
        """Return whether each held-out example is predicted right by :func:`scored_classifier`.

        The classifier sees one example at a time, in a copy of its own. If it saw all together, one
        example could change how the others are rounded or predicted.

        Args:
            trial: the training.
            state: its state at the end.
            data: the data set.
            device: the device that predicts.

        Returns:
            Truth values ``[k]``.
        """
        classifier, device = scored_classifier(trial, state, device)
        x = to_device(torch.from_numpy(data.x_train[self.rows]), device)
        predicted = []
        for row, client in zip(x, self.clients, strict=True):
            probabilities = own(classifier, int(client)).probabilities(row[None].clone())
            predicted.append(int(probabilities[0].argmax()))
        return np.asarray(np.array(predicted, dtype=np.int64) == data.y_train[self.rows])


def scored_classifier(
    trial: Trial, state: Tensors, device: torch.device
) -> tuple[Classifier, torch.device]:
    """Return the classifier whose predictions for held-out examples score a training.

    For a generator it is a linear probe of synthetic embeddings. The classifier depends only on the
    training and on public numbers, because no private example is an argument. The penalty of the
    evaluation's probe depends on the number of private examples. The penalty of this probe depends
    on the number of synthetic embeddings instead. So a held-out unit changes the score only by the
    predictions for its own examples.

    Args:
        trial: the training.
        state: its state at the end.
        device: the device of the training.

    Returns:
        The classifier, and the device on which it computes.
    """
    cell = trial.cell
    task = trial.task
    seeds = Seeds(cell.seed)
    algorithm = build_algorithm(cell.algorithm, cell.params, task)
    product, _ = restored(algorithm, state, trial.plan, seeds, device)
    if is_classifier(product):
        return product, device
    per_class = cell.evaluation.rows_per_class(task.dim, task.classes)
    x, y = synthesise(product, task.classes, per_class, seeds, device=device)
    probe_c = cell.evaluation.synthetic_c(
        per_class * task.classes,
        task.dim,
        task.classes,
    )
    return folded(fit_probe(x, y, probe_c), task.classes), CPU


def held_out(
    trial: Trial,
    probability: float,
    seeds: Seeds,
) -> tuple[Partition, HeldOut]:
    """Divide the private examples into those for training and those for scores.

    A secret coin for each unit decides to which part the unit belongs, so a group stays whole. The
    coin depends on the position of the unit within its client, and not on its examples. So the two
    parts are disjoint, and no data decides which unit is in which part
    (:mod:`fedsim.privacy.selection`). A client may be left without a training example: an exception
    for its last unit would let the unit's coin depend on which other units there are.

    Args:
        trial: the tuned cell.
        probability: the probability that a unit is held out.
        seeds: the seeds of the cell.

    Returns:
        The partition without the held-out examples, and the held-out examples.
    """
    partition = trial.partition
    left_out = []
    held_rows = []
    held_clients = []
    weights = []
    for client, client_rows in enumerate(partition.rows):
        units = partition.units_of(client)
        count = int(units.max(initial=-1)) + 1
        coins = seeds.keystream(Purpose.HELD_OUT, client=client).uniform(count)
        out = coins[units] < probability
        left_out.append(out)
        held_rows.append(client_rows[out])
        held_clients.append(np.full(out.sum(), client))
        sizes = np.ones(len(coins), np.int64)
        if trial.task.unit == "group":
            sizes = np.bincount(units)
        weights.append(1.0 / sizes[units[out]])
    held = HeldOut(
        np.concatenate(held_rows),
        np.concatenate(held_clients),
        np.concatenate(weights),
    )
    return partition.without(left_out), held


def _outcome(trial: Trial, search: _Search, seconds: float) -> Outcome:
    """Return the outcome of the best training, with what all trainings cost together."""
    winner = search.winner
    outcomes = [run.outcome for run in search.runs]
    chosen = trial.candidates[winner.candidate]
    differences = (of_run.unaccounted for of_run in outcomes if of_run.unaccounted)
    outcome = replace(
        winner.outcome,
        unaccounted=next(differences, ""),
        uplink_bytes=sum(of_run.uplink_bytes for of_run in outcomes),
        downlink_bytes=sum(of_run.downlink_bytes for of_run in outcomes),
        seconds=seconds,
        state=search.best or {},
        chosen=chosen,
        trials=len(search.runs),
    )
    plan = chosen.plan
    if plan is None or plan.selection is None:
        return outcome
    ran = [of_run.mechanisms for of_run in outcomes if of_run.mechanisms is not None]
    # The planned trainings count as well, because the search could have drawn any of them.
    selection = replace(
        plan.selection,
        trainings=distinct([*plan.selection.trainings, *ran]),
        score=min(run.multiplier for run in search.runs),
    )
    mechanisms = winner.outcome.mechanisms
    if mechanisms:
        mechanisms = (*mechanisms, Mechanism(winner.multiplier, release=SCORE))
    return replace(
        outcome,
        epsilon_spent=selection.epsilon(plan.delta),
        accountant=plan.accountant,
        mechanisms=mechanisms,
    )
