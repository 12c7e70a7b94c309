import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim.planning.process_state import ProcessState, limit_memory


def test_what_a_plug_in_changes_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    state, before = ProcessState(), (list(sys.path), Path.cwd(), dict(os.environ))
    softplus, total, geterr = torch.nn.functional.softplus, torch.Tensor.sum, np.geterr()
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_grad_enabled(False)
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.nn.functional.softplus = None
    torch.Tensor.sum = lambda self: 0  # type: ignore[method-assign, assignment]
    np.seterr(all="raise")
    sys.path.clear()
    sys.path.append("/a/new/folder")
    sys.setrecursionlimit(10_000)
    warnings.simplefilter("error")
    os.chdir(tmp_path)
    os.environ.clear()
    state.put_back()
    assert torch.ones(2).dtype == torch.float32
    assert torch.ones(2).device.type == "cpu"
    assert torch.is_grad_enabled()
    assert torch.get_num_threads() == state.threads
    assert torch.nn.functional.softplus is softplus
    assert torch.Tensor.sum is total
    assert np.geterr() == geterr
    assert sys.path == [*before[0], "/a/new/folder"]
    assert (Path.cwd(), dict(os.environ)) == before[1:]
    assert sys.getrecursionlimit() == state.recursion
    assert warnings.filters == state.filters


@pytest.mark.parametrize("take", [lambda: np.ones(2**28), lambda: bytearray(2**31), lambda: torch.ones(2**29)])
def test_memory_beyond_the_limit_is_refused(take: object) -> None:
    limit_memory(2**28)
    try:
        with pytest.raises((MemoryError, RuntimeError), match=r"Unable to allocate|can't allocate memory|^$"):
            take()  # type: ignore[operator]
    finally:
        limit_memory(0)
    assert torch.ones(2**20).sum() == 2**20
