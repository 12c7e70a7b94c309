"""What a machine offers to the cells that run on it, and what an actor takes of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from fedsim.grid.models import Device
from fedsim.words import counted

SHARE_SLACK = 1e-6
"""Shares are added up in floating point."""


class Node(NamedTuple):
    """What one machine offers; ``gpu_memory`` is that of its smallest GPU in bytes, 0 where that is unknown."""

    cpus: float
    gpus: float
    gpu_memory: float = 0.0

    @property
    def words(self) -> str:
        """In words: ``4 CPUs and 1 GPU``."""
        return f"{counted(self.cpus, 'CPU')} and {counted(self.gpus, 'GPU')}"


class Share(NamedTuple):
    """What one actor takes: CPUs, GPUs (a part of one, or a whole number), the device that it was asked for, and bytes at most (0: any)."""

    cpus: float
    gpus: float = 0.0
    device: Device = "auto"
    memory: float = 0.0

    def fit(self, node: Node) -> int:
        """How many such actors a node holds; a part of a GPU lies on one GPU."""
        on_cpus = math.floor(node.cpus / self.cpus + SHARE_SLACK)
        if not self.gpus:
            return on_cpus
        whole = math.floor(node.gpus / self.gpus + SHARE_SLACK)
        return min(on_cpus, whole if self.gpus >= 1 else int(node.gpus) * math.floor(1 / self.gpus + SHARE_SLACK))


def fit_together(shares: Sequence[Share], nodes: Sequence[Node]) -> bool:
    """Whether actors with these shares can be placed one after another, each on the first node and GPU with room."""
    cpus, cards = [node.cpus for node in nodes], [[1.0] * int(node.gpus) for node in nodes]
    return all(any(_take(share, i, cpus, cards[i]) for i in range(len(nodes))) for share in shares)


def _take(share: Share, node: int, cpus: list[float], cards: list[float]) -> bool:
    """Take a share from a node, if it has it."""
    part = min(share.gpus, 1.0)
    free = [card for card, left in enumerate(cards) if left + SHARE_SLACK >= part]
    count = math.ceil(share.gpus)
    if cpus[node] + SHARE_SLACK < share.cpus or len(free) < count:
        return False
    cpus[node] -= share.cpus
    for card in free[:count]:
        cards[card] -= part
    return True
