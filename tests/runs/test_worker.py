"""The process that trains: its threads, memory and settings, whatever ran in it before."""

import os
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cells import NODES, one_cell, small_grid
from threadpoolctl import threadpool_info

from fedsim.evidence.check import check
from fedsim.runs.engine import in_this_process
from fedsim.runs.prepare import Need, Node, prepare
from fedsim.runs.process import Process, settle
from fedsim.runs.worker import Worker, check_source

ONE = Need(1.0)


@pytest.fixture(autouse=True)
def usual_settings() -> Iterator[None]:
    yield
    settle(1)
    torch.set_flush_denormal(False)


def test_make_ready_resets_folder_threads_and_default_dtype(tmp_path: Path) -> None:
    process = Process(Need(2.0), "auto")
    folder = Path.cwd()
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(3)
        os.chdir(tmp_path)
        process.make_ready()
        assert torch.ones(2).dtype == torch.float32
        assert torch.get_num_threads() == 2
        assert Path.cwd() == folder
        assert max(pool["num_threads"] for pool in threadpool_info()) <= 2
    finally:
        settle(1)
        torch.set_flush_denormal(False)


def test_settle_flushes_denormal_numbers() -> None:
    tiny = torch.full((8,), 1e-38)
    assert (tiny / 8).any()
    try:
        settle(1)
        assert not (tiny / 8).any()
    finally:
        torch.set_flush_denormal(False)


def test_worker_refuses_a_cell_of_other_code() -> None:
    cell = prepare(small_grid("dp-gaussian"), NODES).trials[0].cell
    check_source(cell)
    other = cell.model_copy(update={"source": "0" * 16})
    message = "the source of dp-gaussian is not what it was when the grid was read"
    with pytest.raises(RuntimeError, match=message):
        check_source(other)


def test_evaluation_refuses_a_cell_of_other_code() -> None:
    trial, data, _ = one_cell("dp-gaussian")
    cell = trial.cell.model_copy(update={"source": "0" * 16})
    *_, failure = Worker(ONE).evaluate(replace(trial, cell=cell), {}, data)
    assert "is not what it was when the grid was read" in str(failure)


def test_job_captures_only_what_runs_in_it(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    worker = Worker(ONE)
    show_warning = warnings.showwarning
    monkeypatch.setattr("fedsim.runs.worker.ceiling", lambda *_: print("of the job") or "an item")
    for _ in worker.reference(None, None, None, None):
        print("of the driver")
    assert capsys.readouterr().out == "of the driver\n" * 2
    assert worker.printed() == "of the job\n"
    assert warnings.showwarning is show_warning


def test_output_of_a_job_is_in_no_later_log() -> None:
    worker = Worker(ONE)
    worker.output.write("of the job before")
    next(worker.reference(None, None, None, None))
    assert worker.printed() == ""


def test_check_without_result_lines_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "check_algorithm", lambda *_, quick: [])
    *_, failure = Worker(ONE).check(one_cell("dp-gaussian")[0].cell, [], True)
    assert "`fedsim check dp-gaussian` shows where" in str(failure)


def test_process_gets_its_settings_back_after_jobs() -> None:
    torch.set_num_threads(3)
    before = threadpool_info()
    with in_this_process(NODES[0], capture=False) as engine:
        engine.open(ONE, "auto")
        torch.set_default_dtype(torch.float64)
    assert torch.get_num_threads() == 3
    assert torch.get_default_dtype() == torch.float32
    assert threadpool_info() == before


MACHINE = Node(8.0, 2.0)


@pytest.mark.parametrize(
    ("need", "actors"),
    [
        (Need(1.0), 8),
        (Need(2.0, 0.25), 4),
        (Need(1.0, 0.6), 2),
        (Need(1.0, 1 / 3), 6),
        (Need(1.0, 2.0), 1),
        (Need(1.0, 3.0), 0),
    ],
)
def test_a_part_of_a_gpu_lies_on_one_gpu(need: Need, actors: int) -> None:
    assert need.fit(MACHINE) == actors
