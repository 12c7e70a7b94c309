"""Reads the data sets of MedMNIST: the labels at once, and the images one at a time.

Each data set is one ``.npz`` file, which is downloaded if it is missing.
"""

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
from fedsim.data.spec import DatasetSpec
from fedsim.data.split import TEST, TRAIN, VALIDATION, Integers
from fedsim.errors import UserError, nearest

_PARTS = {"train": TRAIN, "val": VALIDATION, "test": TEST}
"""The parts of a MedMNIST file in their order, with their values in a split."""


def read_medmnist(spec: DatasetSpec, public: bool = False) -> ImageSet:
    """Return a set of MedMNIST with its official split; it is downloaded if it is missing.

    Args:
        spec: the data set, such as ``medmnist:organsmnist``. Without a ``root``, its file lies in
            the folder of the package ``medmnist``.
        public: whether the images are public, which makes no difference here.

    Raises:
        UserError: the set is unknown or has several labels per image, or its file cannot be read.
    """
    from medmnist.info import INFO  # takes two seconds, because it imports scikit-learn

    flag = spec.argument
    sets_of_2d = {name: info for name, info in INFO.items() if not name.endswith("3d")}
    if flag not in sets_of_2d:
        raise UserError("", f"unknown MedMNIST set '{flag}'", nearest(flag, sets_of_2d))
    info = sets_of_2d[flag]
    if "multi-label" in str(info["task"]):
        raise UserError(
            "",
            f"{flag} has {len(info['label'])} yes-or-no labels per image",
            "choose a set with one label per image",
        )
    suffix = ""
    if spec.size != 28:
        suffix = f"_{spec.size}"
    path = (spec.root or Path.home() / ".medmnist") / f"{flag}{suffix}.npz"
    if not os.path.isfile(path):
        _download(info[f"url{suffix}"], info[f"MD5{suffix}"], path)
    class_names = tuple(str(info["label"][str(c)]) for c in range(len(info["label"])))
    try:
        images = PackedImages(path)
        labels = images.labels()
        if labels.min() < 0 or labels.max() >= len(class_names):
            raise BadArrays(f"it is not the official file of {flag}")
    except BadArrays as error:
        raise UserError(
            str(path),
            f"cannot be used as a MedMNIST file ({error})",
            "give the official file",
        ) from error
    return ImageSet(
        spec.title,
        images,
        np.arange(len(labels)),
        labels,
        np.repeat(list(_PARTS.values()), np.diff(images.starts)),
        class_names,
        where=str(path),
    )


def _download(url: str, md5: str, path: Path) -> None:
    """Download a file of MedMNIST to ``path``, completely or not at all."""
    from torchvision.datasets.utils import download_url

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        download_url(url, str(path.parent), path.name, md5)
    except (OSError, RuntimeError, ValueError) as error:
        # The next run would take an incomplete file for a complete one.
        path.unlink(missing_ok=True)
        problem = f"{path} is not there and cannot be downloaded ({' '.join(str(error).split())})"
        hint = (
            f"download {url} (MD5 {md5}) and put it into {path.parent}, or name another "
            "folder with root:"
        )
        raise UserError("", problem, hint) from error


class PackedImages(Images):
    """The images of a MedMNIST file: those of train, validation and test, in this order.

    They are uint8 arrays ``[n, h, w]`` or ``[n, h, w, 3]`` of an ``.npz`` file. One image at a time
    is read out of the compressed stream, so memory does not grow with the file.

    Attributes:
        shapes: the shape of the array of each part, by the part's name.
        offsets: where the pixels of each part begin, in bytes of its uncompressed ``.npy`` file.
        starts: int64 ``[4]``, the row of the first image of each part, then the number of images.

    Raises:
        BadArrays: the file is damaged or holds no images.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.offsets: dict[str, int] = {}
        self._stream: IO[bytes] | None = None
        self._part_of_stream = ""
        with opened(path) as archive:
            for part in _PARTS:
                with archive.zip.open(f"{part}_images.npy") as stream:
                    np.lib.format.read_magic(stream)
                    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
                    if fortran or dtype != np.uint8 or len(shape) not in (3, 4):
                        # `opened` turns it into a BadArrays.
                        raise ValueError(
                            f"{part}_images holds no images, but an array of shape "
                            f"{list(shape)} and dtype {dtype}"
                        )
                    self.shapes[part] = shape
                    self.offsets[part] = stream.tell()
        self.starts = np.cumsum([0, *(shape[0] for shape in self.shapes.values())])

    def labels(self) -> Integers:
        """Return the labels of all images, ``[n]``.

        Raises:
            BadArrays: there is not one whole number per image.
        """
        with opened(self.path) as archive:
            labels = [archive[f"{part}_labels"].reshape(-1) for part in _PARTS]
            y = np.concatenate(labels)
            counts = [len(part) for part in labels]
            if y.dtype.kind not in "iu" or counts != np.diff(self.starts).tolist():
                raise ValueError("it is not the official file: images and labels do not fit")
        return y.astype(np.int64)

    def source(self, row: int) -> NDArray[np.uint8]:
        """Return the pixels of an image, ``[h, w]`` or ``[h, w, 3]``.

        The stream stays open, because the next image follows in it. Only one thread may read, and
        ascending rows are fastest.
        """
        part, position = self._locate(row)
        shape = self.shapes[part][1:]
        size = int(np.prod(shape))
        if self._stream is None or self._part_of_stream != part:
            archive = zipfile.ZipFile(self.path)
            self._stream = archive.open(f"{part}_images.npy")
            self._part_of_stream = part
        self._stream.seek(self.offsets[part] + position * size)
        return np.frombuffer(self._stream.read(size), np.uint8).reshape(shape)

    def name(self, row: int) -> str:
        """Return the array and the position in it, as in ``train_images[3]``."""
        part, position = self._locate(row)
        return f"{part}_images[{position}]"

    def digests(self, rows: Iterable[int]) -> Iterator[bytes]:
        """Yield a hash per row, of the file's SHA-256 and the row's number.

        No image is decompressed. Equal images in two rows have different hashes.
        """
        with self.path.open("rb") as file:
            file_digest = hashlib.file_digest(file, "sha256").digest()
        return (hashlib.sha256(file_digest + str(row).encode()).digest() for row in rows)

    def _locate(self, row: int) -> tuple[str, int]:
        """Return the name of the part that holds a row, and the row's position in it."""
        number = int(np.searchsorted(self.starts, row, side="right")) - 1
        return list(_PARTS)[number], row - int(self.starts[number])
