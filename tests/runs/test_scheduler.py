"""Which job runs where and when, and what its worker's end means for it."""

import io
import sys
from pathlib import Path

import pytest
from cells import NODES, quick, small_grid
from rich.console import Console

from fedsim.errors import PluginError
from fedsim.results.join import read_results
from fedsim.results.store import ResultStore
from fedsim.runs import scheduler
from fedsim.runs.display import Display
from fedsim.runs.engine import WorkerLost
from fedsim.runs.engine import InProcess
from fedsim.runs.items import Failure, Item
from fedsim.runs.jobs import CellJob, RunContext
from fedsim.runs.prepare import Need, Prepared, prepare
from fedsim.runs.scheduler import Scheduler, Slots
from fedsim.runs.side_jobs import references_of

ONE = Need(1.0)
TWO = Need(1.0, actors=2)


def slots(parallel: int = 4) -> Slots:
    return Slots(InProcess(NODES[0]), 4, parallel)


def context(prepared: Prepared, folder: Path) -> RunContext:
    return RunContext(
        prepared,
        ResultStore(folder),
        Display(Console(file=io.StringIO(), width=300), len(prepared.trials)),
    )


def told(run: RunContext) -> str:
    return run.display._console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_slot_serves_jobs_of_its_need_and_jobs_of_any_slot() -> None:
    held = slots()
    first = held.take(TWO)
    second = held.take(ONE)
    assert first is not None
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
    few = slots(parallel=2)
    assert [few.take(ONE) is None for _ in range(3)] == [False, False, True]
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "MOST_LOSSES", 1)
    prepared = prepare(small_grid("dp-gaussian"), NODES, 1)
    run = context(prepared, tmp_path)
    (trial,) = prepared.trials
    Scheduler(run, Losing(NODES[0])).run([*references_of(run, trial), CellJob(run, trial)])
    assert told(run).count("its worker died; it runs again") == 3
    assert told(run).count("reference failed; the same command tries again") == 2
    assert ResultStore(tmp_path).last("references") == {}
    assert [
        (row.status, row.error and row.error["type"]) for row in read_results(tmp_path).rows
    ] == [("failed", "ActorDiedError")]


def test_plug_in_runs_first_and_its_first_failure_is_raised(
    tmp_path: Path, plugins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(plugins)
    monkeypatch.syspath_prepend(str(plugins))
    prepared = prepare(small_grid("dp-gaussian", quick("plugin:Trouble"), seeds=[0, 1]), NODES, 1)
    run = context(prepared, tmp_path)
    printed = sys.stdout
    with pytest.raises(
        PluginError,
        match=r"^algorithms\[1\]\.name: its first cell failed: ZeroDivisionError: the third round",
    ) as raised:
        Scheduler(run, InProcess(NODES[0], capture=True)).run(
            [CellJob(run, trial) for trial in prepared.trials]
        )
    (log,) = (tmp_path / "logs").iterdir()
    assert str(log) in str(raised.value)
    assert 'raise ZeroDivisionError("the third round' in log.read_text()
    assert run.store.last("trainings") == {}
    assert sys.stdout is printed  # and no longer the log of the cell


def test_a_reference_is_shown_while_it_runs(tmp_path: Path) -> None:
    prepared = prepare(small_grid("dp-gaussian"), NODES, 1)
    run = context(prepared, tmp_path)
    seen: list[list[str]] = []

    class Looking(InProcess):
        """An engine that notes what the display says runs."""

        def receive(self, stream: object) -> Item:
            seen.append([job.name for job in run.display.others.values()])
            return super().receive(stream)

    Scheduler(run, Looking(NODES[0])).run(references_of(run, prepared.trials[0]))
    assert seen[0] == ["the ceiling reference"]
    assert seen[-1] == ["the local-only reference"]
    assert run.display.others == {}
