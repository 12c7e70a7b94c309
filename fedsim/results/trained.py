"""What trainings left: their tensors, and their cells again from result lines, to judge or attack what they made without training."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedsim.data.embeddings import Embeddings
from fedsim.errors import UserError
from fedsim.files import replaced, unread
from fedsim.grid.cells import client_views, judged_id, loaded, partition_of, task_of, without_unseen
from fedsim.grid.models import Cell, Grid
from fedsim.json_lines import dump, reasons
from fedsim.methods.messages import Tensors
from fedsim.privacy.plan import PrivacyPlan
from fedsim.results.folder import RunFolder
from fedsim.training.trial import Trial


class TrainedCells(NamedTuple):
    """The cells of trainings, ready to be judged or attacked, and the data sets that they read, by key."""

    trials: tuple[Trial, ...]
    data: Mapping[str, Embeddings]


def prepare_trained(grid: Grid, trainings: Sequence[Mapping[str, Any]], folder: RunFolder) -> TrainedCells:
    """Load the data and make the partitions again.

    Args:
        grid: that the trainings are of, as the manifest has it.
        trainings: lines of trainings that ended well.
        folder: of the run.

    Raises:
        UserError: a line is of another grid, or data or partitions are not those of the trainings.
    """
    cells = [_cell(line, grid, folder) for line in trainings]
    data = without_unseen(grid, loaded(grid))
    partitions = [partition_of(cell, data[cell.data_key]) for cell in cells]
    for line, cell, partition in zip(trainings, cells, partitions, strict=True):
        same_data = cell.dataset_hash == data[cell.dataset.key].fingerprint
        public = data[cell.dataset.key].public
        if cell.public_hash is not None and cell.public_hash != (public and public.fingerprint):
            what = f"the content of public data '{cell.public}' is not that of its trainings"
            raise UserError(str(folder.path), what, "give back what the grid ran on, or run it again")
        if not same_data or line["partition"] != partition.fingerprint:
            what = f"the {'partition' if same_data else 'content'} of data set '{cell.dataset.display}' is not that of its trainings"
            raise UserError(str(folder.path), what, "give back what the grid ran on, or run it again")
    views, keys = client_views(cells, partitions, data)
    trials = tuple(
        Trial(cell, replace(task_of(cell, data[cell.data_key]), public=None), _plan(line), partition, (cell.clients,), key)
        for line, cell, partition, key in zip(trainings, cells, partitions, keys, strict=True)
    )
    return TrainedCells(trials, views)


def as_trained(trial: Trial, line: Mapping[str, Any]) -> Trial:
    """The cell with the parameters and the plan of its training, which a tuned cell chose."""
    return trial.of(line["cell"]["params"], _plan(line)) if trial.candidates and line["error"] is None else trial


def _plan(line: Mapping[str, Any]) -> PrivacyPlan | None:
    plan: PrivacyPlan | None = line["plan"] and TypeAdapter(PrivacyPlan).validate_json(dump(line["plan"]))
    return plan


def _cell(line: Mapping[str, Any], grid: Grid, folder: RunFolder) -> Cell:
    """The cell of a training, judged as the grid says."""
    try:
        cell = Cell.model_validate_json(dump(line["cell"]))
    except ValidationError as error:
        where = f"{folder.lines('trainings')}, training {line['training_id']}"
        raise UserError(where, f"cannot be read ({'; '.join(reasons(error))})", "run the grid again") from error
    if cell.dataset not in grid.sets:
        raise UserError(str(folder.manifest), f"its grid has no data set '{cell.dataset.display}', a training has", "run the grid again")
    evaluation = grid.evaluation.model_copy(update={"unseen": cell.evaluation.unseen})
    return cell.model_copy(update={"evaluation": evaluation, "cell_id": judged_id(cell.training_id, evaluation)})


def keep_state(path: Path, state: Mapping[str, Tensor]) -> str:
    """Write the tensors, at once or not at all.

    Returns:
        SHA-256 of the file.

    Raises:
        OSError: it cannot be written.
    """
    content = save({name: value.contiguous() for name, value in state.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as part:
        part.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def read_state(path: Path, sha256: str, hint: str = "remove it; the same command trains again") -> Tensors:
    """The tensors, if they are those that were written; ``hint`` says what to do where not.

    Raises:
        UserError: they cannot be read, or are not.
    """
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError("its SHA-256 is not the one that was noted when it was written")
        state: Tensors = load(content)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(str(path), f"is not what was saved ({unread(error)})", hint) from error
    return state
