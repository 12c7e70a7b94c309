"""Image sets: labels, a split and columns in memory, pixels decoded one image at a time when they
are asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fedsim.data.split import TEST, TRAIN, stratified_rows
from fedsim.errors import UserError
from fedsim.files import unread

Source = str | bytes | NDArray[np.uint8]
"""What an image is made of: the path of a file, a file's content, or pixels ``[h, w]`` or ``[h, w,
3]``.
"""
EXTENSIONS = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


class BadImage(Exception):
    """An image that cannot be decoded; the message says why."""


class Images:
    """Where pixels come from."""

    def source(self, row: int) -> Source:
        """Image ``row``, not decoded. Cheapest in ascending order of rows."""
        raise NotImplementedError

    def name(self, row: int) -> str:
        """What a message calls image ``row``."""
        return f"image {row}"

    def digests(self, rows: Iterable[int]) -> Iterator[bytes]:
        """For every row a hash that is another one where its content is."""
        return (content_hash(self.source(row)) for row in rows)


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
        if not (self.split == TEST).any():
            raise UserError(
                self.where, "there is no test image", "give images for training and for testing"
            )
        if not trained.all():
            what = f"class '{self.class_names[int(trained.argmin())]}' has no training image"
            raise UserError(self.where, what, "give it one, or leave the class out")

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, keep: NDArray[np.bool_] | NDArray[np.int64]) -> ImageSet:
        """The set with some of its rows."""
        columns = {name: values[keep] for name, values in self.columns.items()}
        return replace(
            self, rows=self.rows[keep], y=self.y[keep], split=self.split[keep], columns=columns
        )

    def limited(self, limit: int) -> ImageSet:
        """At most ``limit`` training images and as many test images, fixed stratified choices; no
        validation images.
        """
        if limit < len(self.class_names):
            what = (
                f"limit {limit} leaves some of the {len(self.class_names)} classes without an image"
            )
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

    @cached_property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of images, labels, split, class names and columns; the
        name is no part of it.
        """
        digest = hashlib.sha256(repr((self.class_names, sorted(self.columns))).encode())
        for array in (self.y, self.split, *(self.columns[name] for name in sorted(self.columns))):
            digest.update(
                f"{array.dtype.str} {array.shape}\n".encode()
                + np.ascontiguousarray(array).tobytes()
            )
        for image in self.digests:
            digest.update(image)
        return digest.hexdigest()[:16]

    def source(self, position: int) -> Source:
        """An image, not decoded; positions count the rows of this set."""
        return self.images.source(int(self.rows[position]))

    def image_name(self, position: int) -> str:
        """What a message calls an image."""
        return self.images.name(int(self.rows[position]))


class ImageFiles(Images):
    """Image files on disk; names in messages are relative to ``root``."""

    def __init__(self, paths: Iterable[Path], root: Path) -> None:
        self.paths = tuple(map(str, paths))
        self.root = root

    def source(self, row: int) -> str:
        """Its path."""
        return self.paths[row]

    def name(self, row: int) -> str:
        """The path below the root."""
        path = Path(self.paths[row])
        if path.is_relative_to(self.root):
            return str(path.relative_to(self.root))
        return str(path)

    def digests(self, rows: Iterable[int]) -> Iterator[bytes]:
        """SHA-256 of each file."""
        with ThreadPoolExecutor() as pool:
            yield from pool.map(content_hash, [self.paths[row] for row in rows])


def decoded(source: Source) -> Image.Image:
    """Decode to RGB: upright by its EXIF orientation, 16-bit grey values scaled to 8 bits; raises
    BadImage.
    """
    if isinstance(source, np.ndarray):
        return Image.fromarray(source).convert("RGB")
    try:
        with (
            BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file,
            Image.open(file) as image,
        ):
            if image.format == "EPS":  # Pillow would hand it to Ghostscript
                raise ValueError("it is PostScript, a program, and is not run")
            return _rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # Pillow's decoders raise what they like on damaged files
        raise BadImage(unread(error)) from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers")
    if not image.mode.startswith("I"):
        return image.convert("RGB")
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("its pixels are beyond 16 bits")
    return Image.fromarray((values // 256).astype(np.uint8)).convert("RGB")


def content_hash(source: Source) -> bytes:
    """SHA-256 of a file, its content or pixels; a file that cannot be read, as decoding will
    report, differs from all others.
    """
    if not isinstance(source, str):
        return hashlib.sha256(source if isinstance(source, bytes) else source.tobytes()).digest()
    try:
        with open(source, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        return hashlib.sha256(
            f"{unread(error)}: {source}".encode(errors="surrogateescape")
        ).digest()


def overlapping(
    digests: Sequence[bytes], split: NDArray[np.int64], name: Callable[[int], str], *, drop: bool
) -> list[int]:
    """The training rows whose digest is a test row's, to be dropped; where they are not to be,
    there may be none.
    """
    tested = {digests[row] for row in np.flatnonzero(split == TEST).tolist()}
    both = [row for row in np.flatnonzero(split == TRAIN).tolist() if digests[row] in tested]
    if both and not drop:
        what = f"{len(both)} training rows are test rows too, the first is {name(both[0])}"
        raise UserError(
            "", what, "give overlap: drop to leave them out of training, or overlap: keep"
        )
    return both
