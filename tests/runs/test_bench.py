"""What a bench runs, what it leaves in its folder, and what its page shows."""

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
from rows import make_published, values_of

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


def by_cell(rows: list[Row]) -> dict[str, dict[str, Any]]:
    return {row.cell_id: values_of(row, *TIMES) for row in rows}


def files(folder: Path) -> dict[str, bytes]:
    """The files of result lines that a folder has."""
    contents: dict[str, bytes] = {}
    for kind in KINDS:
        path = RunFolder(folder).lines(kind)
        if path.exists():
            contents[kind] = path.read_bytes()
    return contents


def test_finished_cells_stay_and_only_new_ones_run(bench: Bench) -> None:
    grid = small_grid("weight-noise", epsilon=[1.0, 4.0])
    first = bench(grid)
    written = files(first.folder)
    assert set(written) == {"trainings", "evaluations", "references", "rounds"}
    again = bench(grid)
    assert again.code == 0
    assert "all 2 cells are finished" in again.output
    assert files(first.folder) == written
    grown = bench(small_grid("weight-noise", epsilon=[1.0, 4.0, 8.0]))
    for kind, content in files(first.folder).items():
        assert content.startswith(written[kind])
    assert [row.epsilon_target for row in grown.rows] == [1.0, 4.0, 8.0]
    every_row = read_results(first.folder).every_row()
    assert len(every_row) == 3


def test_mistake_in_the_estimate_is_a_warning(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise ZeroDivisionError("no cells")

    monkeypatch.setattr("fedsim.runs.plan_view.time_left", fail)
    ran = bench(small_grid("dp-gaussian"))
    assert ran.code == 0
    assert "warning: the time cannot be estimated (ZeroDivisionError: no cells)" in ran.output


def two_methods(bench: Bench) -> Ran:
    return bench(small_grid("dp-gaussian", "dp-linear", epsilon=[1.0, 4.0]))


def labels(ran: Ran) -> set[tuple[str, Any]]:
    return {(row.label, row.epsilon_target) for row in ran.rows}


def test_partial_run_keeps_the_page_whole(bench: Bench) -> None:
    whole = two_methods(bench)
    drawn_map = whole.folder / "curves" / "map.svg"
    before = drawn_map.read_bytes()
    for _ in range(2):
        partial = bench(small_grid("dp-gaussian", epsilon=4.0))
        assert "still shows 3 cells of an earlier grid" in partial.output
    assert by_cell(partial.rows) == by_cell(whole.rows)
    assert (
        "Synthetic and real examples in two dimensions"
        in (partial.folder / "report.html").read_text()
    )
    assert drawn_map.read_bytes() == before


def bench_with_number(bench: Bench, value: float) -> Ran:
    """Run a grid of one method beside a published number."""
    number = make_published(published=value).model_dump()
    grid = small_grid("dp-gaussian").model_dump()
    grid["algorithms"] = [number, *grid["algorithms"]]
    return bench(Grid.model_validate(grid))


def test_changed_published_number_only_redraws_the_page(bench: Bench) -> None:
    first = bench_with_number(bench, 0.625)
    written = files(first.folder)
    before = (first.folder / "report.html").read_text()
    again = bench_with_number(bench, 0.875)
    after = (first.folder / "report.html").read_text()
    assert "the cell is finished" in again.output
    assert files(first.folder) == written
    assert "<td>0.625</td>" in before
    assert "<td>0.625</td>" not in after
    assert "<td>0.875</td>" in after


def test_page_keeps_no_other_parameters_under_one_label(bench: Bench) -> None:
    two_methods(bench)
    entry = quick("dp-gaussian")
    params = {**entry["params"], "coordinates_share": 0.5}
    grid = small_grid({**entry, "params": params}, epsilon=4.0)
    assert labels(bench(grid)) == {
        ("dp-gaussian", 4.0),
        ("dp-linear", 1.0),
        ("dp-linear", 4.0),
    }


def test_page_keeps_what_a_search_has_chosen(bench: Bench) -> None:
    entry = {"name": "dp-linear", "tune": {"rounds": [1, 30]}}
    grid = small_grid(entry, epsilon=[8.0, 16.0], tune={"curves": ["free"]})
    whole = bench(grid)
    assert [row.params["rounds"] for row in whole.rows] == [30, 30]
    partial = bench(grid.model_copy(update={"epsilon": (8.0,)}))
    assert "still shows 1 cell of an earlier grid" in partial.output
    assert by_cell(partial.rows) == by_cell(whole.rows)


@pytest.mark.parametrize("change", [{"evaluation": {"per_class": 11}}, {"delta": 1e-5}])
def test_page_keeps_no_cells_of_another_setting(bench: Bench, change: dict[str, Any]) -> None:
    two_methods(bench)
    grid = small_grid("dp-gaussian", epsilon=4.0, **change)
    assert labels(bench(grid)) == {("dp-gaussian", 4.0)}


def test_bench_says_which_cells_left_the_page(bench: Bench) -> None:
    grid = small_grid("dp-gaussian", "dp-linear")
    first = bench(grid)
    assert "no longer shows" not in first.output
    dataset = {"name": "digits", "limit": 150}
    other = bench(small_grid("dp-gaussian", dataset=dataset))
    _, _, message = other.output.partition("no longer shows")
    message, *_ = message.splitlines()
    assert message.startswith(" 2 cells of an earlier grid:")
    assert str(first.folder) in message
    assert len(other.rows) == 1
    again = bench(grid)
    assert "all 2 cells are finished" in again.output
    assert by_cell(again.rows) == by_cell(first.rows)


def test_failed_reference_is_tried_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise MemoryError("none is left")

    grid = small_grid("dp-gaussian", evaluation={"per_class": 10, "per_client": True})
    with monkeypatch.context() as patch:
        keep_claims(patch)
        patch.setattr("fedsim.runs.worker.local_only", fail)
        failed = bench(grid)
    message = "the local-only reference failed; the same command tries again: MemoryError"
    assert message in failed.output
    assert failed.code == 0
    (row,) = failed.rows
    assert row.ceiling_balanced_accuracy is not None
    assert row.local_only_balanced_accuracy is None
    before = files(failed.folder)
    again = bench(grid)
    assert by_cell(again.rows) == by_cell(bench(grid, "whole").rows)
    after = files(again.folder)
    assert after.pop("references").startswith(before.pop("references"))
    assert after == before


def leave_file(checkpoint: Path, content: bytes) -> None:
    """A file among the checkpoints of a run folder whose bench was killed."""
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(content)
    manifest = checkpoint.parents[1] / "manifest.json"
    manifest.write_text('{"format": 3, "versions": {"fedsim": "0.3.0"}}')


def checkpoint_of(folder: Path, grid: Grid, cell: int = 0) -> Path:
    training_id = prepare(grid, NODES).trials[cell].cell.training_id
    return RunFolder(folder).checkpoint(training_id)


def test_bench_killed_after_a_training_leaves_no_checkpoint(
    bench: Bench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grid = small_grid("dp-gaussian", epsilon=4.0, privacy={"noise": "secret"})
    checkpoint = checkpoint_of(tmp_path / "run", grid)
    leave_file(checkpoint, b"of an earlier start")
    append = ResultStore.append

    def append_and_die(store: ResultStore, kind: Kind, lines: Any) -> None:
        append(store, kind, lines)
        if kind == "trainings":
            raise KeyboardInterrupt

    monkeypatch.setattr(ResultStore, "append", append_and_die)
    assert bench(grid).code == INTERRUPTED
    (line,) = ResultStore(tmp_path / "run").lines("trainings")
    assert line["error"] is None
    assert not checkpoint.exists()


def leave_checkpoint(path: Path, secret: int | None) -> None:
    """A checkpoint of an unfinished training, as a bench that was killed leaves it."""
    checkpoints = Checkpoints(owner=path.stem)
    progress = Checkpoint(
        round=3,
        tensors={"weight": torch.ones(2)},
        ledger="{}",
        uplink_bytes=0,
        downlink_bytes=0,
        secret=secret,
    )
    checkpoints.save(progress)
    assert checkpoints.content is not None
    leave_file(path, checkpoints.content)


@pytest.mark.parametrize(("secret", "stays"), [(5, False), (None, True)])
def test_only_checkpoints_without_a_key_outlive_their_grid(
    bench: Bench,
    tmp_path: Path,
    secret: int | None,
    stays: bool,
) -> None:
    path = RunFolder(tmp_path / "run").checkpoint("of-an-earlier-grid")
    leave_checkpoint(path, secret)
    bench(small_grid("dp-gaussian"))
    assert path.exists() == stays


@pytest.mark.parametrize("name", ["x.safetensors", ".x.safetensors.12.part"])
def test_unreadable_checkpoint_of_an_earlier_grid_is_removed(
    bench: Bench,
    tmp_path: Path,
    name: str,
) -> None:
    path = RunFolder(tmp_path / "run").checkpoint("x").with_name(name)
    leave_file(path, b"torn")
    bench(small_grid("dp-gaussian"))
    assert not path.exists()


def test_finished_equal_cells_leave_no_key(bench: Bench, tmp_path: Path) -> None:
    grid = small_grid("dp-gaussian", alpha=[0.5, 1.0], privacy={"noise": "secret"})
    path = checkpoint_of(tmp_path / "run", grid, cell=1)
    leave_checkpoint(path, secret=5)
    assert bench(grid).code == 0
    assert list(path.parent.iterdir()) == []


def my_method(module: str) -> dict[str, Any]:
    return {**quick(f"{module}.py:MyMethod"), "label": "my-method"}


def edited(bench: Bench, folder: Path, text: str, grid: Grid) -> Ran:
    """The bench after an edit, as a new process would see it."""
    sys.modules.pop("edited_method", None)
    (folder / "edited_method.py").write_text(text)
    return bench(grid)


def test_edited_method_runs_anew_and_its_old_results_leave_the_page(
    bench: Bench, plugins: Path
) -> None:
    (plugins / "edited_method.py").write_text(GOOD)
    method = my_method("edited_method")
    grid = small_grid(method, "dp-gaussian", epsilon=[1.0, 8.0])
    first = edited(bench, plugins, GOOD, grid)
    cells = {row.cell_id for row in first.rows}
    old = {row.cell_id for row in first.rows if row.label == "my-method"}
    same = edited(bench, plugins, GOOD, grid)
    assert "all 4 cells are finished" in same.output
    assert "no longer shows" not in same.output

    text = changed("self.params.beta * unit", "3 * self.params.beta * unit")
    other = edited(bench, plugins, text, grid)
    assert "no longer shows 2 cells of an earlier grid: their code" in other.output
    assert len(read_results(other.folder).every_row()) == 6
    drawn = {row.cell_id for row in other.rows}
    assert drawn & cells == cells - old
    for name in ("results.jsonl", "report.html"):
        text = (other.folder / name).read_text()
        for cell in old:
            assert cell not in text

    undone = edited(bench, plugins, GOOD, grid)
    assert "all 4 cells are finished" in undone.output
    assert {row.cell_id for row in undone.rows} == cells


def labels_after_edit(bench: Bench, plugins: Path, text: str) -> set[str]:
    """The labels on the page after a method left the grid and its file became ``text``."""
    (plugins / "edited_method.py").write_text(GOOD)
    edited(bench, plugins, GOOD, small_grid(my_method("edited_method"), "dp-gaussian"))
    ran = edited(bench, plugins, text, small_grid("dp-gaussian"))
    return {row.label for row in ran.rows}


def test_page_keeps_a_plug_in_that_left_the_grid(bench: Bench, plugins: Path) -> None:
    assert labels_after_edit(bench, plugins, GOOD) == {"my-method", "dp-gaussian"}


@pytest.mark.parametrize("text", [f"{GOOD}EDITED = True\n", "raise SystemExit", ""])
def test_page_drops_an_edited_plug_in_without_running_it(
    bench: Bench,
    plugins: Path,
    text: str,
) -> None:
    assert labels_after_edit(bench, plugins, text) == {"dp-gaussian"}
    assert "edited_method" not in sys.modules


def test_page_drops_a_plug_in_whose_file_is_gone(bench: Bench, plugins: Path) -> None:
    labels_after_edit(bench, plugins, GOOD)
    (plugins / "edited_method.py").unlink()
    ran = bench(small_grid("dp-gaussian"))
    assert {row.label for row in ran.rows} == {"dp-gaussian"}


@pytest.mark.parametrize("label", ["nan", "inf", "-inf", "'nan"])
def test_label_that_reads_as_a_number_stays_a_label(bench: Bench, label: str) -> None:
    entry = {**quick("dp-gaussian"), "label": label}
    grid = small_grid(
        entry,
        epsilon=[4.0, math.inf],
        privacy={"noise": "secret"},
    )
    ran = bench(grid)
    assert [row.label for row in ran.rows] == [label, label]
    assert [row.epsilon_target for row in ran.rows] == [4.0, math.inf]
    assert "all 2 cells are finished" in bench(grid).output
    folder = RunFolder(ran.folder)
    first_line, _ = folder.results.read_text().splitlines()
    assert json.loads(first_line)["label"] == label
    prepared = prepared_again(folder, trust_plugin=False)
    assert prepared.trials[1].cell.label == label

    run = fedsim.load(ran.folder)
    statement = run.statement()
    assert label in statement.splitlines()
    first = run.rows.iloc[0]
    assert first.label == label
    generator = run.generator(first.cell_id)
    assert generator.manifest(1)["label"] == label
    package = ran.folder / "package"
    run.release(package, cell=first.cell_id)
    facts = load_generator(package).facts
    assert facts.cell.label == label
    assert facts.row.label == label


@pytest.mark.slow
def test_checks_of_a_grid_run_once(bench: Bench, plugins: Path) -> None:
    (plugins / "asked.py").write_text(GOOD)
    entry = quick("asked.py:MyMethod")
    grid = small_grid(
        entry,
        "dp-gaussian",
        epsilon=[4.0, math.inf],
        check="quick",
    )
    ran = bench(grid)
    assert ran.code == 0, ran.output
    store = ResultStore(ran.folder)
    first, second = store.lines("checks")
    assert {first["algorithm"], second["algorithm"]} == {"asked.py:MyMethod", "dp-gaussian"}
    for line in (first, second):
        assert line["ended"] == "passed"
        assert not line["full"]
    assert "all 4 cells are finished" in bench(grid).output
    full = grid.model_copy(update={"check": "full"})
    display = Display(Console(quiet=True), 4)
    run = RunContext(prepare(full, NODES), store, display)
    jobs = missing_jobs(run, (), read_results(ran.folder))
    assert [job.key[0] for job in jobs] == ["check", "check"]


def trouble(how: str, healed: Path) -> dict[str, Any]:
    return {**quick("plugin:Trouble", how=how, healed=str(healed)), "label": how}


def test_failed_cell_is_recorded_and_runs_again_on_request(bench: Bench, tmp_path: Path) -> None:
    healed = tmp_path / "healed"
    grid = small_grid(
        trouble("raise", healed),
        trouble("raise without a word", healed),
        "dp-gaussian",
    )
    ran = bench(grid)
    failed, wordless, good = ran.rows
    assert ran.code == 1
    assert [row.status for row in ran.rows] == ["failed", "failed", "ok"]
    error = failed.error
    assert error["type"] == "ZeroDivisionError"
    assert error["message"] == "the third round\nis broken"
    assert 'raise ZeroDivisionError("the third round' in error["traceback"]
    assert wordless.error["type"] == "AssertionError"
    log = ran.log(failed)
    assert "round 2/3" in log
    assert error["traceback"].strip() in log
    for text in (
        "1 of 3 cells done, 2 failed in ",
        "ZeroDivisionError: the third round",
        "give --retry-failed to run failed cells again",
    ):
        assert text in ran.output

    unchanged = bench(grid)
    assert unchanged.code == 1
    assert unchanged.rows == ran.rows

    healed.touch()
    retried = bench(grid, retry_failed=True)
    assert retried.code == 0
    assert [row.status for row in retried.rows] == ["ok", "ok", "ok"]
    assert retried.rows[-1] == good


@pytest.mark.parametrize(
    ("keys", "is_short"),
    [
        ({"seeds": [0, 1]}, True),
        ({"seeds": list(range(6))}, False),
        ({"resources": {"cell_timeout": "1h"}}, False),
        ({"algorithms": [{"name": "fedavg-cvae", "params": {"rounds": 10_000}}]}, False),
        ({"algorithms": ["broken.tiny:Tiny"]}, False),
    ],
)
def test_short_grid_runs_in_this_process(keys: dict[str, Any], is_short: bool) -> None:
    prepared, engine = engine_for(prepare(small_grid("dp-gaussian", **keys), NODES))
    assert (prepared.parallel == 1) == is_short
    if is_short:
        with engine as running:
            assert isinstance(running, InProcess)


def test_equal_cells_train_once_with_the_results_of_each_alone(bench: Bench) -> None:
    grid = small_grid("dp-gaussian", alpha=[0.5, 1.0], clients=[2, 4])
    together = bench(grid)
    assert len(together.rows) == 4
    logs = [together.log(row) for row in together.rows]
    started = [log for log in logs if log.startswith("started ")]
    assert len(started) == 1
    assert "all 4 cells are finished" in bench(grid).output
    for row in together.rows:
        cell = small_grid("dp-gaussian", alpha=row.alpha, clients=row.clients)
        (alone,) = bench(cell, row.cell_id).rows
        assert values_of(row, *TIMES) == values_of(alone, *TIMES)


def test_run_folder_of_an_older_fedsim_is_refused_unchanged(bench: Bench) -> None:
    grid = small_grid("fedavg-linear")
    manifest = bench(grid).folder / "manifest.json"
    older = json.loads(manifest.read_text()) | {"format": 2, "versions": {"fedsim": "0.2.0"}}
    older["cells"] = {}  # another format may have other types
    manifest.write_text(json.dumps(older))
    before = manifest.read_bytes()
    message = r"is of fedsim 0\.2\.0, whose run folders have another format"
    with pytest.raises(UserError, match=message):
        bench(grid)
    with pytest.raises(UserError, match=message):
        read_results(manifest.parent)
    assert manifest.read_bytes() == before


def test_plug_in_whose_loss_mixes_examples_sees_no_real_data(folder: Path, bench: Bench) -> None:
    text = changed(
        "gaussian_nll(batch.x, decoded",
        "gaussian_nll(batch.x - batch.x.mean(0), decoded",
    )
    (folder / "mixes.py").write_text(text)
    grid = small_grid({"name": f"{folder}/mixes.py:MyMethod", "params": {"rounds": 2}}, epsilon=4.0)
    with pytest.raises(PluginError, match="NotPerExample: the loss is not per example"):
        bench(grid, "mixes", keep_going=False)
    assert list(ResultStore(folder / "mixes").lines("trainings")) == []


def test_plug_in_that_trained_before_may_fail_later(bench: Bench, tmp_path: Path) -> None:
    healed = tmp_path / "healed"
    healed.touch()
    entry = trouble("raise", healed)
    bench(small_grid(entry))
    healed.unlink()
    again = bench(small_grid(entry, seeds=[0, 1]), keep_going=False)
    assert [row.status for row in again.rows] == ["ok", "failed"]
