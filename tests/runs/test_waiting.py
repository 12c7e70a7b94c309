"""Cells for which a cluster that lost machines has no room, and references that lose their worker or take long."""

import io
from pathlib import Path

import pytest
import ray
from benches import PATIENCE, taken
from cells import NODES, small_grid
from ray.util.placement_group import placement_group
from rich.console import Console

from fedsim.planning.node import Node, Share
from fedsim.planning.prepare import prepare
from fedsim.results.grid_rows import grid_rows
from fedsim.results.join import Lines
from fedsim.results.rows import Row
from fedsim.results.store import ResultStore
from fedsim.runs import scheduler
from fedsim.runs.bench import missing_jobs
from fedsim.runs.display import Display
from fedsim.runs.engine import ClusterLost, InProcess
from fedsim.runs.jobs import Desk, TrainingJob, references_of
from fedsim.runs.ray_engine import RayEngine
from fedsim.runs.scheduler import Running, Scheduler
from fedsim.runs.slots import Slots
from fedsim.runs.worker import Failure


def test_a_cell_that_no_longer_fits_lets_others_pass_says_what_it_waits_for_and_ends_the_bench(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("LOOK_EVERY", 0.1), ("NOTE_AFTER", 0.3), ("GIVE_UP_AFTER", PATIENCE)):
        monkeypatch.setattr(scheduler, name, seconds)

    class Impatient(Display):
        """From the first row on nobody waits for long."""

        def cell_finished(self, row: Row) -> None:
            monkeypatch.setattr(scheduler, "GIVE_UP_AFTER", 1.0)
            super().cell_finished(row)

    grid = small_grid("dp-gaussian", clients=[6, 2], resources={"clients_per_actor": 1})
    prepared = prepare(grid, [Node(4.0, 0.0), Node(4.0, 0.0)], 1)  # one of them left the cluster meanwhile
    console = Console(file=io.StringIO(), width=300)
    desk = Desk(prepared, ResultStore(tmp_path), Impatient(console, 2))
    running = Scheduler(desk, RayEngine())
    with pytest.raises(ClusterLost, match=r"waits for 6 actors with 1 CPU each; the cluster has 4 CPUs"):
        running.run([TrainingJob(desk, trial) for trial in prepared.trials])
    running.slots.close()
    assert [(row.clients, row.status) for row in grid_rows(tmp_path)] == [(2, "ok")]
    told = console.file.getvalue()  # type: ignore[attr-defined]
    assert "waits for 6 actors with 1 CPU each; the cluster has 4 CPUs and 2 GPUs, and others may use it" in told


@pytest.fixture
def others(ray_cluster: None) -> None:
    """Others hold one of the cluster's four CPUs, which a bench does not know."""
    ray.get(placement_group([{"CPU": 1}]).ready())


def test_a_slot_that_waits_for_its_place_gets_what_idles_meanwhile(others: None) -> None:
    slots = Slots(RayEngine(), (Node(4.0, 0.0),), 2)
    try:
        first = taken(slots, 1, Share(1.0))
        assert slots.take(1, Share(3.0)) is None
        slots.give_back(first)
        assert taken(slots, 1, Share(3.0)).share.cpus == 3
        assert slots.idle == []
    finally:
        slots.close()


def test_a_slot_that_ran_a_plug_in_is_used_for_no_other_code() -> None:
    slots = Slots(InProcess(NODES[0]), tuple(NODES), 4)
    first = taken(slots, 1, Share(1.0))
    slots.give_back(first)
    assert slots.take(1, Share(1.0), plug_in="mine.py:Mine") is first
    slots.give_back(first)
    assert slots.take(1, Share(1.0), plug_in="mine.py:Mine") is first
    slots.give_back(first)
    for plug_in in ("", "mine.py:Other"):
        assert slots.take(1, Share(1.0), any_shape=True, plug_in=plug_in) not in (None, first)
    slots.close()


def test_a_bench_whose_cell_waited_while_another_ran_is_not_given_up_once_that_has_ended(
    others: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "LOOK_EVERY", 0.01)

    class Hurried(Scheduler):
        """An hour goes by at every look while something runs."""

        def _count_waiting(self, since: float) -> None:
            super()._count_waiting(since + 3600 * bool(self.running))

    grid = small_grid("fedavg-cvae", clients=[1, 3], resources={"clients_per_actor": 1})
    prepared = prepare(grid, [Node(4.0, 0.0)], 2)
    desk = Desk(prepared, ResultStore(tmp_path), Display(Console(quiet=True), 2))
    Hurried(desk, RayEngine()).run([TrainingJob(desk, trial) for trial in prepared.trials])
    assert [(row.clients, row.status) for row in grid_rows(tmp_path)] == [(1, "ok"), (3, "ok")]


def test_every_reference_that_loses_its_worker_is_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "MOST_LOSSES", 1)
    prepared = prepare(small_grid("dp-gaussian", alpha=[0.1, 1.0]), [Node(4.0, 0.0)], 1)
    desk = Desk(prepared, ResultStore(tmp_path), Display(Console(quiet=True), 2))
    running = Scheduler(desk, InProcess(Node(4.0, 0.0)))
    first, second = [references_of(desk, trial)[1] for trial in prepared.trials]

    for reference in (first, second, first):
        slot = running.slots.take(1, running.share)
        assert slot is not None
        running._lose(Running(reference, slot, 0.0), Failure("ActorDiedError", "its worker died", ""), again=True)
    assert list(running.queue) == [second, first]
    assert ResultStore(tmp_path).references() == {}


def test_a_reference_that_takes_long_is_noted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOOK_EVERY", "NOTE_AFTER"):
        monkeypatch.setattr(scheduler, name, 0.0)
    prepared = prepare(small_grid("dp-gaussian", seeds=[0, 1, 2]), NODES, 1)
    console = Console(file=io.StringIO(), width=300)
    desk = Desk(prepared, ResultStore(tmp_path), Display(console, 3))
    Scheduler(desk, InProcess(NODES[0])).run(missing_jobs(desk, (), Lines({}, {}, {})))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert printed.count("the local-only reference has been running for") == 1
    assert printed.count("the ceiling reference has been running for") == 1
