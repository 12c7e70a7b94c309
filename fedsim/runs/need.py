"""What a machine offers, and what a job needs of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from fedsim.words import counted

_SLACK = 1e-6
"""Shares are added up in floating point."""


class Node(NamedTuple):
    """What one machine offers."""

    cpus: float
    gpus: float

    @property
    def words(self) -> str:
        """In words: ``4 CPUs and 1 GPU``."""
        return f"{counted(self.cpus, 'CPU')} and {counted(self.gpus, 'GPU')}"


class Need(NamedTuple):
    """What a job needs: so many actors at once, each with CPUs, GPUs (a part of one, or a whole number) and bytes at most (0: any)."""

    cpus: float
    gpus: float = 0.0
    memory: float = 0.0
    actors: int = 1

    @property
    def words(self) -> str:
        """In words: ``3 actors with 1 CPU and 0.5 GPUs each``."""
        return f"{counted(self.actors, 'actor')} with {counted(self.cpus, 'CPU')} and {counted(self.gpus, 'GPU')} each"

    def fit(self, node: Node) -> int:
        """How many such actors a node holds; a part of a GPU lies on one GPU."""
        on_cpus = math.floor(node.cpus / self.cpus + _SLACK)
        if not self.gpus:
            return on_cpus
        whole = math.floor(node.gpus / self.gpus + _SLACK)
        return min(on_cpus, whole if self.gpus >= 1 else int(node.gpus) * math.floor(1 / self.gpus + _SLACK))


def fit_together(needs: Sequence[Need], nodes: Sequence[Node]) -> bool:
    """Whether all actors can be placed one after another, each on the first node and GPU with room."""
    cpus, cards = [node.cpus for node in nodes], [[1.0] * int(node.gpus) for node in nodes]
    actors = [need for need in needs for _ in range(need.actors)]
    return all(any(_take(need, i, cpus, cards[i]) for i in range(len(nodes))) for need in actors)


def _take(need: Need, node: int, cpus: list[float], cards: list[float]) -> bool:
    """Take an actor's share from a node, if it has it."""
    part, count = min(need.gpus, 1.0), math.ceil(need.gpus)
    free = [card for card, left in enumerate(cards) if left + _SLACK >= part]
    if cpus[node] + _SLACK < need.cpus or len(free) < count:
        return False
    cpus[node] -= need.cpus
    for card in free[:count]:
        cards[card] -= part
    return True
