"""Gaussian noise for the tensors of one release, and fingerprints of random draws.

The noise comes from a stream of random words by the method of Box and Muller. Every pair of normal
numbers needs two words: one for a radius, one for an angle. Two runs that drew the same noise have
equal fingerprints.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.seeds import Keystream

Deviations = Mapping[str, float]
"""The standard deviation of the noise of every tensor of a release, by name."""
CHUNK = 2**14
"""The number of coordinates in a row of words: first the words of all radii, then of all angles."""
BLOCK = 8 * CHUNK
"""The largest number of coordinates that are drawn at a time; they fit into a processor's cache."""
RARE = 2**8
"""The number of words at either end of their range that are rare.

The radius of a rare word is drawn again with 64 bits. With 32 bits the smallest words give a coarse
tail that ends at 6.8 standard deviations, and in float32 the largest words give a radius of 0,
which would be no noise at all.
"""
SMALLEST = 1e-30
"""The smallest standard deviation that is accepted.

float32 has no normal numbers below 1e-38, and smaller ones may be flushed to 0.
"""
FINGERPRINT_STRIDE = 64
"""The fingerprint reads one random word out of this many."""


@dataclass(frozen=True)
class Noise:
    """The noise of one release.

    Attributes:
        parts: tensors by name, views of one flat float32 tensor.
        fingerprint: the CRC-32 of some of its random words. It is equal on every processor, while
            the noise itself may differ in the last bit (of logarithms).
    """

    parts: dict[str, Tensor]
    fingerprint: int


def gaussian(
    shapes: Mapping[str, tuple[int, ...]],
    std: float,
    stream: Keystream,
) -> Noise:
    """Draw independent N(0, ``std``^2) noise for every tensor of a release.

    Args:
        shapes: the shape of each tensor by name; all are filled from one draw, in this order.
        std: the result of :meth:`fedsim.privacy.plan.PrivacyPlan.noise_std`.
        stream: the stream of this release, round and client.

    Raises:
        ValueError: float32 cannot represent such a standard deviation.
    """
    sizes = [math.prod(shape) for shape in shapes.values()]
    flat = np.empty(sum(sizes), np.float32)
    crc = fill_gaussian(flat, std, stream)
    pieces = torch.split(torch.from_numpy(flat), sizes)
    parts = {}
    for (name, shape), piece in zip(shapes.items(), pieces, strict=True):
        parts[name] = piece.view(shape)
    return Noise(parts, crc)


def fill_gaussian(
    out: NDArray[np.float32],
    std: float,
    stream: Keystream,
) -> int:
    """Fill ``out`` with independent N(0, ``std``^2) noise (Box and Muller 1958).

    A ``std`` of 0 gives zeros and leaves the stream as it was.

    Args:
        out: one dimension in contiguous memory.
        std: the standard deviation.
        stream: the random words.

    Returns:
        The fingerprint of the random words.

    Raises:
        ValueError: float32 cannot represent such a standard deviation.
    """
    if std == 0:
        out[:] = 0
        return 0
    if not SMALLEST <= std <= 1 / SMALLEST:
        raise ValueError(
            f"the noise's standard deviation must be 0 or in {SMALLEST:g} .. "
            f"{1 / SMALLEST:g}, not {std}"
        )
    crc = 0
    # Pieces [rows, CHUNK] of at most BLOCK coordinates, then the rest as a piece of one row.
    full_chunks = len(out) - len(out) % CHUNK
    pieces = []
    for start in range(0, full_chunks, BLOCK):
        end = min(start + BLOCK, full_chunks)
        pieces.append(out[start:end].reshape(-1, CHUNK))
    pieces.append(out[None, full_chunks:])
    with_rare_words = []
    for piece in pieces:
        words = stream.words(piece.size + piece.size % 2)
        crc = zlib.crc32(words[::FINGERPRINT_STRIDE].tobytes(), crc)
        words = words.reshape(len(piece), -1)
        _box_muller(words, std, piece)
        if words.size and _is_rare(words).any():
            with_rare_words.append((piece, words))
    # The extra words are drawn last, so that they do not shift the words of other pieces.
    for piece, words in with_rare_words:
        _redraw_rare(words, std, piece, stream)
    return crc


def _box_muller(
    words: NDArray[np.uint32],
    std: float,
    out: NDArray[np.float32],
) -> None:
    """Turn the random words of each row into normal numbers, in place for speed.

    A row of words has all radius words first, then the angle words of the same pairs. The first
    half of a row of ``out`` gets ``radius cos angle`` of every pair, the second half ``radius sin
    angle``.

    Args:
        words: random words ``[rows, columns]``, an even number of columns.
        std: the standard deviation.
        out: ``[rows, columns]``, or one column less.
    """
    half = words.shape[1] // 2
    # The uniform number is in (0, 1]: half a step above the word's fraction, so that its logarithm
    # is finite. `std` comes last, since its square may underflow.
    radius = words[:, :half].astype(np.float32)
    radius *= np.float32(2.0**-32)
    radius += np.float32(2.0**-33)
    np.log(radius, out=radius)
    radius *= np.float32(-2)
    np.sqrt(radius, out=radius)
    radius *= np.float32(std)
    angle = words[:, half:].view(np.int32).astype(np.float32)
    angle *= np.float32(math.pi * 2.0**-31)
    np.multiply(radius, np.cos(angle), out=out[:, :half])
    np.sin(angle, out=angle)
    rest = out.shape[1] - half  # one less than `half` if the row has an odd length
    np.multiply(
        radius[:, :rest],
        angle[:, :rest],
        out=out[:, half:],
    )


def _is_rare(words: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Return whether each radius word is within :data:`RARE` of an end of its range."""
    radius_words = words[:, : words.shape[1] // 2]
    # Shifted modulo 2^32, the words at either end become the smallest.
    return radius_words + RARE < 2 * RARE


def _redraw_rare(
    words: NDArray[np.uint32],
    std: float,
    out: NDArray[np.float32],
    stream: Keystream,
) -> None:
    """Replace the numbers of :func:`_box_muller` that have a rare radius word.

    Their radii are computed from 64 bits: the old word, then a new one. They reach 9.5 ``std``.
    """
    half = words.shape[1] // 2
    rows, columns = np.nonzero(_is_rare(words))
    high = words[rows, columns]
    low = stream.words(len(rows)) + 0.5
    logarithm = np.log(high * 2.0**-32 + low * 2.0**-64)
    # Near 1 the fraction itself would round to 1, so its distance to 1 is computed exactly.
    distance = (2.0**32 - 1 - high) * 2.0**-32 + (2.0**32 - low) * 2.0**-64
    is_near_one = high >= RARE
    logarithm[is_near_one] = np.log1p(-distance[is_near_one])
    radius = std * np.sqrt(-2 * logarithm)
    angle = words[rows, half + columns].view(np.int32) * (math.pi * 2.0**-31)
    out[rows, columns] = radius * np.cos(angle)
    has_sine = half + columns < out.shape[1]
    sine = radius * np.sin(angle)
    out[rows[has_sine], half + columns[has_sine]] = sine[has_sine]


def fingerprint(tensors: Mapping[str, Tensor]) -> int:
    """Return the CRC-32 of the tensors' bytes, in the order of their sorted names."""
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(
            tensors[name].detach().cpu().numpy().tobytes(),
            crc,
        )
    return crc
