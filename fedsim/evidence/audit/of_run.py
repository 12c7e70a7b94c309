"""Membership in the cells of a run: training rows against others, by the synthetic rows of every saved generator.

Cells that differ in nothing but their seed and the site that they leave out are each other's shadows (LiRA), where a row was trained on by
some of them and not by others. A seed alone moves rows between clients and leaves none out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.errors import UserError
from fedsim.evaluation.judge import synthesise
from fedsim.evidence.audit.black_box import LIRA, PER_CLASS, Labels, Rows, scores_of_synthetic
from fedsim.evidence.audit.membership import Bools, Floats, likelihood_ratios, membership
from fedsim.grid.models import Cell, Grid
from fedsim.methods.products import is_classifier
from fedsim.planning.node import Node
from fedsim.planning.prepare import Prepared
from fedsim.plugins.registry import check_installed
from fedsim.results.folder import RunFolder
from fedsim.results.grid_rows import entries
from fedsim.results.join import Lines
from fedsim.results.trained import prepare_trained, read_state
from fedsim.seeds import Seeds
from fedsim.training.cohort import build_algorithm
from fedsim.training.rounds import restored
from fedsim.training.trial import Trial
from fedsim.words import counted, number

FEWEST = 3
"""Cells below which none has shadows."""
EACH = 2
"""Cells with and cells without a row that it takes, so that whichever is attacked, others of both kinds are left."""


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


def of_run(folder: RunFolder, grid: Grid, *, trust_plugin: bool = False) -> Iterator[str]:
    """The membership of training rows against other rows by every generator that is kept, then by their shadows; a line each.

    Rows may differ by themselves, so this bounds no epsilon.

    Args:
        folder: of the run.
        grid: that its manifest holds.
        trust_plugin: also run the code of algorithms that trainings name as a file or a module that is not installed.

    Raises:
        UserError: there are no generators, a training names a plug-in, or data or partitions are not those of the trainings.
    """
    lines = Lines.read(folder.path)
    cells = entries(folder.path, lines)
    ended = [lines.trainings[entry.training_id] for entry in cells if lines.standing_of(entry) == "ok"]
    for line in () if trust_plugin else ended:
        check_installed(line["cell"]["algorithm"], str(folder.lines("trainings")))
    kept = [line for line in ended if line["yields"] == "generator" and line["state"] and folder.state(line["training_id"]).exists()]
    if not kept:
        raise UserError(str(folder.path), "there are no generators here", "run the grid with resources: {save_generators: true}")
    if missing := sum(line["yields"] == "generator" for line in ended) - len(kept):
        yield f"{missing} of {counted(len(ended), 'cell')} without a saved generator: left out"
    prepared = prepare_trained(grid, kept, folder, [Node(1.0, 0.0)])
    groups: dict[str, list[Attacked]] = {}
    for line, trial in zip(kept, prepared.trials, strict=True):
        cell = trial.cell
        x, y, trained, count = rows_of(trial, prepared)
        made, _ = restored(
            build_algorithm(cell.algorithm, cell.params, trial.task),
            read_state(folder.state(cell.training_id), line["state"]),
            trial.plan,
            Seeds(cell.seed),
        )
        assert not is_classifier(made)
        scores = scores_of_synthetic(*synthesise(made, trial.task.classes, PER_CLASS, Seeds(cell.seed)), x, y)
        attacked = Attacked(cell, trained[:count], {name: values[:count] for name, values in scores.items()})
        groups.setdefault(_but_for_seed_and_site(cell), []).append(attacked)
        place = f"{attacked.words}, seed {cell.seed}" + (f", {cell.evaluation.unseen} unseen" if cell.evaluation.unseen else "")
        for name, values in scores.items():
            yield f"{place}: {membership(name, values[None], trained[None]).words()}"
    yield from dict.fromkeys(line for group in groups.values() for line in by_shadows(group))


def by_shadows(group: Sequence[Attacked]) -> Iterator[str]:
    """What LiRA tells of the training rows that some cells of a group trained on and others did not; or why there is none, on one line."""
    trained = np.stack([each.trained for each in group])
    if trained.all():
        yield f"no {LIRA}: cells that differ in their seed alone trained on the same rows; under evaluation: {{unseen: each}} they do not"
        return
    told = (trained.sum(0) >= EACH) & ((~trained).sum(0) >= EACH)
    if len(group) < FEWEST or not told.any():
        yield f"no {LIRA}: it takes {FEWEST} cells and rows that {EACH} trained on and {EACH} did not; give more seeds"
        return
    for name in group[0].scores:
        found = likelihood_ratios(np.stack([each.scores[name][told] for each in group]), trained[:, told], designed=True)
        words = membership(f"{LIRA} by {name}", found, trained[:, told]).words()
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
