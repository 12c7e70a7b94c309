"""The scheduler: places jobs on an engine's slots, first come first served, and hands them what their workers yield."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fedsim.planning.node import Share, fit_together
from fedsim.runs.engine import ClusterLost, Engine, Slot, WorkerLost
from fedsim.runs.jobs import CellJob, Desk, Job, TrainingJob
from fedsim.runs.slots import Slots
from fedsim.runs.worker import Failure
from fedsim.words import counted

Shape = tuple[int, Share]
"""How many actors, and what each takes."""
MOST_LOSSES = 2
"""How often a job that lost its slot runs again."""
LOOK_EVERY, GIVE_UP_AFTER = 1.0, 600.0
"""Seconds between looks at the cluster; in which nothing runs, until waiting is the end."""


@dataclass(frozen=True)
class Running:
    """A job on its slot, since when."""

    job: Job
    slot: Slot
    since: float


class Scheduler:
    """Places jobs on slots; the driver alone writes files.

    A slot that lost an actor or a node is replaced, and its job, whose fault that was not, runs again, a training from its last
    checkpoint, up to :data:`MOST_LOSSES` times.
    """

    def __init__(self, desk: Desk, engine: Engine) -> None:
        prepared = desk.prepared
        self.desk, self.engine, self.display = desk, engine, desk.display
        self.resources, self.share = prepared.grid.resources, prepared.share
        self.slots = Slots(engine, prepared.nodes, prepared.parallel)
        self.data: dict[str, Any] = {}
        self.queue: deque[Job] = deque()
        self.running: dict[Any, Running] = {}
        self.losses: Counter[tuple[str, ...]] = Counter()
        self.looked = self.rested = time.monotonic()

    def run(self, jobs: Iterable[Job]) -> None:
        """Run all ``jobs``.

        Raises:
            ClusterLost: nothing more can run.
        """
        # plug-ins come first, so that a mistake shows at once, each one's jobs together, because their slots are used for nothing else
        self.queue = deque(sorted(jobs, key=lambda job: (not job.plug_in, job.plug_in)))
        try:
            while self.queue or self.running:
                while self.queue and self._start_next():
                    pass
                self._receive_next()
                if time.monotonic() - self.looked > LOOK_EVERY:
                    self._look_around()
                    self._count_waiting()
                    self.looked = time.monotonic()
        except (KeyboardInterrupt, ClusterLost):
            raise  # actors end with the connection; a lost cluster would not answer a request to end them
        except BaseException:
            self.slots.close()
            raise
        self.slots.close()

    def _put(self, key: str) -> Any:
        """A data set as the engine holds it, put there once."""
        if key not in self.data:
            self.data[key] = self.engine.put(self.desk.prepared.data[key])
        return self.data[key]

    def _start_next(self) -> bool:
        """Start the first job that the nodes which are left can hold, if there is room for it now."""
        for at, job in enumerate(self.queue):
            shape = self._shape(job)
            if job.any_slot or fit_together([shape[1]] * shape[0], self.slots.nodes):
                slot = self.slots.take(*shape, any_shape=job.any_slot, plug_in=job.plug_in)
                if slot is not None:
                    del self.queue[at]
                    self._start(job, slot)
                return slot is not None
            # a cell for which a node is missing lets others pass
        return False

    def _shape(self, job: Job) -> Shape:
        """How many actors a job needs, and what each takes."""
        if not isinstance(job, TrainingJob):
            return 1, self.share
        actors = len(job.trial.sizes)
        return actors, self.share._replace(memory=(self.resources.memory_per_cell or 0) / actors)

    def _start(self, job: Job, slot: Slot) -> None:
        stream = self.engine.start(slot, *job.call(self._put))
        self.running[stream] = Running(job, slot, time.monotonic())

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
                running.job.take(item)

    def _look_around(self) -> None:
        """See what is left of the cluster, and whose time is up.

        Raises:
            ClusterLost: nothing is left.
        """
        self.slots.nodes = self.engine.nodes()
        displaced, limit = self.slots.displaced(), self.resources.cell_timeout or math.inf
        for stream, running in list(self.running.items()):
            late = running.job.limited and time.monotonic() - running.since > limit
            if late or running.slot in displaced:
                del self.running[stream]
                what = f"it ran for longer than cell_timeout ({limit:g} s)" if late else "its machine left the cluster"
                self._lose(running, Failure("TimeoutError" if late else "NodeLost", what, "", goes_on=True), again=not late)

    def _count_waiting(self) -> None:
        """Give up once nothing has run for a long time.

        Raises:
            ClusterLost: nothing has.
        """
        if self.running or not self.queue:
            self.rested = time.monotonic()
        elif time.monotonic() - self.rested > GIVE_UP_AFTER:
            first = self.queue[0]
            actors, share = self._shape(first)
            gpus = f" and {counted(share.gpus, 'GPU')}" if share.gpus else ""
            has = ", ".join(node.words for node in self.slots.nodes) or "no machine"
            needs = f"{counted(actors, 'actor')} with {counted(share.cpus, 'CPU')}{gpus} each"
            raise ClusterLost(f"for {GIVE_UP_AFTER / 60:.0f} minutes {first.name} waits for {needs}; the cluster has {has}")

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
