from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedsim.training.state import Checkpoint, Checkpoints, keep

WHOLE = torch.randn(5)
TENSORS = {
    "server.model.weight": torch.randn(3, 2),
    "clients.state.steps": torch.tensor(4.0),
    "server.tensors.one": torch.ones(()).expand(1),
    "server.tensors.first": WHOLE[:2],
    "server.tensors.second": WHOLE[2:],
    "server.tensors.small": torch.ones(2, dtype=torch.bfloat16),
}
PROGRESS = Checkpoint(7, TENSORS, '{"tally": 1}', 123, 456)


def assert_same(checkpoint: Checkpoint | None) -> None:
    assert checkpoint is not None
    assert replace(checkpoint, tensors={}) == replace(PROGRESS, tensors={})
    for name, value in TENSORS.items():
        assert torch.equal(checkpoint.tensors[name], value)


def saved(owner: str = "") -> bytes:
    checkpoints = Checkpoints(owner=owner)
    checkpoints.save(PROGRESS)
    assert checkpoints.content is not None
    return checkpoints.content


def test_checkpoint_comes_back_from_a_file_of_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "cell.checkpoint"
    assert Checkpoints(None).load() is None
    keep(path, saved("one"))
    assert path.stat().st_mode & 0o077 == 0
    assert_same(Checkpoints(path.read_bytes(), "one").load())
    with pytest.warns(UserWarning, match="not what this cell saved"):
        assert Checkpoints(path.read_bytes(), "two").load() is None


DAMAGED = {
    "cut": saved()[:20],
    "no": b"",
    "other": b"\x80\x04pickle",
    "changed": saved().replace(b'\\"round\\": 7', b'\\"round\\": 8'),
    "end": saved()[:-1] + b"\x01",
}


@pytest.mark.parametrize("how", DAMAGED)
def test_damaged_file_counts_as_none(how: str) -> None:
    assert DAMAGED[how] != saved()
    with pytest.warns(UserWarning, match="not what this cell saved; the cell begins again"):
        assert Checkpoints(DAMAGED[how]).load() is None


def test_checkpoints_capture_on_time_and_are_sent_once() -> None:
    early = Checkpoints(every=3600)
    early(lambda: pytest.fail("captured before it was time"))
    due = Checkpoints(every=0)
    due(lambda: PROGRESS)
    assert_same(Checkpoints(due.unsent()).load())
    assert due.unsent() is None
    due(lambda: pytest.fail("captured although the outcome follows"), True)
