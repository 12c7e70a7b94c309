"""Which job runs where and when, and what the end of its worker means for it."""

import copy
import io
import sys
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cells import NODES, quick, small_grid
from rich.console import Console

from fedsim.errors import PluginError
from fedsim.results.join import RunResults, read_results
from fedsim.results.store import ResultStore
from fedsim.runs import scheduler
from fedsim.runs.display import Display
from fedsim.runs.engine import InProcess, WorkerLost
from fedsim.runs.items import Failure, Item
from fedsim.runs.job_list import missing_jobs
from fedsim.runs.jobs import Job, RunContext
from fedsim.runs.prepare import Need, Node, prepare
from fedsim.runs.scheduler import Scheduler, Slots
from fedsim.training.trial import Outcome

ONE = Need(1.0)
TWO = Need(1.0, actors=2)


def slots(parallel: int = 4) -> Slots:
    return Slots(InProcess(NODES[0]), 4, parallel)


def context(folder: Path, *entries: Any, **keys: Any) -> RunContext:
    prepared = prepare(small_grid(*entries, **keys), NODES, 1)
    console = Console(file=io.StringIO(), width=300)
    return RunContext(prepared, ResultStore(folder), Display(console, len(prepared.trials)))


def jobs_of(run: RunContext) -> list[Job]:
    return list(missing_jobs(run, (), RunResults(run.store.folder)))


def test_slot_serves_jobs_of_its_need_and_jobs_of_any_slot() -> None:
    held = slots()
    first = held.take(TWO)
    assert first is not None
    second = held.take(ONE)
    assert second is not None
    held.give_back(first)
    assert held.take(ONE, any_slot=True) is first
    held.give_back(first)
    assert held.take(TWO) is first
    assert held.take(TWO) is None  # four CPUs
    held.give_back(first)
    assert held.take(ONE) not in (None, first)
    assert held.idle == []
    held.close()


def test_no_more_jobs_run_at_a_time_than_asked() -> None:
    few = slots(parallel=2)
    assert few.take(ONE) is not None
    assert few.take(ONE) is not None
    assert few.take(ONE) is None
    few.close()


@pytest.mark.parametrize("plug_in", ["", "mine.py:Other"])
def test_slot_of_a_plug_in_runs_no_other_code(plug_in: str) -> None:
    held = slots()
    first = held.take(ONE)
    for _ in range(2):
        assert first is not None
        held.give_back(first)
        assert held.take(ONE, plug_in="mine.py:Mine") is first
    held.give_back(first)
    assert held.take(ONE, any_slot=True, plug_in=plug_in) not in (None, first)
    held.close()


class Losing(InProcess):
    """Every worker is lost at its first item."""

    def receive(self, stream: object) -> Item:
        raise WorkerLost(Failure("ActorDiedError", "its worker died", "", goes_on=True), again=True)


def test_job_that_loses_its_worker_runs_again_then_fails(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scheduler, "MOST_LOSSES", 1)
    run = context(tmp_path, "dp-gaussian")
    Scheduler(run, Losing(NODES[0])).run(jobs_of(run))
    output = run.display._console.file.getvalue()  # type: ignore[attr-defined]
    assert output.count("its worker died; it runs again") == 3
    assert output.count("reference failed; the same command tries again") == 2
    assert ResultStore(tmp_path).last("references") == {}
    (row,) = read_results(tmp_path).rows
    assert row.status == "failed"
    assert row.error["type"] == "ActorDiedError"


class LosingAfterTraining(InProcess):
    """The worker of the first training is lost while it evaluates."""

    lost = None

    def receive(self, stream: object) -> Item:
        if stream is self.lost:
            raise WorkerLost(Failure("ActorDiedError", "its worker died", ""), again=True)
        item = super().receive(stream)
        if isinstance(item, Outcome):
            self.lost = self.lost or stream
        return item


def test_lost_evaluation_without_saved_generator_ends_no_bench(tmp_path: Path) -> None:
    resources = {"save_generators": False}
    run = context(tmp_path, "dp-gaussian", seeds=[0, 1], resources=resources)
    Scheduler(run, LosingAfterTraining(NODES[0])).run(jobs_of(run))
    assert [row.status for row in read_results(tmp_path).rows] == ["failed", "ok"]


def test_wait_for_more_machines_is_told_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scheduler, "LOOK_EVERY", 0.001)
    run = context(tmp_path, "dp-gaussian", resources={"clients_per_actor": 2})
    engine = InProcess(NODES[0])
    looks = chain(repeat([Node(1.0, 0.0)], 30), repeat(NODES))
    monkeypatch.setattr(engine, "nodes", lambda: next(looks))
    waiting = Scheduler(run, engine)
    waiting.slots.capacity = 1
    waiting.run(jobs_of(run))
    output = run.display._console.file.getvalue()  # type: ignore[attr-defined]
    assert output.count("waiting for more machines: ") == 1


def test_plug_in_runs_first_and_its_first_failure_is_raised(
    tmp_path: Path,
    plugins: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(plugins)
    monkeypatch.syspath_prepend(str(plugins))
    run = context(tmp_path, "dp-gaussian", quick("plugin:Trouble"), seeds=[0, 1])
    printed = sys.stdout
    message = (
        r"^algorithms\[1\]\.name: the first cell of .* failed: ZeroDivisionError: the third round"
    )
    with pytest.raises(PluginError, match=message) as raised:
        Scheduler(run, InProcess(NODES[0], capture=True)).run(jobs_of(run))
    (log,) = (tmp_path / "logs").iterdir()
    assert str(log) in str(raised.value)
    assert 'raise ZeroDivisionError("the third round' in log.read_text()
    assert run.store.last("trainings") == {}
    assert sys.stdout is printed  # and no longer the log of the cell


def test_every_job_is_shown_while_it_runs(tmp_path: Path) -> None:
    run = context(tmp_path, "dp-gaussian")
    shown: list[str] = []

    class Looking(InProcess):
        """An engine that notes what the display says runs."""

        def receive(self, stream: object) -> Item:
            shown.extend(task.description for task in run.display.running.values())
            return super().receive(stream)

    Scheduler(run, Looking(NODES[0])).run(jobs_of(run))
    assert list(dict.fromkeys(shown)) == [
        "the ceiling reference",
        "the local-only reference",
        "dp-gaussian · digits[:200] · α = 1 · 4 clients · ε = 1 · seed 0",
    ]
    assert run.display.running == {}


class Storing(InProcess):
    """An engine that has the data in memory of its own, as Ray has."""

    def put(self, value: Any) -> Any:
        return copy.deepcopy(value)


def test_driver_lets_training_rows_go_that_the_engine_has(tmp_path: Path) -> None:
    run = context(tmp_path, "dp-gaussian", seeds=[0, 1])
    (before,) = run.prepared.data.values()
    Scheduler(run, Storing(NODES[0])).run(jobs_of(run))
    (after,) = run.prepared.data.values()
    assert [row.status for row in read_results(tmp_path).rows] == ["ok", "ok"]
    assert len(before.x_train) > 0
    assert len(after.x_train) == len(after.y_train) == 0
    assert after.dim == before.dim
    np.testing.assert_array_equal(after.x_test, before.x_test)
    assert not np.shares_memory(after.x_test, before.x_test)


def test_driver_keeps_rows_that_jobs_in_this_process_read(tmp_path: Path) -> None:
    run = context(tmp_path, "dp-gaussian")
    (before,) = run.prepared.data.values()
    Scheduler(run, InProcess(NODES[0])).run(jobs_of(run))
    assert list(run.prepared.data.values()) == [before]
