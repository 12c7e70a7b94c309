"""MedMNIST's 2-D sets (arXiv 2110.14795), 28 to 224 pixels, from the ``medmnist`` package's folder or another one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from fedsim.data.arrays import BadArrays, named, open_archive
from fedsim.data.images import BadImage, Decoder, ImageSet, from_pixels
from fedsim.data.sources.source import Listing, RootParams, Source
from fedsim.data.split import TEST, TRAIN, VALIDATION
from fedsim.errors import UserError, nearest

SIZES = (28, 64, 128, 224)
_PARTS = (("train", TRAIN), ("val", VALIDATION), ("test", TEST))


class MedMNISTParams(RootParams):
    """Parameters of MedMNIST's sets.

    Attributes:
        root: the folder that holds the files; default: the package's.
        size: pixels.
    """

    size: Literal[28, 64, 128, 224] = 28


def flags() -> dict[str, dict[str, Any]]:
    """The package's facts about every 2-D set, by flag."""
    from medmnist.info import INFO  # takes two seconds, for its evaluator imports scikit-learn

    return {flag: info for flag, info in INFO.items() if not flag.endswith("3d")}


def single_label(info: dict[str, Any]) -> bool:
    """Whether every image has one label."""
    return "multi-label" not in str(info["task"])


def default_root() -> Path:
    """The package's own folder."""
    return Path.home() / ".medmnist"


def file_name(flag: str, size: int) -> str:
    """The official file's name."""
    return f"{flag}.npz" if size == 28 else f"{flag}_{size}.npz"


def load_medmnist(flag: str, size: int, root: Path, name: str) -> ImageSet:
    """Read a set with its official split; a file that is not there is downloaded, if that is possible.

    Args:
        flag: such as ``organsmnist``.
        size: 28, 64, 128 or 224 pixels.
        root: the folder of the official files.
        name: what tables call it.

    Raises:
        UserError: the file cannot be had (with what to download and where to put it) or read, or has several labels an image.
    """
    info = flags()[flag]
    if not single_label(info):
        raise UserError("", f"{flag} has {len(info['label'])} yes-or-no labels an image", "choose a set with one label an image")
    suffix = "" if size == 28 else f"_{size}"
    path = root / file_name(flag, size)
    if not os.path.isfile(path):
        _download(info[f"url{suffix}"], info[f"MD5{suffix}"], path)
    images = PackedImages(path, [f"{part}_images" for part, _ in _PARTS])
    labels = [_labels(path, f"{part}_labels") for part, _ in _PARTS]
    split = np.repeat([value for _, value in _PARTS], [len(part) for part in labels])
    y = np.concatenate(labels)
    names = tuple(str(info["label"][str(c)]) for c in range(len(info["label"])))
    if len(y) != len(images) or y.min() < 0 or y.max() >= len(names):
        raise UserError(str(path), f"is not the official file of {flag}", f"download it again from {info[f'url{suffix}']}")
    return ImageSet(name, images, np.arange(len(y)), y, split, names, where=str(path))


def _download(url: str, md5: str, path: Path) -> None:
    from torchvision.datasets.utils import download_url

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        download_url(url, str(path.parent), path.name, md5)
    except (OSError, RuntimeError, ValueError) as error:
        path.unlink(missing_ok=True)  # half a file would be taken for a whole one
        what = f"{path} is not there and cannot be downloaded ({' '.join(str(error).split())})"
        raise UserError("", what, f"download {url} (MD5 {md5}) and put it into {path.parent}, or name another folder with root:") from error


def _labels(path: Path, member: str) -> NDArray[np.int64]:
    try:
        with open_archive(path) as file:
            labels = file.read(member)
    except BadArrays as error:
        raise _unreadable(path, error) from error
    if labels.dtype.kind not in "iu":
        raise UserError(str(path), f"{member} has dtype {labels.dtype}", "give the official MedMNIST file")
    return labels.reshape(-1).astype(np.int64)


def _unreadable(path: Path, error: BadArrays) -> UserError:
    return UserError(str(path), f"cannot be read ({error})", "give the official MedMNIST file")


class PackedImages:
    """Images in uint8 arrays of an ``.npz`` file, read one at a time out of the compressed stream: memory does not grow with the file.

    Args:
        path: the file.
        members: its arrays, ``[n, h, w]`` or ``[n, h, w, 3]`` each, counted one after another.

    Raises:
        UserError: the file is no ``.npz`` file, or an array is missing or holds anything but images.
    """

    def __init__(self, path: Path, members: Sequence[str]) -> None:
        self.path, self.members = path, tuple(members)
        try:
            with open_archive(path) as file:
                heads = [file.head(member) for member in members]
        except BadArrays as error:
            raise _unreadable(path, error) from error
        for member, (shape, dtype, fortran, _) in zip(members, heads, strict=True):
            if fortran or dtype != np.uint8 or len(shape) not in (3, 4):
                raise UserError(
                    str(path),
                    f"{member} has shape {list(shape)} and dtype {dtype}",
                    "give uint8 images [n, h, w] or [n, h, w, 3], in C order",
                )
        self.shapes = [head.shape for head in heads]
        self.offsets = [head.offset for head in heads]
        self.starts = np.cumsum([0, *(shape[0] for shape in self.shapes)])
        self._open: tuple[int, ExitStack, IO[bytes]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": None}

    def __len__(self) -> int:
        return int(self.starts[-1])

    def decoder(self, row: int) -> Decoder:
        """See :class:`fedsim.data.images.Images`; reads now, so that only one thread moves through the stream."""
        try:
            pixels = self._pixels(row)
        except BadArrays as error:
            return partial(_refuse, str(error))
        return partial(from_pixels, pixels)

    def _pixels(self, row: int) -> NDArray[np.uint8]:
        part = int(np.searchsorted(self.starts, row, side="right")) - 1
        shape = self.shapes[part][1:]
        size = int(np.prod(shape))
        with named(self.members[part]):
            stream = self._stream(part)
            stream.seek(self.offsets[part] + (row - int(self.starts[part])) * size)
            return np.frombuffer(stream.read(size), np.uint8).reshape(shape)

    def _stream(self, part: int) -> IO[bytes]:
        """The member of a part; it stays open, for the next image is the next bytes of the stream."""
        if self._open is None or self._open[0] != part:
            if self._open is not None:
                self._open[1].close()
            files = ExitStack()
            self._open = (part, files, files.enter_context(open_archive(self.path)).stream(self.members[part]))
        return self._open[2]

    def name(self, row: int) -> str:
        """The array and the number in it."""
        part = int(np.searchsorted(self.starts, row, side="right")) - 1
        return f"{self.members[part]}[{row - int(self.starts[part])}]"

    def digests(self, rows: Sequence[int]) -> Iterator[bytes]:
        """The file's SHA-256 and the row number."""
        with self.path.open("rb") as file:
            whole = hashlib.file_digest(file, "sha256").digest()
        return (hashlib.sha256(whole + str(row).encode()).digest() for row in rows)

    def contents(self, rows: Sequence[int]) -> Iterator[bytes]:
        """SHA-256 of each image's pixels.

        Raises:
            UserError: the file is damaged.
        """
        try:
            yield from (hashlib.sha256(self._pixels(row).tobytes()).digest() for row in rows)
        except BadArrays as error:
            raise _unreadable(self.path, error) from error


def _refuse(why: str) -> NoReturn:
    raise BadImage(why)


def _listing() -> list[Listing]:
    lines = []
    for flag, info in flags().items():
        counts = info["n_samples"]
        classes = str(len(info["label"])) if single_label(info) else f"{len(info['label'])} labels, not supported"
        held = [str(size) for size in SIZES if (default_root() / file_name(flag, size)).is_file()]
        split, pixels = f"{counts['train']} / {counts['test']}", f"size: {', '.join(map(str, SIZES))}"
        lines.append(Listing(f"medmnist:{flag}", classes, split, pixels, info["license"], "MedMNIST, Zenodo", ", ".join(held) or "no"))
    return lines


def _check(flag: str) -> None:
    if flag not in flags():
        raise ValueError(f"unknown MedMNIST set '{flag}'; {nearest(flag, flags())}")


MEDMNIST = Source(
    _listing,
    images=lambda asked: load_medmnist(asked.argument, asked.given.size, asked.given.root or default_root(), asked.name),
    argument="<flag>",
    params=MedMNISTParams,
    published=True,
    check=_check,
    display=lambda flag, given: flag + (f"-{given.size}" if given.size != 28 else ""),
)
