"""The scheduler: places jobs on an engine's slots, first come first served, and hands them what their workers yield."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fedsim.errors import PluginError
from fedsim.planning.gpu_memory import doubled
from fedsim.planning.node import Share, fit_together
from fedsim.runs.engine import ClusterLost, Engine, Slot, WorkerLost
from fedsim.runs.jobs import CellJob, Desk, Job, TrainingJob, measurement, shape_of
from fedsim.runs.slots import Slots
from fedsim.runs.worker import Failure, Item
from fedsim.words import counted

Shape = tuple[int, Share]
"""How many actors, and what each takes."""
MOST_LOSSES = 2
"""How often a job that lost its slot runs again."""
LOOK_EVERY, NOTE_AFTER, GIVE_UP_AFTER = 1.0, 30.0, 600.0
"""Seconds between looks at the cluster; until a job that waits in vain or takes long is noted; until waiting is the end."""


@dataclass(frozen=True)
class Running:
    """A job on its slot, since when."""

    job: Job
    slot: Slot
    since: float


def _turn(job: Job) -> tuple[int, str]:
    return (0 if job.plug_in and not job.any_slot else 2 if job.plug_in else 1), job.plug_in


class Scheduler:
    """Places jobs on slots; the driver alone writes files.

    A slot that lost an actor or a node is replaced, and its job, whose fault that was not, runs again, a training from its last
    checkpoint, up to :data:`MOST_LOSSES` times.
    """

    def __init__(self, desk: Desk, engine: Engine) -> None:
        prepared = desk.prepared
        self.desk, self.engine, self.display = desk, engine, desk.display
        self.resources, self.share = prepared.grid.resources, prepared.share
        self.at_first, self.slots = prepared.nodes, Slots(engine, prepared.nodes, prepared.parallel)
        self.measuring = self.resources.gpus_per_actor == "auto"
        self.shares: dict[str, float] = {}
        self.data: dict[str, Any] = {}
        self.queue: deque[Job] = deque()
        self.running: dict[Any, Running] = {}
        self.losses: Counter[tuple[str, ...]] = Counter()
        self.noted: set[str] = set()
        self.looked, self.in_vain, self.at_rest = time.monotonic(), 0.0, 0.0

    def run(self, jobs: Iterable[Job]) -> None:
        """Run all ``jobs``.

        Raises:
            ClusterLost: nothing more can run.
            PluginError: a plug-in fails its rehearsal, and cells are not to go on.
        """
        # cells of plug-ins come first, so that a mistake is told early, each one's together, because their slots are used for nothing else
        self.queue = deque(sorted(self._with_measurements(jobs) if self.measuring else jobs, key=_turn))
        try:
            while self.queue or self.running:
                while self.queue and self._start_next():
                    pass
                self._receive_next()
                if (since := time.monotonic() - self.looked) > LOOK_EVERY:
                    self._look_around()
                    self._count_waiting(since)
                    self.looked = time.monotonic()
        except (KeyboardInterrupt, ClusterLost):
            raise  # actors end with the connection; a lost cluster would not answer a request to end them
        except BaseException:
            self.slots.close()
            raise
        self.slots.close()

    def _with_measurements(self, jobs: Iterable[Job]) -> Iterable[Job]:
        """The jobs, a measurement right before the first cell of each shape."""
        seen: set[str] = set()
        for job in jobs:
            if isinstance(job, TrainingJob) and (shape := shape_of(job.trial)) not in seen:
                seen.add(shape)
                yield measurement(job.trial, self.shares, self.share.gpus)
            yield job

    def _put(self, key: str) -> Any:
        """A data set as the engine holds it, put there once."""
        if key not in self.data:
            self.data[key] = self.engine.put(self.desk.prepared.data[key])
        return self.data[key]

    def _start_next(self) -> bool:
        """Start the first job that the nodes which are left can hold, if there is room for it now."""
        for at, job in enumerate(self.queue):
            shape = self._shape(job)
            if shape is None:  # it is being measured
                return False
            if job.any_slot or fit_together([shape[1]] * shape[0], self.slots.nodes):
                slot = self.slots.take(*shape, any_shape=job.any_slot, plug_in=job.plug_in)
                if slot is not None:
                    del self.queue[at]
                    self._start(job, slot)
                return slot is not None
            if not self._fits(shape):
                del self.queue[at]
                what = f"its {shape[0]} actors need {shape[1].gpus:g} of a GPU each at once, and the cluster has not so much"
                job.take(Failure("OutOfMemoryError", what, ""))
                return True
            # a cell for which a node is missing lets others pass
        return False

    def _fits(self, shape: Shape) -> bool:
        """Whether the cluster can hold such a cell, or could when the bench began."""
        actors, share = shape
        return any(fit_together([share] * actors, nodes) for nodes in (self.at_first, self.slots.nodes))

    def _shape(self, job: Job) -> Shape | None:
        """How many actors a job needs, and what each takes; None while that is being measured."""
        if not isinstance(job, TrainingJob):
            return 1, self.share
        trial = job.trial
        known = self.shares.get(trial.cell.cell_id, self.shares.get(shape_of(trial), None if self.measuring else self.share.gpus))
        actors, memory = len(trial.sizes), self.resources.memory_per_cell or 0
        return None if known is None else (actors, self.share._replace(gpus=known, memory=memory / actors))

    def _start(self, job: Job, slot: Slot) -> None:
        stream = self.engine.start(slot, *job.call(self._put))
        self.running[stream] = Running(job, slot, time.monotonic())
        self.at_rest = 0.0

    def _receive_next(self) -> None:
        """Take the next item of a stream, or note its end; not for longer than it is time to look around again."""
        if not self.running:
            time.sleep(LOOK_EVERY / 5)
            return
        for stream in self.engine.ready(list(self.running), LOOK_EVERY):
            running = self.running.pop(stream)
            try:
                item = self.engine.receive(stream)
            except StopIteration:
                self.slots.give_back(running.slot)
            except WorkerLost as lost:
                self._lose(running, lost.failure, again=lost.again)
            else:
                self.running[stream] = running  # behind the others, so that none is served more often
                self._take(running, item)

    def _take(self, running: Running, item: Item) -> None:
        job, slot = running.job, running.slot
        if isinstance(item, Failure) and item.type == PluginError.__name__ and not self.desk.prepared.keep_going:
            raise PluginError("", item.message)
        # Ray's failure of the same name is a loss: it ended a worker because its machine's memory was full
        short = isinstance(item, Failure) and item.type == "OutOfMemoryError" and not item.goes_on and 0 < slot.share.gpus < 1
        if not (short and isinstance(job, TrainingJob)):
            job.take(item)
            return
        assert isinstance(item, Failure)
        cell, larger = job.trial.cell, doubled(slot.share.gpus)
        self.desk.log(job.trial, [item.traceback.rstrip("\n")])
        self.display.note(f"{job.name} ran out of {slot.share.gpus:g} of a GPU; it runs again on {larger:g}")
        self.shares[cell.cell_id] = larger
        self.display.cell_queued(cell.cell_id)
        self.queue.appendleft(job.again())

    def _look_around(self) -> None:
        """See what is left of the cluster, and whose time is up.

        Raises:
            ClusterLost: nothing is left.
        """
        self.slots.nodes = self.engine.nodes()
        displaced, limit = self.slots.displaced(), self.resources.cell_timeout or math.inf
        for stream, running in list(self.running.items()):
            self._note_long(running)
            late = running.job.limited and time.monotonic() - running.since > limit
            if late or running.slot in displaced:
                del self.running[stream]
                what = f"it ran for longer than cell_timeout ({limit:g} s)" if late else "its machine left the cluster"
                self._lose(running, Failure("TimeoutError" if late else "NodeLost", what, "", goes_on=True), again=not late)

    def _note_long(self, running: Running) -> None:
        """Note once for every kind of job without rounds that it takes long."""
        what, seconds = running.job.name, time.monotonic() - running.since
        if not isinstance(running.job, CellJob) and seconds > NOTE_AFTER and what not in self.noted:
            self.noted.add(what)
            self.display.note(f"{what} has been running for {seconds:.0f} s")

    def _count_waiting(self, since: float) -> None:
        """Count the seconds in which jobs wait for the cluster rather than for each other, and those in which nothing runs besides.

        Raises:
            ClusterLost: nothing has run for a long time.
        """
        self.at_rest = 0.0 if self.running else self.at_rest + since
        if not self.queue or (self.running and not self.slots.opening):
            self.in_vain = 0
            return
        before, self.in_vain = self.in_vain, self.in_vain + since
        first = next((job for job in self.queue if not job.any_slot), self.queue[0])
        actors, share = self._shape(first) or (1, self.share)
        gpus = f" and {counted(share.gpus, 'GPU')}" if share.gpus else ""
        has = ", ".join(node.words for node in self.slots.nodes) or "no machine"
        what = f"{first.name} waits for {counted(actors, 'actor')} with {counted(share.cpus, 'CPU')}{gpus} each; the cluster has {has}"
        if before < NOTE_AFTER <= self.in_vain:
            self.display.note(f"{what}, and others may use it")
        if self.at_rest > GIVE_UP_AFTER:
            raise ClusterLost(f"for {self.at_rest / 60:.0f} minutes {what}")

    def _lose(self, running: Running, failure: Failure, *, again: bool) -> None:
        """A job's slot is of no use any more: end what is left of it; the job runs again, or that was its end."""
        self.slots.drop(running.slot)
        job = running.job
        if again and self.losses[job.key] < MOST_LOSSES:
            self.losses[job.key] += 1
            self.display.note(f"{job.name}: {failure.message}; it runs again")
            if isinstance(job, CellJob):
                self.desk.log(job.trial, [failure.message])
                self.display.cell_queued(job.trial.cell.cell_id)
            self.queue.appendleft(job.again())
        else:
            job.take(failure)
