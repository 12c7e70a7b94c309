import gc
import json
import resource
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from benches import TIMES, Ran, wait_until
from cells import NODES, quick, small_grid
from plug_ins import GOOD, changed
from rich.console import Console

import fedsim
from fedsim.errors import UserError
from fedsim.evaluation.measures import MEASURES
from fedsim.grid.models import Grid
from fedsim.interrupts import INTERRUPTED
from fedsim.planning.prepare import prepare
from fedsim.report.report import write_report
from fedsim.results.folder import RunFolder
from fedsim.results.generators import load_generator
from fedsim.results.grid_rows import every_row, grid_rows
from fedsim.results.join import Lines
from fedsim.results.rows import Row
from fedsim.results.store import KINDS, Kind, ResultStore
from fedsim.runs import scheduler
from fedsim.runs.bench import MOST_SHOWN, missing_jobs
from fedsim.runs.display import Display
from fedsim.runs.engine import InProcess, Slot
from fedsim.runs.jobs import Desk, checked_facts
from fedsim.runs.ray_engine import RayEngine
from fedsim.runs.scheduler import Scheduler
from fedsim.runs.slots import Slots
from fedsim.runs.worker import check_source

Bench = Callable[..., Ran]
SHIPPED = ("fedhypevae", "weight-noise", "fedavg-cvae")
SCORES = tuple(MEASURES)


def by_cell(rows: list[Row], *left_out: str) -> dict[str, dict[str, Any]]:
    return {row.cell_id: row.model_dump(exclude={*TIMES, *left_out}) for row in rows}


def files(folder: Path) -> dict[str, bytes]:
    """The files of result lines that a folder has."""
    return {kind: path.read_bytes() for kind in KINDS if (path := RunFolder(folder).lines(kind)).exists()}


def watched(grid: Grid, folder: Path, max_parallel: int | None = None) -> "Watched":
    """The slots of a bench on the shared cluster."""
    prepared = prepare(grid, NODES, max_parallel)
    desk = Desk(prepared, ResultStore(folder), Display(Console(quiet=True), len(prepared.trials)))
    scheduler = Scheduler(desk, RayEngine())
    scheduler.slots = slots = Watched(scheduler.engine, prepared.nodes, prepared.parallel)
    scheduler.run(missing_jobs(desk, (), Lines({}, {}, {})))
    return slots


class Watched(Slots):
    """Slots that note how many of them, and of their actors, work at a time."""

    most_busy = most_actors = 0

    def take(self, *args: Any, **kwargs: Any) -> Slot | None:
        slot = super().take(*args, **kwargs)
        self.most_busy = max(self.most_busy, len(self.busy))
        self.most_actors = max(self.most_actors, sum(slot.actors for slot in self.busy))
        return slot


def used_object_store() -> float:
    return ray.cluster_resources()["object_store_memory"] - ray.available_resources().get("object_store_memory", 0.0)


@pytest.fixture
def all_free(ray_cluster: None) -> Callable[[], None]:
    """Waits until no actor holds a share any more: none was leaked."""
    return lambda: wait_until(lambda: ray.available_resources().get("CPU") == NODES[0].cpus)


def sorted_rounds(ran: Ran) -> list[dict[str, Any]]:
    return sorted(ran.rounds, key=lambda record: (record["cell_id"], record["round"]))


@pytest.mark.parametrize(("names", "again"), [(("fedhypevae", "weight-noise"), False), pytest.param(SHIPPED, True, marks=pytest.mark.slow)])
def test_one_process_and_three_actors_sample_noise_and_account_alike_and_each_is_repeatable(
    bench: Bench, ray_bench: Bench, all_free: Callable[[], None], names: tuple[str, ...], again: bool
) -> None:
    grids = [small_grid(*names, epsilon=4.0, clients=5, resources={"clients_per_actor": each}) for each in ("all", 2)]
    one, three = bench(grids[0], "one"), ray_bench(grids[1], "three")
    assert [row.status for row in one.rows + three.rows] == ["ok"] * 2 * len(names)
    assert all("clients per actor (2, 2, 1)" in three.log(row) for row in three.rows)

    fingerprints = [[(r["cell_id"], r["round"], r["sampled"], r["noise"]) for r in sorted_rounds(ran)] for ran in (one, three)]
    assert fingerprints[0] == fingerprints[1]
    by_rounding = ("scores", "recall_per_class", "generator")
    assert by_cell(one.rows, *by_rounding) == by_cell(three.rows, *by_rounding)
    for score in SCORES:
        values = [{row.cell_id: value for row in ran.rows if (value := row.value(score)) is not None} for ran in (one, three)]
        assert values[0] == pytest.approx(values[1], abs=1e-5, rel=1e-4)
    norms = [[r["parameter_norm"] for r in sorted_rounds(ran) if r["main"]] for ran in (one, three)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)

    for run, first, grid in ((bench, one, grids[0]), (ray_bench, three, grids[1])) if again else ():
        second = run(grid, f"{first.folder.name} again")
        assert by_cell(first.rows) == by_cell(second.rows)
        assert sorted_rounds(first) == sorted_rounds(second)
    all_free()


def test_local_only_scores_no_more_than_the_reference_of_its_name_and_centralised_than_the_ceiling(bench: Bench) -> None:
    evaluation = {"per_class": 10, "probe_c": 0.03}
    ran = bench(small_grid("centralised", "local-only", alpha=[0.1, 1.0], evaluation=evaluation))
    scored = {(row.label, row.alpha): row for row in ran.rows}
    assert len(scored) == 4
    for (label, _), row in scored.items():
        score = row.value("balanced_accuracy")
        assert score is not None
        assert row.ceiling_balanced_accuracy is not None
        assert score <= row.ceiling_balanced_accuracy + 1e-3
        if label == "local-only":
            assert row.local_only_balanced_accuracy is not None
            assert score <= row.local_only_balanced_accuracy


def test_finished_cells_are_not_run_again_and_a_grown_grid_runs_what_is_new(bench: Bench) -> None:
    first = bench(small_grid("weight-noise", epsilon=[1.0, 4.0]))
    written = files(first.folder)
    assert set(written) == {"trainings", "judgements", "references", "rounds"}
    again = bench(small_grid("weight-noise", epsilon=[1.0, 4.0]))
    assert again.code == 0
    assert "all 2 cells are finished" in again.output
    assert files(first.folder) == written
    grown = bench(small_grid("weight-noise", epsilon=[1.0, 4.0, 8.0]))
    assert all(files(first.folder)[kind].startswith(before) for kind, before in written.items())
    assert [row.epsilon_target for row in grown.rows] == [1.0, 4.0, 8.0]
    assert len(every_row(first.folder)) == 3


def test_a_failed_reference_leaves_no_line_and_is_computed_by_the_same_command(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_memory(*given: Any) -> None:
        raise MemoryError("none is left")

    grid = small_grid("dp-gaussian", evaluation={"per_class": 10, "per_client": True})
    with monkeypatch.context() as patch:
        patch.setattr("fedsim.runs.worker.local_only", without_memory)
        failed = bench(grid)
    assert "the local-only reference failed, its column stays empty; the same command tries again: MemoryError" in failed.output
    assert (failed.code, list(ResultStore(failed.folder).references())) == (0, [line_of(failed, "ceiling")])
    (row,) = failed.rows
    assert (row.ceiling_balanced_accuracy is None, row.local_only_balanced_accuracy) == (False, None)
    before = files(failed.folder)

    again = bench(grid)
    whole = bench(grid, "whole")
    assert by_cell(again.rows) == by_cell(whole.rows)
    assert (again.folder / "clients.jsonl").read_bytes() == (whole.folder / "clients.jsonl").read_bytes()
    after = files(again.folder)
    assert {kind for kind in after if after[kind] != before[kind]} == {"references"}
    assert after["references"].startswith(before["references"])
    assert "the cell is finished" in bench(grid).output


def line_of(ran: Ran, reference: str) -> str:
    """The key of a reference of the only cell."""
    (cell,) = json.loads((ran.folder / "manifest.json").read_text())["cells"]
    key: str = cell[reference]
    return key


def test_a_bench_that_dies_after_a_training_leaves_no_checkpoint_of_it_which_may_hold_a_key(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = small_grid("dp-gaussian", epsilon=4.0, privacy={"noise": "secret"})
    checkpoint = RunFolder(tmp_path / "run").checkpoint(prepare(grid, NODES).trials[0].cell.training_id)
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"of an earlier start")
    append = ResultStore.append

    def append_and_die(store: ResultStore, kind: Kind, lines: Any) -> None:
        append(store, kind, lines)
        if kind == "trainings":
            raise KeyboardInterrupt

    monkeypatch.setattr(ResultStore, "append", append_and_die)
    assert bench(grid).code == INTERRUPTED
    assert [line["error"] for line in ResultStore(tmp_path / "run").trainings().values()] == [None]
    assert not checkpoint.exists()


def test_checkpoints_of_finished_trainings_are_swept_at_the_next_start_and_those_of_others_stay(bench: Bench, tmp_path: Path) -> None:
    grid = small_grid(trouble("raise", tmp_path / "healed"), "dp-gaussian")
    ran = bench(grid)
    failed, finished = (trial.cell.training_id for trial in prepare(grid, NODES).trials)
    assert {key: line["error"] is None for key, line in ResultStore(ran.folder).trainings().items()} == {failed: False, finished: True}
    paths = [RunFolder(ran.folder).checkpoint(training_id) for training_id in (finished, failed, "0" * 16)]
    part = paths[0].with_name(f".{paths[0].name}.1.part")
    paths[0].parent.mkdir(exist_ok=True)
    for path in (*paths, part):
        path.write_bytes(b"")
    bench(grid)
    assert sorted(paths[0].parent.iterdir()) == sorted(paths[1:])


def edited(bench: Bench, folder: Path, text: str, grid: Grid) -> Ran:
    """The bench after an edit, as a new process would see it."""
    sys.modules.pop("edited_method", None)
    (folder / "edited_method.py").write_text(text)
    return bench(grid)


def test_an_edit_runs_the_cells_anew_and_leaves_the_old_rows_out(bench: Bench, plugins: Path) -> None:
    (plugins / "edited_method.py").write_text(GOOD)
    entry = {**quick("edited_method.py:MyMethod"), "label": "my-method"}
    grid = small_grid(entry, "dp-gaussian", epsilon=[1.0, 8.0])
    first = edited(bench, plugins, GOOD, grid)
    rows = first.rows
    same = edited(bench, plugins, "# a comment\n" + GOOD, grid)
    assert (first.code, "all 4 cells are finished" in same.output, "changed" in same.output) == (0, True, False)

    other = edited(bench, plugins, changed("self.params.beta * unit", "3 * self.params.beta * unit"), grid)
    assert "the source of my-method changed: 2 rows are of the old code and are left out" in other.output
    drawn = other.rows
    assert len(every_row(other.folder)) == 6
    assert len(drawn) == 4
    old = {row.cell_id for row in rows if row.label == "my-method"}
    assert old.isdisjoint(row.cell_id for row in drawn)
    assert {row.cell_id for row in rows} - old <= {row.cell_id for row in drawn}
    frame = fedsim.load(other.folder).rows
    assert set(frame.cell_id) == {row.cell_id for row in drawn}
    for drawing in (other.folder / "results.jsonl", other.folder / "summary.csv", other.folder / "report.html"):
        before = drawing.read_text()
        assert not any(cell in before for cell in old)
        write_report(other.folder)
        assert drawing.read_text() == before
    (other.folder / "manifest.json").unlink()
    assert {row.cell_id for row in grid_rows(other.folder)} == {row.cell_id for row in drawn}

    undone = edited(bench, plugins, GOOD, grid)
    assert "all 4 cells are finished" in undone.output
    assert {row.cell_id for row in undone.rows} == {row.cell_id for row in rows}
    assert set(fedsim.load(undone.folder).rows.cell_id) == {row.cell_id for row in rows}


def test_a_worker_that_holds_other_code_than_the_grid_s_says_so() -> None:
    prepared = prepare(small_grid("dp-gaussian"), NODES)
    check_source(prepared.trials[0].cell)
    with pytest.raises(RuntimeError, match="the source of dp-gaussian is not what it was when the grid was read"):
        check_source(prepared.trials[0].cell.model_copy(update={"source": "0" * 16}))


def note_check(ran: Ran, grid: Grid, ended: str, **facts: Any) -> None:
    """Note a full check of the grid's first cell in the run folder."""
    checked = checked_facts(prepare(grid, NODES).trials[0]) | {"full": True, "ended": ended} | facts
    ResultStore(ran.folder).append("checks", [checked])


def test_checks_of_the_code_that_ran_are_in_the_claims_of_its_rows_and_generators(bench: Bench, plugins: Path) -> None:
    (plugins / "says_so.py").write_text(GOOD)
    grid = small_grid("says_so.py:MyMethod", epsilon=[1.0, float("inf")])
    first = bench(grid)
    assert first.code == 0
    rows = first.rows
    assert [row.claim for row in rows] == ["stated", "none"]
    note_check(first, grid, "passed")
    again = bench(grid)
    assert "all 2 cells are finished" in again.output
    assert {row.epsilon_target: row.claim for row in again.rows} == {1.0: "checked", float("inf"): "none"}
    assert by_cell(again.rows, "claim") == by_cell(rows, "claim")
    saved = load_generator(again.folder, rows[0].cell_id, trust_plugin=True)
    assert saved.facts.plan is not None
    assert saved.facts.plan.claim == "checked"

    # not where one found a fault in another setting
    note_check(again, grid, "failed", trust="silo")
    assert {row.claim for row in bench(grid).rows} == {"stated", "none"}


def test_a_fault_that_a_check_finds_later_takes_the_theorem_from_rows_and_generators(bench: Bench) -> None:
    grid = small_grid("dp-gaussian", epsilon=1.0, privacy={"noise": "secret"})
    first = bench(grid)
    assert [row.claim for row in first.rows] == ["proved"]
    assert load_generator(first.folder).manifest(1)["release"] == "under its epsilon"
    note_check(first, grid, "failed")
    assert [row.claim for row in first.rows] == ["heuristic"]
    manifest = load_generator(first.folder).manifest(1)
    assert (manifest["release"], manifest["vouched"]) == ("simulation only", "by the results of its run")
    note_check(first, grid, "passed")
    assert [row.claim for row in first.rows] == ["proved"]
    assert load_generator(first.folder).manifest(1)["release"] == "under its epsilon"


def test_a_grid_may_ask_for_checks_of_plug_ins_which_run_once(bench: Bench, plugins: Path) -> None:
    (plugins / "asked.py").write_text(GOOD)
    entry = quick("asked.py:MyMethod")
    grid = small_grid(entry, "dp-gaussian", epsilon=[4.0, float("inf")], check="quick")
    ran = bench(grid)
    assert ran.code == 0, ran.output
    (line,) = ResultStore(ran.folder).lines("checks")
    assert (line["algorithm"], line["ended"], line["full"]) == ("asked.py:MyMethod", "passed", False)
    assert "all 4 cells are finished" in bench(grid).output
    full = prepare(grid.model_copy(update={"check": "full"}), NODES)
    desk = Desk(full, ResultStore(ran.folder), Display(Console(quiet=True), 4))
    assert [job.key[0] for job in missing_jobs(desk, (), Lines.read(ran.folder))] == ["check"]


def test_a_run_folder_of_an_older_fedsim_is_refused_in_one_sentence_and_stays_as_it_is(bench: Bench) -> None:
    grid = small_grid("fedavg-linear")
    manifest = bench(grid).folder / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 2, "versions": {"fedsim": "0.2.0"}}))
    before = manifest.read_bytes()
    for use in (lambda: bench(grid), lambda: grid_rows(manifest.parent)):
        with pytest.raises(UserError, match=r"is of fedsim 0\.2\.0, and this version reads run folders from 0\.3 on"):
            use()
    assert manifest.read_bytes() == before


def test_a_bench_in_process_leaves_this_process_the_memory_that_it_had(bench: Bench) -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    ran = bench(small_grid("dp-gaussian", resources={"memory_per_cell": "1GB"}))
    assert ran.code == 0
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def trouble(how: str, healed: Path) -> dict[str, Any]:
    return {**quick("plugin:Trouble", how=how, healed=str(healed)), "label": how}


def test_many_failures_leave_the_table_of_results_in_sight(bench: Bench, tmp_path: Path) -> None:
    grid = small_grid(trouble("raise", tmp_path / "healed"), seeds=list(range(MOST_SHOWN + 3)))
    bench(grid)
    below = bench(grid).output  # nothing runs, so no line of a cell that ends stands above
    assert below.count("failed, ZeroDivisionError") == MOST_SHOWN
    assert "and 3 more that are not ok; the report lists them" in below


def test_a_cell_that_fails_is_a_row_and_the_grid_goes_on(bench: Bench, tmp_path: Path) -> None:
    healed = tmp_path / "healed"
    grid = small_grid(trouble("raise", healed), trouble("raise without a word", healed), "dp-gaussian")
    ran = bench(grid)
    rows = {row.label: row for row in ran.rows}
    assert ran.code == 1
    assert {label: row.status for label, row in rows.items()} == {"raise": "failed", "raise without a word": "failed", "dp-gaussian": "ok"}
    errors = {label: row.error for label, row in rows.items() if row.error}
    assert (errors["raise"].type, errors["raise"].message) == ("ZeroDivisionError", "the third round\nis broken")
    assert 'raise ZeroDivisionError("the third round' in errors["raise"].traceback
    assert errors["raise without a word"].type == "AssertionError"
    log = ran.log(rows["raise"])
    assert "round 2/3" in log
    assert errors["raise"].traceback.strip() in log
    assert "ZeroDivisionError: the third round" in ran.output
    assert "run failed cells again with --retry-failed" in ran.output

    unchanged = bench(grid)
    assert unchanged.code == 1
    assert unchanged.rows == ran.rows

    healed.touch()
    retried = bench(grid, retry_failed=True)
    assert retried.code == 0
    assert {row.label: row.status for row in retried.rows} == dict.fromkeys(rows, "ok")
    assert retried.rows[-1] == rows["dp-gaussian"]


def test_a_cell_that_ends_its_process_is_a_row_with_what_it_printed_in_its_log_and_the_grid_goes_on(
    ray_bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "MOST_LOSSES", 1)
    never = tmp_path / "never"
    ran = ray_bench(small_grid(trouble("raise", never), trouble("exit", never), "dp-gaussian", resources={"cpus_per_actor": 2}))
    raised, ended, innocent = ran.rows
    assert (raised.status, ended.status, innocent.status) == ("failed", "failed", "ok")
    assert ended.error is not None
    assert "worker process of the cell died" in ended.error.message
    assert ran.log(ended).count("started 2") == 1 + scheduler.MOST_LOSSES
    assert "round 2 at the server" in ran.log(raised)
    assert "round 2 at the server" not in ran.output


def test_a_grown_grid_tells_cells_that_failed_before_from_those_that_are_done(bench: Bench, tmp_path: Path) -> None:
    failing = trouble("raise", tmp_path / "healed")
    bench(small_grid(failing))
    grown = bench(small_grid(failing, "dp-gaussian"))
    assert "1 of 2 cells done, 1 failed in " in grown.output
    retried = bench(small_grid(failing, "dp-gaussian"), retry_failed=True)
    assert "the same command runs failed cells again" in retried.output
    assert "--retry-failed" not in retried.output


def test_a_cell_whose_client_actor_fails_or_dies_leaves_no_broken_slot(
    ray_bench: Bench, tmp_path: Path, all_free: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "MOST_LOSSES", 0)
    hows = ("client raises", "client sys.exits", "client exits")
    grid = small_grid(*(trouble(how, tmp_path / "never") for how in hows), "weight-noise", resources={"clients_per_actor": 2})
    ran = ray_bench(grid)
    assert ran.code == 1
    assert [(row.label, row.status) for row in ran.rows] == [*((how, "failed") for how in hows), ("weight-noise", "ok")]
    raised, left, died = (row.error for row in ran.rows[:3])
    assert raised is not None
    assert left is not None
    assert died is not None
    assert (raised.type, raised.message) == ("ZeroDivisionError", "a client is broken")
    assert 'raise ZeroDivisionError("a client is broken")' in raised.traceback
    assert (left.type, left.message) == ("RuntimeError", "the algorithm called sys.exit(3), which a cell may not")
    assert "raise SystemExit" in left.traceback
    assert (died.type, "worker process of the cell died" in died.message) == ("ActorDiedError", True)
    all_free()


def test_an_algorithm_that_calls_sys_exit_is_reported_as_that(bench: Bench, tmp_path: Path) -> None:
    (row,) = bench(small_grid(trouble("sys.exit", tmp_path / "never"))).rows
    assert row.error is not None
    assert (row.error.type, row.error.message) == ("RuntimeError", "the algorithm called sys.exit('enough'), which a cell may not")
    assert "raise SystemExit" in row.error.traceback


def test_at_most_so_many_cells_run_at_a_time(tmp_path: Path) -> None:
    prepared = prepare(small_grid("weight-noise", seeds=[0, 1, 2, 3]), NODES, 2)
    desk = Desk(prepared, ResultStore(tmp_path), Display(Console(quiet=True), 4))
    slots = Scheduler(desk, InProcess(NODES[0])).slots
    assert [slots.take(1, prepared.share) is None for _ in range(3)] == [False, False, True]
    slots.close()


def test_threads_follow_the_cpu_share(ray_bench: Bench) -> None:
    resources = {"cpus_per_actor": 2, "clients_per_actor": 2}
    (record,) = ray_bench(small_grid(quick("plugin:Threads", rounds=1), resources=resources)).rounds
    assert (record["server_threads"], record["client_threads"]) == (2, 2)


def test_cells_of_several_shapes_share_one_copy_of_the_data_and_keep_to_the_cluster(
    ray_cluster: None, tmp_path: Path, all_free: Callable[[], None]
) -> None:
    rng = np.random.default_rng(0)
    size, dim = 4000, 2000
    x = rng.standard_normal((size, dim), dtype=np.float32)
    # nearly all rows are for testing: the data are large and probes are fitted in a moment
    np.savez(tmp_path / "big.npz", x=x, y=np.arange(size) % 2, split=np.where(np.arange(size) < 200, 0, 2))
    data = {"npz": str(tmp_path / "big.npz")}
    grid = small_grid("weight-noise", dataset=data, clients=[2, 4], seeds=[0, 1], resources={"clients_per_actor": 2})
    gc.collect()
    wait_until(lambda: used_object_store() == 0)  # what earlier benches left is freed
    seen, ended = [0.0], threading.Event()

    def sample() -> None:
        while not ended.wait(0.02):
            seen.append(used_object_store())

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        slots = watched(grid, tmp_path / "run")
    finally:
        ended.set()
        sampler.join()
    assert [row.status for row in every_row(tmp_path / "run")] == ["ok"] * 4
    assert 1 < slots.most_actors <= 4
    assert x.nbytes <= max(seen) < 1.5 * x.nbytes
    all_free()
