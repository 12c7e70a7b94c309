"""Image sets: labels, a split and columns in memory, pixels decoded one image at a time when they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from fedsim.data.embeddings import check_texts
from fedsim.data.split import TEST, TRAIN, stratified_rows
from fedsim.errors import UserError, at, below
from fedsim.files import open_regular, unread

Decoder = Callable[[], Image.Image]
EXTENSIONS = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


class BadImage(Exception):
    """An image that cannot be decoded; the message says why."""


class Images(Protocol):
    """Where pixels come from."""

    def __len__(self) -> int:
        """How many images there are."""

    def decoder(self, row: int) -> Decoder:
        """A function that decodes image ``row`` to RGB, in any thread; raises BadImage. Cheapest in ascending order of rows."""

    def name(self, row: int) -> str:
        """What a message calls image ``row``."""

    def digests(self, rows: Sequence[int]) -> Iterator[bytes]:
        """For every row a hash that is another one where its content is, in little time."""

    def contents(self, rows: Sequence[int]) -> Iterator[bytes]:
        """For every row a hash that equal images have in common."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A labelled set of images, checked when it is made.

    Attributes:
        name: what tables and curves call it.
        images: the pixels, decoded lazily.
        rows: which of ``images`` belong to the set, int64 ``[n]``, ascending.
        y: int64 ``[n]``, labels in 0 .. C-1.
        split: int64 ``[n]``, 0 = train, 1 = validation, 2 = test.
        class_names: what the classes are called, C texts.
        columns: further values per row, ``[n]`` each.
        where: what messages call the place that the images are from; may be empty.
    """

    name: str
    images: Images
    rows: NDArray[np.int64]
    y: NDArray[np.int64]
    split: NDArray[np.int64]
    class_names: tuple[str, ...]
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    where: str = ""

    def __post_init__(self) -> None:
        if len(self.class_names) < 2:
            raise UserError(self.where, "all images have one label", "give at least two classes")
        trained = np.bincount(self.y[self.split == TRAIN], minlength=len(self.class_names))
        if not trained.any() or not (self.split == TEST).any():
            part = "test" if trained.any() else "training"
            raise UserError(self.where, f"there is no {part} image", "give images for training and for testing")
        with at(self.where):
            check_texts("the classes' names", self.class_names)
            for name, values in self.columns.items():
                check_texts(name, values)
        if not trained.all():
            what = f"class '{self.class_names[int(trained.argmin())]}' has no training image"
            raise UserError(self.where, what, "give it one, or leave the class out")

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, keep: NDArray[np.bool_] | NDArray[np.int64]) -> ImageSet:
        """The set with some of its rows."""
        columns = {name: values[keep] for name, values in self.columns.items()}
        return replace(self, rows=self.rows[keep], y=self.y[keep], split=self.split[keep], columns=columns)

    def below(self, place: str) -> ImageSet:
        """The set whose messages name ``place`` before its own."""
        return replace(self, where=below(place, self.where))

    def limited(self, limit: int) -> ImageSet:
        """At most ``limit`` training images and as many test images, fixed stratified choices; no validation images."""
        if limit < len(self.class_names):
            what = f"limit {limit} leaves some of the {len(self.class_names)} classes without an image"
            raise UserError(self.where, what, "give a larger limit")
        chosen = []
        for part in (TRAIN, TEST):
            members = np.flatnonzero(self.split == part)
            _, y = np.unique(self.y[members], return_inverse=True)
            chosen.append(members if limit >= len(members) else members[stratified_rows(y, limit)])
        return self.take(np.sort(np.concatenate(chosen)))

    @cached_property
    def digests(self) -> list[bytes]:
        """A hash of every image that changes with its content; reads all files once."""
        return list(self.images.digests(self.rows.tolist()))

    @property
    def contents(self) -> list[bytes]:
        """A hash of every image that equal ones have in common; files whose digest is one are not read again."""
        if self.images.contents == self.images.digests:
            return self.digests
        return list(self.images.contents(self.rows.tolist()))

    @cached_property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of images, labels, split, class names and columns; the name is no part of it."""
        digest = hashlib.sha256(repr((self.class_names, sorted(self.columns))).encode())
        for array in (self.y, self.split, *(self.columns[name] for name in sorted(self.columns))):
            digest.update(f"{array.dtype.str} {array.shape}\n".encode() + np.ascontiguousarray(array).tobytes())
        for image in self.digests:
            digest.update(image)
        return digest.hexdigest()[:16]

    def decoder(self, position: int) -> Decoder:
        """See :meth:`Images.decoder`; positions count the rows of this set."""
        return self.images.decoder(int(self.rows[position]))

    def image_name(self, position: int) -> str:
        """What a message calls an image."""
        return self.images.name(int(self.rows[position]))


class ImageFiles:
    """Image files on disk; names in messages are relative to ``root``."""

    def __init__(self, paths: Iterable[Path], root: Path) -> None:
        self.paths, self.root = tuple(map(str, paths)), root

    def __len__(self) -> int:
        return len(self.paths)

    def decoder(self, row: int) -> Decoder:
        """See :class:`Images`."""
        return partial(decoded, self.paths[row])

    def name(self, row: int) -> str:
        """The path below the root."""
        path = Path(self.paths[row])
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)

    def digests(self, rows: Sequence[int]) -> Iterator[bytes]:
        """SHA-256 of each file."""
        with ThreadPoolExecutor() as pool:
            yield from pool.map(_file_digest, [self.paths[row] for row in rows])

    contents = digests


class PixelArrays:
    """Images in memory: uint8 ``[n, h, w]`` or ``[n, h, w, 3]``."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def decoder(self, row: int) -> Decoder:
        """See :class:`Images`."""
        return partial(from_pixels, self.pixels[row])

    def name(self, row: int) -> str:
        """Its number."""
        return f"image {row}"

    def digests(self, rows: Sequence[int]) -> Iterator[bytes]:
        """SHA-256 of each image's pixels."""
        return (hashlib.sha256(self.pixels[row].tobytes()).digest() for row in rows)

    contents = digests


def decoded(source: str | bytes) -> Image.Image:
    """Decode a file, or its bytes, to RGB: upright by its EXIF orientation, 16-bit grey values scaled to 8 bits."""
    try:
        with BytesIO(source) if isinstance(source, bytes) else open_regular(source) as file, Image.open(file) as image:
            if image.format == "EPS":  # Pillow would hand it to Ghostscript
                raise BadImage("it is PostScript, a program, and is not run")
            return _rgb(ImageOps.exif_transpose(image))
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        raise BadImage("no image of a kind that Pillow knows") from error
    except Exception as error:  # Pillow's decoders raise what they like on damaged files
        raise BadImage(unread(error)) from error


def from_pixels(pixels: NDArray[np.uint8]) -> Image.Image:
    """RGB from uint8 ``[h, w]`` or ``[h, w, 3]``."""
    return Image.fromarray(pixels).convert("RGB")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise BadImage("its pixels are floating-point numbers")
    if not image.mode.startswith("I"):
        return image.convert("RGB")
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise BadImage("its pixels are beyond 16 bits")
    return from_pixels((values // 256).astype(np.uint8))


def _file_digest(path: str) -> bytes:
    """Of a file's content; one that cannot be read, as decoding will report, differs from all others."""
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        return hashlib.sha256(f"{unread(error)}: {path}".encode(errors="surrogateescape")).digest()


def overlapping(digests: Sequence[bytes], split: NDArray[np.int64], name: Callable[[int], str], *, drop: bool) -> NDArray[np.int64]:
    """The training rows whose digest is a test row's, to be dropped; where they are not to be, there may be none."""
    tested = {digests[row]: row for row in np.flatnonzero(split == TEST)[::-1].tolist()}
    both = [row for row in np.flatnonzero(split == TRAIN).tolist() if digests[row] in tested]
    if both and not drop:
        what = f"{len(both)} training rows are test rows too, the first is {name(both[0])}, the same as {name(tested[digests[both[0]]])}"
        raise UserError("", what, "give overlap: drop to leave them out of training, or overlap: keep")
    return np.array(both, dtype=np.int64)
