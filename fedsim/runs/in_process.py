"""The engine that runs jobs in this process, without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fedsim.grid.models import Device
from fedsim.runs.engine import Engine, Slot
from fedsim.runs.items import Item
from fedsim.runs.prepare import Need, Node
from fedsim.runs.worker import Worker


@dataclass
class InProcess(Engine):
    """Runs jobs in this process, so that breakpoints and profilers work.

    Nothing is started; each item is computed when it is received.

    Attributes:
        node: this machine; one slot has all of it.
        capture: whether what a cell prints goes to its log.
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
        """Return a slot with one worker in this process, whatever the number of actors."""
        return Slot(need, Worker(need, device, capture=self.capture))

    def close(self, slot: Slot) -> None:
        """Reset the settings of this process; other changes of a plug-in stay."""
        if slot.stream is not None:
            # Until its stream is closed, a job sends what is printed to the log of its cell.
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
        item: Item = next(stream)
        return item
