"""Membership inference against the saved generators of a run: how well scores tell its training rows from other rows of the data set.

The adversary sees synthetic rows alone. Cells that differ in nothing but their seed and the site that they leave out are each other's
shadows (LiRA), where a row was trained on by some of them and not by others; a seed alone moves rows between clients and leaves none out.
Rows may differ by themselves, so this bounds no epsilon.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.stats import norm
from sklearn.metrics import auc, roc_curve

from fedsim.data.embeddings import Embeddings
from fedsim.errors import UserError
from fedsim.evaluation.judge import synthesise
from fedsim.grid.models import Cell
from fedsim.methods.products import is_classifier
from fedsim.results.lines import as_trained, read_state
from fedsim.results.run import Entry, read_results
from fedsim.results.store import RunFolder
from fedsim.seeds import Seeds
from fedsim.training.cohort import build_algorithm
from fedsim.training.rounds import restored
from fedsim.training.trial import Trial
from fedsim.words import counted, number

FALSE_POSITIVE_RATES = (0.01, 0.001)
"""Rates of false positives at which true ones are printed (Carlini et al. 2022, arXiv 2112.03570)."""
RESAMPLES = 400
PER_CLASS = 200
FEWEST_SHADOWED, CELLS_OF_A_KIND = 3, 2
"""Cells of a run below which none has shadows; cells with and cells without a row that it takes, so that others of both kinds are left."""

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


@dataclass(frozen=True)
class Membership:
    """What an attack reaches: area under its ROC curve, true positives at :data:`FALSE_POSITIVE_RATES`, and the rows it was tried on."""

    attack: str
    auc: Estimate
    true_positives: tuple[Estimate, ...]
    rows: int

    def words(self) -> str:
        """The outcome on a line."""
        rates = [f"TPR {estimate} at {rate:.1%} FPR" for rate, estimate in zip(FALSE_POSITIVE_RATES, self.true_positives, strict=True)]
        return f"{self.attack}: AUC {self.auc}, {', '.join(rates)}; {self.rows} rows"


def membership(attack: str, scores: Floats, inside: Bools) -> Membership:
    """How well scores ``[trainings, rows]`` say which rows were ``inside``; rows are resampled, with all their trainings."""
    stream, count = np.random.default_rng(0), scores.shape[1]
    resampled = [np.arange(count), *(np.asarray(stream.integers(0, count, count)) for _ in range(RESAMPLES))]
    measured = np.array([_measured(scores[:, rows].ravel(), inside[:, rows].ravel()) for rows in resampled])
    low, high = np.quantile(measured[1:], (0.025, 0.975), axis=0)
    area, *rest = (Estimate(*map(float, numbers)) for numbers in zip(measured[0], low, high, strict=True))
    return Membership(attack, area, tuple(rest), count)


def _measured(scores: Floats, inside: Bools) -> list[float]:
    if inside.all() or not inside.any():
        return [0.5, *FALSE_POSITIVE_RATES]
    false, true, _ = roc_curve(inside, scores)
    return [float(auc(false, true)), *(float(true[false <= rate].max()) for rate in FALSE_POSITIVE_RATES)]


def likelihood_ratios(scores: Floats, inside: Bools) -> Floats:
    """LiRA: how much likelier each score ``[trainings, rows]`` is if its row was trained on, by Gaussians of the others' scores of the row.

    Carlini et al. 2022 (arXiv 2112.03570), with one variance for all rows. How many trainings have a row is fixed, so the count of the
    others would give away whether the attacked one does: one other that differs from it is no shadow, and there are equally many of either
    kind whatever the truth is. A row without shadows of both kinds has a ratio of 1.
    """
    ratios, count = np.zeros_like(scores), len(scores)
    for target in range(count):
        others = (target + np.arange(1, count)) % count
        own, held = scores[others], inside[others]
        differs = held != inside[target]
        shadow = ~(differs & (differs.cumsum(0) == 1))
        means = [_mean(own, which & shadow) for which in (held, ~held)]
        left = np.where(shadow, np.where(held, own - means[0], own - means[1]), np.nan)
        spread = float(np.sqrt(np.nanmean(np.square(left)))) or 1.0
        ratio = norm.logpdf(scores[target], means[0], spread) - norm.logpdf(scores[target], means[1], spread)
        ratios[target] = np.nan_to_num(ratio, nan=0.0)
    return ratios


def _mean(scores: Floats, which: Bools) -> Floats:
    count = which.sum(0)
    return np.asarray(np.divide((scores * which).sum(0), count, out=np.full(scores.shape[1], np.nan), where=count > 0))


def scores_of(synthetic: NDArray[np.float32], labels: NDArray[np.int64], x: NDArray[np.float32], y: NDArray[np.int64]) -> dict[str, Floats]:
    """Of each row, its nearness to the nearest synthetic row of its label, and its likelihood under a Gaussian of those."""
    near, likely = np.zeros(len(x)), np.zeros(len(x))
    for label in np.unique(y):
        rows, own = synthetic[labels == label].astype(float), y == label
        near[own] = -cdist(x[own].astype(float), rows).min(1)
        centred = rows - rows.mean(0)
        covariance = centred.T @ centred / len(rows)
        # a little of a ball, so that few rows have a density in many dimensions
        covariance += (0.1 * np.trace(covariance) / len(covariance) + 1e-9) * np.eye(len(covariance))
        away = x[own] - rows.mean(0)
        likely[own] = -0.5 * np.einsum("nd,nd->n", away @ np.linalg.inv(covariance), away) - 0.5 * np.linalg.slogdet(covariance)[1]
    return {"likelihood": likely, "nearest synthetic row": near}


@dataclass(frozen=True)
class Attacked:
    """A cell whose generator was attacked, which of the data set's training rows it trained on, and their scores by name."""

    cell: Cell
    trained: Bools
    scores: dict[str, Floats]

    @property
    def words(self) -> str:
        """What its shadows share with it."""
        return self.cell.label if self.cell.epsilon is None else f"{self.cell.label}, ε = {number(self.cell.epsilon)}"


def attack_run(folder: RunFolder, trials: Sequence[Trial], data: Mapping[str, Embeddings], *, cell: str | None = None) -> Iterator[str]:
    """The membership of training rows against other rows by every generator that is kept, then by their shadows; a line each.

    Args:
        folder: of the run.
        trials: the cells of its grid, prepared again.
        data: the data sets that they read, by key.
        cell: the id of the one cell to attack, or its beginning; cells of other seeds and sites are still its shadows.

    Raises:
        UserError: there are no generators of these cells, or no such cell.
    """
    results = read_results(folder.path)
    rows = [results.row(Entry(trial.cell.cell_id, trial.cell.training_id, trial.cell.label), judged=False) for trial in trials]
    ended = [trial for trial, row in zip(trials, rows, strict=True) if row is not None and row.status == "ok" and row.yields == "generator"]
    states = {training: line["state"] and folder.state(training).exists() for training, line in results.trainings.items()}
    kept = [trial for trial in ended if states[trial.cell.training_id]]
    if not kept:
        what, hint = "there are no generators here of the code and data of today", "run the grid with resources: {save_generators: true}"
        raise UserError(str(folder.path), what, hint)
    if missing := len(ended) - len(kept):
        yield f"{missing} of {counted(len(ended), 'cell')} without a saved generator: left out"
    chosen = {trial.cell.training_id for trial in kept if trial.cell.cell_id.startswith(cell or "")}
    if cell is not None and len(chosen) != 1:
        what = f"{'several cells' if chosen else 'no cell with a generator'} of {folder.path} begin with that"
        raise UserError(f"cell {cell}", what, "give a cell_id of results.jsonl")
    of_them = {_but_for_seed_and_site(trial.cell) for trial in kept if trial.cell.training_id in chosen}
    groups: dict[str, list[Attacked]] = {}
    for trial in kept:
        line, group = results.trainings[trial.cell.training_id], _but_for_seed_and_site(trial.cell)
        if group not in of_them:
            continue
        trial = as_trained(trial, line)
        own = trial.cell
        x, y, trained, count = rows_of(trial, data)
        state = read_state(folder.state(own.training_id), line["state"])
        made, _ = restored(build_algorithm(own.algorithm, own.params, trial.task), state, trial.plan, Seeds(own.seed))
        assert not is_classifier(made)
        scores = scores_of(*synthesise(made, trial.task.classes, PER_CLASS, Seeds(own.seed)), x, y)
        attacked = Attacked(own, trained[:count], {name: values[:count] for name, values in scores.items()})
        groups.setdefault(group, []).append(attacked)
        place = f"{attacked.words}, seed {own.seed}" + (f", {own.evaluation.unseen} unseen" if own.evaluation.unseen else "")
        for name, values in scores.items() if own.training_id in chosen else ():
            yield f"{place}: {membership(name, values[None], trained[None]).words()}"
    yield from dict.fromkeys(line for each in groups.values() for line in by_shadows(each))


def by_shadows(group: Sequence[Attacked]) -> Iterator[str]:
    """LiRA on the training rows that some cells of a group trained on and others did not; or why there is none, on one line."""
    trained = np.stack([attacked.trained for attacked in group])
    if trained.all():
        yield "no LiRA: cells that differ in their seed alone trained on the same rows; under evaluation: {unseen: each} they do not"
        return
    chosen = (trained.sum(0) >= CELLS_OF_A_KIND) & ((~trained).sum(0) >= CELLS_OF_A_KIND)
    if len(group) < FEWEST_SHADOWED or not chosen.any():
        rows = f"rows that {CELLS_OF_A_KIND} trained on and {CELLS_OF_A_KIND} did not"
        yield f"no LiRA: it takes {FEWEST_SHADOWED} cells and {rows}; give more seeds"
        return
    for name in group[0].scores:
        scores, inside = np.stack([attacked.scores[name][chosen] for attacked in group]), trained[:, chosen]
        words = membership(f"LiRA by {name}", likelihood_ratios(scores, inside), inside).words()
        yield f"{group[0].words}, {len(group)} cells, rows that come and go with their site: {words}"


def rows_of(trial: Trial, views: Mapping[str, Embeddings]) -> tuple[NDArray[np.float32], NDArray[np.int64], Bools, int]:
    """A cell's data set, training rows first: values, labels, which the cell trained on, how many training rows."""
    cell = trial.cell
    # a site is left out where clients see values as they are, so the whole data set has the rows of both
    site = cell.evaluation.unseen
    data = views[trial.data_key if site is None else cell.dataset.key]
    count = len(data.y_train)
    trained = np.ones(count, bool) if site is None else data.others(str(cell.partition.column), site)
    x, y = np.concatenate([data.x_train, data.x_test]), np.concatenate([data.y_train, data.y_test])
    return x, y, np.concatenate([trained, np.zeros(len(data.y_test), bool)]), count


def _but_for_seed_and_site(cell: Cell) -> str:
    """Everything of a cell but its seed and the site that it leaves out."""
    evaluation = cell.evaluation.model_copy(update={"unseen": None})
    return cell.model_copy(update={"cell_id": "", "training_id": "", "seed": 0, "evaluation": evaluation}).model_dump_json()
