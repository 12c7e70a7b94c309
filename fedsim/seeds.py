"""Defines the seed tree: every random number comes from a named stream.

A stream is named by purpose, round and client. So its numbers depend neither on the actor that
draws them nor on the order of draws.

A public stream is a ``numpy.random.SeedSequence`` whose spawn key is (purpose, round, client).
Every generator is keyed by at least 128 bits of this sequence. So two of N streams are equal with a
probability of about N^2 / 2^129. Secret streams come from one AES key per cell. Their blocks are
numbered by purpose, round and client, so no two streams of a cell share a block.
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
"""The purposes of streams that an adversary must not know.

The noise must be secret, and so must the samples, because sampling amplifies privacy only while it
is hidden. A client's draws for its examples, and the draws that hold units out, are assigned in the
order of the examples. If an example is removed, all later ones get other draws, and whoever knew
the draws could notice. The number of a tuned cell's trainings, their parameters and their keys are
secret as well.
"""
ZEROS = bytes(2**19)
"""The text that is encrypted: encrypted zeros are the key stream itself.

It is small enough for a processor's cache.
"""
SPARE_BYTES = 15
"""The number of free bytes that the cipher needs behind its output."""
_SERVER_ROOT = b"fedsim: root of the server's public streams\0"
_WORDS = slice(24, 24 + 624 * 8)
"""The place of the 624 words of torch's Mersenne Twister in its state, eight bytes each."""


class Keystream:
    """A stream of cryptographic random numbers, each drawn once.

    It is AES-256 in counter mode (NIST SP 800-38A), computed by OpenSSL. The bits are the same on
    every processor. With AES instructions it is faster than numpy's generators, which are not
    cryptographic.
    """

    def __init__(self, key: bytes, counter: bytes) -> None:
        """Start the stream of a key at a block.

        Args:
            key: the key, 32 bytes.
            counter: the number of the first block, 16 bytes, the most significant byte first.
        """
        self._cipher = Cipher(algorithms.AES256(key), modes.CTR(counter)).encryptor()

    def words(self, count: int) -> NDArray[np.uint32]:
        """Return the next ``count`` words of 32 bits, ``[count]``."""
        size = 4 * count
        # The cipher may write up to SPARE_BYTES more than it encrypts.
        drawn = np.empty(size + SPARE_BYTES, np.uint8)
        for start in range(0, size, len(ZEROS)):
            self._cipher.update_into(memoryview(ZEROS)[: size - start], drawn[start:].data)
        return drawn[:size].view("<u4")

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Return ``count`` uniform numbers in [0, 1), ``[count]``, which are multiples of 2^-53."""
        drawn = (self.words(2 * count).view("<u8") >> np.uint64(11)).astype(np.float64)
        drawn *= 2.0**-53
        return drawn

    def integers(self, below: int, shape: tuple[int, ...]) -> NDArray[np.int64]:
        """Return whole numbers below ``below``, uniform up to a relative ``below`` / 2^53."""
        return (self.uniform(int(np.prod(shape))) * below).astype(np.int64).reshape(shape)


@cache
def _template() -> NDArray[np.uint8]:
    """Return the state of a new torch generator, in whose copies :data:`_WORDS` are replaced."""
    import torch

    state: NDArray[np.uint8] = torch.Generator().manual_seed(0).get_state().numpy()
    return state


@dataclass(frozen=True)
class Seeds:
    """The seed tree of one cell.

    Attributes:
        root: the cell's seed.
        secret: the key of the streams in :data:`SECRET`, a number of 256 bits. None: the key is
            ``root``, which suffices for a simulation, because its noise need not be secret.
        whole: whether streams in :data:`SECRET` may be drawn from this tree.
    """

    root: int
    secret: int | None = field(default=None, repr=False)
    whole: bool = True

    def run(self, number: int) -> Seeds:
        """Return the seed tree of one of several trainings of a cell.

        The tree has the public streams of the cell, and its own key for the streams in
        :data:`SECRET`.

        Args:
            number: the number of the training, from 0.
        """
        key = self.keystream(Purpose.SELECTION, 1 + number).words(8).tobytes()
        return Seeds(self.root, int.from_bytes(key, "big"))

    @property
    def public(self) -> Seeds:
        """The tree that a method's server draws from; its root is a SHA-256 hash of this root.

        If a cell has no secret, its noise is drawn from its root. A server that knew this root
        could draw the noise again and subtract it.
        """
        digest = hashlib.sha256(_SERVER_ROOT + self.root.to_bytes(32, "big")).digest()
        return Seeds(int.from_bytes(digest[:16], "big"), whole=False)

    def keystream(self, purpose: Purpose, round_: int = 0, client: int = SERVER) -> Keystream:
        """Return the stream of a purpose in :data:`SECRET`.

        The number of a block has 16 bytes: the purpose (1 byte), the round (5), the client (4) and
        the block's place in the stream (6).

        Args:
            purpose: the purpose.
            round_: the round.
            client: the client, counted from 0, or ``SERVER`` for the server's own stream.

        Raises:
            ValueError: the purpose is public, or secret streams may not be drawn from this tree.
        """
        if purpose not in SECRET:
            raise ValueError(
                f"the stream {purpose.name} is public; draw it from Seeds.numpy or Seeds.torch"
            )
        if not self.whole:
            raise ValueError(
                f"a server may not draw from the stream {purpose.name}, which only clients and "
                "fedsim itself use; draw from server.seeds.torch(Purpose.META, ...)"
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
        """Return the seed sequence of a public stream, named as in :meth:`keystream`."""
        if purpose in SECRET:
            raise ValueError(
                f"the stream {purpose.name} is secret; only clients and fedsim itself draw from "
                "it, by Seeds.keystream"
            )
        return np.random.SeedSequence(self.root, spawn_key=(int(purpose), round_, client + 1))

    def numpy(self, purpose: Purpose, round_: int = 0, client: int = SERVER) -> np.random.Generator:
        """Return a public stream as a numpy generator."""
        return np.random.default_rng(self.sequence(purpose, round_, client))

    def torch(self, purpose: Purpose, round_: int = 0, client: int = SERVER) -> torch.Generator:
        """Return a public stream as a torch generator on the CPU.

        Its whole state is set, because ``manual_seed`` keeps only 32 bits of a seed.
        """
        import torch  # late, for a grid is read and data are partitioned without it

        words = np.random.Philox(
            self.sequence(
                purpose,
                round_,
                client,
            )
        ).random_raw(312)
        state = _template().copy()
        state[_WORDS].view(np.uint64)[:] = words.view(np.uint32)
        generator = torch.Generator()
        generator.set_state(torch.from_numpy(state))
        return generator
