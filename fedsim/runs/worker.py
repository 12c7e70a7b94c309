"""A worker: it trains and judges cells one after another, and computes references and audits, in the process that it is in."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from fedsim.data.embeddings import Embeddings
from fedsim.device import device_of
from fedsim.evaluation.judge import Judgement, judgement_of
from fedsim.evaluation.references import Ceiling, LocalOnly, ceiling, local_only
from fedsim.evaluation.tuning import run_tuned
from fedsim.grid.models import Cell
from fedsim.methods.messages import Pool, Tensors
from fedsim.partition import Partition, PartitionSpec
from fedsim.planning.gpu_memory import filled
from fedsim.planning.node import Share
from fedsim.planning.process import limit_memory, settle
from fedsim.plugins.code_hash import source_hash
from fedsim.plugins.registry import lookup
from fedsim.seeds import Seeds
from fedsim.training.checkpoint import SentCheckpoints
from fedsim.training.cohort import Cohort, build_algorithm
from fedsim.training.rounds import RoundRecord
from fedsim.training.trial import Outcome, Trial, local_pool, run_trial

FLUSH_SECONDS = 0.2
MOST_OUTPUT = 10_000_000
"""Characters that a cell may print."""


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


Item = Progress | Outcome | Judged | Ceiling | LocalOnly | Failure | float | object
"""What a worker streams: progress, then results or a failure."""


class PairsRun(Protocol):
    """A running audit (:class:`fedsim.evidence.audit.audit.AuditRun`)."""

    def missing(self, known: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Run what ``known`` lacks; yields a line for each pair."""

    def outcome(self, known: Sequence[dict[str, Any]]) -> object:
        """The result of all pairs."""


def exited(error: SystemExit) -> RuntimeError:
    """What a call of ``sys.exit`` in an algorithm is reported as; Ray would take it for a worker that died."""
    code = "" if error.code is None else repr(error.code)
    return RuntimeError(f"the algorithm called sys.exit({code}), which a cell may not").with_traceback(error.__traceback__)


def check_source(cell: Cell) -> None:
    """Check that this process imported the code that the cell's id stands for.

    Raises:
        RuntimeError: it was edited while the grid ran, or another machine of the cluster has another version.
    """
    if source_hash(lookup(cell.algorithm)) != cell.source:
        raise RuntimeError(f"the source of {cell.algorithm} is not what it was when the grid was read; run the same command again")


class Process:
    """A process that runs one job after another.

    Args:
        share: what it may take.
    """

    def __init__(self, share: Share) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # Ray is deaf to it, and what a plug-in starts should not be
        self.share, self.device = share, device_of(share.device, share.gpus)
        settle(share.cpus, self.device)
        self.folder = os.getcwd()
        self.latest: tuple[str, Embeddings] | None = None

    def make_ready(self, *, limited: bool = False) -> None:
        """Set folder, threads, torch's defaults and the memory limit again; ``limited``: the next job has no more memory than its share."""
        with contextlib.suppress(OSError):
            os.chdir(self.folder)
        settle(self.share.cpus, self.device)
        limit_memory(self.share.memory if limited else 0)

    def same(self, key: str, data: Embeddings) -> Embeddings:
        """The data set as the last call had it, so that rows on a device are known again: Ray makes an object of its own for every call."""
        if self.latest is None or self.latest[0] != key:
            self.latest = (key, data)
        return self.latest[1]


class Worker:
    """Runs jobs; all clients of a cell are in its process.

    Args:
        share: what it may take.
        capture: whether what a cell prints goes to its log; else it goes where it would go without fedsim.
    """

    def __init__(self, share: Share, *, capture: bool = True) -> None:
        self.process, self.capture = Process(share), capture
        self.device = self.process.device

    def pool(self, trial: Trial, data: Embeddings, held: Sequence[Any], seeds: Seeds) -> Pool:
        """The clients of a cell; ``held`` is the data set as an engine holds it, alone in a list."""
        return local_pool(trial, data, seeds, self.device)

    def failure(self, error: Exception | SystemExit) -> Failure:
        """Why a cell failed; memory that it was refused is reported in the grid's words."""
        failure, memory = Failure.of(error), self.process.share.memory
        if memory and (failure.type.endswith("MemoryError") or "can't allocate memory" in failure.message):
            what = f"an actor of the cell asked for more than its {memory / 1e9:g} GB of memory_per_cell"
            return replace(failure, type="MemoryError", message=f"{what}: {failure.message}")
        return failure

    def _job(self, steps: Callable[[Output], Iterator[Item]], *, limited: bool = False) -> Iterator[Item]:
        """What a job yields from what it prints; an exception ends it with a failure."""
        self.process.make_ready(limited=limited)
        with self._captured() as output:
            try:
                yield from steps(output)
            except (Exception, SystemExit) as error:
                yield Progress(output=output.drain())
                if not self.goes_on(error):
                    raise
                yield self.failure(error)

    def goes_on(self, error: Exception | SystemExit) -> bool:
        """Whether this worker is still of use after an exception."""
        return True

    def train(self, trial: Trial, data: Embeddings, held: Sequence[Any], checkpoint: bytes | None) -> Iterator[Item]:
        """Train a cell, then judge the result: progress, the outcome, the judgement; or a failure in place of either.

        Args:
            trial: the cell.
            data: its data set.
            held: see :meth:`pool`.
            checkpoint: where an earlier training of it stood.
        """
        own, checkpoints = self.process.same(trial.data_key, data), SentCheckpoints(checkpoint, trial.cell.training_id)

        def make_pool(trial: Trial, data: Embeddings, seeds: Seeds) -> Pool:
            return self.pool(trial, data, held, seeds)

        def steps(output: Output) -> Iterator[Item]:
            check_source(trial.cell)
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

    def measure(self, trial: Trial, data: Embeddings) -> Iterator[Item]:
        """The part of the GPU that the first actor of a cell fills in its first round."""
        own = self.process.same(trial.data_key, data)
        trial = trial.given(own)

        def steps(output: Output) -> Iterator[Item]:
            algorithm = build_algorithm(trial.cell.algorithm, trial.cell.params, trial.task)
            server = algorithm.initial_server(Seeds(trial.cell.seed).public).to(self.device)
            cohort = Cohort(trial.cohorts()[0], own.x_train, own.y_train, self.device)
            cohort.round(next(algorithm.schedule()), algorithm.phases()[0].broadcast(server))
            yield filled(self.device)

        yield from self._job(steps)

    def audit(self, cell: Cell, run: PairsRun, known: Sequence[dict[str, Any]]) -> Iterator[Item]:
        """What an audit lacks, in progress of some pairs each, and its outcome.

        Args:
            cell: one of those that make the claim.
            run: the audit.
            known: its pairs so far.
        """

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

        Args:
            trial: the cell.
            params: its parameters that differ from the defaults, as ``key=YAML`` texts; a check shortens the others for itself.
            quick: how it is checked.
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
