"""From a row and the manifest's grid back to the cell that it is of, and to what it is worth."""

import json
from pathlib import Path
from typing import Any

import pytest
from cells import NODES, quick, small_grid
from fedsim.results.rejudging import cell_of, judged_anew, prepare_judging, saved_generators
from fedsim.results.row import finished_row, judged_fields
from sites import digits_of_sites

from fedsim.errors import UserError
from fedsim.grid.models import Grid
from fedsim.planning.prepare import prepare
from fedsim.results.folder import RunFolder
from fedsim.results.generators import save_generator
from fedsim.training.trial import Outcome, run_trial

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
    return small_grid(quick("dp-gaussian", mean_share=0.2), "fedavg-linear", **data, **keys)


@pytest.mark.parametrize("keys", GRIDS, ids=str)
def test_a_row_leads_back_to_its_cell(tmp_path: Path, keys: dict[str, Any]) -> None:
    grid = made(tmp_path, **keys)
    prepared = prepare(grid, NODES)
    trial = prepared.trials[0]
    *_, outcome = run_trial(trial, prepared.data[trial.data_key])
    assert isinstance(outcome, Outcome)
    for each in prepared.trials:
        row = finished_row(each, outcome, None, None, {})
        assert cell_of(row, written(grid)).model_dump() == each.cell.model_dump()


@pytest.mark.parametrize("keys", GRIDS, ids=str)
def test_a_saved_generator_is_worth_what_it_was(tmp_path: Path, keys: dict[str, Any]) -> None:
    grid, run = made(tmp_path, **keys), RunFolder(tmp_path)
    prepared = prepare(grid, NODES)
    trial = prepared.trials[0]
    *_, outcome = run_trial(trial, prepared.data[trial.data_key])
    assert isinstance(outcome, Outcome)
    assert outcome.generator is not None
    row = finished_row(trial, outcome, None, None, {})
    save_generator(run, trial, (), outcome.generator, {"status": "ok", "epsilon_spent": 1.0, "accountant": None}, {})
    again, finished = prepare_judging(written(grid), [row], saved_generators(written(grid), [row], run), run, NODES)
    asked, state = finished[row.cell_id].state()
    assert state is not None
    assert (asked.task, asked.plan) == (trial.task, trial.plan)
    judgement = judged_anew(asked, state, again.data[asked.data_key])
    assert judgement == outcome.judgement
    assert judged_fields(judgement, None) == judged_fields(outcome.judgement, None)


def test_data_or_partitions_that_are_not_those_of_the_rows_are_refused(tmp_path: Path) -> None:
    grid, run = made(tmp_path), RunFolder(tmp_path)
    prepared = prepare(grid, NODES)
    trial = prepared.trials[0]
    *_, outcome = run_trial(trial, prepared.data[trial.data_key])
    assert isinstance(outcome, Outcome)
    assert outcome.generator is not None
    save_generator(run, trial, (), outcome.generator, {"status": "ok", "epsilon_spent": 1.0, "accountant": None}, {})
    row = finished_row(trial, outcome, None, None, {})
    for field, what in (("dataset_hash", "content"), ("partition_hash", "partition")):
        with pytest.raises(UserError, match=f"the {what} of data set '.*' is not that of its rows"):
            prepare_judging(written(grid), [row.model_copy(update={field: "0123"})], {}, run, NODES)


def test_a_row_of_a_data_set_that_the_grid_lacks_is_refused(tmp_path: Path) -> None:
    grid = made(tmp_path)
    prepared = prepare(grid, NODES)
    *_, outcome = run_trial(prepared.trials[0], prepared.data[prepared.trials[0].data_key])
    assert isinstance(outcome, Outcome)
    row = finished_row(prepared.trials[0], outcome, None, None, {}).model_copy(update={"dataset": "other"})
    with pytest.raises(UserError, match="its grid has no data set 'other'"):
        cell_of(row, grid)
