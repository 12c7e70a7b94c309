"""Workers that are killed, and plug-ins that leave their process behind in a state of their own."""

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from benches import TIMES, Ran, slowness
from cells import quick, small_grid
from processes import offspring

from fedsim.results.rows import Row

Bench = Callable[..., Ran]


def by_label(ran: Ran) -> dict[str, dict[str, Any]]:
    return {row.label: row.model_dump(exclude={*TIMES}) for row in ran.rows}


def killed(hostile: str, kind: str, marker: Path) -> dict[str, Any]:
    return {**quick(f"{hostile}:{kind}", rounds=4, marker=str(marker)), "label": kind}


def test_a_cell_whose_worker_is_killed_goes_on_from_its_checkpoint_and_gives_the_same_row(
    bench: Bench, ray_bench: Bench, hostile: str, tmp_path: Path
) -> None:
    one, spread = small_grid(killed(hostile, "Killed", tmp_path / "once")), killed(hostile, "ClientKilled", tmp_path / "once more")
    ran = [ray_bench(one, "one"), ray_bench(small_grid(spread, resources={"clients_per_actor": 2}), "spread")]
    again = [bench(one, "one again"), bench(small_grid(spread, resources={"clients_per_actor": 2}), "spread again")]
    for disturbed, undisturbed in zip(ran, again, strict=True):
        assert disturbed.code == 0, disturbed.output
        assert "a worker process of the cell died (killed, out of memory, or it crashed); it runs again" in disturbed.output
        assert by_label(disturbed) == by_label(undisturbed)
        assert disturbed.rounds == undisturbed.rounds
        assert "runs again" not in undisturbed.output
    log = ran[0].log(ran[0].rows[0])
    assert re.findall(r"round \d at the server", log) == [f"round {n} at the server" for n in range(4)]
    assert log.count("\nclients per actor") == 2
    assert list((tmp_path / "one" / "checkpoints").iterdir()) == []


@contextmanager
def the_first_killed(task: str, holds: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Kill the first worker that runs the task, once something holds."""
    stop, victims = threading.Event(), []

    def kill_the_first() -> None:
        while not stop.is_set() and not victims:
            for process in offspring(os.getpid(), task)[:1] if holds() else ():
                process.send_signal(signal.SIGKILL)
                victims.append(process.pid)

    killer = threading.Thread(target=kill_the_first)
    killer.start()
    try:
        yield
    finally:
        stop.set()
        killer.join()
    assert victims


@pytest.mark.slow
def test_an_audit_whose_worker_is_killed_goes_on_from_its_pairs(ray_bench: Bench, tmp_path: Path) -> None:
    grid, pairs = small_grid("dp-gaussian", audit={"pairs": 100, "rounds": 1}), tmp_path / "disturbed" / "pairs.jsonl"
    with the_first_killed("TrialWorker.audit", lambda: pairs.exists()):
        ran = ray_bench(grid, "disturbed")
    assert "the audit of dp-gaussian at ε = 1: a worker process of the cell died (killed, out of memory, or it crashed)" in ran.output
    assert ran.rows[0].audit_pairs == 100
    assert len(pairs.read_text().splitlines()) == 100
    assert by_label(ran) == by_label(ray_bench(grid, "undisturbed"))


@pytest.mark.slow
def test_a_worker_that_is_killed_while_it_computes_a_reference_leaves_no_empty_column(ray_bench: Bench) -> None:
    grid = small_grid("dp-gaussian", dataset="digits")
    with the_first_killed("TrialWorker.reference"):
        ran = ray_bench(grid, "disturbed")
    assert "reference: a worker process of the cell died (killed, out of memory, or it crashed); it runs again" in ran.output
    assert by_label(ran) == by_label(ray_bench(grid, "undisturbed"))
    assert None not in (ran.rows[0].ceiling_balanced_accuracy, ran.rows[0].local_only_balanced_accuracy)


@pytest.mark.slow
def test_hostile_plug_ins_fail_alone(ray_bench: Bench, hostile: str) -> None:
    visitor = {**quick(f"{hostile}:Visitor", rounds=3), "label": "visitor"}
    alone = by_label(ray_bench(small_grid("dp-gaussian", "weight-noise", "fedhypevae", visitor), "alone"))
    hostiles = [{**quick(f"{hostile}:{kind}", rounds=3), "label": kind} for kind in ("Spoils", "Floods", "Eats", "Hangs")]
    order = [hostiles[0], "dp-gaussian", *hostiles[1:3], "weight-noise", "fedhypevae", hostiles[3], visitor]
    resources = {"cell_timeout": f"{8 * slowness():.0f}s", "memory_per_cell": "500MB"}
    started = time.monotonic()
    ran = ray_bench(small_grid(*order, resources=resources), "together")
    assert time.monotonic() - started < 60 * slowness()
    rows: dict[str, Row] = {row.label: row for row in ran.rows}
    assert {name: row for name, row in by_label(ran).items() if name in alone} == alone

    late, hungry = rows["Hangs"].error, rows["Eats"].error
    assert late is not None
    assert hungry is not None
    assert (late.type, "it ran for longer than cell_timeout" in late.message) == ("TimeoutError", True)
    assert (hungry.type, "more than its 0.5 GB of memory_per_cell" in hungry.message) == ("MemoryError", True)
    assert rows["Floods"].status == "ok"
    log = (ran.folder / "logs" / f"{rows['Floods'].cell_id}.log").stat().st_size
    assert 10_000_000 <= log < 10_100_000
    assert "more than 10 MB of output; the rest of it is left out" in ran.log(rows["Floods"])


def descriptors(process: psutil.Process) -> int:
    return len(os.listdir(f"/proc/{process.pid}/fd"))


@pytest.mark.slow
def test_memory_and_descriptors_are_flat_over_500_cells(ray_bench: Bench) -> None:
    """Of the driver and of its worker, from the first quarter of the cells to the last."""
    cells, seen = 500, list[tuple[float, int]]()
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            if workers := offspring(os.getpid(), "TrialWorker"):
                processes = [psutil.Process(), *workers]
                seen.append((sum(each.memory_info().rss for each in processes), sum(map(descriptors, processes))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        ran = ray_bench(small_grid(quick("dp-gaussian"), seeds=list(range(cells))))
    finally:
        ended.set()
        watcher.join()
    assert [row.status for row in ran.rows] == ["ok"] * cells
    quarter = len(seen) // 4
    assert quarter > 2
    early, late = seen[quarter : 2 * quarter], seen[-quarter:]
    memory = [sorted(value for value, _ in part)[len(part) // 2] for part in (early, late)]
    files = [sorted(value for _, value in part)[len(part) // 2] for part in (early, late)]
    print(f"memory {memory[0] / 1e6:.0f} → {memory[1] / 1e6:.0f} MB, descriptors {files[0]} → {files[1]}")
    assert memory[1] < memory[0] * 1.05 + cells * 1e5
    assert files[1] <= files[0] + 5
