"""Membership in the training rows of a run, by its synthetic rows."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from benches import Done, Ran
from cells import NODES, digits_of_sites, quick, small_grid

import fedsim
from fedsim.evidence.audit.membership import membership, rows_of
from fedsim.results.store import ResultStore, RunFolder
from fedsim.runs.prepare import prepare


def test_audit_attacks_a_run_and_runs_only_trusted_code(
    bench: Callable[..., Ran],
    folder: Path,
    command: Callable[..., Done],
) -> None:
    run = bench(small_grid("dp-gaussian", seeds=[0, 1]))
    plain = command("audit", "run").stdout.splitlines()
    form = (
        r"dp-gaussian, ε = .*, seed [01]: (likelihood|nearest synthetic row): AUC .*TPR .* at "
        r"1.0% FPR, TPR .* at 0.1% FPR; \d+ rows"
    )
    assert len(plain) == 4
    assert all(re.fullmatch(form, line) for line in plain)
    areas = [float(text) for text in re.findall(r"AUC (\d\.\d+)", "".join(plain))]
    recorded = fedsim.load(run.folder).rows["membership_auc"].round(3)
    assert recorded.tolist() == [max(areas[:2]), max(areas[2:])]
    (folder / "wicked.py").write_text(
        'open("evil ran", "w").close()\nfrom baselines.dp_gaussian import DPGaussian as X\n'
    )
    manifest = run.folder / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"name": "dp-gaussian"', '"name": "wicked.py:X"'))
    first_training = next(iter(ResultStore(run.folder).last("trainings")))
    RunFolder(run.folder).state(first_training).unlink()
    done = command("audit", "run")
    assert done.returncode == 2
    assert "give --trust-plugin if you trust that code" in done.stderr
    assert not (folder / "evil ran").exists()
    done = command("audit", "run", "--trust-plugin")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 of 2 cells left out: no saved generator")
    assert (folder / "evil ran").exists()


def test_rows_of_an_unseen_site_are_not_members(tmp_path: Path) -> None:
    data = {"npz": str(digits_of_sites(tmp_path)), "overlap": "keep"}
    grid = small_grid(
        quick("dp-gaussian"),
        dataset=data,
        evaluation={"unseen": "each"},
        partition={"scheme": "column", "column": "site"},
        clients=2,
        epsilon=float("inf"),
    )
    prepared = prepare(grid, NODES)
    for trial in prepared.trials:
        x, y, inside = rows_of(trial, prepared.data)
        clients = prepared.data[trial.data_key]
        assert np.array_equal(x[inside], clients.x_train)
        assert np.array_equal(y[inside], clients.y_train)
        assert len(x) == 450


def test_validation_rows_are_not_members() -> None:
    grid = small_grid(quick("dp-gaussian"), evaluation={"personal": "held-out"})
    prepared = prepare(grid, NODES)
    (trial,) = prepared.trials
    _, _, inside = rows_of(trial, prepared.data)
    trained = np.concatenate(trial.partition.rows)
    assert np.array_equal(np.flatnonzero(inside), np.sort(trained))


def test_cells_with_a_private_search_are_left_out(
    bench: Callable[..., Ran],
    command: Callable[..., Done],
) -> None:
    entry = quick("dp-gaussian") | {"tune": {"radius": [0.5, 0.8]}}
    both = bench(small_grid(entry, tune={"trials": 2, "curves": ["default", "tuned"]}))
    done = command("audit", str(both.folder))
    assert done.returncode == 0, done.stderr
    first, *attacks = done.stdout.splitlines()
    assert first.startswith("1 cell with a private search left out")
    assert len(attacks) == 2
    tuned = bench(small_grid(entry, tune={"trials": 2, "curves": ["tuned"]}), "tuned")
    done = command("audit", str(tuned.folder))
    assert done.returncode == 2
    assert "has only cells with a private search" in done.stderr


def test_random_scores_show_no_membership() -> None:
    stream = np.random.default_rng(1)
    area, rate, _ = membership(
        stream.normal(size=2000),
        stream.random(2000) < 0.5,
    )
    assert area.low < 0.5 < area.high
    assert rate.value < 0.05


def test_true_positive_rate_keeps_the_false_positive_rate() -> None:
    # From the highest score down: 10 members, 1 of 100 others, 5 members, 99 others, 85 members.
    inside = np.repeat([True, False, True, False, True], [10, 1, 5, 99, 85])
    _, *rates = membership(-np.arange(200.0), inside)
    assert [rate.value for rate in rates] == [0.15, 0.1]
