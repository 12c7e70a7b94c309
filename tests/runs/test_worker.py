"""The process that trains: its threads, memory and settings, whatever ran in it before."""

import os
from pathlib import Path

import pytest
import torch
from cells import NODES, small_grid
from threadpoolctl import threadpool_info

from fedsim.runs.prepare import Need, Node, prepare
from fedsim.runs.process import Process, settle
from fedsim.runs.worker import check_source


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
