"""Gaussian noise for the parts of one release, and fingerprints that show two runs drew the
same.
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

CHUNK = 2**14
"""Coordinates whose words come together: those of the radii first, then those of the angles."""
BLOCK = 8 * CHUNK
"""Coordinates that are drawn at a time: few enough for a processor's cache."""
RARE = 2**8
"""Radius words at either end of their range that are drawn again with 32 more bits: with 32 bits
the tail is coarse and ends at 6.8 standard deviations, and in float32 the radii of the largest
words are 0, which would be no noise at all.
"""
SMALLEST = 1e-30
"""Standard deviations below this are refused: float32 has no normal numbers below 1e-38, and
smaller ones may be flushed to 0.
"""
FINGERPRINT_STRIDE = 64
"""One of this many random words enters the fingerprint."""


@dataclass(frozen=True)
class Noise:
    """One draw.

    Attributes:
        parts: tensors by name, views of one flat float32 tensor.
        fingerprint: CRC-32 of some of its random words: equal on every processor, though logarithms
            may differ in the last bit.
    """

    parts: dict[str, Tensor]
    fingerprint: int


def gaussian(
    shapes: Mapping[str, torch.Size | tuple[int, ...]], std: float, stream: Keystream
) -> Noise:
    """Independent N(0, ``std``^2) noise for every part, from one draw, in the order of ``shapes``.

    ``std`` is :meth:`fedsim.privacy.plan.PrivacyPlan.noise_std`, ``stream`` that of this release,
    round and client.
    """
    sizes = [math.prod(shape) for shape in shapes.values()]
    drawn = np.empty(sum(sizes), np.float32)
    crc = fill_gaussian(drawn, std, stream)
    parts = torch.split(torch.from_numpy(drawn), sizes)
    return Noise(
        {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)},
        crc,
    )


def fill_gaussian(out: NDArray[np.float32], std: float, stream: Keystream) -> int:
    """Fill ``out``, one dimension in contiguous memory, with independent N(0, ``std``^2) noise;
    returns its fingerprint.

    Box and Muller (1958). A ``std`` of 0 gives zeros and leaves the stream as it was.
    """
    if std != 0 and not SMALLEST <= std <= 1 / SMALLEST:
        raise ValueError(
            f"the noise's standard deviation must be 0 or in {SMALLEST:g} .. "
            f"{1 / SMALLEST:g}, not {std}"
        )
    if std == 0:
        out[:] = 0
        return 0
    crc = 0
    whole = len(out) - len(out) % CHUNK
    chunks = [
        out[start : min(start + BLOCK, whole)].reshape(-1, CHUNK)
        for start in range(0, whole, BLOCK)
    ]
    ends = []
    for part in (*chunks, out[None, whole:]):
        words = stream.words(part.size + part.size % 2)
        crc = zlib.crc32(words[::FINGERPRINT_STRIDE].tobytes(), crc)
        words = words.reshape(len(part), -1)
        _box_muller(words, std, part)
        if words.size and _from_end(words).min() < 2 * RARE:
            ends.append((part, words))
    for part, words in ends:
        _divide_ends(words, std, part, stream)
    return crc


def _box_muller(words: NDArray[np.uint32], std: float, out: NDArray[np.float32]) -> None:
    """Turn the random words of each row into normal numbers, ``r cos a`` of all its pairs and then
    ``r sin a``.
    """
    half = words.shape[1] // 2
    # in (0, 1]: half a step above the word's fraction, so that its logarithm is finite; `std` last,
    # since its square may underflow
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
    rest = out.shape[1] - half
    np.multiply(radius[:, :rest], angle[:, :rest], out=out[:, half:])


def _from_end(words: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The radius words shifted modulo 2^32, so that those at either end of their range become the
    smallest.
    """
    return words[:, : words.shape[1] // 2] + RARE


def _divide_ends(
    words: NDArray[np.uint32], std: float, out: NDArray[np.float32], stream: Keystream
) -> None:
    """Draw the rare numbers of :func:`_box_muller` whose radius word is at an end again, with 64
    bits: up to 9.5 ``std``.
    """
    half = words.shape[1] // 2
    rows, places = np.nonzero(_from_end(words) < 2 * RARE)
    high = words[rows, places]
    low = stream.words(len(rows)) + 0.5
    # near 1 the fraction itself would round to 1, so its distance to 1 is computed exactly
    rest = (2.0**32 - 1 - high) * 2.0**-32 + (2.0**32 - low) * 2.0**-64
    near = high >= RARE
    logarithms = np.log(high * 2.0**-32 + low * 2.0**-64)
    logarithms[near] = np.log1p(-rest[near])
    radius = std * np.sqrt(-2 * logarithms)
    angle = words[rows, half + places].view(np.int32) * (math.pi * 2.0**-31)
    out[rows, places] = radius * np.cos(angle)
    paired = half + places < out.shape[1]
    out[rows[paired], half + places[paired]] = (radius * np.sin(angle))[paired]


def fingerprint(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 of the tensors' bytes in the order of their sorted names: equal for two runs with the
    same bits.
    """
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(tensors[name].detach().cpu().numpy().tobytes(), crc)
    return crc
