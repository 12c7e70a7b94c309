import gc
import shutil
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from benches import Ran, wait_until
from cells import NODES, quick, small_grid
from fedsim.plugins.check_file import file_check
from fedsim.results.row import failed_row
from plug_ins import GOOD, changed
from rich.console import Console

from fedsim.errors import UserError
from fedsim.evaluation.measures import MEASURES
from fedsim.grid.models import Grid
from fedsim.interrupts import INTERRUPTED
from fedsim.planning.prepare import prepare
from fedsim.report.report import write_report
from fedsim.results.folder import RunFolder
from fedsim.results.generators import load_generator, tell_claim
from fedsim.results.grid_rows import grid_rows, load_results
from fedsim.results.rows import Row, RowError
from fedsim.results.store import ResultStore
from fedsim.runs import scheduler
from fedsim.runs.bench import TOLD
from fedsim.runs.display import LineDisplay
from fedsim.runs.scheduler import Scheduler
from fedsim.runs.slots import Slot, Slots
from fedsim.runs.worker import check_source
from fedsim.training.cohort import build_algorithm

Bench = Callable[..., Ran]
SHIPPED = ("fedhypevae", "weight-noise", "fedavg-cvae")
SCORES = tuple(MEASURES)


def without(row: Row, *fields: str) -> dict[str, Any]:
    return {name: value for name, value in row.model_dump().items() if name not in ("seconds", *fields)}


def by_cell(rows: list[Row], *left_out: str) -> dict[str, dict[str, Any]]:
    return {row.cell_id: without(row, *left_out) for row in rows}


def watched(grid: Grid, folder: Path, max_parallel: int | None = None) -> "Watched":
    prepared = prepare(grid, NODES, max_parallel)
    scheduler = Scheduler(prepared, ResultStore(folder), LineDisplay(Console(quiet=True), len(prepared.trials)))
    scheduler.slots = slots = Watched(prepared.nodes, prepared.parallel)
    scheduler.run(prepared.trials)
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


def spread(folder: Path, clients_per_actor: Any, names: tuple[str, ...]) -> Ran:
    grid = small_grid(*names, epsilon=4.0, clients=5, resources={"clients_per_actor": clients_per_actor})
    watched(grid, folder, max_parallel=1)
    return Ran(0, "", folder)


@pytest.mark.parametrize(("names", "again"), [(("fedhypevae", "weight-noise"), False), pytest.param(SHIPPED, True, marks=pytest.mark.slow)])
def test_one_actor_and_three_sample_noise_and_account_alike_and_each_is_repeatable(
    ray_cluster: None, tmp_path: Path, all_free: Callable[[], None], names: tuple[str, ...], again: bool
) -> None:
    one, three = spread(tmp_path / "one", "all", names), spread(tmp_path / "three", 2, names)
    assert [row.status for row in one.rows + three.rows] == ["ok"] * 2 * len(names)
    assert all("clients per actor (2, 2, 1)" in three.log(row) for row in three.rows)

    fingerprints = [[(r["cell_id"], r["round"], r["sampled"], r["noise"]) for r in sorted_rounds(ran)] for ran in (one, three)]
    assert fingerprints[0] == fingerprints[1]
    by_rounding = (*SCORES, "recall_per_class", "generator")
    assert by_cell(one.rows, *by_rounding) == by_cell(three.rows, *by_rounding)
    for score in SCORES:
        values = [{row.cell_id: value for row in ran.rows if (value := row.value(score)) is not None} for ran in (one, three)]
        assert values[0] == pytest.approx(values[1], abs=1e-5, rel=1e-4)
    norms = [[r["parameter_norm"] for r in sorted_rounds(ran)] for ran in (one, three)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)

    for first, clients_per_actor in ((one, "all"), (three, 2)) if again else ():
        second = spread(tmp_path / f"again {clients_per_actor}", clients_per_actor, names)
        assert by_cell(first.rows) == by_cell(second.rows)
        assert sorted_rounds(first) == sorted_rounds(second)
    all_free()


def test_local_only_scores_no_more_than_the_reference_of_its_name_and_centralised_than_the_ceiling(bench: Bench) -> None:
    evaluation = {"per_class": 10, "probe_c": 0.03}
    ran = bench(small_grid("centralised", "local-only", alpha=[0.1, 1.0], evaluation=evaluation, resources={"clients_per_actor": 3}))
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
    written = (first.folder / "results.jsonl").read_bytes()
    again = bench(small_grid("weight-noise", epsilon=[1.0, 4.0]))
    assert again.code == 0
    assert "all 2 cells are finished" in again.output
    assert (first.folder / "results.jsonl").read_bytes() == written
    grown = bench(small_grid("weight-noise", epsilon=[1.0, 4.0, 8.0]))
    assert (first.folder / "results.jsonl").read_bytes().startswith(written)
    assert [row.epsilon_target for row in grown.rows] == [1.0, 4.0, 8.0]


def test_a_bench_that_dies_after_a_row_leaves_no_checkpoint_of_its_cell_which_may_hold_a_key(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = small_grid("dp-gaussian", epsilon=4.0, privacy={"noise": "secret"})
    checkpoint = RunFolder(tmp_path / "run").checkpoint(prepare(grid, NODES).trials[0].cell.cell_id)
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"of an earlier start")
    append = ResultStore.append

    def append_and_die(store: ResultStore, row: Row) -> None:
        append(store, row)
        raise KeyboardInterrupt

    monkeypatch.setattr(ResultStore, "append", append_and_die)
    assert bench(grid).code == INTERRUPTED
    assert [row.status for row in ResultStore(tmp_path / "run").rows()] == ["ok"]
    assert not checkpoint.exists()


def test_checkpoints_of_finished_cells_are_swept_at_the_next_start_and_those_of_others_stay(bench: Bench) -> None:
    grid = small_grid("dp-gaussian", epsilon=[4.0, 8.0])
    ran = bench(grid)
    finished, failed = ran.rows
    ResultStore(ran.folder).append(failed_row(prepare(grid, NODES).trials[1], RowError(type="", message="", traceback=""), {}))
    paths = [RunFolder(ran.folder).checkpoint(cell_id) for cell_id in (finished.cell_id, failed.cell_id, "0" * 16)]
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
    drawn = grid_rows(other.folder)
    assert len(other.rows) == 6
    assert len(drawn) == 4
    old = {row.cell_id for row in rows if row.label == "my-method"}
    assert old.isdisjoint(row.cell_id for row in drawn)
    assert {row.cell_id for row in rows} - old <= {row.cell_id for row in drawn}
    frame = load_results(other.folder)
    assert set(frame.cell_id) == {row.cell_id for row in drawn}
    for drawing in (other.folder / "summary.csv", other.folder / "report.html"):
        before = drawing.read_text()
        assert not any(cell in before for cell in old)
        write_report(other.folder)
        assert drawing.read_text() == before
    (other.folder / "manifest.json").unlink()
    assert {row.cell_id for row in grid_rows(other.folder)} == {row.cell_id for row in drawn}

    undone = edited(bench, plugins, GOOD, grid)
    assert "all 4 cells are finished" in undone.output
    assert {row.cell_id for row in grid_rows(undone.folder)} == {row.cell_id for row in rows}
    assert set(load_results(undone.folder).cell_id) == {row.cell_id for row in rows}


def test_rows_from_before_sources_were_noted_are_of_the_old_code(bench: Bench, tmp_path: Path) -> None:
    grid = small_grid("dp-gaussian")
    (row,) = bench(grid).rows
    (tmp_path / "run" / "results.jsonl").write_text(row.model_copy(update={"source": None, "cell_id": "0" * 16}).to_json() + "\n")
    again = bench(grid)
    assert "the source of dp-gaussian changed: 1 row is of the old code and is left out" in again.output
    assert [each.cell_id for each in grid_rows(again.folder)] == [row.cell_id]


def test_a_worker_that_holds_other_code_than_the_grid_s_says_so(bench: Bench) -> None:
    prepared = prepare(small_grid("dp-gaussian"), NODES)
    check_source(prepared.trials[0].cell)
    with pytest.raises(RuntimeError, match="the source of dp-gaussian is not what it was when the grid was read"):
        check_source(prepared.trials[0].cell.model_copy(update={"source": "0" * 16}))


def test_a_check_of_the_code_that_ran_is_told_by_its_finished_rows(
    bench: Bench, plugins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    (plugins / "says_so.py").write_text(GOOD)
    grid = small_grid("says_so.py:MyMethod", epsilon=[1.0, float("inf")])
    first = bench(grid)
    assert first.code == 0
    rows = first.rows
    assert [row.claim for row in rows] == ["stated", "none"]
    trial = prepare(grid, NODES).trials[0]
    file_check(build_algorithm(trial.cell.algorithm, trial.cell.params, trial.task), "passed")
    again = bench(grid)
    assert "all 2 cells are finished" in again.output
    assert {row.epsilon_target: row.claim for row in again.rows} == {1.0: "checked", float("inf"): "none"}
    assert by_cell(again.rows, "claim", "generator") == by_cell(rows, "claim", "generator")
    told = load_generator(again.folder, trial.cell.cell_id, trust_plugin=True)
    assert told.facts.plan is not None
    assert told.facts.plan.claim == "checked"

    # where no check is known it stays so, and not where one found a fault in another setting
    shutil.rmtree(tmp_path / "cache" / "checks")
    assert {row.claim for row in bench(grid).rows} == {"checked", "none"}
    file_check(build_algorithm(trial.cell.algorithm, trial.cell.params, replace(trial.task, trust="silo")), "failed")
    assert {row.claim for row in bench(grid).rows} == {"stated", "none"}


def test_a_fault_that_a_check_finds_later_takes_the_theorem_from_rows_and_generators(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    grid = small_grid("dp-gaussian", epsilon=1.0, privacy={"noise": "secret"})
    first = bench(grid)
    assert [row.claim for row in first.rows] == ["proved"]
    assert load_generator(first.folder).manifest(1)["release"] == "under its epsilon"
    trial = prepare(grid, NODES).trials[0]
    file_check(build_algorithm(trial.cell.algorithm, trial.cell.params, trial.task), "failed")
    again = bench(grid)
    assert [row.claim for row in again.rows] == ["heuristic"]
    told = load_generator(again.folder).manifest(1)
    assert (told["release"], told["vouched"]) == ("simulation only", "by a row of its run")
    file_check(build_algorithm(trial.cell.algorithm, trial.cell.params, trial.task), "passed")
    assert [row.claim for row in bench(grid).rows] == ["proved"]
    assert load_generator(again.folder).manifest(1)["release"] == "under its epsilon"

    # an end between the generator, which is told, and its row, which is not
    tell_claim(RunFolder(again.folder), trial.cell, "heuristic", load_generator(again.folder).digest)
    file_check(build_algorithm(trial.cell.algorithm, trial.cell.params, trial.task), "failed")
    assert [row.claim for row in bench(grid).rows] == ["heuristic"]
    assert load_generator(again.folder).manifest(1)["vouched"] == "by a row of its run"
    file_check(build_algorithm(trial.cell.algorithm, trial.cell.params, trial.task), "passed")
    bench(grid)

    (facts,) = (again.folder / "generators").glob("*.json")
    facts.write_text(facts.read_text().replace('"status": "ok"', '"status":  "ok"'))
    file_check(build_algorithm(trial.cell.algorithm, trial.cell.params, trial.task), "failed")
    assert [row.claim for row in bench(grid).rows] == ["heuristic"]
    with pytest.raises(UserError, match=r"no row of .* has its hash"):
        load_generator(again.folder)


def trouble(how: str, healed: Path) -> dict[str, Any]:
    return {**quick("plugin:Trouble", how=how, healed=str(healed)), "label": how}


def test_many_failures_leave_the_table_of_results_in_sight(bench: Bench, tmp_path: Path) -> None:
    grid = small_grid(trouble("raise", tmp_path / "healed"), seeds=list(range(TOLD + 3)))
    bench(grid)
    below = bench(grid).output  # nothing runs, so no line of a cell that ends stands above
    assert below.count("failed, ZeroDivisionError") == TOLD
    assert "and 3 more that are not ok; the report lists them" in below


def test_a_cell_that_fails_is_a_row_and_the_grid_goes_on(bench: Bench, tmp_path: Path) -> None:
    healed = tmp_path / "healed"
    grid = small_grid(
        trouble("raise", healed),
        trouble("raise without a word", healed),
        trouble("exit", healed),
        "fedavg-cvae",
        resources={"cpus_per_actor": 2},
    )
    ran = bench(grid)
    rows = {row.label: row for row in ran.rows}
    assert ran.code == 1
    assert {label: row.status for label, row in rows.items()} == {
        "raise": "failed",
        "raise without a word": "failed",
        "exit": "failed",
        "fedavg-cvae": "ok",
    }
    errors = {label: row.error for label, row in rows.items() if row.error}
    assert (errors["raise"].type, errors["raise"].message) == ("ZeroDivisionError", "the second round\nis broken")
    assert 'raise ZeroDivisionError("the second round' in errors["raise"].traceback
    assert errors["raise without a word"].type == "AssertionError"
    assert "worker process of the cell died" in errors["exit"].message
    assert ran.log(rows["exit"]).count("\nstarted") + 1 == 1 + scheduler.AGAIN
    log = ran.log(rows["raise"])
    assert "round 1/3" in log
    assert "round 1 at the server" in log
    assert errors["raise"].traceback.strip() in log
    assert "ZeroDivisionError: the second round" in ran.output
    assert "run failed cells again with --retry-failed" in ran.output

    unchanged = bench(grid)
    assert unchanged.code == 1
    assert unchanged.rows == ran.rows

    healed.touch()
    retried = bench(grid, retry_failed=True)
    assert retried.code == 0
    assert {row.label: row.status for row in retried.rows} == dict.fromkeys(rows, "ok")
    assert retried.rows[0] == rows["fedavg-cvae"]


def test_a_grown_grid_tells_cells_that_failed_before_from_those_that_are_done(bench: Bench, tmp_path: Path) -> None:
    failing = trouble("raise", tmp_path / "healed")
    bench(small_grid(failing))
    grown = bench(small_grid(failing, "dp-gaussian"))
    assert "1 of 2 cells done, 1 failed in " in grown.output
    retried = bench(small_grid(failing, "dp-gaussian"), retry_failed=True)
    assert "the same command runs failed cells again" in retried.output
    assert "--retry-failed" not in retried.output


def test_a_cell_whose_client_actor_fails_or_dies_leaves_no_broken_slot(
    bench: Bench, tmp_path: Path, all_free: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "AGAIN", 0)
    never = tmp_path / "never"
    grid = small_grid(trouble("client raises", never), trouble("client exits", never), "weight-noise", resources={"clients_per_actor": 2})
    ran = bench(grid)
    rows = {row.label: row for row in ran.rows}
    assert ran.code == 1
    assert [(row.label, row.status) for row in ran.rows] == [
        ("client raises", "failed"),
        ("client exits", "failed"),
        ("weight-noise", "ok"),
    ]
    raised, died = rows["client raises"].error, rows["client exits"].error
    assert raised is not None
    assert died is not None
    assert (raised.type, raised.message) == ("ZeroDivisionError", "a client is broken")
    assert 'raise ZeroDivisionError("a client is broken")' in raised.traceback
    assert (died.type, "worker process of the cell died" in died.message) == ("ActorDiedError", True)
    all_free()


def test_an_algorithm_that_calls_sys_exit_is_told_as_that(bench: Bench, tmp_path: Path, all_free: Callable[[], None]) -> None:
    never = tmp_path / "never"
    grid = small_grid(trouble("sys.exit", never), trouble("client sys.exits", never), resources={"clients_per_actor": 2})
    errors = {row.label: row.error for row in bench(grid).rows}
    for label, code in {"sys.exit": "'enough'", "client sys.exits": "3"}.items():
        error = errors[label]
        assert error is not None
        assert (error.type, error.message) == ("RuntimeError", f"the algorithm called sys.exit({code}), which a cell may not")
        assert "raise SystemExit" in error.traceback
    all_free()


def test_at_most_so_many_cells_run_at_a_time(ray_cluster: None, tmp_path: Path) -> None:
    slots = watched(small_grid("weight-noise", seeds=[0, 1, 2, 3]), tmp_path, max_parallel=2)
    assert slots.most_busy == 2


@pytest.mark.parametrize("clients_per_actor", ["all", 2])
def test_threads_follow_the_cpu_share(bench: Bench, clients_per_actor: Any) -> None:
    resources = {"cpus_per_actor": 2, "clients_per_actor": clients_per_actor}
    (record,) = bench(small_grid(quick("plugin:Threads", rounds=1), resources=resources)).rounds
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
    assert [row.status for row in ResultStore(tmp_path / "run").rows()] == ["ok"] * 4
    assert 1 < slots.most_actors <= 4
    assert x.nbytes <= max(seen) < 1.5 * x.nbytes
    all_free()
