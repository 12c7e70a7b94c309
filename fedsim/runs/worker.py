"""A worker: it trains and judges cells one after another, and computes references and audits, in
the process that it is in.

Also the engine that runs a scheduler's jobs on slots in this process, without Ray; its other form
is :class:`fedsim.runs.ray.RayEngine`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import logging
import os
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from threadpoolctl import threadpool_limits

from fedsim.data.embeddings import Embeddings
from fedsim.device import CPU, device_of, exact_products
from fedsim.errors import RunLost
from fedsim.evaluation.judge import Judgement, judgement_of
from fedsim.evaluation.scores import Ceiling, LocalOnly, ceiling, local_only
from fedsim.evaluation.tuning import run_tuned
from fedsim.grid.models import Cell, Device
from fedsim.methods.messages import Tensors
from fedsim.partition import Partition, PartitionSpec
from fedsim.plugins.code_hash import is_shipped, source_hash
from fedsim.plugins.registry import lookup
from fedsim.runs.prepare import Need, Node
from fedsim.seeds import Seeds
from fedsim.training.cohort import LocalPool
from fedsim.training.rounds import RoundRecord
from fedsim.training.state import Checkpoints
from fedsim.training.trial import (
    MADE_UP_ROWS,
    Outcome,
    Trial,
    local_pool,
    made_up_cohort,
    run_trial,
    train_rehearsed,
)

if TYPE_CHECKING:
    from fedsim.evidence.audit.audit import AuditRun

FLUSH_SECONDS = 0.2
KEPT_MEMORY = 2**29
"""Bytes of freed memory that a process keeps for its next step."""
_M_MMAP_MAX = -4
_M_TRIM_THRESHOLD = -1
"""Of glibc's malloc.h."""


@dataclass(frozen=True)
class Failure:
    """Why a job failed; ``goes_on``: a retry may continue from its checkpoint."""

    type: str
    message: str
    traceback: str
    goes_on: bool = False

    def summary(self) -> str:
        """Type and first line of the message."""
        return f"{self.type}: {self.message.strip().partition(chr(10))[0]}"


@dataclass(frozen=True)
class Progress:
    """What a worker streams while a job runs: rounds, output and an audit's pairs since the last
    one, and a new checkpoint.
    """

    rounds: tuple[RoundRecord, ...] = ()
    output: str = ""
    checkpoint: bytes | None = field(default=None, repr=False)
    pairs: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Judged:
    """A judgement, and its wall time."""

    judgement: Judgement
    seconds: float


Item = Progress | Outcome | Judged | Ceiling | LocalOnly | Failure | object
"""What a worker streams: progress, then results or a failure."""


def gathered(items: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    """What comes within :data:`FLUSH_SECONDS`, together; an exception comes after what came before
    it.
    """
    pending = list[Any]()
    sent = time.monotonic()
    try:
        for item in items:
            pending.append(item)
            if time.monotonic() - sent > FLUSH_SECONDS:
                yield tuple(pending)
                pending = []
                sent = time.monotonic()
    except (Exception, SystemExit):
        if pending:
            yield tuple(pending)
        raise
    if pending:
        yield tuple(pending)


def check_source(cell: Cell) -> None:
    """Check that this process imported the code that the cell's id stands for."""
    if source_hash(lookup(cell.algorithm)) != cell.source:
        raise RuntimeError(
            f"the source of {cell.algorithm} is not what it was when the grid was read; run "
            "the same command again"
        )


def settle(cpus: float, device: torch.device = CPU) -> None:
    """Make a process ready for training on its share of the machine: torch's defaults, which
    plug-ins change, threads and memory.
    """
    torch.set_default_dtype(torch.float32)
    if (
        torch.empty(0).device != CPU
    ):  # torch.get_default_device fails in older versions once the default was taken back
        torch.set_default_device(None)
    torch.set_grad_enabled(True)
    if device != CPU:
        exact_products()
    threads = max(1, int(cpus))
    torch.set_num_threads(threads)
    # numbers below 1e-38, as saturated layers leave them, take some processors a hundred times as
    # long as 0
    torch.set_flush_denormal(True)
    threadpool_limits(threads)
    # glibc gives large blocks back at every step, and the next step pays for every page anew: up to
    # a third of its time.
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, KEPT_MEMORY)


class Process:
    """A process that runs one job after another, on ``device``, with what ``need`` grants one
    actor.
    """

    def __init__(self, need: Need, device: Device) -> None:
        self.need = need
        self.device = device_of(device, need.gpus)
        settle(need.cpus, self.device)
        self.folder = os.getcwd()
        self.latest: tuple[str, Embeddings] | None = None

    def make_ready(self) -> None:
        """Set folder, threads and torch's defaults again."""
        with contextlib.suppress(OSError):
            os.chdir(self.folder)
        settle(self.need.cpus, self.device)

    def same(self, key: str, data: Embeddings) -> Embeddings:
        """The data set as the last call had it, so that rows on a device are known again: Ray makes
        an object of its own for every call.
        """
        if self.latest is None or self.latest[0] != key:
            self.latest = (key, data)
        return self.latest[1]


def _job(steps: Callable[..., Iterator[Item]]) -> Callable[..., Iterator[Item]]:
    """Makes a worker's method a job: a word that it has begun, then what it yields; an exception
    ends it with a failure.
    """

    @functools.wraps(steps)
    def job(worker: Worker, *given: Any) -> Iterator[Item]:
        worker.make_ready()
        yield Progress()
        with worker.captured():
            try:
                yield from steps(worker, *given)
            except (Exception, SystemExit) as error:
                yield Progress(output=worker.printed())
                if (failure := worker.failure(error)) is None:
                    raise
                yield failure

    return job


class Worker(Process):
    """Runs jobs; all clients of a cell are in its process. ``capture``: what a cell prints goes to
    its log.
    """

    def __init__(self, need: Need, device: Device = "auto", *, capture: bool = True) -> None:
        super().__init__(need, device)
        self.capture = capture
        self.output = io.StringIO()

    def pool(self, trial: Trial, data: Embeddings, held: Sequence[Any], seeds: Seeds) -> LocalPool:
        """The clients of a cell; ``held`` is the data set as an engine holds it, alone in a
        list.
        """
        return local_pool(trial, data, seeds, self.device)

    def failure(self, error: Exception | SystemExit) -> Failure | None:
        """Why a cell failed; None: this worker is of no use any more."""
        return Failure(type(error).__name__, str(error), "".join(traceback.format_exception(error)))

    @_job
    def train(
        self, trial: Trial, data: Embeddings, held: Sequence[Any], checkpoint: bytes | None
    ) -> Iterator[Item]:
        """Train a cell from its ``checkpoint``, then judge: progress, the outcome, the judgement;
        or a failure in place of either.
        """
        own = self.same(trial.data_key, data)
        checkpoints = Checkpoints(checkpoint, trial.cell.training_id)

        def make_pool(trial: Trial, data: Embeddings, seeds: Seeds) -> LocalPool:
            return self.pool(trial, data, held, seeds)

        check_source(trial.cell)
        if not is_shipped(
            lookup(trial.cell.algorithm)
        ):  # a loss that is not per example voids the plan
            task = replace(trial.task, clients=min(2, trial.task.clients))
            train_rehearsed(
                made_up_cohort(
                    trial.cell.algorithm, trial.cell.params, task, trial.plan, MADE_UP_ROWS
                ),
                trial.plan,
            )
        for steps in gathered(
            (run_tuned if trial.candidates else run_trial)(
                trial, own, make_pool, checkpoints, self.device
            )
        ):
            yield Progress(
                tuple(step for step in steps if isinstance(step, RoundRecord)),
                self.printed(),
                checkpoints.unsent(),
            )
            if isinstance(outcome := steps[-1], Outcome):
                yield outcome
                yield from self._judged(trial.ended(outcome), outcome.state, own)

    @_job
    def judge(self, trial: Trial, state: Tensors, data: Embeddings) -> Iterator[Item]:
        """Judge what a training made, from the ``state`` that it left."""
        yield from self._judged(trial, state, self.same(trial.data_key, data))

    def _judged(self, trial: Trial, state: Tensors, data: Embeddings) -> Iterator[Item]:
        started = time.perf_counter()
        judgement = judgement_of(trial, state, data, self.device)
        yield Progress(output=self.printed())
        yield Judged(judgement, time.perf_counter() - started)

    @_job
    def audit(self, cell: Cell, run: AuditRun, known: Sequence[dict[str, Any]]) -> Iterator[Item]:
        """What an audit lacks, in progress of some pairs each, and its outcome; ``known`` are its
        pairs so far.
        """
        check_source(cell)
        lines = list(known)
        for pairs in gathered(run.missing(known)):
            lines += pairs
            yield Progress(pairs=pairs)
        yield run.outcome(lines)

    @_job
    def check(self, cell: Cell, params: Sequence[str], quick: bool) -> Iterator[Item]:
        """The result lines of a check of a cell's algorithm in its unit and trust.

        ``params`` are those that differ from the defaults, as ``key=YAML`` texts; a check shortens
        the others for itself.
        """
        from fedsim.evidence.check.check import (
            check_algorithm,
            check_lines,
        )  # late, for few grids have checks

        check_source(cell)
        findings = list(check_algorithm(cell.algorithm, params, cell.unit, cell.trust, quick=quick))
        yield check_lines(cell.algorithm, cell.params, params, findings, quick=quick)

    @_job
    def reference(
        self,
        data: Embeddings,
        partition: Partition | None,
        spec: PartitionSpec,
        probe_c: float | None,
    ) -> Iterator[Item]:
        """The ceiling without a partition, local-only with one."""
        yield (
            ceiling(data, probe_c)
            if partition is None
            else local_only(data, partition, spec, probe_c)
        )

    @contextlib.contextmanager
    def captured(self) -> Iterator[None]:
        """Collects what the block's Python code prints, warns of or logs as a warning or worse, for
        the cell's log file.
        """
        if not self.capture:
            yield
            return
        handler = logging.StreamHandler(self.output)
        logging.captureWarnings(True)
        root = logging.getLogger()
        others = logging.getLogger().handlers  # such as opacus', which writes to the terminal
        root.handlers = [handler]
        try:
            with contextlib.redirect_stdout(self.output), contextlib.redirect_stderr(self.output):
                yield
        finally:
            root.handlers = others

    def printed(self) -> str:
        """What was printed since the last call."""
        text = self.output.getvalue()
        self.output.seek(0)
        self.output.truncate()
        return text


class ClusterLost(RunLost):
    """The cluster itself is gone, or has no room any more for what is left to do; ``what`` says
    which.
    """

    def __init__(self, what: str) -> None:
        super().__init__("the cluster is lost", what, "the same command goes on")


class WorkerLost(Exception):
    """A worker is of no use any more: its job ended with ``failure``; ``again``: that was no fault
    of the job.
    """

    def __init__(self, failure: Failure, *, again: bool) -> None:
        super().__init__(failure.summary())
        self.failure = failure
        self.again = again


@dataclass(eq=False)
class Slot:
    """The actors of one job, whose ``worker`` runs it on its and ``others``' shares, held by
    ``group``.

    ``plug_in``: the algorithm that is not shipped and whose code ran on it; ``stream``: of the job
    that was started last.
    """

    need: Need
    worker: Any
    others: tuple[Any, ...] = ()
    group: Any = None
    plug_in: str = ""
    stream: Any = None


@dataclass
class InProcess:
    """Runs each job where it is started from, item by item: breakpoints and profilers work, and
    nothing is started.

    All of ``node``, this machine, is one slot's; ``capture``: what a cell prints goes to its log.
    """

    node: Node
    capture: bool = False

    def put(self, value: Any) -> Any:
        """A value as jobs are given it: itself; an actor reads it without a copy where it can."""
        return value

    def nodes(self) -> tuple[Node, ...]:
        """What machines there are now."""
        return (self.node,)

    def open(self, need: Need, device: Device) -> Slot:
        """A worker in this process, whatever the number of actors; of actors, what is started waits
        until there is room for all.
        """
        return Slot(need, Worker(need, device, capture=self.capture))

    def close(self, slot: Slot) -> None:
        """The process stays: its settings are reset as before a job, and whatever else a plug-in
        changed is not.
        """
        if slot.stream is not None:
            slot.stream.close()  # else what is printed still goes to the log of its cell
        slot.worker.make_ready()
        torch.set_flush_denormal(False)

    def start(self, slot: Slot, method: str, *args: Any) -> Any:
        """Start a job, a method of :class:`fedsim.runs.worker.Worker`: its stream, equal to itself
        alone.
        """
        slot.stream = getattr(slot.worker, method)(*args)
        return slot.stream

    def ready(self, streams: Sequence[Any], timeout: float) -> list[Any]:
        """Streams whose next item is there or that have ended, none after so many seconds; here the
        first, which computes when asked.
        """
        return list(streams[:1])

    def receive(self, stream: Any) -> Item:
        """Compute up to the next item of a stream."""
        item: Item = next(stream)
        return item
