"""One seed tree: every random number comes from a stream named by purpose, round and client, for
any actor and any order of draws.

A public stream is a ``numpy.random.SeedSequence`` whose spawn key is (purpose, round, client).
Every generator is keyed by at least 128 bits of it, so two of N streams are equal with a
probability of about N^2 / 2^129. Secret streams come from one AES key a cell, whose blocks are
numbered by purpose, round and client: no two streams of a cell share a block.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

SERVER = -1
"""The "client" of streams that belong to the server."""


class Purpose(IntEnum):
    """The purpose of a stream; a value is never reused for another purpose."""

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
    HELD_OUT = 21
    SELECTION = 22


SECRET = frozenset(
    {
        Purpose.NOISE,
        Purpose.SAMPLING,
        Purpose.LATENT,
        Purpose.LOCAL,
        Purpose.HELD_OUT,
        Purpose.SELECTION,
    }
)
"""Streams that an adversary must not know: the noise; the samples, since sampling amplifies only
while it is hidden; a client's draws for its rows, and the coins that hold units out, which are
assigned in row order: known, they would show every later row move up when one is removed; and of a
tuned cell the number of its trainings, their parameters and keys.
"""
ZEROS = bytes(2**19)
"""The plain text, in pieces that fit a processor's cache: encrypted zeros are the key stream
itself.
"""
SPARE_BYTES = 15
"""Free bytes that the cipher needs behind its output."""
_SERVER_ROOT = b"fedsim: root of the server's public streams\0"
_WORDS = slice(24, 24 + 624 * 8)
"""Where torch keeps the 624 words of its Mersenne Twister, each in eight bytes."""


class Keystream:
    """One stream of cryptographic random numbers: AES-256 in counter mode (NIST SP 800-38A), by
    OpenSSL; every number is drawn once.

    The same bits on every processor, and with AES instructions faster than numpy's generators,
    which are not cryptographic.
    """

    def __init__(self, key: bytes, counter: bytes) -> None:
        """Start at a block of the stream of ``key`` (32 bytes) whose number is ``counter`` (16
        bytes, the highest first).
        """
        self._cipher = Cipher(algorithms.AES256(key), modes.CTR(counter)).encryptor()

    def words(self, count: int) -> NDArray[np.uint32]:
        """``count`` words of 32 bits."""
        size = 4 * count
        drawn = np.empty(size + SPARE_BYTES, np.uint8)
        for start in range(0, size, len(ZEROS)):
            self._cipher.update_into(memoryview(ZEROS)[: size - start], drawn[start:].data)
        return drawn[:size].view("<u4")

    def uniform(self, count: int) -> NDArray[np.float64]:
        """``count`` numbers in [0, 1), multiples of 2^-53."""
        drawn = (self.words(2 * count).view("<u8") >> np.uint64(11)).astype(np.float64)
        drawn *= 2.0**-53
        return drawn

    def integers(self, below: int, shape: tuple[int, ...]) -> NDArray[np.int64]:
        """Whole numbers 0 .. ``below`` - 1, uniform up to a relative error of ``below`` / 2^53."""
        return (self.uniform(int(np.prod(shape))) * below).astype(np.int64).reshape(shape)


@cache
def _template() -> NDArray[np.uint8]:
    """The state of a fresh torch generator whose words are still to be set."""
    import torch

    state: NDArray[np.uint8] = torch.Generator().manual_seed(0).get_state().numpy()
    return state


@dataclass(frozen=True)
class Seeds:
    """The seed tree of one cell.

    Attributes:
        root: the cell's seed.
        secret: 256 bits, the key of the streams in :data:`SECRET`; None: it is ``root``, as a
            simulation's may be.
        whole: whether streams in :data:`SECRET` are drawn at all.
    """

    root: int
    secret: int | None = field(default=None, repr=False)
    whole: bool = True

    def run(self, number: int) -> Seeds:
        """The tree of one of several trainings of a cell: the same public streams, and a key of its
        own for those in :data:`SECRET`.
        """
        key = self.keystream(Purpose.SELECTION, 1 + number).words(8).tobytes()
        return Seeds(self.root, int.from_bytes(key, "big"))

    @property
    def public(self) -> Seeds:
        """The tree that a method's server draws from; its root is a SHA-256 hash of this one's.

        A server that knew the cell's root could, without a secret, draw the noise again and
        subtract it.
        """
        digest = hashlib.sha256(_SERVER_ROOT + self.root.to_bytes(32, "big")).digest()
        return Seeds(int.from_bytes(digest[:16], "big"), whole=False)

    def keystream(self, purpose: Purpose, round_: int = 0, client: int = SERVER) -> Keystream:
        """The stream of a purpose in :data:`SECRET`; ``client`` counts from 0, ``SERVER`` is the
        server's own stream.

        A block's number is the purpose (1 byte), the round (5), the client (4) and its place in the
        stream (6).
        """
        if purpose not in SECRET:
            raise ValueError(
                f"the stream {purpose.name} is public; draw it from Seeds.numpy or Seeds.torch"
            )
        if not self.whole:
            raise ValueError(
                f"the stream {purpose.name} is drawn at the clients and by the harness; a "
                "server draws from another purpose"
            )
        key = (self.root if self.secret is None else self.secret).to_bytes(32, "big")
        return Keystream(
            key,
            purpose.to_bytes(1, "big")
            + round_.to_bytes(5, "big")
            + (client + 1).to_bytes(4, "big")
            + bytes(6),
        )

    def sequence(
        self, purpose: Purpose, round_: int = 0, client: int = SERVER
    ) -> np.random.SeedSequence:
        """The seed sequence of a public stream, named as in :meth:`keystream`."""
        if purpose in SECRET:
            raise ValueError(
                f"the stream {purpose.name} is secret; it is drawn from Seeds.keystream, at "
                "the clients and by the harness"
            )
        return np.random.SeedSequence(self.root, spawn_key=(int(purpose), round_, client + 1))

    def numpy(self, purpose: Purpose, round_: int = 0, client: int = SERVER) -> np.random.Generator:
        """The stream as a numpy generator."""
        return np.random.default_rng(self.sequence(purpose, round_, client))

    def torch(self, purpose: Purpose, round_: int = 0, client: int = SERVER) -> torch.Generator:
        """The stream as a CPU torch generator; its whole state is set, since ``manual_seed`` keeps
        32 bits of a seed.
        """
        import torch  # late, for a grid is read and data are partitioned without it

        words = np.random.Philox(self.sequence(purpose, round_, client)).random_raw(312)
        state = _template().copy()
        state[_WORDS].view(np.uint64)[:] = words.view(np.uint32)
        generator = torch.Generator()
        generator.set_state(torch.from_numpy(state))
        return generator
