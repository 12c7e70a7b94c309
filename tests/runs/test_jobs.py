"""Which lines a grid lacks, and which cells share a reference."""

from dataclasses import replace
from pathlib import Path

import pytest
from cells import quick, small_cells
from rich.console import Console
from rows import lines_of, ran

from fedsim.errors import UserError
from fedsim.results.join import RunResults
from fedsim.results.lines import RowError, keep_state
from fedsim.results.store import ResultStore, RunFolder
from fedsim.runs.display import Display
from fedsim.runs.job_list import missing_jobs
from fedsim.runs.jobs import CellJob, RunContext
from fedsim.runs.prepare import Prepared
from fedsim.runs.side_jobs import references_of

DATA = [{"name": "digits", "limit": limit} for limit in (200, 300)]
ERROR = RowError(type="ValueError", message="no", traceback="")


def context(prepared: Prepared, folder: Path) -> RunContext:
    return RunContext(prepared, ResultStore(folder), Display(Console(quiet=True), 1))


def test_references_depend_on_data_probe_and_partition_alone(
    tmp_path: Path,
) -> None:
    depends_on: dict[str, set[tuple[object, ...]]] = {}
    for probe_c in (0.1, 0.3):
        evaluation = {"per_class": 10, "probe_c": probe_c}
        prepared = small_cells(
            "local-only", "fedavg-linear", dataset=DATA, alpha=[0.1, 1.0], evaluation=evaluation
        )
        for trial in prepared.trials:
            ceiling, local_only = references_of(context(prepared, tmp_path), trial)
            depends_on.setdefault(ceiling.key[-1], set()).add((trial.data_key, probe_c))
            depends_on.setdefault(local_only.key[-1], set()).add(
                (trial.data_key, probe_c, trial.partition.fingerprint)
            )
    assert all(len(each) == 1 for each in depends_on.values())
    assert len(depends_on) == 2 * 2 + 2 * 2 * 2


def kinds(
    prepared: Prepared, lines: RunResults, folder: Path, *, retry_failed: bool = False
) -> list[str]:
    jobs = missing_jobs(context(prepared, folder), (), lines, retry_failed=retry_failed)
    return [
        "training" if job.training is None else "evaluating"
        for job in jobs
        if isinstance(job, CellJob)
    ]


def test_jobs_follow_from_the_training_and_evaluation_lines(tmp_path: Path) -> None:
    prepared = small_cells(quick("dp-gaussian"), epsilon=4.0)
    (trial,) = prepared.trials
    outcome, evaluation = ran(prepared, trial)
    keep_state(ResultStore(tmp_path).folder.state(trial.cell.training_id), outcome.state)
    assert kinds(prepared, RunResults(RunFolder(tmp_path)), tmp_path) == ["training"]
    trained = lines_of(trial, outcome)
    kept = replace(
        trained,
        trainings={
            trial.cell.training_id: {**trained.trainings[trial.cell.training_id], "state": "0"}
        },
    )
    assert kinds(prepared, kept, tmp_path) == ["evaluating"]
    assert kinds(prepared, lines_of(trial, outcome, evaluation), tmp_path) == []
    for failed in (
        lines_of(trial, ERROR),
        replace(kept, evaluations=lines_of(trial, outcome, ERROR).evaluations),
    ):
        assert kinds(prepared, failed, tmp_path) == []
    assert kinds(prepared, lines_of(trial, ERROR), tmp_path, retry_failed=True) == ["training"]
    assert kinds(
        prepared,
        replace(kept, evaluations=lines_of(trial, outcome, ERROR).evaluations),
        tmp_path,
        retry_failed=True,
    ) == ["evaluating"]


def test_cell_with_secret_noise_is_not_trained_twice(tmp_path: Path) -> None:
    prepared = small_cells(quick("dp-gaussian"), epsilon=4.0, privacy={"noise": "secret"})
    (trial,) = prepared.trials
    with pytest.raises(
        UserError, match="a second training would be a second release of the same rows"
    ):
        kinds(prepared, lines_of(trial, ran(prepared, trial)[0]), tmp_path)
