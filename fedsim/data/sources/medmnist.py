"""MedMNIST's 2-D sets (arXiv 2110.14795), 28 to 224 pixels, from the ``medmnist`` package's folder or another one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO, NoReturn

import numpy as np
from numpy.typing import NDArray

from fedsim.data.arrays import BadArrays, damaged, opened, read_member
from fedsim.data.images import BadImage, Decoder, ImageSet, from_pixels
from fedsim.data.split import TEST, TRAIN, VALIDATION
from fedsim.errors import UserError, nearest

_PARTS = (("train", TRAIN), ("val", VALIDATION), ("test", TEST))


def load_medmnist(flag: str, size: int, root: Path | None, name: str) -> ImageSet:
    """Read the set ``flag`` with its official split from ``root``, or the package's folder; it is downloaded if it is not there."""
    from medmnist.info import INFO  # takes two seconds, for its evaluator imports scikit-learn

    flat = {flag: info for flag, info in INFO.items() if not flag.endswith("3d")}
    if flag not in flat:
        raise UserError("", f"unknown MedMNIST set '{flag}'", nearest(flag, flat))
    info, suffix = flat[flag], "" if size == 28 else f"_{size}"
    if "multi-label" in str(info["task"]):
        raise UserError("", f"{flag} has {len(info['label'])} yes-or-no labels an image", "choose a set with one label an image")
    path = (root or Path.home() / ".medmnist") / f"{flag}{suffix}.npz"
    if not os.path.isfile(path):
        _download(info[f"url{suffix}"], info[f"MD5{suffix}"], path)
    images = PackedImages(path, [f"{part}_images" for part, _ in _PARTS])
    try:
        with opened(path) as archive:
            labels = [read_member(archive, f"{part}_labels").reshape(-1) for part, _ in _PARTS]
    except BadArrays as error:
        raise _unreadable(path, error) from error
    split = np.repeat([value for _, value in _PARTS], [len(part) for part in labels])
    y = np.concatenate(labels)
    names = tuple(str(info["label"][str(c)]) for c in range(len(info["label"])))
    if y.dtype.kind not in "iu" or len(y) != len(images) or y.min() < 0 or y.max() >= len(names):
        raise UserError(str(path), f"is not the official file of {flag}", f"download it again from {info[f'url{suffix}']}")
    return ImageSet(name, images, np.arange(len(y)), y.astype(np.int64), split, names, where=str(path))


def _download(url: str, md5: str, path: Path) -> None:
    from torchvision.datasets.utils import download_url

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        download_url(url, str(path.parent), path.name, md5)
    except (OSError, RuntimeError, ValueError) as error:
        path.unlink(missing_ok=True)  # half a file would be taken for a whole one
        what = f"{path} is not there and cannot be downloaded ({' '.join(str(error).split())})"
        raise UserError("", what, f"download {url} (MD5 {md5}) and put it into {path.parent}, or name another folder with root:") from error


def _unreadable(path: Path, error: BadArrays) -> UserError:
    return UserError(str(path), f"cannot be read ({error})", "give the official MedMNIST file")


class PackedImages:
    """Images in uint8 arrays ``members`` of an ``.npz`` file, ``[n, h, w]`` or ``[n, h, w, 3]`` each, counted one after another.

    They are read one at a time out of the compressed stream: memory does not grow with the file.
    """

    def __init__(self, path: Path, members: Sequence[str]) -> None:
        self.path, self.members = path, tuple(members)
        self.shapes: list[tuple[int, ...]] = []
        self.offsets: list[int] = []
        self._open: tuple[int, ExitStack, IO[bytes]] | None = None
        try:
            with opened(path) as archive:
                for member in members:
                    with archive.open(f"{member}.npy") as stream:
                        np.lib.format.read_magic(stream)
                        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
                        if fortran or dtype != np.uint8 or len(shape) not in (3, 4):
                            raise ValueError(f"{member} has shape {list(shape)} and dtype {dtype}, which are no images")
                        self.shapes.append(shape)
                        self.offsets.append(stream.tell())
        except BadArrays as error:
            raise _unreadable(path, error) from error
        self.starts = np.cumsum([0, *(shape[0] for shape in self.shapes)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def decoder(self, row: int) -> Decoder:
        """See :class:`fedsim.data.images.Images`; reads now, so that only one thread moves through the stream."""
        try:
            pixels = self._pixels(row)
        except BadArrays as error:
            return partial(_refuse, str(error))
        return partial(from_pixels, pixels)

    def name(self, row: int) -> str:
        """The array and the number in it."""
        part, place = self._place(row)
        return f"{self.members[part]}[{place}]"

    def digests(self, rows: Sequence[int]) -> Iterator[bytes]:
        """The file's SHA-256 and the row number."""
        with self.path.open("rb") as file:
            whole = hashlib.file_digest(file, "sha256").digest()
        return (hashlib.sha256(whole + str(row).encode()).digest() for row in rows)

    def contents(self, rows: Sequence[int]) -> Iterator[bytes]:
        """SHA-256 of each image's pixels."""
        try:
            yield from (hashlib.sha256(self._pixels(row).tobytes()).digest() for row in rows)
        except BadArrays as error:
            raise _unreadable(self.path, error) from error

    def _place(self, row: int) -> tuple[int, int]:
        part = int(np.searchsorted(self.starts, row, side="right")) - 1
        return part, row - int(self.starts[part])

    def _pixels(self, row: int) -> NDArray[np.uint8]:
        part, place = self._place(row)
        shape = self.shapes[part][1:]
        size = int(np.prod(shape))
        with damaged():
            stream = self._stream(part)
            stream.seek(self.offsets[part] + place * size)
            return np.frombuffer(stream.read(size), np.uint8).reshape(shape)

    def _stream(self, part: int) -> IO[bytes]:
        """The member of a part; it stays open, for the next image is the next bytes of the stream."""
        if self._open is None or self._open[0] != part:
            if self._open is not None:
                self._open[1].close()
            files = ExitStack()
            self._open = (part, files, files.enter_context(opened(self.path)).open(f"{self.members[part]}.npy"))
        return self._open[2]


def _refuse(why: str) -> NoReturn:
    raise BadImage(why)
