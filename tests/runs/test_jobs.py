"""Which lines a grid lacks, and which cells share a reference."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cells import quick, small_cells
from plug_ins import GOOD
from rich.console import Console
from rows import lines_of, ran

from fedsim.errors import UserError
from fedsim.results.join import RunResults
from fedsim.results.lines import RowError, keep_state
from fedsim.results.store import ResultStore, RunFolder
from fedsim.runs.display import Display
from fedsim.runs.job_list import entries_of, missing_jobs
from fedsim.runs.jobs import CellJob, RunContext
from fedsim.runs.prepare import Prepared

DATA = [{"name": "digits", "limit": limit} for limit in (200, 300)]
ERROR = RowError(type="ValueError", message="no", traceback="")


def test_references_depend_on_data_probe_and_partition_alone() -> None:
    ceilings: dict[str, set[Any]] = {}
    local_only: dict[str, set[Any]] = {}
    for probe_c in (0.1, 0.3):
        prepared = small_cells(
            "local-only",
            "fedavg-linear",
            dataset=DATA,
            alpha=[0.1, 1.0],
            evaluation={"per_class": 10, "probe_c": probe_c},
        )
        for trial, entry in zip(prepared.trials, entries_of(prepared), strict=True):
            facts = (trial.data_key, probe_c)
            ceilings.setdefault(entry.ceiling, set()).add(facts)
            partition = trial.partition.fingerprint
            local_only.setdefault(entry.local_only, set()).add((*facts, partition))
    assert [len(facts) for facts in ceilings.values()] == [1] * 4
    assert [len(facts) for facts in local_only.values()] == [1] * 8


def kinds(prepared: Prepared, lines: RunResults, *, retry_failed: bool = False) -> list[str]:
    """Whether each cell that has a job is to be trained or only to be evaluated."""
    store = ResultStore(lines.folder.path)
    display = Display(Console(quiet=True), 1)
    run = RunContext(prepared, store, display)
    found = []
    for job in missing_jobs(run, (), lines, retry_failed=retry_failed):
        if isinstance(job, CellJob):
            found.append("training" if job.trains else "evaluating")
    return found


@pytest.fixture
def prepared() -> Prepared:
    return small_cells(quick("dp-gaussian"), epsilon=4.0)


@pytest.fixture
def finished(prepared: Prepared, tmp_path: Path) -> RunResults:
    """The lines of the cell after its evaluation, in a folder that keeps its tensors."""
    (trial,) = prepared.trials
    outcome, evaluation = ran(prepared, trial)
    lines = lines_of(trial, outcome, evaluation)
    folder = RunFolder(tmp_path)
    training_id = trial.cell.training_id
    digest = keep_state(folder.state(training_id), outcome.state)
    training = {**lines.trainings[training_id], "state": digest}
    return replace(
        lines,
        folder=folder,
        trainings={training_id: training},
    )


def test_cell_without_lines_is_trained(prepared: Prepared, tmp_path: Path) -> None:
    assert kinds(prepared, RunResults(RunFolder(tmp_path))) == ["training"]


def test_trained_cell_is_only_evaluated(prepared: Prepared, finished: RunResults) -> None:
    assert kinds(prepared, replace(finished, evaluations={})) == ["evaluating"]


def test_trained_cell_without_its_tensors_is_trained_again(
    prepared: Prepared,
    finished: RunResults,
    tmp_path: Path,
) -> None:
    elsewhere = RunFolder(tmp_path / "other")
    assert kinds(prepared, replace(finished, evaluations={}, folder=elsewhere)) == ["training"]


def test_evaluated_cell_has_no_job(prepared: Prepared, finished: RunResults) -> None:
    assert kinds(prepared, finished) == []


def test_failed_training_runs_again_on_request(prepared: Prepared) -> None:
    failed = lines_of(prepared.trials[0], ERROR)
    assert kinds(prepared, failed) == []
    assert kinds(prepared, failed, retry_failed=True) == ["training"]


def test_failed_evaluation_runs_again_on_request(prepared: Prepared, finished: RunResults) -> None:
    (cell_id,) = finished.evaluations
    line = finished.evaluations[cell_id] | {"error": ERROR.model_dump()}
    failed = replace(finished, evaluations={cell_id: line})
    assert kinds(prepared, failed) == []
    assert kinds(prepared, failed, retry_failed=True) == ["evaluating"]


def test_each_class_of_a_file_has_its_check(folder: Path) -> None:
    (folder / "two.py").write_text(f"{GOOD}\n\nclass Other(MyMethod):\n    pass\n")
    prepared = small_cells("two.py:MyMethod", "two.py:Other", epsilon=4.0, check="full")
    display = Display(Console(quiet=True), 1)
    run = RunContext(prepared, ResultStore(folder / "run"), display)
    jobs = missing_jobs(run, (), RunResults(run.store.folder))
    checked = [job.plug_in for job in jobs if job.key[0] == "check"]
    assert checked == ["two.py:MyMethod", "two.py:Other"]


def test_cell_without_noise_is_trained_again_under_secret_noise() -> None:
    prepared = small_cells("dp-gaussian", epsilon=math.inf, privacy={"noise": "secret"})
    (trial,) = prepared.trials
    trained = lines_of(trial, ran(prepared, trial)[0])
    assert kinds(prepared, trained) == ["training"]


def test_cell_with_secret_noise_is_not_trained_twice() -> None:
    prepared = small_cells(quick("dp-gaussian"), epsilon=4.0, privacy={"noise": "secret"})
    (trial,) = prepared.trials
    trained = lines_of(trial, ran(prepared, trial)[0])
    message = "a second training would be a second release of the same rows"
    with pytest.raises(UserError, match=message):
        kinds(prepared, trained)
