"""The tables and warnings of a dry run."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from cells import digits_of_sites, one_cell, quick, small_cells, small_grid

from fedsim.api.run import Run
from fedsim.runs.noise_view import parts_of
from fedsim.runs.plan_view import Plan
from fedsim.training.trial import Trial, run_trial


def noise_of(entry: Any, **keys: Any) -> tuple[Trial, dict[str, float]]:
    """The only cell, and its plan's noise over signal by part."""
    prepared = small_cells(entry, **keys)
    (trial,) = prepared.trials
    frame = Plan(prepared, Path("none")).noise
    by_part = frame.set_index("part")
    return trial, by_part["noise / signal"].to_dict()


@pytest.mark.parametrize("unit", ["example", "client"])
def test_noise_of_a_gradient_is_what_a_training_adds(unit: str) -> None:
    entry = quick("fedhypevae", rounds=12, sample_rate=0.5)
    trial, noise = noise_of(entry, epsilon=4.0, unit=unit)
    _, data, _ = one_cell(entry, epsilon=4.0, unit=unit)
    records = run_trial(trial, data)
    record = next(step for step in records if step.values["main"])
    part = "sum of gradients"
    units = trial.train_rows * 0.5
    if unit == "client":
        part = "sum of updates"
        units = trial.task.clients
    drawn = record.values["noise_norm"]
    expected = noise[part] * units * trial.plan.clip
    assert expected == pytest.approx(drawn, rel=0.06)


def test_noise_of_class_means_halves_with_twice_the_examples() -> None:
    trial, noise = noise_of("dp-gaussian", epsilon=1.0)
    weight = 1 / math.sqrt(1 + 0.15**2 + 0.7**2)
    multiplier = trial.plan.mechanism("moments").noise_multiplier
    rows_of_a_class = trial.train_rows / 10
    expected = multiplier / weight * math.sqrt(64) / rows_of_a_class
    assert noise["class means"] == pytest.approx(expected)
    dataset = {"name": "digits", "limit": 400}
    _, halved = noise_of("dp-gaussian", epsilon=1.0, dataset=dataset)
    for part, ratio in noise.items():
        assert halved[part] == pytest.approx(ratio / 2)


def test_noise_of_a_second_moment_is_in_spectral_norm() -> None:
    trial, noise = noise_of("dp-gaussian", epsilon=1.0)
    cohort, _ = parts_of(trial)
    weight = cohort.phases[-1].weights["second"]
    std = trial.plan.noise_std("moments") / (trial.plan.clip * weight)
    stream = torch.Generator().manual_seed(0)
    drawn = std * torch.randn(64, 64, generator=stream)
    norm = torch.linalg.matrix_norm(drawn, 2)
    expected = float(norm) / trial.train_rows
    assert noise["second"] == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(("clients", "warned"), [(3, True), (4, False)])
def test_plan_warns_where_alpha_has_no_effect(tmp_path: Path, clients: int, warned: bool) -> None:
    dataset = {"npz": str(digits_of_sites(tmp_path)), "name": "sites", "overlap": "keep"}
    partition = {"scheme": "column-dirichlet", "column": "site"}
    prepared = small_cells("dp-gaussian", dataset=dataset, partition=partition, clients=clients)
    warning = (
        "warning: alpha has no effect on sites with 3 clients: column-dirichlet gives each of the "
        "3 values of 'site' a single client"
    )
    assert (warning in repr(Plan(prepared, tmp_path / "run"))) == warned


PAPER = {"name": "fedhypevae", "label": "paper", "params": {"form": "paper", "rounds": 3}}
SCANNED = {"name": "dp-linear", "params": {"rounds": 3}, "scan": {"precondition": [0, 0.15]}}


@pytest.mark.parametrize("entries", [(PAPER, quick("fedhypevae")), (SCANNED,)])
def test_entries_of_one_method_may_differ_in_their_releases(bench, entries) -> None:
    ran = bench(small_grid(*entries, epsilon=[2, 4, 8]))
    assert [row.status for row in ran.rows] == ["ok"] * 6
    run = Run(ran.folder)
    assert len(run.table().numbers) == 6
    assert "method" in str(run.report())
