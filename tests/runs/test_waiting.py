"""Cells for which a cluster that lost machines has no room, and references that lose their worker or take long."""

from pathlib import Path

import pytest
import ray
from benches import taken
from cells import NODES, small_grid
from ray.util.placement_group import placement_group
from rich.console import Console

from fedsim.planning.node import Node, Share
from fedsim.planning.prepare import prepare
from fedsim.results.store import ResultStore
from fedsim.runs import scheduler
from fedsim.runs.display import Display
from fedsim.runs.engine import InProcess
from fedsim.runs.jobs import Desk, references_of
from fedsim.runs.ray_engine import RayEngine
from fedsim.runs.scheduler import Running, Scheduler
from fedsim.runs.slots import Slots
from fedsim.runs.worker import Failure


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
