"""Membership inference against the saved generators of a run: how well scores tell its training
rows from other rows of the data set.

The adversary sees synthetic rows alone. Rows may differ by themselves, so this bounds no epsilon.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from sklearn.metrics import auc, roc_curve

from fedsim.data.embeddings import Embeddings
from fedsim.errors import UserError
from fedsim.evaluation.judge import synthesise
from fedsim.methods.products import is_classifier
from fedsim.results.join import Entry, read_results
from fedsim.results.lines import as_trained, read_state
from fedsim.results.store import RunFolder
from fedsim.seeds import Seeds
from fedsim.training.cohort import build_algorithm
from fedsim.training.rounds import restored
from fedsim.training.trial import Trial
from fedsim.words import counted, number

FALSE_POSITIVE_RATES = (0.01, 0.001)
"""Rates of false positives at which true ones are printed (Carlini et al. 2022, arXiv 2112.03570).
"""
RESAMPLES = 400
PER_CLASS = 200

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval, by the bootstrap over rows (Efron 1979)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def membership(scores: Floats, inside: Bools) -> tuple[Estimate, ...]:
    """How well scores of rows say which were ``inside``: area under the ROC curve, true positives
    at :data:`FALSE_POSITIVE_RATES`.
    """
    stream = np.random.default_rng(0)
    count = len(scores)
    resampled = [
        np.arange(count),
        *(np.asarray(stream.integers(0, count, count)) for _ in range(RESAMPLES)),
    ]
    measured = np.array([_measured(scores[rows], inside[rows]) for rows in resampled])
    low, high = np.quantile(measured[1:], (0.025, 0.975), axis=0)
    return tuple(
        Estimate(*map(float, numbers)) for numbers in zip(measured[0], low, high, strict=True)
    )


def _measured(scores: Floats, inside: Bools) -> list[float]:
    if inside.all() or not inside.any():
        return [0.5, *FALSE_POSITIVE_RATES]
    false, true, _ = roc_curve(inside, scores)
    return [
        float(auc(false, true)),
        *(float(true[false <= rate].max()) for rate in FALSE_POSITIVE_RATES),
    ]


def scores_of(
    synthetic: NDArray[np.float32],
    labels: NDArray[np.int64],
    x: NDArray[np.float32],
    y: NDArray[np.int64],
) -> dict[str, Floats]:
    """Of each row, its nearness to the nearest synthetic row of its label, and its likelihood under
    a Gaussian of those.
    """
    near = np.zeros(len(x))
    likely = np.zeros(len(x))
    for label in np.unique(y):
        rows = synthetic[labels == label].astype(float)
        own = y == label
        near[own] = -cdist(x[own].astype(float), rows).min(1)
        centred = rows - rows.mean(0)
        covariance = centred.T @ centred / len(rows)
        # a little of a ball, so that few rows have a density in many dimensions
        covariance += (0.1 * np.trace(covariance) / len(covariance) + 1e-9) * np.eye(
            len(covariance)
        )
        away = x[own] - rows.mean(0)
        likely[own] = (
            -0.5 * np.einsum("nd,nd->n", away @ np.linalg.inv(covariance), away)
            - 0.5 * np.linalg.slogdet(covariance)[1]
        )
    return {"likelihood": likely, "nearest synthetic row": near}


def attack_run(
    folder: RunFolder, trials: Sequence[Trial], data: Mapping[str, Embeddings]
) -> Iterator[str]:
    """The membership of training rows against other rows by every generator that is kept, a line
    each; ``trials`` are the run's cells.
    """
    results = read_results(folder.path)
    rows = [
        results.row(
            Entry(trial.cell.cell_id, trial.cell.training_id, trial.cell.label), judged=False
        )
        for trial in trials
    ]
    ended = [
        trial
        for trial, row in zip(trials, rows, strict=True)
        if row is not None and row.status == "ok" and row.yields == "generator"
    ]
    states = {
        training: line["state"] and folder.state(training).exists()
        for training, line in results.trainings.items()
    }
    kept = [trial for trial in ended if states[trial.cell.training_id]]
    if not kept:
        what = "there are no generators here of the code and data of today"
        hint = "run the grid with resources: {save_generators: true}"
        raise UserError(str(folder.path), what, hint)
    if len(kept) < len(ended):
        yield (
            f"{len(ended) - len(kept)} of {counted(len(ended), 'cell')} without a saved "
            "generator: left out"
        )
    for planned in kept:
        line = results.trainings[planned.cell.training_id]
        trial = as_trained(planned, line)
        own = trial.cell
        state = read_state(folder.state(own.training_id), line["state"])
        made, _ = restored(
            build_algorithm(own.algorithm, own.params, trial.task),
            state,
            trial.plan,
            Seeds(own.seed),
        )
        assert not is_classifier(made)
        x, y, inside = rows_of(trial, data)
        scores = scores_of(*synthesise(made, trial.task.classes, PER_CLASS, Seeds(own.seed)), x, y)
        if own.epsilon is None:
            place = own.label
        else:
            place = f"{own.label}, ε = {number(own.epsilon)}"
        place += f", seed {own.seed}" + (
            f", {own.evaluation.unseen} unseen" if own.evaluation.unseen else ""
        )
        for attack, values in scores.items():
            area, *rates = membership(values, inside)
            told = ", ".join(
                f"TPR {found} at {rate:.1%} FPR"
                for rate, found in zip(FALSE_POSITIVE_RATES, rates, strict=True)
            )
            yield f"{place}: {attack}: AUC {area}, {told}; {len(x)} rows"


def rows_of(
    trial: Trial, views: Mapping[str, Embeddings]
) -> tuple[NDArray[np.float32], NDArray[np.int64], Bools]:
    """A cell's data set: values, labels, and which rows the cell trained on."""
    cell = trial.cell
    # a site is left out where clients see values as they are, so the whole data set has the rows of
    # both
    site = cell.evaluation.unseen
    data = views[trial.data_key if site is None else cell.dataset.key]
    if site is None:
        trained = np.ones(len(data.y_train), bool)
    else:
        trained = data.others(str(cell.partition.column), site)
    x = np.concatenate([data.x_train, data.x_test])
    y = np.concatenate([data.y_train, data.y_test])
    return x, y, np.concatenate([trained, np.zeros(len(data.y_test), bool)])
