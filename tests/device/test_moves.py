"""What moves between devices, and what a plug-in that does not move is told."""

import pytest
import torch
from cells import quick, small_cells
from devices import DEVICE

from fedsim.batch import Layout
from fedsim.device import CPU, device_of, moved, normal
from fedsim.methods.messages import Diagnostic, Message
from fedsim.training.cohort import Cohort

FOREIGN = pytest.mark.skipif(DEVICE == CPU, reason="on the CPU every tensor is where it should be")
TENSORS = {
    "a": torch.arange(6.0).view(2, 3),
    "b": torch.arange(4),
    "c": torch.tensor(2.5),
    "d": torch.zeros(0, 3),
    "e": torch.ones(2),
}
TENSORS |= {"f": torch.full((2,), 1 / 3, dtype=torch.float64), "g": torch.full((2,), 1 / 3)}
LEFT_BEHIND = """
import torch

from baselines.fedavg_linear import FedAvgLinear


class LeftBehind(FedAvgLinear):
    def loss(self, model, batch):
        size = (batch.x @ torch.ones(batch.x.shape[1], 1))[:, 0]
        return {name: value + 0 * size for name, value in super().loss(model, batch).items()}
"""


def test_tensors_come_back_as_they_went() -> None:
    there = moved(TENSORS, DEVICE)
    assert {value.device.type for value in there.values()} == {DEVICE.type}
    back = moved(there, CPU)
    assert list(back) == list(TENSORS)
    for name, value in TENSORS.items():
        assert back[name].dtype == value.dtype
        assert torch.equal(back[name], value)


def test_a_message_s_tensors_travel_and_everything_else_stays() -> None:
    ready = {
        "losses": torch.ones(3),
        "norms": Diagnostic(torch.ones(2), "quantiles"),
        "told": [1.0, 2.0],
    }
    there = Message(sums=TENSORS, uplink_bytes=7, diagnostics=ready).on(DEVICE)
    back = there.on(CPU)
    assert {value.device.type for value in there.sums.values()} == {DEVICE.type}
    assert (back.uplink_bytes, back.diagnostics["told"]) == (7, Diagnostic([1.0, 2.0]))
    norms = back.diagnostics["norms"]
    assert isinstance(norms, Diagnostic)
    assert norms.reduction == "quantiles"
    assert torch.equal(torch.as_tensor(norms.values), torch.ones(2))


def test_draws_are_those_of_the_cpu() -> None:
    here, there = (
        normal((3, 2), torch.Generator().manual_seed(1), torch.zeros((), device=d))
        for d in (CPU, DEVICE)
    )
    assert there.device.type == DEVICE.type
    assert torch.equal(here, there.cpu())


def test_rows_are_put_on_a_device() -> None:
    prepared = small_cells(quick("fedavg-linear"))
    (trial,), (data,) = prepared.trials, prepared.data.values()
    clients = Cohort(trial.cohorts()[0], data.x_train, data.y_train, DEVICE).clients
    for x, rows in zip(clients.x, trial.cohorts()[0].rows, strict=True):
        assert x.device.type == DEVICE.type
        assert torch.equal(x.cpu(), torch.from_numpy(data.x_train[rows]))


def test_a_layout_knows_its_shapes_without_its_device() -> None:
    client = torch.tensor([1, 1, 3])
    layout = Layout.on(DEVICE, client, 5)
    assert layout.positions is client
    assert (layout.span, layout.width) == (slice(1, 4), 2)
    rows = torch.arange(6.0, device=DEVICE).view(3, 2)
    assert torch.equal(layout.flatten(layout.pad(rows)).cpu(), rows.cpu())


def test_auto_is_the_cpu_without_a_share_or_without_cuda() -> None:
    assert device_of("auto", 0.0) == device_of("cpu", 1.0) == CPU
    assert device_of("auto", 0.5).type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert device_of("cuda", 0.5).type == "cuda"
