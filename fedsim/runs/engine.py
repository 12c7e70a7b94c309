"""Defines engines, which run jobs on slots, and the errors of a lost worker or cluster.

A slot runs one job at a time. There are two engines: :class:`InProcess` runs jobs in this process,
and :class:`fedsim.runs.ray.RayEngine` runs them on the actors of a Ray cluster.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from threadpoolctl import threadpool_limits

from fedsim.errors import RunLost
from fedsim.grid.models import Device
from fedsim.runs.items import Failure, Item
from fedsim.runs.prepare import Need, Node
from fedsim.runs.worker import Worker


class ClusterLost(RunLost):
    """Raised when the cluster, or Ray's service on this machine, does not answer any more.

    Args:
        what: which part is gone, and how that shows.
    """

    def __init__(self, what: str) -> None:
        super().__init__("the cluster is lost", what, "the same command continues")


class WorkerLost(Exception):
    """Raised when a worker cannot be used any more.

    Args:
        failure: the reason, which is recorded if the job does not run again.
        again: whether the job should run again, because the loss was no fault of the job.
    """

    def __init__(self, failure: Failure, *, again: bool) -> None:
        super().__init__(failure.summary())
        self.failure = failure
        self.again = again


@dataclass(eq=False)
class Slot:
    """A worker and its further actors, on which an engine runs one job at a time.

    Attributes:
        need: the number of actors of the slot, and the CPUs and GPUs of each.
        worker: the worker that runs the jobs.
        others: the further actors of the slot, which host cohorts of the worker's cell.
        group: Ray's placement group, which reserves the CPUs and GPUs; None in this process.
        plug_in: the name of the plug-in whose code ran on the slot; empty if none ran.
        stream: the stream of the job that was started last; only :class:`InProcess` sets it.
    """

    need: Need
    worker: Any
    others: tuple[Any, ...] = ()
    group: Any = None
    plug_in: str = ""
    stream: Any = None


class Engine(Protocol):
    """What the scheduler needs of an engine."""

    def put(self, value: Any) -> Any:
        """Return what the engine passes to jobs in place of a value, such as Ray's reference."""
        ...

    def nodes(self) -> tuple[Node, ...]:
        """Return the machines on which the engine can open slots now.

        Raises:
            ClusterLost: the cluster is gone.
        """
        ...

    def open(self, need: Need, device: Device) -> Slot:
        """Open a slot with the actors that ``need`` asks for."""
        ...

    def close(self, slot: Slot) -> None:
        """End a slot, whether its job has ended or not."""
        ...

    def start(self, slot: Slot, method: str, *args: Any) -> Any:
        """Start a job on a slot.

        Args:
            slot: an idle slot.
            method: the name of a method of :class:`fedsim.runs.worker.Worker`.
            args: the arguments of the method.

        Returns:
            The stream of the job's items. It is hashable, and equal to itself alone.
        """
        ...

    def ready(self, streams: Sequence[Any], timeout: float) -> list[Any]:
        """Return streams that have an item or have ended.

        The list is empty if there is no such stream within ``timeout`` seconds.
        """
        ...

    def receive(self, stream: Any) -> Item:
        """Return the next item of a stream.

        Raises:
            StopIteration: the job has ended.
            WorkerLost: the worker that computes the stream cannot be used any more.
            ClusterLost: the cluster is gone.
        """
        ...


@contextmanager
def in_this_process(node: Node, *, capture: bool) -> Iterator[InProcess]:
    """Yield an :class:`InProcess` for the block.

    After the block, this process has as many threads as before, and the same default data type of
    torch.
    """
    threads = torch.get_num_threads()
    dtype = torch.get_default_dtype()
    with threadpool_limits():  # Its end sets the threads of BLAS as they were.
        try:
            yield InProcess(node, capture)
        finally:
            torch.set_num_threads(threads)
            torch.set_default_dtype(dtype)
            torch.set_flush_denormal(False)


@dataclass
class InProcess(Engine):
    """Runs jobs in this process, so that breakpoints and profilers work.

    Nothing is started; each item is computed when it is received.

    Attributes:
        node: this machine. Jobs run one after another on it.
        capture: whether what a job prints is collected for the log of its cell. If not, it goes to
            the terminal.
    """

    node: Node
    capture: bool = False

    def put(self, value: Any) -> Any:
        """Return the value itself."""
        return value

    def nodes(self) -> tuple[Node, ...]:
        """Return this machine."""
        return (self.node,)

    def open(self, need: Need, device: Device) -> Slot:
        """Return a slot with one worker in this process, however many actors ``need`` has."""
        return Slot(need, Worker(need, device, capture=self.capture))

    def close(self, slot: Slot) -> None:
        """End the slot's job, and give this process the worker's folder and torch's defaults again.

        Other changes of a plug-in stay. See :func:`in_this_process` for the settings before.
        """
        if slot.stream is not None:
            slot.stream.close()
        slot.worker.make_ready()
        torch.set_flush_denormal(False)

    def start(self, slot: Slot, method: str, *args: Any) -> Any:
        """Return the stream of a job; nothing is computed yet."""
        slot.stream = getattr(slot.worker, method)(*args)
        return slot.stream

    def ready(self, streams: Sequence[Any], timeout: float) -> list[Any]:
        """Return the first stream, which computes its next item when it is received."""
        return list(streams[:1])

    def receive(self, stream: Any) -> Item:
        """Compute and return the next item of a stream."""
        return next(stream)
