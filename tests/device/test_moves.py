"""What moves between devices."""

import torch
from cells import quick, small_cells
from devices import DEVICE
from streams import seeded

from fedsim.batch import Layout
from fedsim.device import CPU, device_of, moved, normal
from fedsim.methods.messages import Diagnostic, Message
from fedsim.training.cohort import Cohort

TENSORS = {
    "a": torch.arange(6.0).view(2, 3),
    "b": torch.arange(4),
    "c": torch.tensor(2.5),
    "d": torch.zeros(0, 3),
    "e": torch.ones(2),
    "f": torch.full((2,), 1 / 3, dtype=torch.float64),
    "g": torch.full((2,), 1 / 3),
}


def test_tensors_come_back_as_they_went() -> None:
    there = moved(TENSORS, DEVICE)
    assert {value.device.type for value in there.values()} == {DEVICE.type}
    back = moved(there, CPU)
    assert list(back) == list(TENSORS)
    for name, value in TENSORS.items():
        assert back[name].dtype == value.dtype
        assert torch.equal(back[name], value)


def test_a_message_s_tensors_travel_and_everything_else_stays() -> None:
    diagnostics = {
        "losses": torch.ones(3),
        "norms": Diagnostic(torch.ones(2), "quantiles"),
        "told": [1.0, 2.0],
    }
    message = Message(
        sums=TENSORS,
        uplink_bytes=7,
        diagnostics=diagnostics,
    )
    there = message.on(DEVICE)
    back = there.on(CPU)
    assert {value.device.type for value in there.sums.values()} == {DEVICE.type}
    assert back.uplink_bytes == 7
    assert back.diagnostics["told"] == Diagnostic([1.0, 2.0])
    norms = back.diagnostics["norms"]
    assert isinstance(norms, Diagnostic)
    assert norms.reduction == "quantiles"
    assert torch.equal(
        torch.as_tensor(norms.values),
        torch.ones(2),
    )


def test_draws_are_those_of_the_cpu() -> None:
    here, there = (
        normal(
            (3, 2),
            seeded(1),
            torch.zeros((), device=device),
        )
        for device in (CPU, DEVICE)
    )
    assert there.device.type == DEVICE.type
    assert torch.equal(here, there.cpu())


def test_rows_are_put_on_a_device() -> None:
    prepared = small_cells(quick("fedavg-linear"))
    (trial,) = prepared.trials
    (data,) = prepared.data.values()
    spec = trial.cohorts()[0]
    cohort = Cohort(
        spec,
        data.x_train,
        data.y_train,
        DEVICE,
    )
    for x, rows in zip(cohort.clients.x, spec.rows, strict=True):
        assert x.device.type == DEVICE.type
        expected = torch.from_numpy(data.x_train[rows])
        assert torch.equal(x.cpu(), expected)


def test_a_layout_knows_its_shapes_without_its_device() -> None:
    client = torch.tensor([1, 1, 3])
    layout = Layout.on(DEVICE, client, 5)
    assert layout.positions is client
    assert layout.span == slice(1, 4)
    assert layout.width == 2
    rows = torch.arange(6.0, device=DEVICE).view(3, 2)
    flattened = layout.flatten(layout.pad(rows))
    assert torch.equal(flattened.cpu(), rows.cpu())


def test_auto_is_the_cpu_without_a_share_or_without_cuda() -> None:
    assert device_of("auto", 0.0) == CPU
    assert device_of("cpu", 1.0) == CPU
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert device_of("auto", 0.5).type == expected
    assert device_of("cuda", 0.5).type == "cuda"
