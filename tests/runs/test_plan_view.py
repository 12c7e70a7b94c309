import math
from pathlib import Path

import pytest
import torch
from cells import digits_of_sites, quick, small_cells, small_grid

from fedsim.api.run import Run
from fedsim.results.join import RunResults
from fedsim.results.store import RunFolder
from fedsim.runs.noise_view import parts_of
from fedsim.runs.plan_view import Plan
from fedsim.runs.time_left import time_left
from fedsim.training.trial import run_trial

EMPTY = RunResults(RunFolder(Path("none")))
"""The lines of a run folder that does not exist."""


def noise_of(name, **keys):
    """The trial, and its plan's noise over signal by part."""
    prepared = small_cells(name, **keys)
    frame = Plan(prepared, Path("none")).noise
    return prepared.trials[0], dict(zip(frame["part"], frame["noise / signal"], strict=True))


@pytest.mark.parametrize("keys", [{}, {"unit": "client"}])
def test_a_gradients_noise_is_the_one_that_a_training_adds(keys) -> None:
    prepared = small_cells(quick("fedhypevae", rounds=12, sample_rate=0.5), epsilon=4.0, **keys)
    (trial,), (data,) = prepared.trials, prepared.data.values()
    drawn = next(step for step in run_trial(trial, data) if step.values["main"]).values[
        "noise_norm"
    ]
    (told,) = Plan(prepared, Path("none")).noise.query("part.str.startswith('sum of')")[
        "noise / signal"
    ]
    if keys:
        units = trial.task.clients
    else:
        units = trial.train_rows * 0.5
    assert told * units * trial.plan.clip == pytest.approx(drawn, rel=0.06)


def test_noise_of_class_means_halves_with_twice_the_examples() -> None:
    trial, found = noise_of("dp-gaussian", epsilon=1.0)
    weight = 1 / math.sqrt(1 + 0.15**2 + 0.7**2)
    expected = (
        trial.plan.mechanism("moments").noise_multiplier
        / weight
        * math.sqrt(64)
        / (trial.train_rows / 10)
    )
    assert found["class means"] == pytest.approx(expected)
    more = noise_of("dp-gaussian", epsilon=1.0, dataset={"name": "digits", "limit": 400})[1]
    assert all(more[name] == pytest.approx(found[name] / 2) for name in found)


def test_a_second_moments_noise_is_told_in_spectral_norm() -> None:
    trial, found = noise_of("dp-gaussian", epsilon=1.0)
    std = trial.plan.noise_std("moments") / (
        trial.plan.clip * parts_of(trial)[0].phases[-1].weights["second"]
    )
    drawn = std * torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    assert found["second"] == pytest.approx(
        float(torch.linalg.matrix_norm(drawn, 2)) / trial.train_rows, rel=0.1
    )


@pytest.mark.parametrize(("clients", "told"), [(3, True), (4, False)])
def test_a_plan_says_where_alpha_has_no_effect(tmp_path: Path, clients: int, told: bool) -> None:
    dataset = {"npz": str(digits_of_sites(tmp_path)), "name": "sites", "overlap": "keep"}
    partition = {"scheme": "column-dirichlet", "column": "site"}
    prepared = small_cells("dp-gaussian", dataset=dataset, partition=partition, clients=clients)
    warning = (
        "warning: alpha has no effect on sites with 3 clients: column-dirichlet gives each of the "
        "3 values of 'site' a single client"
    )
    assert (warning in repr(Plan(prepared, tmp_path / "run"))) == told


PAPER = {"name": "fedhypevae", "label": "paper", "params": {"form": "paper", "rounds": 3}}
SCANNED = {"name": "dp-linear", "params": {"rounds": 3}, "scan": {"precondition": [0, 0.15]}}


@pytest.mark.parametrize("entries", [(PAPER, quick("fedhypevae")), (SCANNED,)])
def test_time_is_estimated_where_releases_differ(entries) -> None:
    prepared = small_cells(*entries, epsilon=4.0)
    _, words = time_left(prepared, EMPTY)
    assert words.endswith("of training for the 2 cells left")


@pytest.mark.parametrize("entries", [(PAPER, quick("fedhypevae")), (SCANNED,)])
def test_entries_with_other_releases_stand_in_one_report(bench, entries) -> None:
    run = bench(small_grid(*entries, epsilon=[2, 4, 8]))
    assert [row.status for row in run.rows] == ["ok"] * 6
    assert len(Run(run.folder).table().numbers) == 6
    page = Run(run.folder).report()
    assert "method" in str(page)


def test_cells_with_equal_releases_share_one_warm_up(monkeypatch) -> None:
    warmed = []

    def seconds(trial, prepared):
        warmed.append(trial.cell.label)
        return {"dp-sgd": 1.0, "mean": 1.0}

    monkeypatch.setattr("fedsim.runs.time_left.seconds_a_round", seconds)
    entry = {"name": "dp-linear", "scan": {"learning_rate": [0.1, 0.2]}}
    time_left(small_cells(entry, epsilon=[1, 4]), EMPTY)
    assert warmed == ["dp-linear learning_rate=0.1"]
