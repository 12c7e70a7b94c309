"""The tables and warnings of a dry run."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cells import digits_of_sites, one_cell, quick, small_cells, small_grid
from streams import seeded

from fedsim.api.run import Run
from fedsim.results.join import RunResults
from fedsim.results.store import RunFolder
from fedsim.runs import plan_view
from fedsim.runs.job_list import claim_audits
from fedsim.runs.noise_view import parts_of
from fedsim.runs.plan_view import Plan, time_left
from fedsim.training.trial import Trial, run_trial
from fedsim.words import counted

NO_FOLDER = Path("none")


def noise_of(entry: Any, **keys: Any) -> tuple[Trial, dict[str, float]]:
    """The only cell, and its plan's noise over signal by part."""
    prepared = small_cells(entry, **keys)
    (trial,) = prepared.trials
    frame = Plan(prepared, NO_FOLDER).noise
    by_part = frame.set_index("part")
    return trial, by_part["noise / signal"].to_dict()


@pytest.mark.parametrize("unit", ["example", "client"])
def test_noise_of_a_gradient_is_what_a_training_adds(unit: str) -> None:
    entry = quick(
        "fedhypevae",
        rounds=12,
        sample_rate=0.5,
    )
    trial, noise = noise_of(entry, epsilon=4.0, unit=unit)
    _, data, _ = one_cell(entry, epsilon=4.0, unit=unit)
    records = run_trial(trial, data)
    record = next(step for step in records if step.values["main"])
    part = "sum of gradients"
    units = trial.train_rows * 0.5
    if unit == "client":
        part = "sum of updates"
        units = trial.task.clients
    expected = noise[part] * units * trial.plan.clip
    assert expected == pytest.approx(
        record.values["noise_norm"],
        rel=0.06,
    )


def test_noise_of_class_means_halves_with_twice_the_examples() -> None:
    trial, noise = noise_of("dp-gaussian", epsilon=1.0)
    weight = 1 / math.sqrt(1 + 0.15**2 + 0.7**2)
    multiplier = trial.plan.mechanism("moments").noise_multiplier
    rows_of_a_class = trial.train_rows / 10
    expected = multiplier / weight * math.sqrt(64) / rows_of_a_class
    assert noise["class means"] == pytest.approx(expected)
    _, halved = noise_of(
        "dp-gaussian",
        epsilon=1.0,
        dataset={"name": "digits", "limit": 400},
    )
    for part, ratio in noise.items():
        assert halved[part] == pytest.approx(ratio / 2)


def test_noise_of_a_second_moment_is_in_spectral_norm() -> None:
    trial, noise = noise_of("dp-gaussian", epsilon=1.0)
    cohort, _ = parts_of(trial)
    weight = cohort.phases[-1].weights["second"]
    std = trial.plan.noise_std("moments") / (trial.plan.clip * weight)
    drawn = std * torch.randn(
        64,
        64,
        generator=seeded(0),
    )
    norm = torch.linalg.matrix_norm(drawn, 2)
    assert noise["second"] == pytest.approx(
        float(norm) / trial.train_rows,
        rel=0.1,
    )


@pytest.mark.parametrize("trust", ["aggregate", "silo"])
def test_noise_of_a_client_is_that_of_its_own_statistics(trust: str) -> None:
    trial, noise = noise_of(
        "dp-fedpft",
        epsilon=1.0,
        trust=trust,
    )
    weight = 1 / math.sqrt(1 + 0.15**2 + 1)
    rows_of_a_class = trial.train_rows / 10 / trial.task.clients
    expected = trial.plan.sigma / weight * math.sqrt(64) / rows_of_a_class
    assert noise["sums"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("clients", "warned"),
    [
        (3, True),
        (4, False),
    ],
)
def test_plan_warns_where_alpha_has_no_effect(
    tmp_path: Path,
    clients: int,
    warned: bool,
) -> None:
    dataset = {
        "npz": str(digits_of_sites(tmp_path)),
        "name": "sites",
        "overlap": "keep",
    }
    partition = {
        "scheme": "column-dirichlet",
        "column": "site",
    }
    prepared = small_cells(
        "dp-gaussian",
        dataset=dataset,
        partition=partition,
        clients=clients,
    )
    warning = (
        "warning: alpha has no effect on sites with 3 clients: column-dirichlet gives each of the "
        "3 values of 'site' a single client"
    )
    plan = Plan(prepared, tmp_path / "run")
    assert (warning in repr(plan)) == warned


def test_plan_of_a_private_search_shows_its_noise() -> None:
    entry = quick("dp-linear") | {"tune": {"clip": [0.5, 1.0]}}
    _, noise = noise_of(entry, tune={"trials": 3})
    _, noise_of_one = noise_of("dp-linear")
    assert set(noise) == set(noise_of_one)


@pytest.mark.parametrize(
    ("cells", "per_actor", "most"),
    [
        (2, "all", 1),
        (6, "all", 4),
        (6, 2, 2),
    ],
)
def test_plan_says_how_many_cells_run_at_a_time(
    cells: int,
    per_actor: Any,
    most: int,
) -> None:
    prepared = small_cells(
        "dp-gaussian",
        seeds=list(range(cells)),
        resources={"clients_per_actor": per_actor},
    )
    plan = Plan(prepared, NO_FOLDER)
    assert f"\n{counted(most, 'cell')} at a time, on actors" in repr(plan)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> RunResults:
    """The lines that plans read."""
    lines = RunResults(RunFolder(NO_FOLDER), {}, audits=[])
    monkeypatch.setattr(plan_view, "read_results", lambda folder: lines)
    return lines


def test_few_trainings_take_the_time_of_one(lines: RunResults) -> None:
    prepared = small_cells(
        "dp-gaussian",
        seeds=[0, 1],
        resources={"clients_per_actor": "all"},
    )
    lines.trainings["earlier"] = {
        "cell": {"algorithm": "dp-gaussian"},
        "seconds": 100.0,
        "error": None,
    }
    assert time_left(prepared, lines)[0] == 100.0


@pytest.mark.parametrize("retry_failed", [False, True])
def test_plan_counts_failed_cells_that_run_again(
    lines: RunResults,
    retry_failed: bool,
) -> None:
    prepared = small_cells("dp-gaussian")
    cell = prepared.trials[0].cell
    lines.trainings[cell.training_id] = {
        "error": "no",
        "seconds": None,
    }
    plan = Plan(
        prepared,
        NO_FOLDER,
        retry_failed=retry_failed,
    )
    assert ("unknown for dp-gaussian until a first cell" in repr(plan)) == retry_failed


def test_plan_counts_only_audits_that_are_left(lines: RunResults) -> None:
    prepared = small_cells(
        "dp-gaussian",
        epsilon=[2.0, 4.0],
        audit={"pairs": 40},
    )
    audits = claim_audits(prepared)
    lines.audits.append(
        {
            "audit": audits[0].run.key,
            "pairs": 40,
        }
    )
    plan = Plan(prepared, NO_FOLDER, audits)
    assert "audits: 1 claim would be attacked" in repr(plan)


def test_class_called_as_a_column_replaces_no_column() -> None:
    prepared = small_cells("dp-gaussian")
    (key,) = prepared.data
    prepared.data[key] = replace(
        prepared.data[key],
        class_names=("rows", *"abcdefghi"),
    )
    frame = Plan(prepared, NO_FOLDER).partitions
    assert frame["rows"].sum() == 200
    assert 0 < frame["class rows"].sum() < 40


PAPER = {
    "name": "fedhypevae",
    "label": "paper",
    "params": {"form": "paper", "rounds": 3},
}
SCANNED = {
    "name": "dp-linear",
    "params": {"rounds": 3},
    "scan": {"precondition": [0, 0.15]},
}


@pytest.mark.parametrize(
    "entries",
    [
        (PAPER, quick("fedhypevae")),
        (SCANNED,),
    ],
)
def test_entries_of_one_method_may_differ_in_their_releases(bench, entries) -> None:
    ran = bench(small_grid(*entries, epsilon=[2, 4, 8]))
    statuses = [row.status for row in ran.rows]
    assert statuses == ["ok"] * 6
    run = Run(ran.folder)
    assert len(run.table().numbers) == 6
    assert "method" in str(run.report())
