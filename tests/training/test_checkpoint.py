import pytest
import torch

from fedsim.training.state import Checkpoint, Checkpoints, keep

TENSORS = {
    "server.model.weight": torch.randn(3, 2),
    "clients.state.steps": torch.tensor(4.0),
    "server.tensors.one": torch.ones(()).expand(1),
}
PROGRESS = Checkpoint(7, TENSORS, '{"tally": 1}', 123, 456)


def same(checkpoint: Checkpoint | None) -> bool:
    if checkpoint is None:
        return False
    tensors = all(torch.equal(checkpoint.tensors[name], value) for name, value in TENSORS.items())
    facts = (
        checkpoint.round,
        checkpoint.ledger,
        checkpoint.uplink_bytes,
        checkpoint.downlink_bytes,
    )
    return tensors and facts == (7, '{"tally": 1}', 123, 456)


def saved(owner: str = "") -> bytes:
    kept = Checkpoints(owner=owner)
    kept.save(PROGRESS)
    assert kept.content is not None
    return kept.content


def test_checkpoint_comes_back_from_a_file_of_its_owner(tmp_path):
    path = tmp_path / "cell.checkpoint"
    assert Checkpoints(None).load() is None
    keep(path, saved("one"))
    assert path.stat().st_mode & 0o077 == 0
    assert same(Checkpoints(path.read_bytes(), "one").load())
    with pytest.warns(UserWarning, match="not what this cell saved"):
        assert Checkpoints(path.read_bytes(), "two").load() is None


CHANGED = saved().replace(b'\\"round\\": 7', b'\\"round\\": 8')
assert saved() != CHANGED


@pytest.mark.parametrize(
    "damaged",
    [saved()[:20], b"", b"\x80\x04pickle", CHANGED, saved()[:-1] + b"\x01"],
    ids=str.split("cut no other changed end"),
)
def test_a_damaged_file_counts_as_none(damaged):
    with pytest.warns(UserWarning, match="not what this cell saved; the cell begins again"):
        assert Checkpoints(damaged).load() is None


def test_checkpoints_capture_on_time_and_are_sent_once():
    early = Checkpoints(every=3600)
    early(lambda: pytest.fail("captured before it was time"))
    due = Checkpoints(every=0)
    due(lambda: PROGRESS)
    assert same(Checkpoints(due.unsent()).load())
    assert due.unsent() is None
