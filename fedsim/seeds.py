"""One seed tree: every random number comes from a stream named by purpose, round and client.

A stream is a ``numpy.random.SeedSequence`` whose spawn key is (purpose, round, client), so streams of different purposes,
rounds or clients never overlap, whatever actor draws them and in whatever order.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch

SERVER = -1
"""The "client" of streams that belong to the server."""


class Purpose(IntEnum):
    """What a stream is for; a value, once given, is never reused for another purpose."""

    PARTITION = 1
    INIT = 2
    SAMPLING = 3
    NOISE = 4
    LATENT = 5
    SYNTHESIS = 6
    META = 7
    PROBE = 8
    LOCAL = 9
    FEATURE_SHIFT = 10
    DIAGNOSTICS = 11
    PENALTY = 12


@dataclass(frozen=True)
class Seeds:
    """The seed tree of one cell; ``root`` is the cell's seed."""

    root: int

    def sequence(self, purpose: Purpose, round_: int = 0, client: int = SERVER) -> np.random.SeedSequence:
        """The stream's seed sequence; ``client`` counts from 0, ``SERVER`` is the server's own stream."""
        return np.random.SeedSequence(self.root, spawn_key=(int(purpose), round_, client + 1))

    def numpy(self, purpose: Purpose, round_: int = 0, client: int = SERVER) -> np.random.Generator:
        """The stream as a numpy generator."""
        return np.random.default_rng(self.sequence(purpose, round_, client))

    def torch(self, purpose: Purpose, round_: int = 0, client: int = SERVER) -> torch.Generator:
        """The stream as a CPU torch generator (64 bits of the seed sequence)."""
        low, high = self.sequence(purpose, round_, client).generate_state(2, np.uint32).tolist()
        return torch.Generator().manual_seed((high << 32 | low) & 0x7FFF_FFFF_FFFF_FFFF)
