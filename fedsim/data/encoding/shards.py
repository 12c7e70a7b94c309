"""Images through an encoder, shard by shard; the next batches are decoded while the model computes."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedsim.data.arrays import BadArrays, read_arrays
from fedsim.data.encoding.encoder import ImageEncoder
from fedsim.data.images import BadImage, Decoder, ImageSet
from fedsim.files import replaced

SHARD = 512
"""Images of a shard."""


@dataclass(frozen=True)
class Shard:
    """The embeddings of up to ``SHARD`` images.

    Attributes:
        number: the shard's place, from 0.
        x: ``[k, d]``; rows of bad images are zero.
        bad: why an image could not be decoded, by its position in the whole set.
    """

    number: int
    x: NDArray[np.floating]
    bad: dict[int, str]

    def save(self, folder: Path) -> None:
        """Write it at once or not at all."""
        with replaced(_path(folder, self.number)) as part, part.open("wb") as file:
            np.savez(file, x=self.x, bad=np.array(json.dumps(sorted(self.bad.items()))))

    @classmethod
    def load(cls, folder: Path, number: int) -> Shard | None:
        """A shard of an earlier run; None if it is not there or cannot be read."""
        try:
            held = read_arrays(_path(folder, number))
            return cls(number, held["x"], {int(position): reason for position, reason in json.loads(str(held["bad"]))})
        except (BadArrays, ValueError, TypeError, KeyError, RecursionError):
            return None


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:06}.npz"


def positions(number: int, images: int) -> range:
    """The images of a shard."""
    return range(number * SHARD, min((number + 1) * SHARD, images))


@dataclass(frozen=True)
class _Chunk:
    """A batch on its way: which images it stands for, the pixels of the good ones, why the others are bad."""

    positions: tuple[int, ...]
    pixels: Tensor | None
    bad: dict[int, str]


def embedded_shards(encoder: ImageEncoder, images: ImageSet, numbers: Iterable[int], batch: int, threads: int) -> Iterator[Shard]:
    """Embed the shards ``numbers``, ascending, as they get ready.

    Memory holds ``threads + 1`` batches of pixels and one shard, however many images there are.

    Args:
        encoder: a loaded encoder.
        images: the whole set.
        numbers: of the shards that are wanted.
        batch: views of images that the model takes at once.
        threads: how many batches are decoded side by side.
    """
    spec = encoder.files.spec
    dtype, size = spec.stored, max(1, batch // spec.views)
    chunks = ((number, chunk) for number in numbers for chunk in _divided(positions(number, len(images)), size))
    values: list[NDArray[np.floating]] = []
    bad: dict[int, str] = {}
    for number, chunk in _prefetched(encoder, images, chunks, threads):
        if chunk.pixels is not None:
            values.append(encoder.embed(chunk.pixels).numpy().astype(dtype))
        bad |= chunk.bad
        places = positions(number, len(images))
        if chunk.positions[-1] == places[-1]:
            x = np.zeros((len(places), values[0].shape[1] if values else 0), dtype)
            if values:
                x[[place not in bad for place in places]] = np.concatenate(values)
            yield Shard(number, x, bad)
            values, bad = [], {}


def _divided(whole: range, size: int) -> Iterator[tuple[int, ...]]:
    return (tuple(whole[start : start + size]) for start in range(0, len(whole), size))


def _prefetched(
    encoder: ImageEncoder, images: ImageSet, chunks: Iterator[tuple[int, tuple[int, ...]]], threads: int
) -> Iterator[tuple[int, _Chunk]]:
    waiting: deque[tuple[int, Future[_Chunk]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        try:
            for number, chunk in chunks:
                decoders = [images.decoder(position) for position in chunk]
                waiting.append((number, pool.submit(partial(_prepared, encoder, chunk, decoders))))
                if len(waiting) > threads:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def _prepared(encoder: ImageEncoder, chunk: tuple[int, ...], decoders: Sequence[Decoder]) -> _Chunk:
    good, bad = [], {}
    for position, decoder in zip(chunk, decoders, strict=True):
        try:
            good.append(decoder())
        except BadImage as error:
            bad[position] = str(error)
    return _Chunk(chunk, encoder.pixels(good) if good else None, bad)
