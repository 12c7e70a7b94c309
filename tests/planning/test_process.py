import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim.planning.node import Share
from fedsim.planning.process import limit_memory, plug_in_code
from fedsim.runs.worker import Process


def test_what_a_plug_in_changes_in_torch_numpy_and_the_folder_is_put_back(tmp_path: Path) -> None:
    threads, folder, errors = torch.get_num_threads(), Path.cwd(), np.geterr()
    with plug_in_code():
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        torch.set_grad_enabled(False)
        np.seterr(all="raise")
        os.chdir(tmp_path)
    assert (torch.ones(2).dtype, torch.ones(2).device.type, torch.is_grad_enabled()) == (torch.float32, "cpu", True)
    assert (Path.cwd(), np.geterr(), torch.get_num_threads()) == (folder, errors, threads)


def test_a_process_is_made_ready_again_after_every_job(tmp_path: Path) -> None:
    process, folder = Process(Share(1.0)), Path.cwd()
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(3)
        os.chdir(tmp_path)
        process.make_ready()
        assert (torch.ones(2).dtype, torch.get_num_threads(), Path.cwd()) == (torch.float32, 1, folder)
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("take", [lambda: np.ones(2**28), lambda: bytearray(2**31), lambda: torch.ones(2**29)])
def test_memory_beyond_the_limit_is_refused(take: object) -> None:
    limit_memory(2**28)
    try:
        with pytest.raises((MemoryError, RuntimeError), match=r"Unable to allocate|can't allocate memory|^$"):
            take()  # type: ignore[operator]
    finally:
        limit_memory(0)
    assert torch.ones(2**20).sum() == 2**20
