"""The scheduler: places a grid's cells on Ray, first come first served, and writes what they yield."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import ray

from fedsim.evaluation.references import Ceiling, LocalOnly
from fedsim.partition import Partition, PartitionSpec
from fedsim.results.rows import Row, RowError
from fedsim.results.store import ResultStore
from fedsim.runtime.display import Display
from fedsim.runtime.manifest import versions
from fedsim.runtime.slots import Slot, Slots
from fedsim.runtime.worker import Failure, Report
from fedsim.simulation.checkpoint import Checkpoints
from fedsim.simulation.generators import save_generator
from fedsim.simulation.gpu_memory import doubled, share_for
from fedsim.simulation.node import Share, fit_together
from fedsim.simulation.preflight import Prepared
from fedsim.simulation.row import client_lines, failed_row, finished_row
from fedsim.simulation.trial import Outcome, Trial
from fedsim.words import setting

ReferenceKey = tuple[str, ...]


@dataclass(frozen=True)
class Reference:
    """A score of real data that several rows show: the ceiling, or local-only for one partition.

    Attributes:
        key: what it depends on.
        dataset: the data set's key.
        partition: None for the ceiling.
        spec: the partition's.
        probe_c: the probe's.
    """

    key: ReferenceKey
    dataset: str
    partition: Partition | None
    spec: PartitionSpec
    probe_c: float


def references_of(trial: Trial) -> tuple[Reference, Reference]:
    """A cell's ceiling and its local-only reference."""
    cell, partition = trial.cell, trial.partition
    data, spec, c = trial.data_key, cell.partition, cell.evaluation.probe_c
    return (
        Reference(("ceiling", data, str(c)), data, None, spec, c),
        Reference(("local-only", data, spec.scheme, partition.fingerprint, str(c)), data, partition, spec, c),
    )


@dataclass(frozen=True)
class Measuring:
    """The first round of the first cell of its shape, on a GPU of its own, to see how much of it such cells need."""

    trial: Trial

    @property
    def shape(self) -> str:
        """What decides how much memory a cell needs; equal for cells that are alike but for their seed and their budget."""
        return shape_of(self.trial)


Job = Trial | Reference | Measuring


def shape_of(trial: Trial) -> str:
    """What decides how much memory a cell needs."""
    return repr((trial.cell.algorithm, sorted(trial.cell.params.items()), trial.task, trial.sizes, trial.cell.dataset.key))


class Scheduler:
    """Places cells and references on slots; the driver alone writes files.

    A cell's failure is its row; a slot that lost an actor is replaced.
    """

    def __init__(self, prepared: Prepared, store: ResultStore, display: Display) -> None:
        self.store, self.display = store, display
        self.data = {key: ray.put(value) for key, value in prepared.data.items()}
        self.class_names = {key: value.class_names for key, value in prepared.data.items()}
        self.save_generators = prepared.grid.resources.save_generators
        self.slots, self.share = Slots(prepared.nodes, prepared.parallel), prepared.share
        self.measuring = prepared.grid.resources.gpus_per_actor == "auto"
        self.shares: dict[str, float] = {}
        self.queue: deque[Job] = deque()
        self.running: dict[Any, tuple[Slot, Job]] = {}
        self.references: dict[ReferenceKey, Ceiling | LocalOnly | None] = {}
        self.waiting: list[Callable[[], None]] = []
        self.versions = versions()

    def run(self, trials: Iterable[Trial]) -> None:
        """Run all ``trials`` and the references that their rows need."""
        queue = self.queue = deque(_with_measurements(_with_references(trials)) if self.measuring else _with_references(trials))
        try:
            while queue or self.running:
                while queue and (slot := self._slot(queue)) is not None:
                    self._start(queue.popleft(), slot)
                if not self.running:
                    continue
                ready, _ = ray.wait(list(self.running))
                self._receive(ready[0])
        finally:
            self.slots.close()

    def _slot(self, queue: deque[Job]) -> Slot | None:
        """A slot for the next job; a reference takes whichever is free, or opens the one of the job behind it."""
        first, job = queue[0], next((job for job in queue if not isinstance(job, Reference)), None)
        if job is None:  # the cells that needed these references do not fit
            queue.clear()
            return None
        if isinstance(job, Measuring):
            return self.slots.take(1, self.share, any_shape=isinstance(first, Reference))
        share = self._share(job)
        if share is None:  # it is being measured
            return None
        actors = len(job.sizes)
        if not fit_together([share] * actors, self.slots.nodes):
            queue.remove(job)
            what = f"its {actors} actors need {share.gpus:g} of a GPU each at once, and the cluster has not so much"
            self._write(failed_row(job, RowError(type="OutOfMemoryError", message=what, traceback=""), self.versions))
            return None
        return self.slots.take(actors, share, any_shape=isinstance(first, Reference))

    def _share(self, trial: Trial) -> Share | None:
        """What each actor of a cell takes; None while that is being measured."""
        known = self.shares.get(trial.cell.cell_id, self.shares.get(shape_of(trial), None if self.measuring else self.share.gpus))
        return None if known is None else self.share._replace(gpus=known)

    def _start(self, job: Job, slot: Slot) -> None:
        if isinstance(job, Measuring):
            stream = slot.worker.measure.options(num_returns="streaming").remote(job.trial, self.data[job.trial.data_key])
        elif isinstance(job, Reference):
            stream = slot.worker.reference.options(num_returns="streaming").remote(
                self.data[job.dataset], job.partition, job.spec, job.probe_c
            )
        else:
            cell = job.cell
            label = setting(
                cell.label, cell.dataset.display, alpha=cell.concentration, clients=cell.clients, epsilon=cell.epsilon, seed=cell.seed
            )
            self.display.cell_started(cell.cell_id, label)
            stream = self._begin(job, slot)
        self.running[stream] = (slot, job)

    def _begin(self, trial: Trial, slot: Slot) -> Any:
        """Start a cell; its stream of reports."""
        cell, data = trial.cell, self.data[trial.data_key]
        told = (f"cell {cell.model_dump_json()}", f"plan {trial.plan}", f"clients per actor {trial.sizes}")
        self._log(trial, [f"started {now()}", *told])
        # In a list the data set stays a reference, for the worker to hand on to its cohort actors.
        return slot.worker.run.options(num_returns="streaming").remote(trial, data, [data], self.store.folder.checkpoint(cell.cell_id))

    def _receive(self, stream: Any) -> None:
        """Take the next report of a stream, or note its end."""
        slot, job = self.running.pop(stream)
        try:
            report: Report = ray.get(next(stream))
        except StopIteration:
            self.slots.give_back(slot)
            return
        except ray.exceptions.RayError as error:
            self.slots.drop(slot)
            report = Report(end=Failure.of_lost_worker(error))
        else:
            self.running[stream] = (slot, job)  # behind the others, so that none is served more often
        if isinstance(job, Reference):
            self._take_reference(job, report)
        elif isinstance(job, Measuring):
            # who cannot even be measured gets a whole GPU, and its row says what is wrong
            self.shares[job.shape] = share_for(report.end) if isinstance(report.end, float) else self.share.gpus
        elif self._again(job, slot, report.end):
            self._log(job, log_lines(report))
        else:
            self._take_report(job, report)

    def _again(self, trial: Trial, slot: Slot, end: Any) -> bool:
        """Whether a cell ran out of a part of a GPU; it is then the next to run, on twice the share."""
        if not isinstance(end, Failure) or end.type != "OutOfMemoryError" or not 0 < slot.share.gpus < 1:
            return False
        larger = doubled(slot.share.gpus)
        cell = trial.cell
        self.display.note(f"{cell.label} (cell {cell.cell_id}) ran out of {slot.share.gpus:g} of a GPU; it runs again on {larger:g}")
        self.shares[cell.cell_id] = larger
        self.queue.appendleft(trial)
        return True

    def _take_reference(self, job: Reference, report: Report) -> None:
        self.references[job.key] = report.end if isinstance(report.end, Ceiling | LocalOnly) else None
        if isinstance(report.end, Failure):
            self.display.note(f"the {job.key[0]} reference failed, its column stays empty: {report.end.summary()}")
        ready, self.waiting = self.waiting, []
        for finish in ready:
            finish()

    def _take_report(self, trial: Trial, report: Report) -> None:
        cell_id = trial.cell.cell_id
        self.store.append_rounds({"cell_id": cell_id, "round": r.round, **r.values} for r in report.rounds)
        self._log(trial, log_lines(report))
        if report.rounds:
            last = report.rounds[-1]
            self.display.round_done(cell_id, last.round + 1, last.rounds)
        if isinstance(report.end, Outcome):
            self._finish(trial, report.end)
        elif isinstance(report.end, Failure):
            # What failed starts afresh when it is tried again: its code may have been changed.
            Checkpoints(self.store.folder.checkpoint(cell_id)).remove()
            error = RowError(type=report.end.type, message=report.end.message, traceback=report.end.traceback)
            self._write(failed_row(trial, error, self.versions))

    def _finish(self, trial: Trial, outcome: Outcome) -> None:
        """Write the row of a cell that ran, once its references are there."""
        if (references := self._references(trial)) is None:
            self.waiting.append(partial(self._finish, trial, outcome))
            return
        row = finished_row(trial, outcome, *references, self.versions)
        self.store.append_clients(client_lines(trial.cell, outcome.judgement, references[1]))
        if self.save_generators and outcome.generator is not None:
            facts = {"status": row.status, "epsilon_spent": row.epsilon_spent, "accountant": row.accountant}
            names = self.class_names[trial.data_key]
            saved = save_generator(self.store.folder, trial, names, outcome.generator, facts, self.versions)
            row = row.model_copy(update={"generator": saved})
        self._write(row)

    def _references(self, trial: Trial) -> tuple[Ceiling | None, LocalOnly | None] | None:
        """A cell's ceiling and local-only reference, None each where it failed; None as long as they are not there."""
        ceiling, local_only = (reference.key for reference in references_of(trial))
        if ceiling not in self.references or local_only not in self.references:
            return None
        high, low = self.references[ceiling], self.references[local_only]
        return high if isinstance(high, Ceiling) else None, low if isinstance(low, LocalOnly) else None

    def _write(self, row: Row) -> None:
        self.store.append(row)
        self.display.cell_finished(row)

    def _log(self, trial: Trial, lines: Iterable[str]) -> None:
        self.store.log(trial.cell.cell_id, lines)


def _with_references(trials: Iterable[Trial]) -> Iterator[Trial | Reference]:
    """The cells, each reference right before the first cell that needs it."""
    seen: set[ReferenceKey] = set()
    for trial in trials:
        for reference in references_of(trial):
            if reference.key not in seen:
                seen.add(reference.key)
                yield reference
        yield trial


def _with_measurements(jobs: Iterable[Trial | Reference]) -> Iterator[Job]:
    """The jobs, a measurement right before the first cell of each shape."""
    seen: set[str] = set()
    for job in jobs:
        if isinstance(job, Trial) and (shape := shape_of(job)) not in seen:
            seen.add(shape)
            yield Measuring(job)
        yield job


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def log_lines(report: Report) -> Iterator[str]:
    """A line a round, whatever the cell printed, how it ended."""
    for record in report.rounds:
        values = " ".join(f"{name}={_short(value)}" for name, value in record.values.items())
        yield f"round {record.round + 1}/{record.rounds} {values}"
    if report.output:
        yield report.output.rstrip("\n")
    if isinstance(report.end, Failure):
        yield report.end.traceback.rstrip("\n")
    elif report.end is not None:
        yield f"end {report.end}"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "[" + ",".join(_short(item) for item in value) + "]"
    return str(value)
