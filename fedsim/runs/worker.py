"""The Ray actors: a trial worker runs cells one after another, cohort actors host further clients of a cell that is spread out."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import signal
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from fedsim.data.embeddings import Embeddings
from fedsim.device import CPU, bytes_of, device_of, exact_products, moved
from fedsim.evaluation.judge import Judgement
from fedsim.evaluation.references import Ceiling, LocalOnly, ceiling, local_only
from fedsim.grid.models import Cell
from fedsim.methods.messages import Message, Pool, Round, Tensors
from fedsim.partition import Partition, PartitionSpec
from fedsim.planning.gpu_memory import filled
from fedsim.planning.node import Share
from fedsim.planning.process_state import ProcessState, limit_memory
from fedsim.plugins.code_hash import source_hash
from fedsim.plugins.registry import lookup
from fedsim.results.rejudging import judged_anew
from fedsim.seeds import Seeds
from fedsim.training.checkpoint import SentCheckpoints
from fedsim.training.cohort import Cohort, CohortSpec, build_algorithm, join_clients, split_clients
from fedsim.training.rounds import RoundRecord
from fedsim.training.trial import Outcome, Trial, local_pool, run_trial

FLUSH_SECONDS = 0.2
OUTPUT = 10_000_000
"""Characters that a cell may print."""
KEPT = 2**29
"""Bytes of freed memory that a process keeps for its next step."""
_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1
"""Of glibc's malloc.h."""
IN_THE_CALL = int(os.environ.get("RAY_max_direct_call_object_size", 100 * 2**10))  # noqa: SIM112 (Ray's spelling)
"""Bytes that Ray sends within a call (its own setting); more goes through the object store."""


@dataclass(frozen=True)
class Failure:
    """Why a cell ended badly: the exception's type and message, and the traceback of where it was raised first.

    ``goes_on``: it may go on from its checkpoint when it is tried again.
    """

    type: str
    message: str
    traceback: str
    goes_on: bool = False

    @classmethod
    def of(cls, error: Exception | SystemExit) -> Failure:
        """Of an exception; one from another actor comes wrapped, with the traceback over there as its text."""
        if isinstance(error, SystemExit):
            return cls.of(_exited(error))
        if isinstance(error, ray.exceptions.RayTaskError):
            return cls(type(error.cause).__name__, str(error.cause), str(error))
        return cls(type(error).__name__, str(error), "".join(traceback.format_exception(error)))

    @classmethod
    def of_lost_worker(cls, error: ray.exceptions.RayError) -> Failure:
        """Of a worker process that is gone."""
        cause = getattr(error, "cause", None) or error
        if not is_loss(error):
            return cls.of(error)
        what = "a worker process of the cell died (killed, out of memory, or it crashed)"
        return cls(type(cause).__name__, what, str(cause), goes_on=True)

    def summary(self) -> str:
        """Type and first line of the message."""
        return f"{self.type}: {self.message.strip().partition(chr(10))[0]}"


def is_loss(error: ray.exceptions.RayError) -> bool:
    """Whether a process, a machine or an object was lost, rather than an exception raised."""
    return isinstance(error.cause if isinstance(error, ray.exceptions.RayTaskError) else error, ray.exceptions.RayError)


@dataclass(frozen=True)
class Report:
    """What a worker streams to the driver: rounds and output since the last report, a new checkpoint, and at the end how it ended.

    ``pairs`` are an audit's lines since the last report, ``audit`` is what it says at the end.
    """

    rounds: tuple[RoundRecord, ...] = ()
    output: str = ""
    checkpoint: bytes | None = field(default=None, repr=False)
    end: Outcome | Judgement | Failure | Ceiling | LocalOnly | float | None = None
    pairs: tuple[dict[str, Any], ...] = ()
    audit: object = None


class Lines(Protocol):
    """An audit under way (:class:`fedsim.evidence.audit.run.AuditRun`), whose code is none that a cell's id stands for."""

    def missing(self, found: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Run what ``found`` lacks, a line each."""

    def outcome(self, found: Sequence[dict[str, Any]]) -> object:
        """What all lines say."""


def _exited(error: SystemExit) -> RuntimeError:
    """What a call of ``sys.exit`` in an algorithm is told as; Ray would take it for a worker that died."""
    exited = RuntimeError(f"the algorithm called sys.exit({'' if error.code is None else repr(error.code)}), which a cell may not")
    return exited.with_traceback(error.__traceback__)


def settle(cpus: float, device: torch.device = CPU) -> None:
    """Make a process ready for training on its share of the machine: so many threads, and memory that is kept for the next step."""
    if device != CPU:
        exact_products()
    threads = max(1, int(cpus))
    torch.set_num_threads(threads)
    # numbers below 1e-38, as saturated layers leave them, take some processors a hundred times as long as 0
    torch.set_flush_denormal(True)
    threadpool_limits(threads)
    # glibc gives large blocks back at every step, and the next step pays for every page anew: up to a third of its time.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, KEPT)


def send_tensors_as_bytes() -> None:
    """Let Ray send tensors as arrays of bytes, which it does not pickle, and take them into memory of torch's own.

    Memory that Ray holds is read-only and aligned by chance.
    """
    ray.util.register_serializer(torch.Tensor, serializer=_sent, deserializer=_received)


def _sent(tensor: torch.Tensor) -> tuple[NDArray[np.uint8], torch.dtype, torch.Size]:
    return bytes_of(tensor), tensor.dtype, tensor.shape


def _received(sent: tuple[NDArray[np.uint8], torch.dtype, torch.Size]) -> torch.Tensor:
    content, dtype, shape = sent
    tensor = torch.empty(shape, dtype=dtype)
    tensor.view(-1).view(torch.uint8).numpy()[:] = content
    return tensor


def check_source(cell: Cell) -> None:
    """Check that this process imported the code that the cell's id stands for.

    Raises:
        RuntimeError: it was edited while the grid ran, or another machine of the cluster has another version.
    """
    if source_hash(lookup(cell.algorithm)) != cell.source:
        raise RuntimeError(f"the source of {cell.algorithm} is not what it was when the grid was read; run the same command again")


class Process:
    """A process that trains one cell after another, and none as another cell left it.

    Args:
        share: what it may take.
    """

    def __init__(self, share: Share) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # Ray is deaf to it, and what a plug-in starts should not be
        self.share, self.device = share, device_of(share.device, share.gpus)
        settle(share.cpus, self.device)
        send_tensors_as_bytes()
        self.state = ProcessState()
        self.latest: tuple[str, Embeddings] | None = None

    def make_ready(self, *, limited: bool = False) -> None:
        """Put back what the last cell changed; ``limited``: the next one has no more memory than its share."""
        self.state.put_back()
        settle(self.share.cpus, self.device)
        limit_memory(self.share.memory if limited else 0)

    def same(self, key: str, data: Embeddings) -> Embeddings:
        """The data set as the last call had it, so that rows on a device are known again: Ray makes an object of its own for every call."""
        if self.latest is None or self.latest[0] != key:
            self.latest = (key, data)
        return self.latest[1]

    def told(self, error: Exception | SystemExit) -> Failure:
        """Why a cell failed; memory that it was refused is told in the grid's words."""
        failure = Failure.of(error)
        if self.share.memory and (failure.type.endswith("MemoryError") or "can't allocate memory" in failure.message):
            what = f"an actor of the cell asked for more than its {self.share.memory / 1e9:g} GB of memory_per_cell"
            return replace(failure, type="MemoryError", message=f"{what}: {failure.message}")
        return failure


class TrialWorker:
    """Runs cells and references; it hosts the first cohort of a cell itself, cohort actors the others."""

    def __init__(self, share: Share, cohorts: Sequence[Any] = ()) -> None:
        self.process, self.cohorts = Process(share), list(cohorts)
        self.device = self.process.device

    def run(self, trial: Trial, data: Embeddings, data_ref: Sequence[Any], checkpoint: bytes | None) -> Iterator[Report]:
        """Run a cell: a stream of reports, the last one with an outcome or a failure.

        Args:
            trial: the cell.
            data: its data set.
            data_ref: the data set's reference in the object store, alone in a list.
            checkpoint: where an earlier run of it stood.

        Raises:
            RayActorError: a cohort actor died, so this worker is of no use any more.
        """

        def make_pool(trial: Trial, data: Embeddings, seeds: Seeds) -> Pool:
            if len(trial.sizes) > 1:
                return RayPool(self.cohorts, trial.cohorts(seeds), trial.data_key, data, data_ref[0], self.device)
            return local_pool(trial, data, seeds, self.device)

        self.process.make_ready(limited=True)
        data = self.process.same(trial.data_key, data)
        pending: list[RoundRecord] = []
        checkpoints, sent = SentCheckpoints(checkpoint, trial.cell.cell_id), time.monotonic()
        with _captured() as output:
            try:
                check_source(trial.cell)
                for step in run_trial(trial, data, make_pool, checkpoints, self.device):
                    if isinstance(step, Outcome):
                        yield Report(tuple(pending), output.drain(), end=step)
                        return
                    pending.append(step)
                    checkpoint = checkpoints.unsent()
                    if checkpoint is not None or time.monotonic() - sent > FLUSH_SECONDS:
                        yield Report(tuple(pending), output.drain(), checkpoint)
                        pending, sent = [], time.monotonic()
            except ray.exceptions.RayActorError:
                yield Report(tuple(pending), output.drain())
                raise
            except (Exception, SystemExit) as error:
                yield Report(tuple(pending), output.drain(), end=self.process.told(error))

    def judge(self, trial: Trial, state: Tensors | None, data: Embeddings) -> Iterator[Report]:
        """Judge a finished cell anew, from the ``state`` of its saved generator; without one there is nothing to say."""
        end: Judgement | Failure | None = None
        self.process.make_ready()
        with _captured() as output:
            if state is not None:
                try:
                    end = judged_anew(trial, state, self.process.same(trial.data_key, data))
                except (Exception, SystemExit) as error:
                    end = Failure.of(error)
            yield Report(output=output.drain(), end=end)

    def measure(self, trial: Trial, data: Embeddings) -> Iterator[Report]:
        """The part of the GPU that the first actor of a cell fills in its first round."""
        self.process.make_ready()
        data = self.process.same(trial.data_key, data)
        try:
            algorithm = build_algorithm(trial.cell.algorithm, trial.cell.params, trial.task)
            server = algorithm.initial_server(Seeds(trial.cell.seed).public).to(self.device)
            cohort = Cohort(trial.cohorts()[0], data.x_train, data.y_train, self.device)
            cohort.round(next(algorithm.schedule()), algorithm.phases()[0].broadcast(server))
            yield Report(end=filled(self.device))
        except (Exception, SystemExit) as error:
            yield Report(end=Failure.of(error))

    def audit(self, cell: Cell, run: Lines, found: Sequence[dict[str, Any]]) -> Iterator[Report]:
        """What an audit lacks, in reports of some pairs each, and its outcome.

        Args:
            cell: one of those that make the claim.
            run: the audit.
            found: its pairs so far.
        """
        self.process.make_ready()
        lines, pending, sent = list(found), list[dict[str, Any]](), time.monotonic()
        with _captured():
            try:
                check_source(cell)
                for line in run.missing(found):
                    pending.append(line)
                    if time.monotonic() - sent > FLUSH_SECONDS:
                        yield Report(pairs=tuple(pending))
                        lines, pending, sent = lines + pending, [], time.monotonic()
                yield Report(pairs=tuple(pending), audit=run.outcome(lines + pending))
            except (Exception, SystemExit) as error:
                yield Report(end=Failure.of(error), pairs=tuple(pending))

    def reference(self, data: Embeddings, partition: Partition | None, spec: PartitionSpec, probe_c: float) -> Iterator[Report]:
        """The ceiling without a partition, local-only with one."""
        self.process.make_ready()
        try:
            value = ceiling(data, probe_c) if partition is None else local_only(data, partition, spec, probe_c)
        except Exception as error:
            yield Report(end=Failure.of(error))
        else:
            yield Report(end=value)


class CohortActor:
    """Hosts one cohort of a cell that is spread over several actors."""

    def __init__(self, share: Share) -> None:
        self.process = Process(share)
        self.cohort: Cohort | None = None

    def host(self, spec: CohortSpec, key: str, data: Embeddings) -> None:
        """Take the clients of ``spec``, of the data set with this key, up, in place of any earlier ones."""
        self.cohort = None
        self.process.make_ready(limited=True)
        data = self.process.same(key, data)
        try:
            self.cohort = Cohort(spec, data.x_train, data.y_train, self.process.device)
        except SystemExit as error:
            raise _exited(error) from error

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the cohort; what it returns travels by the CPU, in one copy."""
        try:
            returned = getattr(self.cohort, method)(*args)
        except SystemExit as error:
            raise _exited(error) from error
        return returned.on(CPU) if isinstance(returned, Message) else returned


class RayPool:
    """The cohorts of a cell, the first in this process and each other on its actor; what comes back is in client order.

    Args:
        actors: of all cohorts but the first.
        specs: of all cohorts.
        key: the data set's.
        data: the data set.
        data_ref: its reference in the object store.
        device: where the first cohort computes.
    """

    def __init__(
        self, actors: Sequence[Any], specs: Sequence[CohortSpec], key: str, data: Embeddings, data_ref: Any, device: torch.device
    ) -> None:
        self.actors, self.sizes = list(actors), [len(spec.members) for spec in specs]
        hosted = [actor.host.remote(spec, key, data_ref) for actor, spec in zip(self.actors, specs[1:], strict=True)]
        self.own = Cohort(specs[0], data.x_train, data.y_train, device)
        ray.get(hosted)

    def round(self, round_: Round, broadcast: Tensors) -> list[Message]:
        """See :class:`fedsim.methods.messages.Pool`; a large broadcast goes into the object store once."""
        size, there = sum(value.nbytes for value in broadcast.values()), moved(broadcast, CPU)
        sent = ray.put(there) if size > IN_THE_CALL else there
        others = [actor.call.remote("round", round_, sent) for actor in self.actors]
        return [self.own.round(round_, broadcast), *ray.get(others)]

    def released(self, names: Sequence[str]) -> Tensors:
        """See :class:`fedsim.methods.messages.Pool`."""
        others = [actor.call.remote("released", names) for actor in self.actors]
        return join_clients([self.own.released(names), *ray.get(others)])

    def state(self) -> Tensors:
        """See :class:`fedsim.methods.messages.Pool`."""
        others = [actor.call.remote("state") for actor in self.actors]
        return join_clients([self.own.state(), *ray.get(others)])

    def load_state(self, tensors: Tensors) -> None:
        """See :class:`fedsim.methods.messages.Pool`."""
        own, *parts = split_clients(tensors, self.sizes)
        others = [actor.call.remote("load_state", part) for actor, part in zip(self.actors, parts, strict=True)]
        self.own.load_state(own)
        ray.get(others)


class _Output(io.StringIO):
    """What a cell prints, up to :data:`OUTPUT` characters."""

    room = OUTPUT

    def write(self, text: str) -> int:
        """Take what there is room for, and say so when it is used up."""
        if self.room > 0:
            super().write(text[: self.room])
            self.room -= len(text)
            if self.room <= 0:
                super().write(f"\n(more than {OUTPUT / 1e6:g} MB of output; the rest of it is left out)\n")
        return len(text)

    def drain(self) -> str:
        """What was written since the last call."""
        text = self.getvalue()
        self.seek(0)
        self.truncate()
        return text


@contextlib.contextmanager
def _captured() -> Iterator[_Output]:
    """Collects what Python code of this process prints, warns of or logs as a warning or worse in the block, for the cell's log file."""
    output = _Output()
    handler = logging.StreamHandler(output)
    logging.captureWarnings(True)
    logging.getLogger().addHandler(handler)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            yield output
    finally:
        logging.getLogger().removeHandler(handler)
