"""Black-box audits: an adversary who sees what is released alone, synthetic rows or a classifier, looks for rows of a real data set.

:class:`BlackBox` trains several times, each time with other seeds and with rows that are in by a fair coin of their own. In the first
training the coins make an audit in one run (Steinke, Nasr & Jagielski 2023): guesses from scores bound epsilon. All of them are each
other's shadows (LiRA). :func:`attack_run` attacks the saved generators of a run: training rows against others. Its cells that differ in
nothing but their seed and the site that they leave out are each other's shadows, where a row was trained on by some of them and not by
others; a seed alone moves rows between clients and leaves none out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.spatial.distance import cdist

from fedsim.data.public import PublicRows
from fedsim.data.sources.load import load
from fedsim.data.sources.spec import DatasetSpec
from fedsim.errors import UserError
from fedsim.evaluation.judge import synthesise
from fedsim.evidence.audit.audit import Append, Count, Reached, black_box_audit, key, with_missing
from fedsim.evidence.audit.membership import Bools, Floats, Membership, likelihood_ratios, membership
from fedsim.evidence.audit.one_run import FEWEST_CANARIES
from fedsim.evidence.audit.setting import Labels, Rows, plan_of
from fedsim.grid.models import Cell, Grid
from fedsim.methods.messages import Task
from fedsim.methods.products import Product, is_classifier, is_personal, own
from fedsim.planning.node import Node
from fedsim.planning.prepare import Prepared
from fedsim.plugins.registry import check_installed, lookup
from fedsim.privacy.plan import Trust, Unit
from fedsim.results.folder import RunFolder
from fedsim.results.run import Lines, entries
from fedsim.results.trained import prepare_trained, read_state
from fedsim.seeds import Seeds
from fedsim.training.cohort import Cohort, CohortSpec, LocalPool, build_algorithm
from fedsim.training.rounds import restored, to_the_end, train
from fedsim.training.trial import Trial
from fedsim.words import counted, number

PER_CLASS = 200
BLACK_BOX_CLIENTS = 4
TRAININGS = 6
LIRA = "LiRA"
FEWEST_SHADOWED = 3
"""Cells of a run below which none has shadows."""
CELLS_OF_A_KIND = 2
"""Cells with and cells without a row that it takes, so that whichever is attacked, others of both kinds are left."""


def scores_of_rows(made: Product, classes: int, x: Rows, y: Labels, seeds: Seeds) -> dict[str, Floats]:
    """By what an adversary may score rows: the higher, the likelier they were trained on."""
    shared = own(made, 0) if is_classifier(made) and is_personal(made) else made
    if is_classifier(shared):
        with torch.no_grad():
            shares = shared.probabilities(torch.from_numpy(x)).double().numpy()
        chosen = np.clip(shares[np.arange(len(y)), y], 1e-12, 1 - 1e-12)
        return {"confidence": np.log(chosen) - np.log1p(-chosen)}
    return scores_of_synthetic(*synthesise(shared, classes, PER_CLASS, seeds), x, y)


def scores_of_synthetic(synthetic: Rows, labels: Labels, x: Rows, y: Labels) -> dict[str, Floats]:
    """Nearness to the nearest synthetic row of one's label, and one's likelihood under a Gaussian of those."""
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


class BlackBox:
    """Trainings on digits, in each of which some test rows are, by coins.

    Args:
        algorithm: as a grid gives it.
        params: all its parameters.
        unit: what the claim protects.
        trust: who may see what.
        epsilon: the claim; inf without noise.
        delta: of the claim.
        canaries: rows that come and go.

    Raises:
        UserError: too few canaries, or the algorithm has no plan for the claim.
    """

    def __init__(
        self, algorithm: str, params: Mapping[str, Any], unit: Unit, trust: Trust, epsilon: float, delta: float, canaries: int
    ) -> None:
        data = load(DatasetSpec(name="digits", limit=max(400, 2 * canaries)))
        if not FEWEST_CANARIES <= canaries <= len(data.x_test):
            what = f"{canaries} rows are too {'few for any bound in one run' if canaries < FEWEST_CANARIES else 'many'}"
            raise UserError("pairs", what, f"give {FEWEST_CANARIES} to {len(data.x_test)}")
        self.algorithm, self.params, self.data = algorithm, dict(params), data
        self.key = key(algorithm, params, [unit, trust, epsilon, delta, "black-box", canaries])
        self.count = TRAININGS
        self.task = Task(data.dim, data.classes, BLACK_BOX_CLIENTS, unit, trust, public=PublicRows.made_up(data.dim, data.classes))
        self.plan = plan_of(algorithm, self.params, self.task, epsilon if lookup(algorithm).private else None, delta)
        self.x, self.y = data.x_test[:canaries], data.y_test[:canaries]

    def coins(self, number: int) -> Bools:
        """Which canaries a training has."""
        return np.random.default_rng(np.random.SeedSequence(number, spawn_key=(3,))).random(len(self.y)) < 0.5

    def line(self, number: int) -> dict[str, Any]:
        """Train once; every canary's scores."""
        inside = self.coins(number)
        x, y = np.concatenate([self.data.x_train, self.x[inside]]), np.concatenate([self.data.y_train, self.y[inside]])
        holders, seeds = holders_of(len(self.data.y_train), inside), Seeds(number)
        rows = tuple(np.flatnonzero(holders == client) for client in range(BLACK_BOX_CLIENTS))
        # a claim for groups is one for groups of a single row, too
        groups = tuple(np.arange(len(own)) for own in rows) if self.task.unit == "group" else None
        spec = CohortSpec(self.algorithm, self.params, self.task, self.plan, seeds, tuple(range(BLACK_BOX_CLIENTS)), rows, groups)
        steps = train(build_algorithm(self.algorithm, self.params, self.task), LocalPool([Cohort(spec, x, y)]), self.plan, seeds)
        _, trained = to_the_end(steps)
        return {"pair": number, "scores": scores_of_rows(trained.made, self.task.classes, self.x, self.y, seeds)}

    def outcome(self, lines: list[dict[str, Any]]) -> Iterator[tuple[str, Floats, Membership]]:
        """Of each way to score: its name, the first training's scores, and how well it, and LiRA on it, tell the rows apart."""
        inside = np.stack([self.coins(line["pair"]) for line in lines])
        for name in lines[0]["scores"]:
            scores = np.stack([np.asarray(line["scores"][name], float) for line in lines])
            yield name, scores[0], membership(name, scores, inside)
            if len(lines) > 2:
                yield f"{LIRA} by {name}", scores[0], membership(f"{LIRA} by {name}", likelihood_ratios(scores, inside), inside)

    def completed(self, lines: Sequence[dict[str, Any]], append: Append, count: Count) -> Reached:
        """Run what ``lines`` lack, and say what all of them say."""
        torch.set_num_threads(1)
        done = {line["pair"] for line in lines}
        whole = with_missing((self.line(number) for number in range(self.count) if number not in done), lines, append, count)
        outcome = list(self.outcome(sorted(whole, key=lambda line: int(line["pair"]))))
        words, plan, refuted = [reached.words() for _, _, reached in outcome], self.plan, False
        # a claim for whole clients is none for a row of a client that stays
        if plan is not None and self.task.unit != "client" and math.isfinite(plan.epsilon_target):
            scores = [first for name, first, _ in outcome if not name.startswith(LIRA)]
            audit = black_box_audit(plan.epsilon_target, plan.delta, scores, self.coins(0))
            words, refuted = [audit.words(), *words], audit.refuted
        return words, refuted


def holders_of(count: int, inside: Bools) -> Labels:
    """The client of each of ``count`` rows and of the canaries that are ``inside``, none of which moves another one to another client."""
    return np.concatenate([np.arange(count), np.flatnonzero(inside)]) % BLACK_BOX_CLIENTS


@dataclass(frozen=True)
class Attacked:
    """A cell whose generator was attacked.

    Attributes:
        cell: the cell.
        trained: which of the data set's training rows it trained on.
        scores: of these rows, by the name of the score.
    """

    cell: Cell
    trained: Bools
    scores: dict[str, Floats]

    @property
    def words(self) -> str:
        """What its shadows share with it."""
        return self.cell.label if self.cell.epsilon is None else f"{self.cell.label}, ε = {number(self.cell.epsilon)}"


def attack_run(folder: RunFolder, grid: Grid, *, cell: str | None = None, trust_plugin: bool = False) -> Iterator[str]:
    """The membership of training rows against other rows by every generator that is kept, then by their shadows; a line each.

    Rows may differ by themselves, so this bounds no epsilon.

    Args:
        folder: of the run.
        grid: that its manifest holds.
        cell: the id of the one cell to attack, or its beginning; cells of other seeds and sites are still its shadows.
        trust_plugin: also run the code of algorithms that trainings name as a file or a module that is not installed.

    Raises:
        UserError: there are no generators, a training names a plug-in, or data or partitions are not those of the trainings.
    """
    lines = Lines.read(folder.path)
    cells = entries(folder.path, lines)
    trained = [lines.trained_row(entry).trained for entry in cells if entry.training_id in lines.trainings]
    ended = [row.training for row in trained if row.status == "ok"]
    for line in () if trust_plugin else ended:
        check_installed(line["cell"]["algorithm"], str(folder.lines("trainings")))
    kept = [line for line in ended if line["yields"] == "generator" and line["state"] and folder.state(line["training_id"]).exists()]
    if not kept:
        raise UserError(str(folder.path), "there are no generators here", "run the grid with resources: {save_generators: true}")
    if missing := sum(line["yields"] == "generator" for line in ended) - len(kept):
        yield f"{missing} of {counted(len(ended), 'cell')} without a saved generator: left out"
    prepared = prepare_trained(grid, kept, folder, [Node(1.0, 0.0)])
    trials, only = list(zip(kept, prepared.trials, strict=True)), ""
    if cell is not None:
        ids = {entry.cell_id: entry.training_id for entry in cells if entry.cell_id.startswith(cell)}
        only = next((ids[name] for name in ids if len(ids) == 1), "")
        of_it = [_but_for_seed_and_site(trial.cell) for _, trial in trials if trial.cell.training_id == only]
        if not of_it:
            what = f"{'several cells' if len(ids) > 1 else 'no cell with a generator'} of {folder.path} begin with that"
            raise UserError(f"cell {cell}", what, "give a cell_id of results.jsonl")
        trials = [pair for pair in trials if _but_for_seed_and_site(pair[1].cell) in of_it]
    groups: dict[str, list[Attacked]] = {}
    for line, trial in trials:
        own = trial.cell
        x, y, trained, count = rows_of(trial, prepared)
        made, _ = restored(
            build_algorithm(own.algorithm, own.params, trial.task),
            read_state(folder.state(own.training_id), line["state"]),
            trial.plan,
            Seeds(own.seed),
        )
        assert not is_classifier(made)
        scores = scores_of_synthetic(*synthesise(made, trial.task.classes, PER_CLASS, Seeds(own.seed)), x, y)
        attacked = Attacked(own, trained[:count], {name: values[:count] for name, values in scores.items()})
        groups.setdefault(_but_for_seed_and_site(own), []).append(attacked)
        place = f"{attacked.words}, seed {own.seed}" + (f", {own.evaluation.unseen} unseen" if own.evaluation.unseen else "")
        for name, values in scores.items() if own.training_id == (only or own.training_id) else ():
            yield f"{place}: {membership(name, values[None], trained[None]).words()}"
    yield from dict.fromkeys(line for group in groups.values() for line in by_shadows(group))


def by_shadows(group: Sequence[Attacked]) -> Iterator[str]:
    """LiRA on the training rows that some cells of a group trained on and others did not; or why there is none, on one line."""
    trained = np.stack([attacked.trained for attacked in group])
    if trained.all():
        yield f"no {LIRA}: cells that differ in their seed alone trained on the same rows; under evaluation: {{unseen: each}} they do not"
        return
    chosen = (trained.sum(0) >= CELLS_OF_A_KIND) & ((~trained).sum(0) >= CELLS_OF_A_KIND)
    if len(group) < FEWEST_SHADOWED or not chosen.any():
        rows = f"rows that {CELLS_OF_A_KIND} trained on and {CELLS_OF_A_KIND} did not"
        yield f"no {LIRA}: it takes {FEWEST_SHADOWED} cells and {rows}; give more seeds"
        return
    for name in group[0].scores:
        scores, inside = np.stack([attacked.scores[name][chosen] for attacked in group]), trained[:, chosen]
        words = membership(f"{LIRA} by {name}", likelihood_ratios(scores, inside, designed=True), inside).words()
        yield f"{group[0].words}, {len(group)} cells, rows that come and go with their site: {words}"


def rows_of(trial: Trial, prepared: Prepared) -> tuple[Rows, Labels, Bools, int]:
    """A cell's data set, training rows first: values, labels, which the cell trained on, how many training rows."""
    cell = trial.cell
    # a site is left out where clients see values as they are, so the whole data set has the rows of both
    site = cell.evaluation.unseen
    data = prepared.data[trial.data_key if site is None else cell.dataset.key]
    count = len(data.y_train)
    trained = np.ones(count, bool) if site is None else data.others(str(cell.partition.given.site_column), site)
    x, y = np.concatenate([data.x_train, data.x_test]), np.concatenate([data.y_train, data.y_test])
    return x, y, np.concatenate([trained, np.zeros(len(data.y_test), bool)]), count


def _but_for_seed_and_site(cell: Cell) -> str:
    """Everything of a cell but its seed and the site that it leaves out."""
    evaluation = cell.evaluation.model_copy(update={"unseen": None})
    return cell.model_copy(update={"cell_id": "", "training_id": "", "seed": 0, "evaluation": evaluation}).model_dump_json()
