import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fedsim.training.state import Checkpoint, Checkpoints, keep, kept, packed

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
    facts = (checkpoint.round, checkpoint.ledger, checkpoint.uplink_bytes, checkpoint.downlink_bytes)
    return tensors and facts == (7, '{"tally": 1}', 123, 456)


def test_what_was_saved_comes_back_through_a_file_that_is_for_its_owner_alone(tmp_path):
    path = tmp_path / "cell.safetensors"
    assert kept(path) is None
    assert Checkpoints(kept(path)).load() is None
    keep(path, packed(PROGRESS, "one"))
    assert path.stat().st_mode & 0o077 == 0
    assert same(Checkpoints(kept(path), "one").load())
    with pytest.warns(UserWarning, match="not what this cell saved"):
        assert Checkpoints(kept(path), "two").load() is None


@pytest.mark.parametrize("damaged", [packed(PROGRESS, "")[:20], b"", b"\x80\x04pickle"])
def test_a_damaged_file_counts_as_none(damaged):
    with pytest.warns(UserWarning, match="cannot be used .*; the cell begins again"):
        assert Checkpoints(damaged).load() is None


CHANGES = {
    "another number": lambda head, tensors: tensors["server.model.weight"].add_(1e-7),
    "a tensor less": lambda head, tensors: tensors.pop("clients.state.steps"),
    "another round": lambda head, tensors: head.update(progress=head["progress"].replace('"round": 7', '"round": 8')),
    "nested facts": lambda head, tensors: head.update(progress="[" * 100_000 + "]" * 100_000),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_file_counts_as_none(tmp_path, change):
    path = tmp_path / "cell.safetensors"
    keep(path, packed(PROGRESS, ""))
    with safe_open(path, "pt") as held:
        head, tensors = held.metadata(), {name: held.get_tensor(name).clone() for name in held.keys()}  # noqa: SIM118
    CHANGES[change](head, tensors)
    save_file(tensors, path, head)
    with pytest.warns(UserWarning, match="the cell begins again"):
        assert Checkpoints(kept(path)).load() is None


def test_it_captures_when_it_is_time_and_nothing_before_and_gives_each_to_be_sent_once():
    early = Checkpoints(every=3600)
    early(lambda: pytest.fail("captured before it was time"))
    due = Checkpoints(every=0)
    due(lambda: PROGRESS)
    assert same(Checkpoints(due.unsent()).load())
    assert due.unsent() is None
