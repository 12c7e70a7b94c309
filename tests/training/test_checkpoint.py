import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fedsim.training.checkpoint import Checkpoints, SentCheckpoints
from fedsim.training.state import Checkpoint

TENSORS = {
    "server.model.weight": torch.randn(3, 2),
    "clients.state.steps": torch.tensor(4.0),
    "server.tensors.one": torch.ones(()).expand(1),
}
PROGRESS = Checkpoint(7, TENSORS, '{"tally": 1}', 123, 456)


def same(checkpoint: Checkpoint | None) -> bool:
    if checkpoint is None:
        return False
    tensors = all(torch.equal(checkpoint.tensors[name], value) for name, value in PROGRESS.tensors.items())
    return tensors and (checkpoint.round, checkpoint.ledger, checkpoint.uplink_bytes, checkpoint.downlink_bytes) == (
        7,
        '{"tally": 1}',
        123,
        456,
    )


def test_what_was_saved_comes_back(tmp_path):
    Checkpoints(tmp_path / "folder" / "cell.safetensors").save(PROGRESS)
    assert same(Checkpoints(tmp_path / "folder" / "cell.safetensors").load())
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["cell.safetensors"]


@pytest.mark.parametrize("damage", [lambda whole: whole[:20], lambda whole: b"", lambda whole: b"\x80\x04pickle"])
def test_a_damaged_file_counts_as_none(tmp_path, damage):
    file = Checkpoints(tmp_path / "cell.safetensors")
    file.save(PROGRESS)
    file.path.write_bytes(damage(file.path.read_bytes()))
    with pytest.warns(UserWarning, match="cannot be used .*; the cell begins again"):
        assert file.load() is None


CHANGES = {
    "another number": lambda head, tensors: tensors["server.model.weight"].add_(1e-7),
    "a tensor less": lambda head, tensors: tensors.pop("clients.state.steps"),
    "a tensor more": lambda head, tensors: tensors.update(more=torch.zeros(1)),
    "another dtype": lambda head, tensors: tensors.update({"server.model.weight": tensors["server.model.weight"].double()}),
    "another shape": lambda head, tensors: tensors.update({"server.model.weight": tensors["server.model.weight"].reshape(2, 3)}),
    "another round": lambda head, tensors: head.update(progress=head["progress"].replace('"round": 7', '"round": 8')),
    "no hash": lambda head, tensors: head.pop("sha256"),
    "nested facts": lambda head, tensors: head.update(progress="[" * 100_000 + "]" * 100_000),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_file_counts_as_none(tmp_path, change):
    file = Checkpoints(tmp_path / "cell.safetensors")
    file.save(PROGRESS)
    with safe_open(file.path, "pt") as held:
        head, tensors = held.metadata(), {name: held.get_tensor(name).clone() for name in held.keys()}  # noqa: SIM118
    CHANGES[change](head, tensors)
    save_file(tensors, file.path, head)
    with pytest.warns(UserWarning, match="the cell begins again"):
        assert file.load() is None


def test_no_cell_goes_on_from_the_checkpoint_of_another(tmp_path):
    one = Checkpoints(tmp_path / "one.safetensors", owner="one")
    one.save(PROGRESS)
    assert same(one.load())
    one.path.rename(tmp_path / "two.safetensors")
    with pytest.warns(UserWarning, match="not what this cell saved"):
        assert Checkpoints(tmp_path / "two.safetensors", owner="two").load() is None
    sent = SentCheckpoints(None, "one")
    sent.save(PROGRESS)
    content = sent.unsent()
    assert same(SentCheckpoints(content, "one").load())
    with pytest.warns(UserWarning, match="not what this cell saved"):
        assert SentCheckpoints(content, "two").load() is None


def test_a_cell_goes_on_where_no_checkpoint_can_be_written(tmp_path):
    (tmp_path / "folder").write_text("a file")
    file = Checkpoints(tmp_path / "folder" / "cell.safetensors", every=0)
    with pytest.warns(UserWarning, match="continues without a new checkpoint"):
        file(lambda: PROGRESS)


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
