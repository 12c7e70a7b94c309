"""From a training's line and the manifest's grid back to the cell that it is of, and to its judgement."""

import json
from pathlib import Path
from typing import Any

import pytest
from cells import NODES, quick, small_grid
from rows import lines_of, ran
from sites import digits_of_sites

from fedsim.errors import UserError
from fedsim.evaluation.judge import judgement_of
from fedsim.grid.models import Grid
from fedsim.json_lines import decode, dump, load
from fedsim.results.folder import RunFolder
from fedsim.results.trained import prepare_trained
from fedsim.runs.prepare import prepare

SITES = {"scheme": "column", "column": "site"}
GRIDS: list[dict[str, Any]] = [
    {"epsilon": [2.0, float("inf")], "seeds": [0, 3], "alpha": [0.5, 1.0]},
    {"privacy": {"noise": "secret"}, "partition": {"scheme": "iid"}, "clients": [2, 4], "trust": "silo"},
    {"partition": SITES, "evaluation": {"unseen": "each", "per_class": 10}, "clients": 2},
    {"partition": {"scheme": "feature-shift", "strength": 0.5}, "evaluation": {"per_client": True, "per_class": 10}},
]


def written(grid: Grid) -> Grid:
    """The grid as a manifest keeps it."""
    return Grid.model_validate(json.loads(json.dumps(grid.model_dump(mode="json"))))


def made(tmp_path: Path, **keys: Any) -> Grid:
    data = {"dataset": {"npz": str(digits_of_sites(tmp_path)), "overlap": "keep"}} if keys.get("partition") == SITES else {}
    return small_grid(quick("dp-gaussian", coordinates_share=0.2), "fedavg-linear", **data, **keys)


def line_of(grid: Grid) -> tuple[Any, Any, dict[str, Any]]:
    """The grid's first cell, its judgement, and the line of its training, from disk."""
    prepared = prepare(grid, NODES)
    trial = prepared.trials[0]
    outcome, judgement = ran(prepared, trial)
    line = lines_of(trial, outcome).trainings[trial.cell.training_id]
    return trial, (outcome, judgement), decode(load(dump(line)))


@pytest.mark.parametrize("keys", GRIDS, ids=str)
def test_a_training_s_line_leads_back_to_its_cell_its_plan_and_its_judgement(tmp_path: Path, keys: dict[str, Any]) -> None:
    grid = made(tmp_path, **keys)
    trial, (outcome, judgement), line = line_of(grid)
    again = prepare_trained(written(grid), [line], RunFolder(tmp_path))
    (found,) = again.trials
    assert (found.cell.model_dump(), found.task, found.plan) == (trial.cell.model_dump(), trial.task, trial.plan)
    assert judgement_of(found, outcome.state, again.data[found.data_key]) == judgement


def test_data_partitions_and_data_sets_that_are_not_those_of_the_trainings_are_refused(tmp_path: Path) -> None:
    grid = made(tmp_path)
    _, _, line = line_of(grid)
    changed = {
        "the content of data set '.*' is not that of its trainings": {"cell": line["cell"] | {"dataset_hash": "0123"}},
        "the partition of data set '.*' is not that of its trainings": {"partition": "0123"},
        "its grid has no data set 'digits:999'": {"cell": line["cell"] | {"dataset": {"name": "digits", "limit": 999}}},
    }
    for what, fields in changed.items():
        with pytest.raises(UserError, match=what.replace("digits:999", ".*")):
            prepare_trained(written(grid), [line | fields], RunFolder(tmp_path))
