import time

import pytest
import torch

from fedsim.simulation.checkpoint import Checkpoints
from fedsim.simulation.state import Checkpoint

PROGRESS = Checkpoint(7, {"server.model.weight": torch.randn(3, 2), "clients.state.steps": torch.tensor(4.0)}, '{"tally": 1}', 123)


def same(found: Checkpoint | None) -> bool:
    if found is None:
        return False
    tensors = all(torch.equal(found.tensors[name], value) for name, value in PROGRESS.tensors.items())
    return tensors and (found.round, found.ledger, found.uplink_bytes) == (7, '{"tally": 1}', 123)


def test_what_was_saved_comes_back(tmp_path):
    Checkpoints(tmp_path / "folder" / "cell.safetensors").save(PROGRESS)
    assert same(Checkpoints(tmp_path / "folder" / "cell.safetensors").load())
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["cell.safetensors"]


@pytest.mark.parametrize("damage", [lambda whole: whole[:20], lambda whole: b"", lambda whole: b"\x80\x04pickle"])
def test_a_damaged_file_counts_as_none(tmp_path, damage):
    file = Checkpoints(tmp_path / "cell.safetensors")
    file.save(PROGRESS)
    file.path.write_bytes(damage(file.path.read_bytes()))
    assert file.load() is None


def test_no_file_is_none_and_a_finished_cell_leaves_none(tmp_path):
    file = Checkpoints(tmp_path / "cell.safetensors")
    assert file.load() is None
    file.save(PROGRESS)
    file.remove()
    file.remove()
    assert list(tmp_path.iterdir()) == []


def test_it_writes_when_it_is_time_and_captures_nothing_before(tmp_path):
    early = Checkpoints(tmp_path / "early.safetensors", every=3600)
    early(lambda: pytest.fail("captured before it was time"))
    due = Checkpoints(tmp_path / "due.safetensors", every=0)
    due(lambda: PROGRESS)
    assert same(due.load())
    due._last = time.monotonic() + 3600
    due(lambda: pytest.fail("captured again at once"))
