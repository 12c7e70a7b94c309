"""Reads data sets that are known by name.

They are scikit-learn's digits, the sets of MedMNIST, and medical image sets that a user downloads
into a folder. Of the latter sets a fixed stratified quarter of the patients or lesions is for
testing, so that all images of a patient or lesion are on one side of the split.
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
"""The class names of the digits."""
HAM10000_COLUMNS = {
    "dataset": "site",
    **{name: name for name in ("lesion_id", "age", "sex", "localization", "dx_type")},
}
"""The columns of HAM10000's metadata that are kept, and their names in the data set.

Copies of the metadata without ``dataset`` give no column ``site``.
"""
DIAGNOSES = ("AKIEC", "BCC", "BEN_OTH", "BKL", "DF", "INF", "MAL_OTH", "MEL", "NV", "SCCKA", "VASC")
"""The diagnoses of MILK10k, which are columns of its ground truth."""
PNEUMONIA_CLASSES = ("normal", "bacteria", "virus")
"""The classes of the chest X-rays."""
_FILE_NAMES = {
    "NORMAL": re.compile(r"((?:NORMAL2-)?IM-\d+)(?:-\d+)+"),
    "PNEUMONIA": re.compile(r"(person\d+)_(bacteria|virus)_\d+"),
}
"""The names of chest X-rays by their folder: the patient, and the kind of pneumonia."""


def digits_embeddings(name: str) -> Embeddings:
    """Return scikit-learn's digits, the data set that needs no download.

    It has 1,797 images of 10 classes. A row holds the 8 x 8 pixels divided by 16; a stratified
    quarter is for testing.
    """
    # This is the file that scikit-learn's load_digits reads. Importing scikit-learn would take
    # longer than everything else that a small bench prepares.
    (file,) = (file for file in files("scikit-learn") or () if file.name == "digits.csv.gz")
    table = np.loadtxt(str(file.locate()), delimiter=",")
    x = (table[:, :-1] / 16).astype(np.float32)
    y = table[:, -1].astype(np.int64)
    return Embeddings.from_arrays(
        name,
        x,
        y,
        quarter_for_testing(y, DIGITS),
    )


def load_ham10000(root: Path, name: str) -> ImageSet:
    """Read HAM10000 (Tschandl et al. 2018): 10,015 images of 7,470 pigmented skin lesions.

    They come from four sites and have 7 diagnoses.
    """
    table = next(root / file for file in NEEDED["ham10000"][0] if (root / file).exists())
    folders = ("HAM10000_images_part_1", "HAM10000_images_part_2")
    metadata = read_table(table, ("lesion_id", "image_id", "dx"))
    path_of = {path.stem: path for folder in folders for path in (root / folder).glob("*.jpg")}
    with at(str(table)):
        y, class_names = class_labels(complete(metadata, "dx"))
        ids = complete(metadata, "image_id").astype(str)
        lesions = complete(metadata, "lesion_id").to_numpy(dtype=np.str_)
    paths = [path_of.get(image, root / folders[0] / f"{image}.jpg") for image in ids]
    with at(str(root)):
        check_files(paths, f"unpack the images into {' and '.join(folders)}")
    columns = {
        kept_name: _column(metadata, column)
        for column, kept_name in HAM10000_COLUMNS.items()
        if column in metadata
    }
    return _split_by_group(
        name,
        root,
        paths,
        y,
        class_names,
        "lesion",
        lesions,
        columns,
    )


def load_milk10k(root: Path, name: str) -> ImageSet:
    """Read MILK10k (ISIC 2025): 5,240 skin lesions with 11 diagnoses.

    Every lesion has a close-up and a dermoscopic image.
    """
    images, metadata_file, truth_file = (names[0] for names in NEEDED["milk10k"])
    metadata = read_table(root / metadata_file, ("lesion_id", "isic_id", "image_type"))
    truth = read_table(root / truth_file, ("lesion_id", *DIAGNOSES)).set_index("lesion_id")
    onehot = truth[list(DIAGNOSES)].to_numpy(dtype=np.float64)
    if not ((onehot.sum(axis=1) == 1) & (onehot.max(axis=1) == 1)).all():
        raise UserError(
            str(root / truth_file),
            "a lesion has not exactly one diagnosis",
            "give one 1.0 a line",
        )
    with at(str(root / metadata_file)):
        lesions = complete(metadata, "lesion_id").to_numpy(dtype=np.str_)
    diagnosis = dict(zip(truth.index.astype(str), onehot.argmax(axis=1).tolist(), strict=True))
    unknown = sorted(set(lesions.tolist()) - diagnosis.keys())
    if unknown:
        raise UserError(
            str(root / metadata_file),
            f"lesion {unknown[0]} is not in {truth_file}",
            "use files of one release",
        )
    # A part of the data may lack rare diagnoses, so only those that occur become classes.
    present, y = np.unique([diagnosis[lesion] for lesion in lesions.tolist()], return_inverse=True)
    class_names = tuple(DIAGNOSES[c] for c in present)
    paths = [
        root / images / lesion / f"{image}.jpg"
        for lesion, image in zip(lesions.tolist(), metadata["isic_id"], strict=True)
    ]
    with at(str(root)):
        check_files(paths, "unpack the whole training input")
    columns = {
        str(column): _column(metadata, str(column)) for column in metadata if column != "isic_id"
    }
    return _split_by_group(
        name,
        root,
        paths,
        y,
        class_names,
        "lesion",
        lesions,
        columns,
    )


def load_chest_xray(root: Path, name: str) -> ImageSet:
    """Read paediatric chest X-rays (Kermany et al. 2018): 5,856 images of 3 classes.

    The classes are normal, bacterial and viral pneumonia; the columns are ``patient`` and
    ``folder``. File names say who the patient is: ``person12_bacteria_34.jpeg`` is of person 12,
    ``IM-0115-0001.jpeg`` of study 115. Nobody published whether person 12 of ``train`` and person
    12 of ``test`` are two children. They count as one: no child is then on both sides of the split
    or in two units of privacy, and at worst several children share one unit.
    """
    if (root / "chest_xray").is_dir():
        root = root / "chest_xray"
    paths: list[Path] = []
    folders: list[str] = []
    patients: list[str] = []
    kinds: list[str] = []
    for folder in ("train", "test", "val"):  # only copies of the set have the third folder
        for kind, pattern in _FILE_NAMES.items():
            for path in sorted((root / folder / kind).glob("*")):
                if path.suffix.lower() not in EXTENSIONS or path.name.startswith("."):
                    continue
                match = pattern.fullmatch(path.stem)
                if match is None:
                    raise UserError(
                        str(root),
                        f"{path.relative_to(root)} names no patient",
                        "give files named as person12_bacteria_34.jpeg, IM-0115-0001.jpeg",
                    )
                paths.append(path)
                folders.append(folder)
                patients.append(match[1])
                kinds.append("normal" if kind == "NORMAL" else match[2])
    if not paths:
        raise UserError(
            str(root),
            "holds no images in train/NORMAL, train/PNEUMONIA and test",
            "unpack ChestXRay2017.zip there",
        )
    class_names = tuple(kind for kind in PNEUMONIA_CLASSES if kind in kinds)
    y = np.array([class_names.index(kind) for kind in kinds], dtype=np.int64)
    columns = {"patient": np.array(patients), "folder": np.array(folders)}
    groups = columns["patient"]
    return _split_by_group(
        name,
        root,
        paths,
        y,
        class_names,
        "patient",
        groups,
        columns,
    )


def _split_by_group(
    name: str,
    root: Path,
    paths: list[Path],
    y: NDArray[np.int64],
    class_names: tuple[str, ...],
    thing: str,
    groups: NDArray[np.str_],
    columns: dict[str, NDArray[Any]],
) -> ImageSet:
    """Return image files as a set with a quarter of the groups for testing.

    Args:
        name: the name of the data set.
        root: its folder.
        paths: the n image files.
        y: the labels ``[n]``.
        class_names: the names of the classes.
        thing: what a group is, such as ``lesion``, for messages.
        groups: the group of every image ``[n]``.
        columns: further values per image, ``[n]`` each.
    """
    with at(str(root)):
        split = quarter_of_groups(
            groups,
            y,
            class_names,
            thing,
        )
    images = ImageFiles(paths, root)
    rows = np.arange(len(paths))
    return ImageSet(
        name,
        images,
        rows,
        y,
        split,
        class_names,
        columns,
        str(root),
    )


def _column(table: pd.DataFrame, name: str) -> NDArray[Any]:
    """Return a column as numbers or texts; a missing text becomes ``unknown``."""
    from pandas.api.types import is_numeric_dtype  # true for truth values, too

    if is_numeric_dtype(table[name]):
        return table[name].to_numpy()
    return texts(table[name], "unknown")


READERS: dict[str, Callable[[Path, str], ImageSet]] = {
    "ham10000": load_ham10000,
    "milk10k": load_milk10k,
    "chest-xray": load_chest_xray,
}
"""The readers of sets in a folder, by the name in a grid, which is also the folder in the cache."""
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
"""The files and folders that a set must have; of several names in a group, one is enough."""


def load_folder(kind: str, root: Path | None, name: str) -> ImageSet:
    """Return the images of a known set that lies in a folder.

    Args:
        kind: a key of :data:`READERS`.
        root: the folder; None for the one in the cache.
        name: the name of the data set.

    Raises:
        UserError: a file is missing or wrong.
    """
    root = root or cache_folder() / kind
    for names in NEEDED[kind]:
        if not any((root / file).exists() for file in names):
            hint = (
                f"download the files of {kind} from {IN_FOLDERS[kind][1]} and unpack them into "
                f"{root}, or name another folder with root:"
            )
            raise UserError(str(root), f"there is no {names[0]}", hint)
    return READERS[kind](root, name)


_PARTS = {"train": TRAIN, "val": VALIDATION, "test": TEST}
"""The parts of a MedMNIST file in their order, with their values in a split."""


def load_medmnist(
    flag: str,
    size: int,
    root: Path | None,
    name: str,
) -> ImageSet:
    """Return a set of MedMNIST with its official split; it is downloaded if it is missing.

    Args:
        flag: the set's name in MedMNIST, such as ``organsmnist``.
        size: the width and height of the images in pixels: 28, 64, 128 or 224.
        root: the folder of the set's file; None for the folder of the package ``medmnist``.
        name: the name of the data set.

    Raises:
        UserError: the set is unknown or has several labels per image, or its file cannot be read.
    """
    from medmnist.info import INFO  # takes two seconds, because it imports scikit-learn

    flat = {flag: info for flag, info in INFO.items() if not flag.endswith("3d")}
    if flag not in flat:
        raise UserError("", f"unknown MedMNIST set '{flag}'", nearest(flag, flat))
    info = flat[flag]
    suffix = ""
    if size != 28:
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
    class_names = tuple(str(info["label"][str(c)]) for c in range(len(info["label"])))
    try:
        images = PackedImages(path)
        y = _medmnist_labels(
            path,
            flag,
            [shape[0] for shape in images.shapes],
            len(class_names),
        )
    except BadArrays as error:
        raise UserError(
            str(path),
            f"cannot be read ({error})",
            "give the official MedMNIST file",
        ) from error
    split = np.repeat(list(_PARTS.values()), [shape[0] for shape in images.shapes])
    return ImageSet(
        name,
        images,
        np.arange(len(y)),
        y,
        split,
        class_names,
        where=str(path),
    )


def _medmnist_labels(
    path: Path,
    flag: str,
    counts: list[int],
    classes: int,
) -> NDArray[np.int64]:
    """Return the labels of a MedMNIST file, ``[n]``, one part after the other.

    Args:
        path: the file.
        flag: the set's name in MedMNIST.
        counts: the number of images of every part.
        classes: the number of classes.

    Raises:
        BadArrays: the file is damaged or is not the official one.
    """
    with opened(path) as archive:
        labels = [archive[f"{part}_labels"].reshape(-1) for part in _PARTS]
        y = np.concatenate(labels)
        whole_numbers = y.dtype.kind in "iu"
        counts_fit = [len(part) for part in labels] == counts
        if not whole_numbers or not counts_fit or y.min() < 0 or y.max() >= classes:
            raise ValueError(f"it is not the official file of {flag}")
    return y.astype(np.int64)


def _download(url: str, md5: str, path: Path) -> None:
    """Download a file of MedMNIST to ``path``, completely or not at all."""
    from torchvision.datasets.utils import download_url

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        download_url(
            url,
            str(path.parent),
            path.name,
            md5,
        )
    except (OSError, RuntimeError, ValueError) as error:
        path.unlink(missing_ok=True)  # the next run would take half a file for a whole one
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

    Raises:
        BadArrays: the file is damaged or holds no images.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shapes: list[tuple[int, ...]] = []
        self.offsets: list[int] = []
        self._stream: IO[bytes] | None = None
        self._part_of_stream = -1
        with opened(path) as archive:
            for part in _PARTS:
                with archive.zip.open(f"{part}_images.npy") as stream:
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
        """Return the pixels of an image, which are read now.

        The stream stays open, because the next image is its next bytes. Only one thread may read.
        """
        part, position = self._locate(row)
        shape = self.shapes[part][1:]
        size = int(np.prod(shape))
        if self._stream is None or self._part_of_stream != part:
            archive = zipfile.ZipFile(self.path)
            self._stream = archive.open(f"{list(_PARTS)[part]}_images.npy")
            self._part_of_stream = part
        self._stream.seek(self.offsets[part] + position * size)
        return np.frombuffer(self._stream.read(size), np.uint8).reshape(shape)

    def name(self, row: int) -> str:
        """Return the array and the position in it, as in ``train_images[3]``."""
        part, position = self._locate(row)
        return f"{list(_PARTS)[part]}_images[{position}]"

    def digests(self, rows: Iterable[int]) -> Iterator[bytes]:
        """Yield a hash of the file's SHA-256 and the row's number, without decompressing."""
        with self.path.open("rb") as file:
            file_digest = hashlib.file_digest(file, "sha256").digest()
        return (hashlib.sha256(file_digest + str(row).encode()).digest() for row in rows)

    def _locate(self, row: int) -> tuple[int, int]:
        """Return the number of the part that holds a row, and the row's position in it."""
        part = int(np.searchsorted(self.starts, row, side="right")) - 1
        return part, row - int(self.starts[part])
