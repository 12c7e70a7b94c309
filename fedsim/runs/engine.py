"""What runs the scheduler's jobs on slots; here in this process, without Ray. Its other form is :class:`fedsim.runs.ray.RayEngine`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fedsim.errors import RunLost
from fedsim.grid.models import Device
from fedsim.runs.worker import Failure, Item, Need, Node, Worker


class ClusterLost(RunLost):
    """The cluster itself is gone, or has no room any more for what is left to do; ``what`` says which."""

    def __init__(self, what: str) -> None:
        super().__init__("the cluster is lost", what, "the same command goes on")


class WorkerLost(Exception):
    """A worker is of no use any more: its job ended with ``failure``; ``again``: that was no fault of the job."""

    def __init__(self, failure: Failure, *, again: bool) -> None:
        super().__init__(failure.summary())
        self.failure, self.again = failure, again


@dataclass(eq=False)
class Slot:
    """The actors of one job, whose ``worker`` runs it on its and ``others``' shares, held by ``group``.

    ``plug_in``: the algorithm that is not shipped and whose code ran on it; ``stream``: of the job that was started last.
    """

    need: Need
    worker: Any
    others: tuple[Any, ...] = ()
    group: Any = None
    plug_in: str = ""
    stream: Any = None


@dataclass
class InProcess:
    """Runs each job where it is started from, item by item: breakpoints and profilers work, and nothing is started.

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
        """A worker in this process, whatever the number of actors; of actors, what is started waits until there is room for all."""
        return Slot(need, Worker(need, device, capture=self.capture))

    def close(self, slot: Slot) -> None:
        """The process stays: its settings are reset as before a job, and whatever else a plug-in changed is not."""
        if slot.stream is not None:
            slot.stream.close()  # else what is printed still goes to the log of its cell
        slot.worker.make_ready()
        torch.set_flush_denormal(False)

    def start(self, slot: Slot, method: str, *args: Any) -> Any:
        """Start a job, a method of :class:`fedsim.runs.worker.Worker`: its stream, equal to itself alone."""
        slot.stream = getattr(slot.worker, method)(*args)
        return slot.stream

    def ready(self, streams: Sequence[Any], timeout: float) -> list[Any]:
        """Streams whose next item is there or that have ended, none after so many seconds; here the first, which computes when asked."""
        return list(streams[:1])

    def receive(self, stream: Any) -> Item:
        """Compute up to the next item of a stream."""
        item: Item = next(stream)
        return item
