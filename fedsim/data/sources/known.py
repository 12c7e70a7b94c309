"""Sets that are known by name: scikit-learn's digits, medical image sets that a user downloads into
one folder, and MedMNIST's.

Of the second kind a fixed stratified quarter of the patients or lesions is for testing, so that all
images of one stay on one side.
"""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import files
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim.data.arrays import BadArrays, opened
from fedsim.data.embeddings import Embeddings
from fedsim.data.images import EXTENSIONS, ImageFiles, Images, ImageSet
from fedsim.data.sources.files import check_files, class_labels, complete, read_table, texts
from fedsim.data.spec import IN_FOLDERS
from fedsim.data.split import TEST, TRAIN, VALIDATION, quarter_for_testing, quarter_of_groups
from fedsim.errors import UserError, at, nearest
from fedsim.files import cache_folder

if TYPE_CHECKING:
    import pandas as pd

DIGITS = tuple(map(str, range(10)))
HAM10000_COLUMNS = {
    "dataset": "site",
    **{name: name for name in ("lesion_id", "age", "sex", "localization", "dx_type")},
}
"""Columns of the metadata that are kept, and what they are called; copies without ``dataset`` have
no column ``site``.
"""
DIAGNOSES = ("AKIEC", "BCC", "BEN_OTH", "BKL", "DF", "INF", "MAL_OTH", "MEL", "NV", "SCCKA", "VASC")
PNEUMONIA_CLASSES = ("normal", "bacteria", "virus")
_PNEUMONIA = re.compile(r"(person\d+)_(bacteria|virus)_\d+")
_NORMAL = re.compile(r"((?:NORMAL2-)?IM-\d+)(?:-\d+)+")


def digits_embeddings(name: str) -> Embeddings:
    """1,797 digits of 10 classes, the data set that needs no download: 8 x 8 pixels / 16, a
    stratified quarter for testing.
    """
    # the file that scikit-learn's load_digits reads; to import scikit-learn takes longer than all
    # else that a small bench prepares
    (file,) = (file for file in files("scikit-learn") or () if file.name == "digits.csv.gz")
    table = np.loadtxt(str(file.locate()), delimiter=",")
    y = table[:, -1].astype(np.int64)
    return Embeddings.from_arrays(
        name, (table[:, :-1] / 16).astype(np.float32), y, quarter_for_testing(y, DIGITS)
    )


def load_ham10000(root: Path, name: str) -> ImageSet:
    """HAM10000 (Tschandl et al. 2018): 10,015 images of 7,470 pigmented skin lesions from four
    sites, 7 diagnoses.
    """
    table = next(root / file for file in NEEDED["ham10000"][0] if (root / file).exists())
    folders = ("HAM10000_images_part_1", "HAM10000_images_part_2")
    metadata = read_table(table, ("lesion_id", "image_id", "dx"))
    there = {path.stem: path for part in folders for path in (root / part).glob("*.jpg")}
    with at(str(table)):
        y, names = class_labels(complete(metadata, "dx"))
        ids = complete(metadata, "image_id").astype(str)
        lesions = complete(metadata, "lesion_id").to_numpy(dtype=np.str_)
    paths = [there.get(image, root / folders[0] / f"{image}.jpg") for image in ids]
    with at(str(root)):
        check_files(paths, f"unpack the images into {' and '.join(folders)}")
        split = quarter_of_groups(lesions, y, names, "lesion")
    columns = {
        called: _column(metadata, column)
        for column, called in HAM10000_COLUMNS.items()
        if column in metadata
    }
    return ImageSet(
        name, ImageFiles(paths, root), np.arange(len(paths)), y, split, names, columns, str(root)
    )


def load_milk10k(root: Path, name: str) -> ImageSet:
    """MILK10k (ISIC 2025): 5,240 skin lesions, a close-up and a dermoscopic image each, 11
    diagnoses.
    """
    images, metadata_file, truth_file = (names[0] for names in NEEDED["milk10k"])
    metadata = read_table(root / metadata_file, ("lesion_id", "isic_id", "image_type"))
    truth = read_table(root / truth_file, ("lesion_id", *DIAGNOSES)).set_index("lesion_id")
    onehot = truth[list(DIAGNOSES)].to_numpy(dtype=np.float64)
    if not ((onehot.sum(axis=1) == 1) & (onehot.max(axis=1) == 1)).all():
        raise UserError(
            str(root / truth_file), "a lesion has not exactly one diagnosis", "give one 1.0 a line"
        )
    with at(str(root / metadata_file)):
        lesions = complete(metadata, "lesion_id").to_numpy(dtype=np.str_)
    diagnosis = dict(zip(truth.index.astype(str), onehot.argmax(axis=1).tolist(), strict=True))
    if unknown := sorted(set(lesions.tolist()) - diagnosis.keys()):
        raise UserError(
            str(root / metadata_file),
            f"lesion {unknown[0]} is not in {truth_file}",
            "use files of one release",
        )
    held, y = np.unique(
        [diagnosis[lesion] for lesion in lesions.tolist()], return_inverse=True
    )  # a part of the data may lack rare ones
    names = tuple(DIAGNOSES[c] for c in held)
    paths = [
        root / images / lesion / f"{isic}.jpg"
        for lesion, isic in zip(lesions.tolist(), metadata["isic_id"], strict=True)
    ]
    with at(str(root)):
        check_files(paths, "unpack the whole training input")
        split = quarter_of_groups(lesions, y, names, "lesion")
    columns = {
        str(column): _column(metadata, str(column)) for column in metadata if column != "isic_id"
    }
    return ImageSet(
        name, ImageFiles(paths, root), np.arange(len(paths)), y, split, names, columns, str(root)
    )


def load_chest_xray(root: Path, name: str) -> ImageSet:
    """Paediatric chest X-rays (Kermany et al. 2018): 5,856 images, normal, bacterial or viral
    pneumonia; columns ``patient``, ``folder``.

    Names of files say who the patient is: ``person12_bacteria_34.jpeg`` is of person 12,
    ``IM-0115-0001.jpeg`` of study 115. Nobody published whether person 12 of ``train`` and of
    ``test`` are two children. They count as one: no child is on both sides of the split or in two
    units, at worst several share one.
    """
    if (root / "chest_xray").is_dir():
        root = root / "chest_xray"
    parts = [
        (part, kind) for part in ("train", "test", "val") for kind in ("NORMAL", "PNEUMONIA")
    ]  # copies of the set have a third folder
    there = [
        (part, kind, path)
        for part, kind in parts
        for path in sorted((root / part / kind).glob("*"))
    ]
    facts: list[tuple[Path, str, str, str]] = []
    for part, kind, path in there:
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith("."):
            read = (_NORMAL if kind == "NORMAL" else _PNEUMONIA).fullmatch(path.stem)
            if read is None:
                what = f"{path.relative_to(root)} names no patient"
                raise UserError(
                    str(root),
                    what,
                    "give files named as person12_bacteria_34.jpeg, IM-0115-0001.jpeg",
                )
            facts.append((path, part, read[1], "normal" if kind == "NORMAL" else read[2]))
    if not facts:
        raise UserError(
            str(root),
            "holds no images in train/NORMAL, train/PNEUMONIA and test",
            "unpack ChestXRay2017.zip there",
        )
    paths, *rest = zip(*facts, strict=True)
    folder, patient, kinds = map(np.array, rest)
    held = tuple(kind for kind in PNEUMONIA_CLASSES if kind in kinds)
    y = np.array([held.index(kind) for kind in kinds.tolist()], dtype=np.int64)
    with at(str(root)):
        split = quarter_of_groups(patient, y, held, "patient")
    columns = {"patient": patient, "folder": folder}
    return ImageSet(
        name, ImageFiles(paths, root), np.arange(len(paths)), y, split, held, columns, str(root)
    )


def _column(table: pd.DataFrame, name: str) -> NDArray[Any]:
    """A column as numbers or texts; a missing text is ``unknown``."""
    from pandas.api.types import is_numeric_dtype  # of truth values, too

    if is_numeric_dtype(table[name]):
        return table[name].to_numpy()
    return texts(table[name], "unknown")


READERS: dict[str, Callable[[Path, str], ImageSet]] = {
    "ham10000": load_ham10000,
    "milk10k": load_milk10k,
    "chest-xray": load_chest_xray,
}
"""Sets in a folder by the names that a grid gives them, which are those of their folders in the
cache, too.
"""
NEEDED = {
    "ham10000": (
        ("HAM10000_metadata", "HAM10000_metadata.csv"),
        ("HAM10000_images_part_1",),
        ("HAM10000_images_part_2",),
    ),
    "milk10k": (
        ("MILK10k_Training_Input",),
        ("MILK10k_Training_Metadata.csv",),
        ("MILK10k_Training_GroundTruth.csv",),
    ),
    "chest-xray": (("train", "chest_xray/train", "test", "chest_xray/test"),),
}
"""What must be there, of several names any one."""


def load_folder(kind: str, root: Path | None, name: str) -> ImageSet:
    """A known set's images."""
    root = root or cache_folder() / kind
    if missing := next(
        (names[0] for names in NEEDED[kind] if not any((root / file).exists() for file in names)),
        None,
    ):
        hint = (
            f"download the files of {kind} from {IN_FOLDERS[kind][1]} and unpack them into "
            f"{root}, or name another folder with root:"
        )
        raise UserError(str(root), f"there is no {missing}", hint)
    return READERS[kind](root, name)


_PARTS = {"train": TRAIN, "val": VALIDATION, "test": TEST}


def load_medmnist(flag: str, size: int, root: Path | None, name: str) -> ImageSet:
    """Read the set ``flag`` with its official split from ``root``, or the package's folder; it is
    downloaded if it is not there.
    """
    from medmnist.info import INFO  # takes two seconds, for its evaluator imports scikit-learn

    flat = {flag: info for flag, info in INFO.items() if not flag.endswith("3d")}
    if flag not in flat:
        raise UserError("", f"unknown MedMNIST set '{flag}'", nearest(flag, flat))
    info = flat[flag]
    if size == 28:
        suffix = ""
    else:
        suffix = f"_{size}"
    if "multi-label" in str(info["task"]):
        raise UserError(
            "",
            f"{flag} has {len(info['label'])} yes-or-no labels an image",
            "choose a set with one label an image",
        )
    path = (root or Path.home() / ".medmnist") / f"{flag}{suffix}.npz"
    if not os.path.isfile(path):
        _download(info[f"url{suffix}"], info[f"MD5{suffix}"], path)
    names = tuple(str(info["label"][str(c)]) for c in range(len(info["label"])))
    try:
        images = PackedImages(path)
        with opened(path) as held:
            labels = [held[f"{part}_labels"].reshape(-1) for part in _PARTS]
            y = np.concatenate(labels)
            if (
                y.dtype.kind not in "iu"
                or len(y) != images.starts[-1]
                or y.min() < 0
                or y.max() >= len(names)
            ):
                raise ValueError(f"it is not the official file of {flag}")
    except BadArrays as error:
        raise UserError(
            str(path), f"cannot be read ({error})", "give the official MedMNIST file"
        ) from error
    split = np.repeat(list(_PARTS.values()), [len(part) for part in labels])
    return ImageSet(
        name, images, np.arange(len(y)), y.astype(np.int64), split, names, where=str(path)
    )


def _download(url: str, md5: str, path: Path) -> None:
    from torchvision.datasets.utils import download_url

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        download_url(url, str(path.parent), path.name, md5)
    except (OSError, RuntimeError, ValueError) as error:
        path.unlink(missing_ok=True)  # half a file would be taken for a whole one
        what = f"{path} is not there and cannot be downloaded ({' '.join(str(error).split())})"
        raise UserError(
            "",
            what,
            f"download {url} (MD5 {md5}) and put it into {path.parent}, or name another "
            "folder with root:",
        ) from error


class PackedImages(Images):
    """The images of train, validation and test in uint8 arrays of an ``.npz`` file, ``[n, h, w]``
    or ``[n, h, w, 3]`` each, in this order.

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
                        raise ValueError(
                            f"{part}_images has shape {list(shape)} and dtype {dtype}, which "
                            "are no images"
                        )
                    self.shapes.append(shape)
                    self.offsets.append(stream.tell())
        self.starts = np.cumsum([0, *(shape[0] for shape in self.shapes)])

    def source(self, row: int) -> NDArray[np.uint8]:
        """Its pixels, read now: only one thread may move through the stream, which stays open, for
        the next image is its next bytes.
        """
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
