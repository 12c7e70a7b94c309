"""Attacks the saved generators of a run by membership inference.

An attack scores each example by how much it resembles the synthetic embeddings. The result is how
well the scores separate training examples from other examples of the data set. The adversary sees
nothing but the synthetic embeddings. Training examples and other examples may also differ for other
reasons, so an attack bounds no ε.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.stats import multivariate_normal
from sklearn.metrics import auc

from fedsim.data.embeddings import Embeddings
from fedsim.data.split import Integers
from fedsim.errors import UserError
from fedsim.evaluation.evaluate import synthesise
from fedsim.methods.products import is_classifier
from fedsim.results.join import Entry, read_results
from fedsim.results.lines import as_trained, read_state
from fedsim.results.records import MembershipRecord, TrainingRecord
from fedsim.results.store import ResultStore, RunFolder
from fedsim.seeds import Seeds
from fedsim.training.cohort import build_algorithm
from fedsim.training.rounds import restored
from fedsim.training.trial import Trial
from fedsim.words import counted, number

FALSE_POSITIVE_RATES = (0.01, 0.001)
"""The false-positive rates at which true-positive rates are reported.

They are those of Carlini et al. 2022 (arXiv 2112.03570).
"""
RESAMPLES = 400
"""The number of bootstrap samples."""
PER_CLASS = 200
"""The number of synthetic embeddings of each class that the adversary sees."""

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval, by the bootstrap over examples (Efron 1979)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def membership(scores: Floats, inside: Bools) -> tuple[Estimate, ...]:
    """Estimate how well the scores of examples say which examples were trained on.

    Args:
        scores: a score per example, ``[n]``; high if the example is like the synthetic ones.
        inside: whether each example was trained on, ``[n]``.

    Returns:
        The area under the ROC curve, and the rate of true positives at each of
        :data:`FALSE_POSITIVE_RATES`.
    """
    stream = np.random.default_rng(0)
    count = len(scores)
    order = np.argsort(-scores)
    in_order = inside[order]
    # Examples with equal scores pass a threshold together. So the curve has one point per score,
    # after the last example with this score.
    thresholds = np.append(np.flatnonzero(np.diff(scores[order])), count - 1)
    estimates = _rates(in_order, np.ones(count, np.int64), thresholds)
    resampled = []
    for _ in range(RESAMPLES):
        repeats = np.bincount(stream.integers(0, count, count), minlength=count)
        resampled.append(_rates(in_order, repeats[order], thresholds))
    limits = np.quantile(resampled, (0.025, 0.975), axis=0)
    return tuple(Estimate(*numbers) for numbers in np.array([estimates, *limits]).T.tolist())


def _rates(
    inside: Bools,
    repeats: Integers,
    thresholds: Integers,
) -> list[float]:
    """Return the area under the ROC curve and the rates of true positives, without intervals.

    Args:
        inside: whether each example was trained on, ``[n]``, with the highest score first.
        repeats: how often each example counts, ``[n]``.
        thresholds: the positions after which the curve has a point.
    """
    true_positives = np.append(0, np.cumsum(repeats * inside)[thresholds])
    false_positives = np.append(0, np.cumsum(repeats * ~inside)[thresholds])
    # Without examples of one kind, the numbers are those of guessing.
    if not true_positives[-1] or not false_positives[-1]:
        return [0.5, *FALSE_POSITIVE_RATES]
    true_rates = true_positives / true_positives[-1]
    false_rates = false_positives / false_positives[-1]
    rates = [float(true_rates[false_rates <= rate].max()) for rate in FALSE_POSITIVE_RATES]
    return [float(auc(false_rates, true_rates)), *rates]


def scores_of(
    synthetic: NDArray[np.float32],
    labels: Integers,
    x: NDArray[np.float32],
    y: Integers,
) -> dict[str, Floats]:
    """Return two scores of each example against the synthetic embeddings of its label.

    Args:
        synthetic: synthetic embeddings ``[m, d]``.
        labels: their labels ``[m]``.
        x: the examples to score ``[n, d]``.
        y: their labels ``[n]``.

    Returns:
        Two arrays ``[n]``. ``likelihood`` is the log density of each example under a Gaussian that
        is fitted to the synthetic embeddings of its label. ``nearest synthetic row`` is minus the
        distance to the nearest one of these embeddings.
    """
    nearness = np.zeros(len(x))
    likelihood = np.zeros(len(x))
    for label in np.unique(y):
        of_label = y == label
        rows = synthetic[labels == label].astype(float)
        nearness[of_label] = -cdist(x[of_label].astype(float), rows).min(1)
        covariance = np.cov(rows.T, bias=True)
        # The covariance of fewer embeddings than dimensions is singular, so a multiple of the
        # identity is added.
        variance = 0.1 * covariance.trace() / len(covariance) + 1e-9
        covariance += variance * np.eye(len(covariance))
        likelihood[of_label] = multivariate_normal(rows.mean(0), covariance).logpdf(x[of_label])
    return {"likelihood": likelihood, "nearest synthetic row": nearness}


def attack_run(
    folder: RunFolder,
    trials: Sequence[Trial],
    data: Mapping[str, Embeddings],
) -> Iterator[str]:
    """Attack every saved generator of a run, record the results, and yield a line for each score.

    Each generator is attacked with two scores. The run folder gets the larger one of the two areas
    under the ROC curve. Cells with a private search are left out: each training of the search
    leaves out some examples, and nothing says which.

    Args:
        folder: the run folder.
        trials: the cells of the run.
        data: the data sets by key.

    Raises:
        UserError: the run has no saved generators of today's code and data, or only those of
            private searches, or the run folder cannot be written.
    """
    results = read_results(folder.path)
    finished = 0
    searched = 0
    saved = []
    for trial in trials:
        cell = trial.cell
        row = results.row(Entry(cell.cell_id, cell.training_id, cell.label), evaluated=False)
        if row is None or row.status != "ok" or row.yields != "generator":
            continue
        if cell.tuning is not None and not cell.tuning.free:
            searched += 1
            continue
        finished += 1
        line = results.trainings[cell.training_id]
        if folder.has_state(line):
            saved.append((as_trained(trial, line), line))
    if searched and not finished:
        raise UserError(
            str(folder.path),
            "has only cells with a private search, and nothing says which examples they trained on",
            "audit a run without a private search",
        )
    if not saved:
        raise UserError(
            str(folder.path),
            "has no saved generator of today's code and data",
            "run the grid with resources: {save_generators: true}",
        )
    if len(saved) < finished:
        yield (
            f"{finished - len(saved)} of {counted(finished, 'cell')} left out: no saved generator"
        )
    if searched:
        yield (
            f"{counted(searched, 'cell')} with a private search left out: nothing says which "
            "examples they trained on"
        )
    for trial, line in saved:
        yield from _attack_generator(folder, trial, line, data)


def _attack_generator(
    folder: RunFolder,
    trial: Trial,
    line: TrainingRecord,
    data: Mapping[str, Embeddings],
) -> Iterator[str]:
    """Attack the saved generator of a cell, record the result, and yield a line for each score."""
    cell = trial.cell
    seeds = Seeds(cell.seed)
    state = read_state(folder.state(cell.training_id), line["state"])
    algorithm = build_algorithm(cell.algorithm, cell.params, trial.task)
    generator, _ = restored(algorithm, state, trial.plan, seeds)
    assert not is_classifier(generator)
    x, y, inside = rows_of(trial, data)
    synthetic, labels = synthesise(
        generator,
        trial.task.classes,
        PER_CLASS,
        seeds,
    )
    name = cell.label
    if cell.epsilon is not None:
        name += f", ε = {number(cell.epsilon)}"
    name += f", seed {cell.seed}"
    if cell.evaluation.unseen:
        name += f", {cell.evaluation.unseen} unseen"
    areas = []
    for attack, scores in scores_of(synthetic, labels, x, y).items():
        area, *rates = membership(scores, inside)
        areas.append(area.value)
        text = f"{name}: {attack}: AUC {area}"
        for rate, estimate in zip(FALSE_POSITIVE_RATES, rates, strict=True):
            text += f", TPR {estimate} at {rate:.1%} FPR"
        yield f"{text}; {len(x)} rows"
    record: MembershipRecord = {"training_id": cell.training_id, "auc": max(areas)}
    ResultStore(folder.path).append("memberships", [record])


def rows_of(
    trial: Trial,
    data_sets: Mapping[str, Embeddings],
) -> tuple[NDArray[np.float32], Integers, Bools]:
    """Return the data set of a cell, and which of its examples the cell trained on.

    Args:
        trial: the cell, without a private search.
        data_sets: the data sets by key.

    Returns:
        Examples ``[n, d]``, labels ``[n]``, and whether each example was trained on ``[n]``.
    """
    cell = trial.cell
    site = cell.evaluation.unseen
    if site is None:
        data = data_sets[trial.data_key]
        trained = np.ones(len(data.y_train), bool)
        for held_out in trial.partition.validation:
            trained[held_out] = False
    else:
        # Only partitions by site leave out a site, and these never shift features. So the whole
        # data set has the examples of this site and of all other sites, unchanged.
        data = data_sets[cell.dataset.key]
        trained = data.others(str(cell.partition.column), site)
    x = np.concatenate([data.x_train, data.x_test])
    y = np.concatenate([data.y_train, data.y_test])
    return x, y, np.pad(trained, (0, len(data.y_test)))
