"""The scheduler: places jobs on an engine's slots, first come first served, and hands them what
their workers yield.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fedsim.grid.models import Device
from fedsim.runs.jobs import CellJob, Job, RunContext
from fedsim.runs.prepare import Need
from fedsim.runs.worker import ClusterLost, Failure, InProcess, Item, Slot, WorkerLost
from fedsim.training.trial import Outcome

if TYPE_CHECKING:
    from fedsim.runs.ray import RayEngine

    Engine = InProcess | RayEngine

MOST_LOSSES = 2
"""How often a job that lost its slot runs again."""
LOOK_EVERY = 1.0
"""Seconds between looks at the cluster."""


@dataclass
class Slots:
    """All slots of a bench, opened when they are needed: ``parallel`` at a time, of no more than
    ``capacity`` actors.
    """

    engine: Engine
    capacity: int
    parallel: int
    device: Device = "auto"
    idle: list[Slot] = field(default_factory=list)
    busy: list[Slot] = field(default_factory=list)

    def take(self, need: Need, *, any_slot: bool = False, plug_in: str = "") -> Slot | None:
        """A slot for a job; None if there is no room for it now.

        Code that is not shipped, ``plug_in``, may leave its process in any state: where it ran,
        nothing else runs any more.
        """
        if len(self.busy) >= self.parallel:
            return None
        usable = (
            slot
            for slot in self.idle
            if slot.plug_in in ("", plug_in) and (any_slot or slot.need == need)
        )
        slot = next(usable, None)
        if slot is not None:
            self.idle.remove(slot)
        else:
            self.end_idle()
            if sum(slot.need.actors for slot in self.busy) + need.actors > self.capacity:
                return None
            slot = self.engine.open(need, self.device)
        slot.plug_in = plug_in or slot.plug_in
        self.busy.append(slot)
        return slot

    def give_back(self, slot: Slot) -> None:
        """The slot's work is done."""
        self.busy.remove(slot)
        self.idle.append(slot)

    def drop(self, slot: Slot) -> None:
        """The slot is of no use any more: end what is left of it."""
        self.busy.remove(slot)
        self.engine.close(slot)

    def end_idle(self) -> None:
        """End the idle slots: a slot that waits for room may need theirs."""
        while self.idle:
            self.engine.close(self.idle.pop())

    def close(self) -> None:
        """End all slots."""
        self.idle += self.busy
        self.busy = []
        self.end_idle()


@dataclass
class Running:
    """A job on its slot; ``since`` is None until its worker has begun."""

    job: Job
    slot: Slot
    since: float | None = None


class Scheduler:
    """Places jobs on slots; the driver alone writes files.

    A slot that lost an actor is replaced, and its job, whose fault that was not, runs again, a
    training from its last checkpoint, up to
    :data:`MOST_LOSSES` times.
    """

    def __init__(self, run: RunContext, engine: Engine) -> None:
        prepared = run.prepared
        self.context = run
        self.engine = engine
        self.resources = prepared.grid.resources
        self.slots = Slots(
            engine, prepared.capacity(prepared.nodes), prepared.parallel, self.resources.device
        )
        self.data: dict[str, Any] = {}
        self.queue: deque[Job] = deque()
        self.running: dict[Any, Running] = {}
        self.losses: Counter[tuple[str, ...]] = Counter()
        self.trained: set[str] = set()
        self.looked = time.monotonic()

    def run(self, jobs: Iterable[Job]) -> None:
        """Run all ``jobs``: those of plug-ins first, so that a mistake shows at once, each one's
        together, because they share slots.
        """
        self.queue = deque(sorted(jobs, key=lambda job: (not job.plug_in, job.plug_in)))
        try:
            while self.queue or self.running:
                while self._start_next():
                    pass
                self._receive_next()
                if time.monotonic() - self.looked > LOOK_EVERY:
                    self._look_around()
                    self.looked = time.monotonic()
        except (KeyboardInterrupt, ClusterLost):
            # actors end with the connection; a lost cluster would not answer a request to end them
            raise
        except BaseException:
            self.slots.close()
            raise
        self.slots.close()

    def _put(self, key: str) -> Any:
        """A data set as the engine holds it, put there once."""
        if key not in self.data:
            self.data[key] = self.engine.put(self.context.prepared.data[key])
        return self.data[key]

    def _start_next(self) -> bool:
        """Start the first job for which the cluster has enough machines, if there is room for it
        now.
        """
        for at, job in enumerate(self.queue):
            if job.need.actors <= self.slots.capacity:
                slot = self.slots.take(job.need, any_slot=job.any_slot, plug_in=job.plug_in)
                if slot is not None:
                    del self.queue[at]
                    job.show_start()
                    self.running[self.engine.start(slot, *job.asked(self._put))] = Running(
                        job, slot
                    )
                return slot is not None
        if not self.queue:
            self.slots.end_idle()
        return False

    def _receive_next(self) -> None:
        """Take the next item of a stream, or note its end; not for longer than it is time to look
        around again.
        """
        if not self.running:
            time.sleep(LOOK_EVERY / 5)
            return
        for stream in self.engine.ready(list(self.running), LOOK_EVERY):
            running = self.running.pop(stream)
            try:
                item = self.engine.receive(stream)
            except StopIteration:
                self.context.display.job_ended(running.job.key)
                self.slots.give_back(running.slot)
            except WorkerLost as lost:
                self._lose(running, lost.failure, again=lost.again)
            else:
                self.running[stream] = (
                    running  # behind the others, so that none is served more often
                )
                running.since = running.since or time.monotonic()
                self._take(running.job, item)

    def _take(self, job: Job, item: Item) -> None:
        """Hand a job what its worker yields; the first failure of a plug-in that has trained
        nothing yet is its message.
        """
        if isinstance(item, Outcome):
            self.trained.add(job.plug_in)
        untried = (
            isinstance(job, CellJob)
            and job.training is None
            and job.plug_in not in ("", *self.trained)
        )
        if untried and isinstance(item, Failure) and not self.context.prepared.keep_going:
            raise self.context.refused(job, item)
        job.take(item)

    def _look_around(self) -> None:
        """See what is left of the cluster, and whose time is up."""
        self.slots.capacity = self.context.prepared.capacity(self.engine.nodes())
        now = time.monotonic()
        self.context.display.tick()
        limit = self.resources.cell_timeout or math.inf
        for stream, running in list(self.running.items()):
            if running.job.limited and now - (running.since or now) > limit:
                del self.running[stream]
                what = f"it ran for longer than cell_timeout ({limit:g} s)"
                self._lose(running, Failure("TimeoutError", what, "", goes_on=True), again=False)

    def _lose(self, running: Running, failure: Failure, *, again: bool) -> None:
        """A job's slot is of no use any more: the job runs again, or that was its end."""
        self.slots.drop(running.slot)
        job = running.job
        self.context.display.job_ended(job.key)
        if not again or self.losses[job.key] >= MOST_LOSSES:
            self._take(job, failure)
            return
        self.losses[job.key] += 1
        self.context.display.note(f"{job.name}: {failure.message}; it runs again")
        if isinstance(job, CellJob):
            self.context.store.log(job.trial.cell.cell_id, [failure.message])
            self.context.display.cell_queued(job.trial.cell.cell_id)
        self.queue.appendleft(job.again())
