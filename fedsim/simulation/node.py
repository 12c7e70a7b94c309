"""What a machine offers to the cells that run on it."""

from __future__ import annotations

from typing import NamedTuple


class Node(NamedTuple):
    """What one machine offers."""

    cpus: float
    gpus: float
