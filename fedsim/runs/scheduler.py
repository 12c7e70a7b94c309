"""The scheduler: places a grid's cells on Ray, first come first served, and writes what they yield."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, cast

import ray

from fedsim.atomic import discard
from fedsim.evaluation.references import Ceiling, LocalOnly
from fedsim.evidence.audit.of_grid import ClaimAudit, audited_row
from fedsim.grouping import grouped
from fedsim.planning.gpu_memory import doubled, share_for
from fedsim.planning.node import Share, fit_together
from fedsim.planning.prepare import Prepared
from fedsim.regular import unread
from fedsim.results.generators import hold_back, save_generator
from fedsim.results.row import client_lines, failed_row, finished_row, refilled
from fedsim.results.rows import Row, RowError
from fedsim.results.store import ResultStore
from fedsim.runs.cluster import ClusterLost, Lifeline, live_nodes
from fedsim.runs.display import Display
from fedsim.runs.jobs import (
    Job,
    Measuring,
    Reference,
    ReferenceKey,
    key_of,
    named,
    references_of,
    shape_of,
    with_measurements,
    with_references,
)
from fedsim.runs.manifest import now, versions
from fedsim.runs.slots import Slot, Slots
from fedsim.runs.worker import Failure, Report, is_loss
from fedsim.training.checkpoint import keep, kept
from fedsim.training.trial import Outcome, Trial
from fedsim.words import counted, setting

if TYPE_CHECKING:
    from fedsim.evidence.audit.audit import Audit

Shape = tuple[int, Share]
"""How many actors, and what each takes."""
AGAIN = 2
"""How often a job that lost its slot runs again."""
LOOK_EVERY, TELL_AFTER, GIVE_UP_AFTER = 1.0, 30.0, 600.0
"""Seconds between looks at the cluster; until who waits in vain, or a reference that takes long, is told of; until waiting is the end."""


@dataclass(frozen=True)
class Running:
    """A job on its slot, since when."""

    job: Job
    slot: Slot
    since: float


class Scheduler:
    """Places cells and references on slots; the driver alone writes files.

    A cell's failure is its row. A slot that lost an actor or a node is replaced, and its job, whose fault that was not, runs again, a cell
    from its last checkpoint, up to :data:`AGAIN` times.
    """

    def __init__(self, prepared: Prepared, store: ResultStore, display: Display) -> None:
        self.store, self.display = store, display
        self.data = {key: ray.put(value) for key, value in prepared.data.items()}
        self.class_names = {key: value.class_names for key, value in prepared.data.items()}
        self.resources = prepared.grid.resources
        self.at_first, self.slots, self.share = prepared.nodes, Slots(prepared.nodes, prepared.parallel), prepared.share
        self.measuring = self.resources.gpus_per_actor == "auto"
        self.shares: dict[str, float] = {}
        self.queue: deque[Job] = deque()
        self.running: dict[Any, Running] = {}
        self.losses: Counter[tuple[str, ...]] = Counter()
        self.references: dict[ReferenceKey, Ceiling | LocalOnly | None] = {}
        self.long: set[str] = set()
        self.waiting: list[Callable[[], None]] = []
        self.audits: dict[str, Audit] = {}
        self.versions = versions()
        self.lifeline = Lifeline()
        self.looked, self.in_vain, self.at_rest = time.monotonic(), 0.0, 0.0

    def run(
        self,
        trials: Iterable[Trial],
        without_references: Iterable[tuple[Trial, Row]] = (),
        audits: Iterable[ClaimAudit] = (),
    ) -> None:
        """Run all ``trials``, the references that their rows and the finished rows ``without_references`` need, then the ``audits``.

        Raises:
            ClusterLost: nothing more can run.
        """
        lacking = list(without_references)
        self.waiting = [partial(self._fill_in, trial, row) for trial, row in lacking]
        jobs = with_references(trials, [trial for trial, _ in lacking])
        self.queue = deque([*(with_measurements(jobs) if self.measuring else jobs), *audits])
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
            raise  # actors end with the connection, and who asks a lost cluster to end them waits for it
        except BaseException:
            self.slots.close()
            raise
        self.slots.close()

    def _start_next(self) -> bool:
        """Start the first job that the nodes which are left can hold, if there is room for it now."""
        found = self._next()
        if found is None:
            return False
        at, shape = found
        job = self.queue[at]
        if isinstance(job, Trial) and shape is not None and not self._fits(shape):
            del self.queue[at]
            what = f"its {shape[0]} actors need {shape[1].gpus:g} of a GPU each at once, and the cluster has not so much"
            self._write(failed_row(job, RowError(type="OutOfMemoryError", message=what, traceback=""), self.versions))
            return True
        slot = None if shape is None else self.slots.take(*shape, any_shape=isinstance(job, Reference | ClaimAudit))
        if slot is None:
            return False
        del self.queue[at]
        self._start(job, slot)
        return True

    def _next(self) -> tuple[int, Shape | None] | None:
        """The position and shape of the first job whose cell the cluster can hold now, or never could; None: it is being measured.

        A reference takes whichever slot is free, or opens the one of the cell behind it. Cells for which a node is missing let others pass.
        """
        reference = None
        for at, job in enumerate(self.queue):
            if isinstance(job, Reference):
                reference = at if reference is None else reference
                continue
            shape = self._shape(job)
            if shape is None or fit_together([shape[1]] * shape[0], self.slots.nodes):
                return at if reference is None else reference, shape
            if not self._fits(shape):
                return at, shape
        return None if reference is None else (reference, (1, self.share))

    def _fits(self, shape: Shape) -> bool:
        """Whether the cluster can hold such a cell, or could when the bench began."""
        actors, share = shape
        return any(fit_together([share] * actors, nodes) for nodes in (self.at_first, self.slots.nodes))

    def _shape(self, job: Trial | Measuring | ClaimAudit) -> Shape | None:
        """How many actors a cell needs, and what each takes; None while that is being measured."""
        if not isinstance(job, Trial):
            return 1, self.share
        known = self.shares.get(job.cell.cell_id, self.shares.get(shape_of(job), None if self.measuring else self.share.gpus))
        actors, memory = len(job.sizes), self.resources.memory_per_cell or 0
        return None if known is None else (actors, self.share._replace(gpus=known, memory=memory / actors))

    def _start(self, job: Job, slot: Slot) -> None:
        if isinstance(job, Measuring):
            stream = slot.worker.measure.options(num_returns="streaming").remote(job.trial, self.data[job.trial.data_key])
        elif isinstance(job, ClaimAudit):
            stream = slot.worker.audit.options(num_returns="streaming").remote(job.trials[0].cell, job.run, self.store.audits(job.run.key))
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
        self.running[stream] = Running(job, slot, time.monotonic())
        self.at_rest = 0.0

    def _begin(self, trial: Trial, slot: Slot) -> Any:
        """Start a cell; its stream of reports."""
        cell, data = trial.cell, self.data[trial.data_key]
        told = (f"cell {cell.model_dump_json()}", f"plan {trial.plan}", f"clients per actor {trial.sizes}")
        self._log(trial, [f"started {now()}", *told])
        checkpoint = kept(self.store.folder.checkpoint(cell.cell_id))
        # In a list the data set stays a reference, for the worker to hand on to its cohort actors.
        return slot.worker.run.options(num_returns="streaming").remote(trial, data, [data], checkpoint)

    def _receive_next(self) -> None:
        """Take the next report of a stream, or note its end; not for longer than it is time to look around again."""
        if not self.running:
            time.sleep(LOOK_EVERY / 5)
            return
        ready: list[Any] = ray.wait(list(self.running), timeout=LOOK_EVERY)[0]
        for stream in ready:
            running = self.running.pop(stream)
            try:
                report: Report = ray.get(next(stream))
            except StopIteration:
                self.slots.give_back(running.slot)
            except ray.exceptions.RayError as error:
                self.lifeline.check()
                self._lose(running, Failure.of_lost_worker(error), again=is_loss(error))
            else:
                self.running[stream] = running  # behind the others, so that none is served more often
                self._take(running, report)

    def _look_around(self) -> None:
        """See what is left of the cluster, and whose time is up.

        Raises:
            ClusterLost: nothing is left.
        """
        self.lifeline.check()
        self.slots.nodes = live_nodes()
        displaced, limit = self.slots.displaced(), self.resources.cell_timeout or math.inf
        for stream, running in list(self.running.items()):
            self._tell_of_long(running)
            late = not isinstance(running.job, Reference | ClaimAudit) and time.monotonic() - running.since > limit
            if late or running.slot in displaced:
                del self.running[stream]
                what = f"it ran for longer than cell_timeout ({limit:g} s)" if late else "its machine left the cluster"
                self._lose(running, Failure("TimeoutError" if late else "NodeLost", what, "", goes_on=True), again=not late)

    def _tell_of_long(self, running: Running) -> None:
        """Say once of each kind of reference that it takes long: rows wait for it, and no round tells of it."""
        what, seconds = named(running.job), time.monotonic() - running.since
        if isinstance(running.job, Reference) and seconds > TELL_AFTER and what not in self.long:
            self.long.add(what)
            self.display.note(f"{what} runs for {seconds:.0f} s already, on real rows; rows of cells wait for it")

    def _count_waiting(self, since: float) -> None:
        """Count the seconds in which cells wait for the cluster rather than for each other, and those in which nothing runs besides.

        Raises:
            ClusterLost: nothing has run for a long time.
        """
        self.at_rest = 0.0 if self.running else self.at_rest + since
        if not self.queue or (self.running and not self.slots.opening):
            self.in_vain = 0
            return
        before, self.in_vain = self.in_vain, self.in_vain + since
        first = next((job for job in self.queue if not isinstance(job, Reference)), self.queue[0])
        actors, share = (None if isinstance(first, Reference) else self._shape(first)) or (1, self.share)
        gpus = f" and {counted(share.gpus, 'GPU')}" if share.gpus else ""
        has = ", ".join(node.words for node in self.slots.nodes) or "no machine"
        what = f"{named(first)} waits for {counted(actors, 'actor')} with {counted(share.cpus, 'CPU')}{gpus} each; the cluster has {has}"
        if before < TELL_AFTER <= self.in_vain:
            self.display.note(f"{what}, and others may use it")
        if self.at_rest > GIVE_UP_AFTER:
            raise ClusterLost(f"for {self.at_rest / 60:.0f} minutes {what}")

    def _lose(self, running: Running, failure: Failure, *, again: bool) -> None:
        """A job's slot is of no use any more: end what is left of it; the job runs again, or that was its end."""
        self.slots.drop(running.slot)
        job = running.job
        if again and self.losses[key_of(job)] < AGAIN:
            self.losses[key_of(job)] += 1
            self.display.note(f"{named(job)}: {failure.message}; it runs again")
            if isinstance(job, Trial):
                self._log(job, [failure.message])
                self.display.cell_queued(job.cell.cell_id)
            self.queue.appendleft(job)
        else:
            self._take(running, Report(end=failure))

    def _take(self, running: Running, report: Report) -> None:
        job = running.job
        if isinstance(job, Reference):
            self._take_reference(job, report)
        elif isinstance(job, ClaimAudit):
            self._take_audit(job, report)
        elif isinstance(job, Measuring):
            # who cannot even be measured gets a whole GPU, and its row says what is wrong
            self.shares[job.shape] = share_for(report.end) if isinstance(report.end, float) else self.share.gpus
        elif self._again(job, running.slot, report.end):
            self._log(job, log_lines(report))
        else:
            self._take_report(job, report)

    def _again(self, trial: Trial, slot: Slot, end: Any) -> bool:
        """Whether a cell ran out of a part of a GPU; it is then the next to run, on twice the share."""
        # a failure that goes on is Ray's of the same name: it ended a worker because its machine's memory was full
        if not isinstance(end, Failure) or end.type != "OutOfMemoryError" or end.goes_on or not 0 < slot.share.gpus < 1:
            return False
        larger = doubled(slot.share.gpus)
        cell = trial.cell
        self.display.note(f"{cell.label} (cell {cell.cell_id}) ran out of {slot.share.gpus:g} of a GPU; it runs again on {larger:g}")
        self.shares[cell.cell_id] = larger
        self.display.cell_queued(cell.cell_id)
        self.queue.appendleft(trial)
        return True

    def _take_reference(self, job: Reference, report: Report) -> None:
        self.references[job.key] = report.end if isinstance(report.end, Ceiling | LocalOnly) else None
        if isinstance(report.end, Failure):
            self._reference_failed(job, report.end)
        ready, self.waiting = self.waiting, []
        for finish in ready:
            finish()

    def _reference_failed(self, job: Reference, failure: Failure, meanwhile: str = "its column stays empty") -> None:
        self.display.note(f"the {job.key[0]} reference failed, {meanwhile}; the same command tries again: {failure.summary()}")

    def _take_audit(self, job: ClaimAudit, report: Report) -> None:
        """Keep an audit's pairs; at its end the rows of its claim that are written are so once more, as the last word."""
        self.store.append_audits(job.run.key, report.pairs)
        if isinstance(report.end, Failure):
            self.display.note(f"{named(job)} failed, its columns stay empty; the same command tries again: {report.end.summary()}")
        if report.audit is None:
            return
        audit = cast("Audit", report.audit)
        self.display.note(f"{named(job)}: {audit.words()}")
        own = {trial.cell.cell_id: trial for trial in job.trials}
        self.audits |= dict.fromkeys(own, audit)
        for row in self.store.rows():
            if row.cell_id in own and (told := self._audited(own[row.cell_id], row)) != row:
                self.store.append(told)

    def _audited(self, trial: Trial, row: Row) -> Row:
        """The row with what the audit of its claim says, if that has ended; a generator whose claim is refuted is held back."""
        if (audit := self.audits.get(row.cell_id)) is None:
            return row
        told = audited_row(row, audit)
        held = hold_back(self.store.folder, trial.cell) if told.status == "refuted" else None
        return told if held is None else told.model_copy(update={"generator": held})

    def _take_report(self, trial: Trial, report: Report) -> None:
        cell_id = trial.cell.cell_id
        self.store.append_rounds({"cell_id": cell_id, "round": r.round, **r.values} for r in report.rounds)
        self._log(trial, log_lines(report))
        if report.rounds:
            last = report.rounds[-1]
            self.display.round_done(cell_id, last.round + 1, last.rounds)
        if report.checkpoint is not None:
            self._keep(trial, report.checkpoint)
        if isinstance(report.end, Outcome):
            self._finish(trial, report.end)
        elif isinstance(report.end, Failure):
            if not report.end.goes_on:
                discard(self.store.folder.checkpoint(cell_id))
            error = RowError(type=report.end.type, message=report.end.message, traceback=report.end.traceback)
            self._write(failed_row(trial, error, self.versions))

    def _keep(self, trial: Trial, checkpoint: bytes) -> None:
        path = self.store.folder.checkpoint(trial.cell.cell_id)
        try:
            keep(path, checkpoint)
        except OSError as error:  # a cell can do without
            self._log(trial, [f"{path} cannot be written ({unread(error)}); the cell goes on without a new checkpoint"])

    def _finish(self, trial: Trial, outcome: Outcome) -> None:
        """Write the row of a cell that ran, once its references are there."""
        if (references := self._references(trial)) is None:
            self.waiting.append(partial(self._finish, trial, outcome))
            self.display.cell_waiting(trial.cell.cell_id)
            return
        row = finished_row(trial, outcome, *references, self.versions)
        self.store.append_clients(client_lines(trial.cell, outcome.judgement, references[1]))
        if self.resources.save_generators and outcome.generator is not None:
            facts = {"status": row.status, "epsilon_spent": row.epsilon_spent, "accountant": row.accountant}
            names = self.class_names[trial.data_key]
            saved = save_generator(self.store.folder, trial, names, outcome.generator, facts, self.versions)
            row = row.model_copy(update={"generator": saved})
        discard(self.store.folder.checkpoint(row.cell_id))  # before the row, after which nothing would ask for it: it may hold a key
        self._write(self._audited(trial, row))

    def _fill_in(self, trial: Trial, row: Row) -> None:
        """Write a finished row once more, with the references that it lacked, once they are there."""
        if (references := self._references(trial)) is None:
            self.waiting.append(partial(self._fill_in, trial, row))
            return
        filled = self._audited(trial, self._with_references(row, *references))
        if filled != row:
            self.store.append(filled)

    def _with_references(self, row: Row, ceiling: Ceiling | None, local_only: LocalOnly | None) -> Row:
        """The row with references that were computed later; its clients' lines are written with them."""
        lines = self._told.get(row.cell_id, [])
        filled, told = refilled(row, lines, ceiling, local_only)
        if told != lines:
            self.store.append_clients(told)
        return filled

    @cached_property
    def _told(self) -> dict[str, list[dict[str, Any]]]:
        """The clients' lines of the cells that were finished before, read once for all of them."""
        return grouped(self.store.clients(), lambda line: str(line["cell_id"]))

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
