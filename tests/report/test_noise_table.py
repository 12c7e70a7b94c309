import io
import math
from pathlib import Path

import pytest
import torch
from cells import quick, small_cells
from rich.console import Console
from sites import digits_of_writers

from fedsim.report.noise_table import CellNoise, parts_of, show_noise
from fedsim.training.trial import run_trial


def signals(name, **keys):
    (trial,) = small_cells(name, **keys).trials
    noised = CellNoise(trial, parts_of(trial))
    return trial, {signal.name: signal for release in trial.plan.releases for signal in noised.signals(release)}


@pytest.mark.parametrize("keys", [{}, {"trust": "silo"}, {"unit": "client"}])
def test_a_gradients_noise_is_the_one_that_a_training_adds(keys) -> None:
    entry = quick("fedhypevae", rounds=12, sample_rate=0.5)
    prepared = small_cells(entry, epsilon=4.0, **keys)
    (trial,), (data,) = prepared.trials, prepared.data.values()
    record = next(step for step in run_trial(trial, data) if step.values["main"])
    signal = next(CellNoise(trial, parts_of(trial)).signals(trial.plan.main))
    units = trial.task.clients if keys.get("unit") == "client" else trial.train_rows * 0.5
    drawn = record.values["noise_norm"] or math.nan
    if keys.get("trust") == "silo":
        # every client's own noise is in the sum already, and no longer to be told from the signal
        drawn = signal.noise * units * trial.plan.clip
        parts = parts_of(trial)
        size = sum(math.prod(shape) for shape in parts.shapes[trial.plan.main.name].values())
        assert drawn == pytest.approx(trial.plan.noise_std(trial.plan.main.name) * math.sqrt(4 * size))
    assert signal.noise * units * trial.plan.clip == pytest.approx(drawn, rel=0.06)


def test_class_means_noise_is_in_units_of_the_radius() -> None:
    trial, found = signals("dp-gaussian", epsilon=1.0)
    signal = found["class means"]
    multiplier = trial.plan.mechanism("moments").noise_multiplier
    weight = 1 / math.sqrt(1 + 0.15**2 + 0.7**2)
    assert signal.noise == pytest.approx(multiplier / weight * math.sqrt(64) / (trial.train_rows / 10))
    assert "of the radius at n = 200" in signal.words
    assert set(found) == {"mean of all rows", "number of rows", "class means", "class counts", "second moment", "histogram of distances"}


def test_twice_the_rows_halve_the_noise() -> None:
    few = signals("dp-gaussian", epsilon=1.0)[1]
    more = signals("dp-gaussian", epsilon=1.0, dataset={"name": "digits", "limit": 400})[1]
    assert all(more[name].noise == pytest.approx(few[name].noise / 2) for name in few)


def test_local_steps_are_measured_at_one_client_and_updates_by_their_clients() -> None:
    _, local = signals(quick("dp-cvae", sample_rate=0.2), epsilon=1.0)
    assert "expected examples of a client's 50" in local["sum of gradients"].words
    _, updates = signals("weight-noise", epsilon=1.0)
    assert "4 expected clients of 4" in updates["sum of updates"].words


def test_groups_are_counted_where_they_are_the_unit(tmp_path: Path) -> None:
    keys = {"dataset": {"npz": str(digits_of_writers(tmp_path)), "overlap": "keep"}, "unit": {"column": "writer"}, "epsilon": 4.0}
    trial, found = signals("dp-gaussian", **keys)
    assert trial.train_groups is not None
    assert trial.train_groups < trial.train_rows
    assert f"the count at n = {trial.train_groups:,}" in found["number of rows"].words
    trial, found = signals(quick("fedhypevae", sample_rate=0.5), **keys)
    assert f"expected groups of n = {trial.train_groups:,}" in found["sum of gradients"].words
    _, found = signals(quick("dp-fedavg-linear"), **keys)
    assert "sum of updates" not in found


def test_every_private_algorithm_has_its_noise_told() -> None:
    from cells import SHIPPED

    from fedsim.plugins.registry import lookup

    private = [name for name in SHIPPED if lookup(name).private]
    prepared = small_cells(*private, "fedavg-linear", epsilon=[2.0])
    console = Console(file=io.StringIO(), width=300)
    show_noise(prepared, console)
    told = console.file.getvalue()  # type: ignore[attr-defined]
    for trial in prepared.trials:
        for release in trial.plan.releases if trial.plan else ():
            assert release.name in told
    assert "without noise: fedavg-linear" in told
    assert "client means" in told


def test_a_second_moments_noise_is_told_in_spectral_norm() -> None:
    trial, found = signals("dp-gaussian", epsilon=1.0)
    std = trial.plan.noise_std("moments") / (trial.plan.clip * parts_of(trial).weights["moments"]["second"])
    drawn = std * torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    assert found["second moment"].noise == pytest.approx(float(torch.linalg.matrix_norm(drawn, 2)) / trial.train_rows, rel=0.1)
    assert "of the largest trace in spectral norm" in found["second moment"].words


def test_every_class_has_a_second_moment_of_its_own() -> None:
    trial, found = signals("fedhypevae-warm", epsilon=1.0)
    (shape,) = {shape for name, shape in parts_of(trial).shapes["class moments"].items() if name == "class_second"}
    classes, size = shape[0] // shape[1], shape[1]
    assert classes == trial.task.classes
    std = trial.plan.noise_std("class moments") / (trial.plan.clip * parts_of(trial).weights["class moments"]["class_second"])
    drawn = std * torch.randn(200, size, size, generator=torch.Generator().manual_seed(0))
    told = found["class second moments"]
    assert told.noise == pytest.approx(float(torch.linalg.matrix_norm(drawn, 2).mean()) * classes / trial.train_rows, rel=0.2)
    assert f"{classes} groups of" in told.words
    assert "of the number of rows" in found["histogram of distances"].words
