"""The Ray actors: a trial worker runs cells one after another, cohort actors host the clients of a cell that is spread out."""

from __future__ import annotations

import contextlib
import io
import logging
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from threadpoolctl import threadpool_limits

from fedsim.algorithm import Message, Pool, RoundRecord, Tensors
from fedsim.data.embeddings import Embeddings
from fedsim.evaluate import ceiling, local_only
from fedsim.partition import Partition
from fedsim.privacy.plan import Release
from fedsim.runtime.checkpoint import Checkpoints
from fedsim.runtime.cohort import Cohort, CohortSpec, join_clients, split_clients
from fedsim.runtime.trial import Outcome, Trial, local_pool, run_trial

FLUSH_SECONDS = 0.2


@dataclass(frozen=True)
class Failure:
    """An exception inside a cell: its type, message and first traceback."""

    type: str
    message: str
    traceback: str


@dataclass(frozen=True)
class Report:
    """What a worker streams to the driver: rounds since the last report, captured output, and at the end how it ended."""

    rounds: tuple[RoundRecord, ...]
    output: str
    end: Outcome | Failure | float | None = None


def _limit_threads(cpus: float) -> None:
    threads = max(1, int(cpus))
    torch.set_num_threads(threads)
    threadpool_limits(threads)


class TrialWorker:
    """Runs cells and references; with cohort actors it coordinates, without it hosts all clients itself."""

    def __init__(self, cpus: float, cohorts: Sequence[Any] = ()) -> None:
        _limit_threads(cpus)
        self.cohorts = list(cohorts)

    def run(self, trial: Trial, data: Embeddings, checkpoint: str, data_ref: list[Any]) -> Iterator[Report]:
        """Run a cell: a stream of reports, the last one with an outcome or a failure."""

        def spread(trial: Trial, data: Embeddings) -> Pool:
            return RayPool(self.cohorts, trial.cohorts(), data_ref[0])

        output, sent = io.StringIO(), time.monotonic()
        pending: list[RoundRecord] = []
        with _captured(output):
            try:
                make_pool = spread if len(trial.sizes) > 1 else local_pool
                for step in run_trial(trial, data, make_pool, Checkpoints(Path(checkpoint))):
                    if isinstance(step, Outcome):
                        yield Report(tuple(pending), _drain(output), step)
                        return
                    pending.append(step)
                    if time.monotonic() - sent > FLUSH_SECONDS:
                        yield Report(tuple(pending), _drain(output))
                        pending, sent = [], time.monotonic()
            except Exception as error:
                cause = getattr(error, "cause", None) or error
                failure = Failure(type(cause).__name__, str(cause).strip().splitlines()[-1], traceback.format_exc())
                yield Report(tuple(pending), _drain(output), failure)

    def reference(self, data: Embeddings, partition: Partition | None, probe_c: float) -> Iterator[Report]:
        """The ceiling without a partition, local-only with one."""
        value = ceiling(data, probe_c) if partition is None else local_only(data, partition, probe_c)
        yield Report((), "", value)


class CohortActor:
    """Hosts one cohort of a cell that is spread over several actors."""

    def __init__(self, cpus: float) -> None:
        _limit_threads(cpus)
        self.cohort: Cohort | None = None

    def host(self, spec: CohortSpec, data: Embeddings) -> None:
        """Take the clients of ``spec`` up, in place of any earlier ones."""
        self.cohort = Cohort(spec, data.x_train, data.y_train)

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the cohort."""
        return getattr(self.cohort, method)(*args)


class RayPool:
    """The cohorts of a cell on several actors; what comes back is in client order."""

    def __init__(self, actors: Sequence[Any], specs: Sequence[CohortSpec], data: Any) -> None:
        self.actors, self.sizes = list(actors), [len(spec.members) for spec in specs]
        ray.get([actor.host.remote(spec, data) for actor, spec in zip(self.actors, specs, strict=True)])

    def round(self, round_: int, release: Release, broadcast: Tensors) -> list[Message]:
        """See :class:`fedsim.algorithm.Pool`; the broadcast goes into the object store once."""
        sent = ray.put(broadcast)
        messages: list[Message] = ray.get([actor.call.remote("round", round_, release, sent) for actor in self.actors])
        return messages

    def released(self, names: Sequence[str]) -> Tensors:
        """See :class:`fedsim.algorithm.Pool`."""
        return join_clients(ray.get([actor.call.remote("released", names) for actor in self.actors]))

    def state(self) -> Tensors:
        """See :class:`fedsim.algorithm.Pool`."""
        return join_clients(ray.get([actor.call.remote("state") for actor in self.actors]))

    def load_state(self, tensors: Tensors) -> None:
        """See :class:`fedsim.algorithm.Pool`."""
        parts = split_clients(tensors, self.sizes)
        ray.get([actor.call.remote("load_state", part) for actor, part in zip(self.actors, parts, strict=True)])


@contextlib.contextmanager
def _captured(output: io.StringIO) -> Iterator[None]:
    """Everything that a cell prints, logs or warns about goes to ``output``, for its log file."""
    handler = logging.StreamHandler(output)
    logging.captureWarnings(True)
    logging.getLogger().addHandler(handler)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            yield
    finally:
        logging.getLogger().removeHandler(handler)


def _drain(output: io.StringIO) -> str:
    text = output.getvalue()
    output.seek(0)
    output.truncate()
    return text
