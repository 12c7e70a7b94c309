"""MedMNIST's 2-D sets (arXiv 2110.14795), 28 to 224 pixels, from the ``medmnist`` package's folder or another one."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from fedsim.data.arrays import BadArrays, opened
from fedsim.data.images import Images, ImageSet
from fedsim.data.split import TEST, TRAIN, VALIDATION
from fedsim.errors import UserError, nearest

_PARTS = {"train": TRAIN, "val": VALIDATION, "test": TEST}


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
    names = tuple(str(info["label"][str(c)]) for c in range(len(info["label"])))
    try:
        images = PackedImages(path)
        with opened(path) as held:
            labels = [held[f"{part}_labels"].reshape(-1) for part in _PARTS]
            y = np.concatenate(labels)
            if y.dtype.kind not in "iu" or len(y) != images.starts[-1] or y.min() < 0 or y.max() >= len(names):
                raise ValueError(f"it is not the official file of {flag}")
    except BadArrays as error:
        raise UserError(str(path), f"cannot be read ({error})", "give the official MedMNIST file") from error
    split = np.repeat(list(_PARTS.values()), [len(part) for part in labels])
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


class PackedImages(Images):
    """The images of train, validation and test in uint8 arrays of an ``.npz`` file, ``[n, h, w]`` or ``[n, h, w, 3]`` each, in this order.

    They are read one at a time out of the compressed stream: memory does not grow with the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shapes: list[tuple[int, ...]] = []
        self.offsets: list[int] = []
        self._open: tuple[int, IO[bytes]] | None = None
        with opened(path) as held:
            for part in _PARTS:
                with held.zip.open(f"{part}_images.npy") as stream:
                    np.lib.format.read_magic(stream)
                    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
                    if fortran or dtype != np.uint8 or len(shape) not in (3, 4):
                        raise ValueError(f"{part}_images has shape {list(shape)} and dtype {dtype}, which are no images")
                    self.shapes.append(shape)
                    self.offsets.append(stream.tell())
        self.starts = np.cumsum([0, *(shape[0] for shape in self.shapes)])

    def source(self, row: int) -> NDArray[np.uint8]:
        """Its pixels, read now: only one thread may move through the stream, which stays open, for the next image is its next bytes."""
        part, place = self._place(row)
        shape = self.shapes[part][1:]
        size = int(np.prod(shape))
        if self._open is None or self._open[0] != part:
            self._open = (part, zipfile.ZipFile(self.path).open(f"{list(_PARTS)[part]}_images.npy"))  # noqa: SIM115
        self._open[1].seek(self.offsets[part] + place * size)
        return np.frombuffer(self._open[1].read(size), np.uint8).reshape(shape)

    def name(self, row: int) -> str:
        """The array and the number in it."""
        part, place = self._place(row)
        return f"{list(_PARTS)[part]}_images[{place}]"

    def digests(self, rows: Iterable[int]) -> Iterator[bytes]:
        """The file's SHA-256 and the row number."""
        with self.path.open("rb") as file:
            whole = hashlib.file_digest(file, "sha256").digest()
        return (hashlib.sha256(whole + str(row).encode()).digest() for row in rows)

    def _place(self, row: int) -> tuple[int, int]:
        part = int(np.searchsorted(self.starts, row, side="right")) - 1
        return part, row - int(self.starts[part])
