"""The scheduler runs the jobs of a bench on groups of worker processes, the slots.

It hands every item that a worker yields to the worker's job. It runs a job again if its slot was
lost, and it ends a training whose ``cell_timeout`` is over.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from fedsim.grid.models import Device
from fedsim.results.records import TrainingRecord
from fedsim.runs.engine import ClusterLost, Engine, Slot, WorkerLost
from fedsim.runs.items import Failure, Item
from fedsim.runs.jobs import CellJob, Job, RunContext
from fedsim.runs.prepare import Need

MOST_LOSSES = 2
"""A job that lost its slot runs again at most this many times."""
LOOK_EVERY = 1.0
"""The seconds between two checks of the cluster and of the jobs' times."""


@dataclass
class Slots:
    """The slots of a bench, each opened when a job first needs it.

    Attributes:
        engine: the engine that opens the slots.
        capacity: the most actors that all slots may have together.
        parallel: the most jobs that may run at a time.
        device: the device that the grid asks for.
        idle: the slots without a job.
        busy: the slots with a job.
    """

    engine: Engine
    capacity: int
    parallel: int
    device: Device = "auto"
    idle: list[Slot] = field(default_factory=list)
    busy: list[Slot] = field(default_factory=list)

    def take(self, need: Need, *, any_slot: bool = False, plug_in: str = "") -> Slot | None:
        """Return a slot for a job; None if there is no room for it now.

        Args:
            need: the actors that the job needs.
            any_slot: whether a slot that was opened for another need will do.
            plug_in: the name of the job's algorithm if it is a plug-in, else an empty text. A
                plug-in may leave its process in any state, so no other code runs on its slot
                afterwards.
        """
        if len(self.busy) >= self.parallel:
            return None
        slot = self._idle_slot(need, any_slot=any_slot, plug_in=plug_in)
        if slot is None:
            self.end_idle()
            actors = need.actors + sum(busy.need.actors for busy in self.busy)
            if actors > self.capacity:
                return None
            slot = self.engine.open(need, self.device)
        slot.plug_in = plug_in
        self.busy.append(slot)
        return slot

    def _idle_slot(self, need: Need, *, any_slot: bool, plug_in: str) -> Slot | None:
        """Remove the first usable slot from the idle ones and return it; None if there is none."""
        for slot in self.idle:
            if slot.plug_in in ("", plug_in) and (any_slot or slot.need == need):
                self.idle.remove(slot)
                return slot
        return None

    def give_back(self, slot: Slot) -> None:
        """Make a busy slot idle."""
        self.busy.remove(slot)
        self.idle.append(slot)

    def drop(self, slot: Slot) -> None:
        """End a busy slot that cannot be used any more."""
        self.busy.remove(slot)
        self.engine.close(slot)

    def end_idle(self) -> None:
        """End the idle slots, so that a slot for another need has room."""
        while self.idle:
            self.engine.close(self.idle.pop())

    def close(self) -> None:
        """End all slots."""
        self.idle += self.busy
        self.busy = []
        self.end_idle()


@dataclass
class Running:
    """A job on its slot.

    Attributes:
        job: the job.
        slot: its slot.
        limited: whether the job may not run for longer than the grid's ``cell_timeout``.
        since: the time of its first item, by the monotonic clock; None before that.
    """

    job: Job
    slot: Slot
    limited: bool
    since: float | None = None


class Scheduler:
    """Runs jobs on slots: first the jobs of plug-ins, then the others in their given order.

    A job that needs more actors than the cluster has is skipped until there are enough.

    The scheduler and the jobs are in the driver, which alone writes files. If a slot loses an
    actor, the scheduler closes the slot and runs its job again on a new one. A training then
    continues from its last checkpoint. A job runs again at most :data:`MOST_LOSSES` times.

    Args:
        run: the grid, its run folder and its display.
        engine: the engine that opens the slots.
    """

    def __init__(self, run: RunContext, engine: Engine) -> None:
        prepared = run.prepared
        self.context = run
        self.engine = engine
        self.resources = prepared.grid.resources
        capacity = prepared.need.fit_all(prepared.nodes)
        self.slots = Slots(engine, capacity, prepared.parallel, self.resources.device)
        self.in_engine: dict[str, Any] = {}
        self.queue: deque[Job] = deque()
        self.running: dict[Any, Running] = {}
        self.losses: Counter[tuple[str, ...]] = Counter()
        self.looked = time.monotonic()
        self.waiting = False

    def run(self, jobs: Iterable[Job]) -> None:
        """Run all jobs.

        The jobs of plug-ins come first, so that mistakes show early. The jobs of one plug-in come
        together, because they share slots.

        Raises:
            ClusterLost: the cluster is gone.
            PluginError: the first training of a plug-in failed, and ``keep_going`` is not set.
        """
        self.queue = deque(sorted(jobs, key=lambda job: (not job.plug_in, job.plug_in)))
        try:
            while self.queue or self.running:
                self._start_jobs()
                self._receive_next()
                if time.monotonic() - self.looked > LOOK_EVERY:
                    self._look_around()
                    self.looked = time.monotonic()
        except (KeyboardInterrupt, ClusterLost):
            # Actors end with the connection. A lost cluster would not answer a request to end them.
            raise
        except BaseException:
            self.slots.close()
            raise
        self.slots.close()

    def _put(self, key: str) -> Any:
        """Return the form of a data set that the engine passes to jobs, such as a reference.

        Each data set is put into the engine once. If the engine copies it, the driver drops its
        own training rows, so that they are not in memory twice. Whatever needs them in the driver,
        such as warnings, fingerprints, the manifest and the keys of references, is computed before
        the jobs run.
        """
        if key not in self.in_engine:
            in_driver = self.context.prepared.data
            self.in_engine[key] = self.engine.put(in_driver[key])
            if self.in_engine[key] is not in_driver[key]:
                in_driver[key] = in_driver[key].without_training_rows()
        return self.in_engine[key]

    def _start_jobs(self) -> None:
        """Start jobs of the queue as long as there is room for the first one that can run.

        Once the queue is empty, the idle slots are ended, because no job needs them any more.
        """
        while self.queue:
            job = self._first_that_fits()
            if job is None:
                return
            slot = self.slots.take(job.need, any_slot=not job.trains, plug_in=job.plug_in)
            if slot is None:
                return
            self.queue.remove(job)
            self.context.display.job_started(job.key, job.name)
            stream = self.engine.start(slot, *job.request(self._put))
            self.running[stream] = Running(job, slot, job.trains)
        self.slots.end_idle()

    def _first_that_fits(self) -> Job | None:
        """Return the first job for which the whole cluster has enough actors; None without one."""
        return next((job for job in self.queue if job.need.actors <= self.slots.capacity), None)

    def _receive_next(self) -> None:
        """Hand the next item of each running job that has one to the job.

        If there is no next item, because the job has ended or its slot was lost, the slot is given
        back or dropped. If nothing runs, this waits for a moment.
        """
        if not self.running:
            self._wait()
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
                # The stream goes behind the others, so that none is served more often.
                self.running[stream] = running
                running.since = running.since or time.monotonic()
                self._take(running.job, item)

    def _wait(self) -> None:
        """Wait a moment for more machines, without which no job can run; say once that it waits."""
        if not self.waiting:
            self.context.display.note(
                "waiting for more machines: each job that is left needs more actors at once than "
                f"the cluster has room for ({self.slots.capacity})"
            )
        self.waiting = True
        time.sleep(LOOK_EVERY / 5)

    def _take(self, job: Job, item: Item) -> None:
        """Hand an item to its job.

        Raises:
            PluginError: the item is the failure of a training of a plug-in that has not trained
                anything yet, and ``keep_going`` is not set.
        """
        if isinstance(item, Failure) and isinstance(job, CellJob):
            self._check_first_training(job, item)
        job.take(item)

    def _check_first_training(self, job: CellJob, failure: Failure) -> None:
        """End the bench if a training of a plug-in failed and none with its code has succeeded.

        Raises:
            PluginError: no training with this code has succeeded yet, and ``keep_going`` is not
                set.
        """
        if not job.trains or not job.plug_in or self.context.prepared.keep_going:
            return
        trainings: dict[str, TrainingRecord] = self.context.store.last("trainings")
        for line in trainings.values():
            if line["error"] is None and line["cell"]["source"] == job.trial.cell.source:
                return
        raise job.plugin_error(failure)

    def _look_around(self) -> None:
        """Update the room of the cluster and the display, and end the jobs whose time is up."""
        self.slots.capacity = self.context.prepared.need.fit_all(self.engine.nodes())
        now = time.monotonic()
        self.context.display.tick()
        limit = self.resources.cell_timeout or math.inf
        for stream, running in list(self.running.items()):
            seconds = now - (running.since or now)
            if running.limited and seconds > limit:
                del self.running[stream]
                what = f"it ran for longer than cell_timeout ({limit:g} s)"
                failure = Failure("TimeoutError", what, "", goes_on=True)
                self._lose(running, failure, again=False)

    def _lose(self, running: Running, failure: Failure, *, again: bool) -> None:
        """Drop a job's slot, then queue the job again or hand it its failure.

        Args:
            running: the job and its slot.
            failure: why the slot cannot be used any more.
            again: whether the job should run again.
        """
        self.slots.drop(running.slot)
        job = running.job
        self.context.display.job_ended(job.key)
        if not again or not job.may_run_again or self.losses[job.key] >= MOST_LOSSES:
            self._take(job, failure)
            return
        self.losses[job.key] += 1
        self.context.display.note(f"{job.name}: {failure.message}; it runs again")
        if isinstance(job, CellJob):
            self.context.store.log(job.trial.cell.cell_id, [failure.message])
        self.queue.appendleft(job)
