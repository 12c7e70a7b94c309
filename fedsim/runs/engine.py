"""The definition of an engine, which runs jobs on slots, and how an engine loses them.

There are two engines: :class:`fedsim.runs.in_process.InProcess` runs jobs in this process, and
:class:`fedsim.runs.ray.RayEngine` runs them on the actors of a Ray cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fedsim.errors import RunLost
from fedsim.grid.models import Device
from fedsim.runs.items import Failure, Item
from fedsim.runs.prepare import Need, Node


class ClusterLost(RunLost):
    """The cluster is gone, or has no room any more for what is left to do.

    Args:
        what: which of the two happened, and where.
    """

    def __init__(self, what: str) -> None:
        super().__init__("the cluster is lost", what, "the same command goes on")


class WorkerLost(Exception):
    """A worker cannot be used any more.

    Args:
        failure: how its job ended.
        again: whether the job should run again, because the loss was no fault of the job.
    """

    def __init__(self, failure: Failure, *, again: bool) -> None:
        super().__init__(failure.summary())
        self.failure = failure
        self.again = again


@dataclass(eq=False)
class Slot:
    """The place where an engine runs one job at a time.

    Attributes:
        need: the actors of the slot, and the share of each.
        worker: the worker that runs the jobs.
        others: the further actors of the slot, which host cohorts of the worker's cell.
        group: what reserves the actors' shares; None if nothing does.
        plug_in: the algorithm that is not shipped and whose code ran on the slot.
        stream: the stream of the job that was started last.
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
        """Return a value in the form in which jobs get it as an argument."""
        ...

    def nodes(self) -> tuple[Node, ...]:
        """Return the machines that there are now.

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
        """Return streams that have an item or have ended; none after ``timeout`` seconds."""
        ...

    def receive(self, stream: Any) -> Item:
        """Return the next item of a stream.

        Raises:
            StopIteration: the job has ended.
            WorkerLost: the worker that computes the stream cannot be used any more.
            ClusterLost: the cluster is gone.
        """
        ...
