"""Membership in the training rows of a run, by its synthetic rows; cells of one grid as each other's shadows."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benches import Done, Ran
from cells import NODES, quick, small_grid
from sites import digits_of_sites

from fedsim.evidence.audit.membership import Attacked, attack_run, by_shadows, likelihood_ratios, membership, rows_of
from fedsim.grid.models import Grid
from fedsim.results.store import RunFolder
from fedsim.runs.prepare import prepare

BY_SITE: dict[str, Any] = {"partition": {"scheme": "column", "column": "site"}, "clients": 2, "epsilon": float("inf")}


def of_sites(folder: Path, seeds: list[int]) -> Grid:
    """A grid whose cells each leave one of three sites out."""
    data = {"npz": str(digits_of_sites(folder)), "overlap": "keep"}
    return small_grid(quick("dp-gaussian"), dataset=data, evaluation={"unseen": "each", "per_class": 10}, seeds=seeds, **BY_SITE)


def auc(line: str) -> tuple[float, float]:
    """The interval of a line's AUC."""
    found = re.search(r"AUC [\d.]+ \[([\d.]+), ([\d.]+)\]", line)
    assert found
    return float(found[1]), float(found[2])


@pytest.mark.slow
def test_cells_that_leave_sites_out_are_each_others_shadows(bench: Callable[..., Ran], folder: Path, command: Callable[..., Done]) -> None:
    grid = of_sites(folder, [0, 1])
    bench(grid, "run")
    done = command("audit", "run")
    assert done.returncode == 0
    plain, shadows = done.stdout.splitlines()[:-2], done.stdout.splitlines()[-2:]
    assert len(plain) == 3 * 2 * 2
    assert all(line.startswith("dp-gaussian, ε = ∞, ") for line in [*plain, *shadows])
    assert ["LiRA by likelihood" in shadows[0], "LiRA by nearest synthetic row" in shadows[1]] == [True, True]
    assert all("6 cells, rows that come and go with their site" in line and line.endswith("; 300 rows") for line in shadows)
    # without noise a generator of class means and covariances follows the sites that it saw
    assert auc(shadows[0])[0] > 0.5
    run = RunFolder(folder / "run")
    prepared = prepare(grid, NODES)
    for trial in prepared.trials:
        x, y, trained, count = rows_of(trial, prepared.data)
        clients = prepared.data[trial.data_key]
        assert np.array_equal(x[trained], clients.x_train)
        assert np.array_equal(y[trained], clients.y_train)
        assert (count, len(x)) == (300, 450)
        assert sorted(np.concatenate(trial.partition.rows)) == list(range(int(trained.sum())))
    run.state(prepared.trials[0].cell.training_id).unlink()
    assert next(attack_run(run, prepared.trials, prepared.data)) == "1 of 6 cells without a saved generator: left out"


def test_code_that_a_run_names_runs_only_if_it_is_trusted(bench: Callable[..., Ran], folder: Path, command: Callable[..., Done]) -> None:
    ran = bench(small_grid("dp-gaussian"))
    (folder / "wicked.py").write_text('open("evil ran", "w").close()\nfrom baselines.dp_gaussian import DPGaussian as X\n')
    manifest = ran.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"name": "dp-gaussian"', '"name": "wicked.py:X"'))
    done = command("audit", "run")
    assert done.returncode == 2
    assert "give --trust-plugin if you trust that code" in done.stderr
    assert not (folder / "evil ran").exists()
    done = command("audit", "run", "--trust-plugin")
    assert (done.returncode, "AUC" in done.stdout) == (0, True)
    assert (folder / "evil ran").exists()


@pytest.mark.parametrize("told", [2.0, 0.0])
def test_shadows_tell_what_training_changed_in_a_rows_score_and_nothing_else(tmp_path: Path, told: float) -> None:
    prepared, stream = prepare(of_sites(tmp_path, [0, 1]), NODES), np.random.default_rng(0)
    # rows, and with them their sites, differ more from each other than a row from itself
    own, group = 5 * stream.normal(size=300), []
    for cell in (trial.cell for trial in prepared.trials):
        data, site = prepared.data[cell.dataset.key], str(cell.evaluation.unseen)
        trained = data.others("site", site)
        scores = own + 5 * (data.columns["site"] == "south") + told * trained + 0.5 * stream.normal(size=300)
        group.append(Attacked(cell, trained, {"likelihood": scores}))
    assert list(by_shadows(group[:2])) == ["no LiRA: it takes 3 cells and rows that 2 trained on and 2 did not; give more seeds"]
    (line,) = by_shadows(group)
    low, high = auc(line)
    assert low > 0.9 if told else low < 0.5 < high


def test_noise_tells_nothing_by_itself_or_with_shadows() -> None:
    stream = np.random.default_rng(1)
    # how many trainings have a row is fixed
    scores, inside = stream.normal(size=(8, 300)), np.argsort(stream.random((8, 300)), axis=0) < 4
    for found in (membership("a", scores, inside), membership("a", likelihood_ratios(scores, inside), inside)):
        assert found.auc.low < 0.5 < found.auc.high
        assert found.true_positives[0].value < 0.05


def test_a_likelihood_ratio_is_that_of_two_gaussians_of_the_other_trainings() -> None:
    """Of the first two, one other that lacks the row is no shadow: means 5 and 1 for the first, spread 1 about them."""
    scores, inside = np.array([[4.0], [4.0], [6.0], [9.0], [0.0], [2.0]]), np.array([[True], [True], [True], [False], [False], [False]])
    assert likelihood_ratios(scores, inside)[0, 0] == pytest.approx(((4 - 1) ** 2 - (4 - 5) ** 2) / 2)


def test_true_positives_are_those_of_a_threshold_with_no_more_false_ones_than_the_rate() -> None:
    """From the highest score down: 10 rows that are in, 1 of 100 that are out, 5 that are in, the other 99, the other 85."""
    inside = np.repeat([True, False, True, False, True], [10, 1, 5, 99, 85])[None]
    found = membership("a", -np.arange(200.0)[None], inside)
    assert [each.value for each in found.true_positives] == [0.15, 0.1]
