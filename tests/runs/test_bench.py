import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from benches import TIMES, Ran, keep_claims
from cells import NODES, quick, small_grid
from plug_ins import GOOD, changed
from rich.console import Console
from rows import values_of

import fedsim
from fedsim.errors import PluginError, UserError
from fedsim.grid.models import Grid
from fedsim.interrupts import INTERRUPTED
from fedsim.results.columns import Row
from fedsim.results.generators import load_generator
from fedsim.results.join import read_results
from fedsim.results.store import KINDS, Kind, ResultStore, RunFolder
from fedsim.runs.bench import engine_for
from fedsim.runs.display import Display
from fedsim.runs.engine import InProcess
from fedsim.runs.job_list import missing_jobs
from fedsim.runs.jobs import RunContext
from fedsim.runs.manifest import prepared_again
from fedsim.runs.prepare import prepare
from fedsim.training.state import Checkpoint, Checkpoints

Bench = Callable[..., Ran]


def by_cell(rows: list[Row], *left_out: str) -> dict[str, dict[str, Any]]:
    return {row.cell_id: values_of(row, *TIMES, *left_out) for row in rows}


def files(folder: Path) -> dict[str, bytes]:
    """The files of result lines that a folder has."""
    return {
        kind: path.read_bytes()
        for kind in KINDS
        if (path := RunFolder(folder).lines(kind)).exists()
    }


def test_finished_cells_stay_and_a_grown_grid_runs_only_new_ones(bench: Bench) -> None:
    first = bench(small_grid("weight-noise", epsilon=[1.0, 4.0]))
    written = files(first.folder)
    assert set(written) == {"trainings", "evaluations", "references", "rounds"}
    again = bench(small_grid("weight-noise", epsilon=[1.0, 4.0]))
    assert again.code == 0
    assert "all 2 cells are finished" in again.output
    assert files(first.folder) == written
    grown = bench(small_grid("weight-noise", epsilon=[1.0, 4.0, 8.0]))
    assert all(files(first.folder)[kind].startswith(before) for kind, before in written.items())
    assert [row.epsilon_target for row in grown.rows] == [1.0, 4.0, 8.0]
    assert len(read_results(first.folder).every_row()) == 3


def test_partial_run_keeps_fitting_cells_and_the_map_on_the_page(
    bench: Bench,
) -> None:
    whole = bench(small_grid("dp-gaussian", "dp-linear", epsilon=[1.0, 4.0]))
    page = (whole.folder / "curves" / "map.svg").read_bytes()
    look = bench(small_grid("dp-gaussian", epsilon=4.0))
    assert "goes on showing 3 cells of an earlier grid" in look.output
    assert by_cell(look.rows) == by_cell(whole.rows)
    assert len(look.rows) == len(read_results(look.folder).every_row()) == 4
    assert "What was generated" in (look.folder / "report.html").read_text()
    assert (look.folder / "curves" / "map.svg").read_bytes() == page
    assert "goes on showing 3 cells" in bench(small_grid("dp-gaussian", epsilon=4.0)).output
    other = {
        "name": "dp-gaussian",
        "params": {**quick("dp-gaussian")["params"], "coordinates_share": 0.5},
    }
    assert {
        (row.label, row.epsilon_target) for row in bench(small_grid(other, epsilon=4.0)).rows
    } == {*(("dp-gaussian", 4.0), ("dp-linear", 1.0), ("dp-linear", 4.0))}
    assert (
        len(bench(small_grid("dp-gaussian", epsilon=4.0, evaluation={"per_class": 11})).rows) == 1
    )
    assert len(bench(small_grid("dp-gaussian", epsilon=4.0, delta=1e-5)).rows) == 1


def test_a_grid_of_other_data_says_what_becomes_of_the_page(bench: Bench) -> None:
    first = bench(small_grid("dp-gaussian", "dp-linear"))
    assert "no longer shows" not in first.output
    other = bench(small_grid("dp-gaussian", dataset={"name": "digits", "limit": 150}))
    said = other.output.partition("no longer shows")[2].splitlines()[0]
    assert said.startswith(" 2 cells of an earlier grid")
    assert str(first.folder) in said
    assert len(other.rows) == 1
    again = bench(small_grid("dp-gaussian", "dp-linear"))
    assert "all 2 cells are finished" in again.output
    assert by_cell(again.rows) == by_cell(first.rows)


def test_a_bench_itself_refuses_a_folder_of_a_user(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.html").write_text("mine")
    with pytest.raises(
        UserError, match=r"has no manifest of a fedsim run \(it holds report.html\)"
    ):
        bench(small_grid("dp-gaussian"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["report.html"]


def test_failed_reference_leaves_no_line_and_is_tried_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_memory(*given: Any) -> None:
        raise MemoryError("none is left")

    grid = small_grid("dp-gaussian", evaluation={"per_class": 10, "per_client": True})
    with monkeypatch.context() as patch:
        keep_claims(patch)
        patch.setattr("fedsim.runs.worker.local_only", without_memory)
        failed = bench(grid)
    assert (
        "the local-only reference failed; the same command tries again: MemoryError"
        in failed.output
    )
    assert (failed.code, len(ResultStore(failed.folder).last("references"))) == (0, 1)
    (row,) = failed.rows
    assert (row.ceiling_balanced_accuracy is None, row.local_only_balanced_accuracy) == (
        False,
        None,
    )
    before = files(failed.folder)
    again = bench(grid)
    assert by_cell(again.rows) == by_cell(bench(grid, "whole").rows)
    after = files(again.folder)
    assert {kind for kind in after if after[kind] != before[kind]} == {"references"}
    assert after["references"].startswith(before["references"])


def leave_file(checkpoint: Path, content: bytes) -> None:
    """A file among the checkpoints of a run folder whose bench was killed."""
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(content)
    manifest = checkpoint.parents[1] / "manifest.json"
    manifest.write_text('{"format": 3, "versions": {"fedsim": "0.3.0"}}')


def test_bench_killed_after_a_training_leaves_no_checkpoint(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = small_grid("dp-gaussian", epsilon=4.0, privacy={"noise": "secret"})
    checkpoint = RunFolder(tmp_path / "run").checkpoint(
        prepare(grid, NODES).trials[0].cell.training_id
    )
    leave_file(checkpoint, b"of an earlier start")
    append = ResultStore.append

    def append_and_die(store: ResultStore, kind: Kind, lines: Any) -> None:
        append(store, kind, lines)
        if kind == "trainings":
            raise KeyboardInterrupt

    monkeypatch.setattr(ResultStore, "append", append_and_die)
    assert bench(grid).code == INTERRUPTED
    assert [line["error"] for line in ResultStore(tmp_path / "run").last("trainings").values()] == [
        None
    ]
    assert not checkpoint.exists()


def leave_checkpoint(path: Path, secret: int | None) -> None:
    """A checkpoint of an unfinished training, as a bench that was killed leaves it."""
    checkpoints = Checkpoints(owner=path.stem)
    checkpoints.save(Checkpoint(3, {"weight": torch.ones(2)}, "{}", 0, 0, secret))
    assert checkpoints.content is not None
    leave_file(path, checkpoints.content)


def left_after_bench(bench: Bench, path: Path) -> bool:
    """Whether a file is still there after a bench whose grid does not have its cell."""
    assert bench(small_grid("dp-gaussian")).code == 0
    return path.exists()


def test_key_of_a_cell_that_left_the_grid_is_removed(bench: Bench, tmp_path: Path) -> None:
    path = RunFolder(tmp_path / "run").checkpoint("of-an-earlier-grid")
    leave_checkpoint(path, secret=5)
    assert not left_after_bench(bench, path)


def test_seeded_checkpoint_of_an_earlier_grid_stays(bench: Bench, tmp_path: Path) -> None:
    path = RunFolder(tmp_path / "run").checkpoint("of-an-earlier-grid")
    leave_checkpoint(path, secret=None)
    assert left_after_bench(bench, path)


@pytest.mark.parametrize("name", ["x.safetensors", ".x.safetensors.12.part"])
def test_unreadable_checkpoint_of_an_earlier_grid_is_removed(
    bench: Bench, tmp_path: Path, name: str
) -> None:
    path = RunFolder(tmp_path / "run").checkpoint("x").with_name(name)
    leave_file(path, b"torn")
    assert not left_after_bench(bench, path)


def test_finished_equal_cells_leave_no_key(bench: Bench, tmp_path: Path) -> None:
    grid = small_grid("dp-gaussian", alpha=[0.5, 1.0], privacy={"noise": "secret"})
    second = prepare(grid, NODES).trials[1].cell.training_id
    path = RunFolder(tmp_path / "run").checkpoint(second)
    leave_checkpoint(path, secret=5)
    assert bench(grid).code == 0
    assert list(path.parent.iterdir()) == []


def edited(bench: Bench, folder: Path, text: str, grid: Grid) -> Ran:
    """The bench after an edit, as a new process would see it."""
    sys.modules.pop("edited_method", None)
    (folder / "edited_method.py").write_text(text)
    return bench(grid)


def test_an_edit_runs_the_cells_anew_and_leaves_the_old_rows_out(
    bench: Bench, plugins: Path
) -> None:
    (plugins / "edited_method.py").write_text(GOOD)
    entry = {**quick("edited_method.py:MyMethod"), "label": "my-method"}
    grid = small_grid(entry, "dp-gaussian", epsilon=[1.0, 8.0])
    first = edited(bench, plugins, GOOD, grid)
    rows = first.rows
    same = edited(bench, plugins, GOOD, grid)
    assert first.code == 0
    assert "all 4 cells are finished" in same.output
    assert "of older code" not in same.output

    other = edited(
        bench, plugins, changed("self.params.beta * unit", "3 * self.params.beta * unit"), grid
    )
    assert "left out: 2 rows of older code" in other.output
    assert "no longer shows" not in other.output
    drawn = other.rows
    assert len(read_results(other.folder).every_row()) == 6
    old = {row.cell_id for row in rows if row.label == "my-method"}
    assert old.isdisjoint(row.cell_id for row in drawn)
    assert {row.cell_id for row in rows} - old <= {row.cell_id for row in drawn}
    for drawing in (other.folder / "results.jsonl", other.folder / "report.html"):
        assert not any(cell in drawing.read_text() for cell in old)

    undone = edited(bench, plugins, GOOD, grid)
    assert "all 4 cells are finished" in undone.output
    assert {row.cell_id for row in undone.rows} == {row.cell_id for row in rows}


@pytest.mark.parametrize("label", ["nan", "inf", "-inf", "'nan"])
def test_label_that_reads_as_a_number_stays_a_label(bench: Bench, label: str) -> None:
    entry = {**quick("dp-gaussian"), "label": label}
    grid = small_grid(entry, epsilon=[4.0, float("inf")], privacy={"noise": "secret"})
    ran = bench(grid)
    assert [(row.label, row.epsilon_target) for row in ran.rows] == [
        (label, 4.0),
        (label, math.inf),
    ]
    assert "all 2 cells are finished" in bench(grid).output
    run = fedsim.load(ran.folder)
    assert label in run.statement().splitlines()
    first = run.rows.iloc[0]
    assert first.label == label
    assert run.generator(first.cell_id).manifest(1)["label"] == label
    run.release(ran.folder / "package", cell=first.cell_id)
    facts = load_generator(ran.folder / "package").facts
    assert (facts.cell.label, facts.row.label) == (label, label)
    folder = RunFolder(ran.folder)
    assert json.loads(folder.results.read_text().splitlines()[0])["label"] == label
    assert prepared_again(folder, trust_plugin=False).trials[1].cell.label == label


def labels_after_edit(bench: Bench, plugins: Path, text: str | None) -> set[str]:
    """What the page shows of a grid of two methods once one left it and its file became ``text``,
    or was removed.
    """
    (plugins / "edited_method.py").write_text(GOOD)
    entry = {**quick("edited_method.py:MyMethod"), "label": "my-method"}
    edited(bench, plugins, GOOD, small_grid(entry, "dp-gaussian"))
    sys.modules.pop("edited_method", None)
    if text is None:
        (plugins / "edited_method.py").unlink()
    else:
        (plugins / "edited_method.py").write_text(text)
    return {row.label for row in bench(small_grid("dp-gaussian")).rows}


def test_page_keeps_plug_in_that_left_the_grid(bench: Bench, plugins: Path) -> None:
    assert labels_after_edit(bench, plugins, GOOD) == {"my-method", "dp-gaussian"}


def test_page_drops_plug_in_that_left_and_was_edited(bench: Bench, plugins: Path) -> None:
    assert labels_after_edit(bench, plugins, f"{GOOD}EDITED = True\n") == {"dp-gaussian"}


def test_page_drops_plug_in_whose_file_is_gone(bench: Bench, plugins: Path) -> None:
    assert labels_after_edit(bench, plugins, None) == {"dp-gaussian"}


def test_page_runs_no_code_of_plug_in_that_left(bench: Bench, plugins: Path) -> None:
    assert labels_after_edit(bench, plugins, "raise SystemExit") == {"dp-gaussian"}
    assert "edited_method" not in sys.modules


@pytest.mark.slow
def test_a_grid_may_ask_for_checks_which_run_once(bench: Bench, plugins: Path) -> None:
    (plugins / "asked.py").write_text(GOOD)
    entry = quick("asked.py:MyMethod")
    grid = small_grid(entry, "dp-gaussian", epsilon=[4.0, float("inf")], check="quick")
    ran = bench(grid)
    assert ran.code == 0, ran.output
    ended = {
        line["algorithm"]: (line["ended"], line["full"])
        for line in ResultStore(ran.folder).lines("checks")
    }
    assert ended == dict.fromkeys(("asked.py:MyMethod", "dp-gaussian"), ("passed", False))
    assert "all 4 cells are finished" in bench(grid).output
    full = prepare(grid.model_copy(update={"check": "full"}), NODES)
    run = RunContext(full, ResultStore(ran.folder), Display(Console(quiet=True), 4))
    assert [job.key[0] for job in missing_jobs(run, (), read_results(ran.folder))] == [
        "check",
        "check",
    ]


def trouble(how: str, healed: Path) -> dict[str, Any]:
    return {**quick("plugin:Trouble", how=how, healed=str(healed)), "label": how}


def test_a_cell_that_fails_is_a_row_and_the_grid_goes_on(bench: Bench, tmp_path: Path) -> None:
    healed = tmp_path / "healed"
    grid = small_grid(
        trouble("raise", healed), trouble("raise without a word", healed), "dp-gaussian"
    )
    ran = bench(grid)
    rows = {row.label: row for row in ran.rows}
    assert ran.code == 1
    assert {label: row.status for label, row in rows.items()} == {
        "raise": "failed",
        "raise without a word": "failed",
        "dp-gaussian": "ok",
    }
    errors = {label: row.error for label, row in rows.items() if row.error}
    assert (errors["raise"]["type"], errors["raise"]["message"]) == (
        "ZeroDivisionError",
        "the third round\nis broken",
    )
    assert 'raise ZeroDivisionError("the third round' in errors["raise"]["traceback"]
    assert errors["raise without a word"]["type"] == "AssertionError"
    log = ran.log(rows["raise"])
    assert "round 2/3" in log
    assert errors["raise"]["traceback"].strip() in log
    assert "1 of 3 cells done, 2 failed in " in ran.output
    assert "ZeroDivisionError: the third round" in ran.output
    assert "run failed cells again with retry_failed" in ran.output

    unchanged = bench(grid)
    assert unchanged.code == 1
    assert unchanged.rows == ran.rows

    healed.touch()
    retried = bench(grid, retry_failed=True)
    assert retried.code == 0
    assert {row.label: row.status for row in retried.rows} == dict.fromkeys(rows, "ok")
    assert retried.rows[-1] == rows["dp-gaussian"]


def test_a_handful_of_short_cells_runs_in_this_process_by_itself() -> None:
    """Larger grids, long trainings, plug-ins and what needs limits or GPUs run on actors."""
    for short, keys in (
        (True, {"seeds": [0, 1]}),
        (False, {"seeds": list(range(6))}),
        (False, {"resources": {"cell_timeout": "1h"}}),
        (False, {"algorithms": [{"name": "fedavg-cvae", "params": {"rounds": 10_000}}]}),
        (False, {"algorithms": ["broken.tiny:Tiny"]}),
    ):
        prepared, engine = engine_for(prepare(small_grid("dp-gaussian", **keys), NODES))
        assert (prepared.parallel == 1) == short
        if short:
            with engine as running:
                assert isinstance(running, InProcess)


def test_equal_cells_train_once_with_the_results_of_each_alone(
    bench: Bench,
) -> None:
    axes = {"alpha": [0.5, 1.0], "clients": [2, 4]}
    together = bench(small_grid("dp-gaussian", **axes))
    assert (together.code, len(together.rows)) == (0, 4)
    assert sum("\nstarted " in f"\n{together.log(row)}" for row in together.rows) == 1
    again = bench(small_grid("dp-gaussian", **axes))
    assert "all 4 cells are finished" in again.output
    for row in together.rows:
        (alone,) = bench(
            small_grid("dp-gaussian", alpha=row.alpha, clients=row.clients), row.cell_id
        ).rows
        assert values_of(row, *TIMES) == values_of(alone, *TIMES)


def test_run_folder_of_an_older_fedsim_is_refused_unchanged(
    bench: Bench,
) -> None:
    grid = small_grid("fedavg-linear")
    manifest = bench(grid).folder / "manifest.json"
    manifest.write_text(
        json.dumps(
            json.loads(manifest.read_text()) | {"format": 2, "versions": {"fedsim": "0.2.0"}}
        )
    )
    before = manifest.read_bytes()
    for use in (lambda: bench(grid), lambda: read_results(manifest.parent).rows):
        with pytest.raises(
            fedsim.UserError,
            match=r"is of fedsim 0\.2\.0, and this version reads run folders from 0\.3 on",
        ):
            use()
    assert manifest.read_bytes() == before


def test_plug_in_whose_loss_mixes_examples_sees_no_real_data(folder: Path, bench: Bench) -> None:
    text = changed(
        "gaussian_nll(batch.x, decoded", "gaussian_nll(batch.x - batch.x.mean(0), decoded"
    )
    (folder / "mixes.py").write_text(text)
    grid = small_grid({"name": f"{folder}/mixes.py:MyMethod", "params": {"rounds": 2}}, epsilon=4.0)
    with pytest.raises(PluginError, match="NotPerExample: the loss is not per example"):
        bench(grid, "mixes", keep_going=False)
    assert list(ResultStore(folder / "mixes").lines("trainings")) == []
