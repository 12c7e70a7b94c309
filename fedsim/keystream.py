"""Cryptographic random numbers: AES-256 in counter mode (NIST SP 800-38A), by OpenSSL.

The same bits on every processor, and with AES instructions faster than numpy's generators, which are not cryptographic.
"""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

ZEROS = bytes(2**19)
"""The plain text, in pieces that fit a processor's cache: encrypted zeros are the key stream itself."""
SPARE_BYTES = 15
"""Free bytes that the cipher needs behind its output."""


class Keystream:
    """One stream of random numbers; every number is drawn once."""

    def __init__(self, key: bytes, counter: bytes) -> None:
        """Start at a block of the stream of ``key`` (32 bytes) whose number is ``counter`` (16 bytes, the highest first)."""
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
