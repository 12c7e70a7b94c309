"""Holds image sets, and decodes and hashes their images.

The labels and columns of a set are in memory. Its images are read one at a time.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fedsim.data.split import (
    NO_LABELS,
    TEST,
    TRAIN,
    Columns,
    Integers,
    made_up_labels,
    stratified_rows,
    take_rows,
)
from fedsim.errors import UserError, at
from fedsim.files import unread

Source = str | bytes | NDArray[np.uint8]
"""An image that is not decoded: the path of a file, the content of a file, or pixels.

Pixels have the shape ``[h, w]`` or ``[h, w, 3]``.
"""
EXTENSIONS = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
"""The endings of file names, in lower case, that mark an image."""


class BadImage(Exception):
    """Raised for an image that cannot be decoded; the message says why."""


class Images(ABC):
    """A numbered collection of images, which subclasses read from files or archives.

    The number of an image in the collection is called its row.
    """

    @abstractmethod
    def source(self, row: int) -> Source:
        """Return image ``row`` without decoding it.

        Reading images in the order of their rows is fastest.
        """

    @abstractmethod
    def name(self, row: int) -> str:
        """Return the name of image ``row`` for messages."""

    @abstractmethod
    def digests(self, rows: Iterable[int]) -> Iterator[bytes]:
        """Yield a hash for every row, which changes when the content of the image does."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A labelled set of images, checked when it is made.

    Attributes:
        name: the name in tables and curves.
        images: the collection that the pixels come from.
        rows: the rows in ``images`` of the images of this set, int64 ``[n]``, ascending.
        y: int64 ``[n]``, labels in ``0 .. C-1``.
        split: int64 ``[n]``, 0 = train, 1 = validation, 2 = test.
        class_names: the C names of the classes.
        columns: further values of every image, ``[n]`` each.
        where: the folder or file of the images, for messages; may be empty.

    Raises:
        UserError: there is a single class, no test image, or a class without training image.
    """

    name: str
    images: Images
    rows: Integers
    y: Integers
    split: Integers
    class_names: tuple[str, ...]
    columns: Columns = field(default_factory=dict)
    where: str = ""

    def __post_init__(self) -> None:
        if len(self.class_names) < 2:
            raise UserError(
                self.where,
                "all images have one label",
                "give at least two classes",
            )
        if TEST not in self.split:
            raise UserError(
                self.where,
                "there is no test image",
                "put test images into a folder test/, or write test into the column split; without "
                "both, fedsim chooses a quarter",
            )
        trained = np.bincount(self.y[self.split == TRAIN], minlength=len(self.class_names))
        if not trained.all():
            raise UserError(
                self.where,
                f"class '{self.class_names[trained.argmin()]}' has no training image",
                "give it one, or leave the class out",
            )

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, keep: NDArray[np.bool_] | Integers) -> ImageSet:
        """Return the set with only some of its images.

        If the test image of a set without labels is left out, labels and split are made up again.

        Args:
            keep: a mask ``[n]`` of the images that stay, or their positions.

        Raises:
            UserError: these images are no valid set; see the class.
        """
        y = self.y[keep]
        split = self.split[keep]
        if self.class_names == NO_LABELS and TEST not in split:
            y, split = made_up_labels(len(y))
        return replace(
            self,
            rows=self.rows[keep],
            y=y,
            split=split,
            columns=take_rows(self.columns, keep),
        )

    def limited(self, limit: int) -> ImageSet:
        """Return the set with at most ``limit`` training images and at most ``limit`` test images.

        Validation images are left out. Both choices are stratified by label and always the same.

        Raises:
            UserError: the limit is below the number of classes.
        """
        chosen = []
        for part in (TRAIN, TEST):
            members = np.flatnonzero(self.split == part)
            if limit < len(members):
                with at(self.where):
                    members = members[stratified_rows(self.y[members], limit)]
            chosen.append(members)
        return self.take(np.sort(np.concatenate(chosen)))

    @cached_property
    def digests(self) -> list[bytes]:
        """A hash of every image, which changes with the image's content.

        All files are read when the hashes are first needed.
        """
        return list(self.images.digests(self.rows.tolist()))

    @cached_property
    def fingerprint(self) -> str:
        """The first 16 hex digits of a SHA-256 of all that the set holds, except its name.

        It covers images, labels, split, class names and columns.
        """
        digest = hashlib.sha256(repr((self.class_names, sorted(self.columns))).encode())
        columns = [self.columns[name] for name in sorted(self.columns)]
        for array in [self.y, self.split, *columns]:
            digest.update(f"{array.dtype.str} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        for image_digest in self.digests:
            digest.update(image_digest)
        return digest.hexdigest()[:16]

    def source(self, position: int) -> Source:
        """Return the image at a position in this set, without decoding it."""
        return self.images.source(int(self.rows[position]))

    def image_name(self, position: int) -> str:
        """Return the name of the image at a position in this set, for messages."""
        return self.images.name(int(self.rows[position]))


def without_labels(name: str, images: ImageFiles) -> ImageSet:
    """Return public images that have no labels as a set with made-up labels and split.

    Raises:
        UserError: there are fewer than three images.
    """
    y, split = made_up_labels(len(images.paths))
    return ImageSet(name, images, np.arange(len(y)), y, split, NO_LABELS)


class ImageFiles(Images):
    """Image files on disk.

    Args:
        paths: the files, in the order of their rows.
        root: the folder that names in messages are relative to.
    """

    def __init__(self, paths: Iterable[Path], root: Path) -> None:
        self.paths = tuple(map(str, paths))
        self.root = root

    def source(self, row: int) -> str:
        """Return the path of an image."""
        return self.paths[row]

    def name(self, row: int) -> str:
        """Return the path of an image below the root."""
        path = Path(self.paths[row])
        if path.is_relative_to(self.root):
            return str(path.relative_to(self.root))
        return str(path)

    def digests(self, rows: Iterable[int]) -> Iterator[bytes]:
        """Yield the SHA-256 of every file; several files are read at once."""
        with ThreadPoolExecutor() as pool:
            yield from pool.map(content_hash, [self.paths[row] for row in rows])


def decoded(source: Source) -> Image.Image:
    """Decode an image to RGB with 8 bits per channel, upright by its EXIF orientation.

    Grey values of 16 bits are scaled to 8 bits.

    Raises:
        BadImage: the image cannot be decoded.
    """
    try:
        if isinstance(source, np.ndarray):
            return Image.fromarray(source).convert("RGB")
        with (
            BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file,
            Image.open(file) as image,
        ):
            if image.format == "EPS":  # Pillow would run it in Ghostscript
                raise ValueError("it is PostScript, a program, and is not run")
            return _to_rgb(ImageOps.exif_transpose(image))
    # For damaged files Pillow's decoders raise errors of many types.
    except Exception as error:
        raise BadImage(unread(error)) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to RGB; grey values of more than 8 bits are divided by 256.

    Raises:
        ValueError: the pixels are floating-point numbers, do not fit into 16 bits, or have 32 bits
            of which only 8 are used, so that the image would be black.
    """
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers")
    if not image.mode.startswith("I"):
        return image.convert("RGB")
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("its pixels are beyond 16 bits")
    if image.mode == "I" and 0 < values.max() < 256:
        raise ValueError("its pixels have 32 bits and values below 256; store them with 8 bits")
    return Image.fromarray((values // 256).astype(np.uint8)).convert("RGB")


def content_hash(source: Source) -> bytes:
    """Return the SHA-256 of an image's file, content or pixels.

    A file that cannot be read gets a hash of the error and of its path, so that it differs from all
    others. The error itself is reported when the file is decoded.
    """
    if isinstance(source, np.ndarray):
        return hashlib.sha256(source.tobytes()).digest()
    if isinstance(source, bytes):
        return hashlib.sha256(source).digest()
    try:
        with open(source, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        text = f"{unread(error)}: {source}"
        return hashlib.sha256(text.encode(errors="surrogateescape")).digest()
