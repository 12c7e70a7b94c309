"""A worker: it trains and judges cells one after another, and computes references and audits, in the process that it is in."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import resource
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from fedsim.data.embeddings import Embeddings
from fedsim.device import CPU, device_of, exact_products
from fedsim.evaluation.judge import Judgement, judgement_of
from fedsim.evaluation.references import Ceiling, LocalOnly, ceiling, local_only
from fedsim.evaluation.tuning import run_tuned
from fedsim.grid.models import Cell, Device
from fedsim.methods.messages import Tensors
from fedsim.partition import Partition, PartitionSpec
from fedsim.plugins.code_hash import is_shipped, source_hash
from fedsim.plugins.registry import lookup
from fedsim.runs.need import Need
from fedsim.seeds import Seeds
from fedsim.training.cohort import LocalPool
from fedsim.training.rounds import RoundRecord
from fedsim.training.state import Checkpoints
from fedsim.training.trial import MADE_UP_ROWS, Outcome, Trial, local_pool, made_up_cohort, run_trial, train_rehearsed

if TYPE_CHECKING:
    from fedsim.evidence.audit.audit import AuditRun

FLUSH_SECONDS = 0.2
MOST_OUTPUT = 10_000_000
"""Characters that a cell may print."""
KEPT_MEMORY = 2**29
"""Bytes of freed memory that a process keeps for its next step."""
_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1
"""Of glibc's malloc.h."""


@dataclass(frozen=True)
class Failure:
    """Why a job failed: the exception's type and message, and the traceback of where it was raised first.

    ``goes_on``: a retry may continue from its checkpoint.
    """

    type: str
    message: str
    traceback: str
    goes_on: bool = False

    @classmethod
    def of(cls, error: Exception | SystemExit) -> Failure:
        """Of an exception."""
        error = exited(error) if isinstance(error, SystemExit) else error
        return cls(type(error).__name__, str(error), "".join(traceback.format_exception(error)))

    def summary(self) -> str:
        """Type and first line of the message."""
        return f"{self.type}: {self.message.strip().partition(chr(10))[0]}"


@dataclass(frozen=True)
class Progress:
    """What a worker streams while a job runs: rounds, output and an audit's pairs since the last one, and a new checkpoint."""

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


def exited(error: SystemExit) -> RuntimeError:
    """What a call of ``sys.exit`` in an algorithm is reported as; Ray would take it for a worker that died."""
    code = "" if error.code is None else repr(error.code)
    return RuntimeError(f"the algorithm called sys.exit({code}), which a cell may not").with_traceback(error.__traceback__)


def check_source(cell: Cell) -> None:
    """Check that this process imported the code that the cell's id stands for."""
    if source_hash(lookup(cell.algorithm)) != cell.source:
        raise RuntimeError(f"the source of {cell.algorithm} is not what it was when the grid was read; run the same command again")


def settle(cpus: float, device: torch.device = CPU) -> None:
    """Make a process ready for training on its share of the machine: so many threads, and memory that is kept for the next step."""
    reset_torch()
    if device != CPU:
        exact_products()
    threads = max(1, int(cpus))
    torch.set_num_threads(threads)
    # numbers below 1e-38, as saturated layers leave them, take some processors a hundred times as long as 0
    torch.set_flush_denormal(True)
    threadpool_limits(threads)
    # glibc gives large blocks back at every step, and the next step pays for every page anew: up to a third of its time.
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, KEPT_MEMORY)


def reset_torch() -> None:
    """Torch's default dtype and device, and gradients, which plug-ins change."""
    torch.set_default_dtype(torch.float32)
    if torch.empty(0).device != CPU:  # torch.get_default_device fails in older versions once the default was taken back
        torch.set_default_device(None)
    torch.set_grad_enabled(True)


@contextlib.contextmanager
def plug_in_code() -> Iterator[None]:
    """Runs a plug-in's code in the driver: afterwards torch's settings, numpy's error handling and the working folder are as before."""
    with contextlib.chdir("."), np.errstate():
        try:
            yield
        finally:
            reset_torch()


def limit_memory(bytes_: float) -> None:
    """Let this process take so many bytes more than it has now; 0: any number. What it asks for beyond is refused: a MemoryError.

    Shared memory, in which Ray keeps data sets, does not count.
    """
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    lines = Path("/proc/self/status").read_text().splitlines()
    has = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))
    resource.setrlimit(resource.RLIMIT_DATA, (has + int(bytes_) if bytes_ else hard, hard))


class Process:
    """A process that runs one job after another, on ``device``, with what ``need`` grants one actor."""

    def __init__(self, need: Need, device: Device) -> None:
        self.need, self.device = need, device_of(device, need.gpus)
        settle(need.cpus, self.device)
        self.folder = os.getcwd()
        self.latest: tuple[str, Embeddings] | None = None

    def make_ready(self, *, limited: bool = False) -> None:
        """Set folder, threads, torch's defaults and the memory limit again; ``limited``: the next job has no more memory than granted."""
        with contextlib.suppress(OSError):
            os.chdir(self.folder)
        settle(self.need.cpus, self.device)
        limit_memory(self.need.memory if limited else 0)

    def same(self, key: str, data: Embeddings) -> Embeddings:
        """The data set as the last call had it, so that rows on a device are known again: Ray makes an object of its own for every call."""
        if self.latest is None or self.latest[0] != key:
            self.latest = (key, data)
        return self.latest[1]


class Worker:
    """Runs jobs; all clients of a cell are in its process. ``capture``: what a cell prints goes to its log."""

    def __init__(self, need: Need, device: Device = "auto", *, capture: bool = True) -> None:
        self.process, self.capture = Process(need, device), capture
        self.device = self.process.device

    def pool(self, trial: Trial, data: Embeddings, held: Sequence[Any], seeds: Seeds) -> LocalPool:
        """The clients of a cell; ``held`` is the data set as an engine holds it, alone in a list."""
        return local_pool(trial, data, seeds, self.device)

    def failure(self, error: Exception | SystemExit) -> Failure:
        """Why a cell failed; memory that it was refused is reported in the grid's words."""
        failure, memory = Failure.of(error), self.process.need.memory
        if memory and (failure.type.endswith("MemoryError") or "can't allocate memory" in failure.message):
            what = f"an actor of the cell asked for more than its {memory / 1e9:g} GB of memory_per_cell"
            return replace(failure, type="MemoryError", message=f"{what}: {failure.message}")
        return failure

    def goes_on(self, error: Exception | SystemExit) -> bool:
        """Whether this worker is still of use after an exception."""
        return True

    def _job(self, steps: Callable[[Output], Iterator[Item]], *, limited: bool = False) -> Iterator[Item]:
        """What a job yields from what it prints, after a word that it has begun; an exception ends it with a failure."""
        self.process.make_ready(limited=limited)
        yield Progress()
        with self._captured() as output:
            try:
                yield from steps(output)
            except (Exception, SystemExit) as error:
                yield Progress(output=output.drain())
                if not self.goes_on(error):
                    raise
                yield self.failure(error)

    def train(self, trial: Trial, data: Embeddings, held: Sequence[Any], checkpoint: bytes | None) -> Iterator[Item]:
        """Train a cell from its ``checkpoint``, then judge: progress, the outcome, the judgement; or a failure in place of either."""
        own, checkpoints = self.process.same(trial.data_key, data), Checkpoints(checkpoint, trial.cell.training_id)

        def make_pool(trial: Trial, data: Embeddings, seeds: Seeds) -> LocalPool:
            return self.pool(trial, data, held, seeds)

        def steps(output: Output) -> Iterator[Item]:
            check_source(trial.cell)
            if not is_shipped(lookup(trial.cell.algorithm)):  # a loss that is not per example voids the plan
                task = replace(trial.task, clients=min(2, trial.task.clients))
                train_rehearsed(made_up_cohort(trial.cell.algorithm, trial.cell.params, task, trial.plan, MADE_UP_ROWS), trial.plan)
            pending, sent = list[RoundRecord](), time.monotonic()
            trained = (run_tuned if trial.candidates else run_trial)(trial, own, make_pool, checkpoints, self.device)
            try:
                for step in trained:
                    if isinstance(step, Outcome):
                        yield Progress(tuple(pending), output.drain())
                        pending = []
                        yield step
                        yield from self._judged(trial.ended(step), step.state, own, output)
                        return
                    pending.append(step)
                    unsent = checkpoints.unsent()
                    if unsent is not None or time.monotonic() - sent > FLUSH_SECONDS:
                        yield Progress(tuple(pending), output.drain(), unsent)
                        pending, sent = [], time.monotonic()
            except (Exception, SystemExit):
                yield Progress(tuple(pending), output.drain())
                raise

        yield from self._job(steps, limited=True)

    def judge(self, trial: Trial, state: Tensors, data: Embeddings) -> Iterator[Item]:
        """Judge what a training made, from the ``state`` that it left."""
        own = self.process.same(trial.data_key, data)
        yield from self._job(lambda output: self._judged(trial, state, own, output))

    def _judged(self, trial: Trial, state: Tensors, data: Embeddings, output: Output) -> Iterator[Item]:
        started = time.perf_counter()
        judgement = judgement_of(trial, state, data, self.device)
        yield Progress(output=output.drain())
        yield Judged(judgement, time.perf_counter() - started)

    def audit(self, cell: Cell, run: AuditRun, known: Sequence[dict[str, Any]]) -> Iterator[Item]:
        """What an audit lacks, in progress of some pairs each, and its outcome; ``known`` are its pairs so far."""

        def steps(output: Output) -> Iterator[Item]:
            check_source(cell)
            lines, pending, sent = list(known), list[dict[str, Any]](), time.monotonic()
            try:
                for line in run.missing(known):
                    pending.append(line)
                    if time.monotonic() - sent > FLUSH_SECONDS:
                        yield Progress(pairs=tuple(pending))
                        lines, pending, sent = lines + pending, [], time.monotonic()
            except (Exception, SystemExit):
                yield Progress(pairs=tuple(pending))
                raise
            yield Progress(pairs=tuple(pending))
            yield run.outcome(lines + pending)

        yield from self._job(steps)

    def check(self, trial: Trial, params: Sequence[str], quick: bool) -> Iterator[Item]:
        """The result lines of a check of a cell's algorithm in its unit and trust.

        ``params`` are those that differ from the defaults, as ``key=YAML`` texts; a check shortens the others for itself.
        """
        from fedsim.evidence.check.check import check_algorithm, check_lines  # late, for few grids have checks

        cell = trial.cell

        def steps(output: Output) -> Iterator[Item]:
            check_source(cell)
            findings = list(check_algorithm(cell.algorithm, params, cell.unit, cell.trust, quick=quick))
            yield check_lines(cell.algorithm, cell.params, findings, quick=quick)

        yield from self._job(steps)

    def reference(self, data: Embeddings, partition: Partition | None, spec: PartitionSpec, probe_c: float | None) -> Iterator[Item]:
        """The ceiling without a partition, local-only with one."""

        def steps(output: Output) -> Iterator[Item]:
            yield ceiling(data, probe_c) if partition is None else local_only(data, partition, spec, probe_c)

        yield from self._job(steps)

    @contextlib.contextmanager
    def _captured(self) -> Iterator[Output]:
        """Collects what the block's Python code prints, warns of or logs as a warning or worse, for the cell's log file."""
        output = Output()
        if not self.capture:
            yield output
            return
        handler = logging.StreamHandler(output)
        logging.captureWarnings(True)
        logging.getLogger().addHandler(handler)
        try:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                yield output
        finally:
            logging.getLogger().removeHandler(handler)


class Output(io.StringIO):
    """What a cell prints, up to :data:`MOST_OUTPUT` characters."""

    room = MOST_OUTPUT

    def write(self, text: str) -> int:
        """Take what there is room for, and say so when it is used up."""
        if self.room > 0:
            super().write(text[: self.room])
            self.room -= len(text)
            if self.room <= 0:
                super().write(f"\n(more than {MOST_OUTPUT / 1e6:g} MB of output; the rest of it is left out)\n")
        return len(text)

    def drain(self) -> str:
        """What was written since the last call."""
        text = self.getvalue()
        self.seek(0)
        self.truncate()
        return text
