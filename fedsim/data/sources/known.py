"""Sets that are known by name: scikit-learn's digits, and medical image sets that a user downloads into one folder.

Of the latter a fixed stratified quarter of the patients or lesions is for testing, so that all images of one stay on one side.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.metadata import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim.data.embeddings import Embeddings
from fedsim.data.images import EXTENSIONS, ImageFiles, ImageSet
from fedsim.data.sources.files import check_files, class_labels, complete, read_table, texts
from fedsim.data.spec import IN_FOLDERS
from fedsim.data.split import quarter_for_testing, quarter_of_groups
from fedsim.errors import UserError, at
from fedsim.files import cache_folder

if TYPE_CHECKING:
    import pandas as pd

DIGITS = tuple(map(str, range(10)))
HAM10000_COLUMNS = {"dataset": "site", **{name: name for name in ("lesion_id", "age", "sex", "localization", "dx_type")}}
"""Columns of the metadata that are kept, and what they are called; copies without ``dataset`` have no column ``site``."""
DIAGNOSES = ("AKIEC", "BCC", "BEN_OTH", "BKL", "DF", "INF", "MAL_OTH", "MEL", "NV", "SCCKA", "VASC")
PNEUMONIA_CLASSES = ("normal", "bacteria", "virus")
_PNEUMONIA, _NORMAL = re.compile(r"(person\d+)_(bacteria|virus)_\d+"), re.compile(r"((?:NORMAL2-)?IM-\d+)(?:-\d+)+")


def digits_embeddings(name: str) -> Embeddings:
    """1,797 digits of 10 classes, the data set that needs no download: 8 x 8 pixels / 16, a stratified quarter for testing."""
    # the file that scikit-learn's load_digits reads; to import scikit-learn takes longer than all else that a small bench prepares
    (file,) = (file for file in files("scikit-learn") or () if file.name == "digits.csv.gz")
    table = np.loadtxt(str(file.locate()), delimiter=",")
    y = table[:, -1].astype(np.int64)
    return Embeddings.from_arrays(name, (table[:, :-1] / 16).astype(np.float32), y, quarter_for_testing(y, DIGITS))


def load_ham10000(root: Path, name: str) -> ImageSet:
    """HAM10000 (Tschandl et al. 2018): 10,015 images of 7,470 pigmented skin lesions from four sites, 7 diagnoses."""
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
    columns = {called: _column(metadata, column) for column, called in HAM10000_COLUMNS.items() if column in metadata}
    return ImageSet(name, ImageFiles(paths, root), np.arange(len(paths)), y, split, names, columns, str(root))


def load_milk10k(root: Path, name: str) -> ImageSet:
    """MILK10k (ISIC 2025): 5,240 skin lesions, a close-up and a dermoscopic image each, 11 diagnoses."""
    images, metadata_file, truth_file = (names[0] for names in NEEDED["milk10k"])
    metadata = read_table(root / metadata_file, ("lesion_id", "isic_id", "image_type"))
    truth = read_table(root / truth_file, ("lesion_id", *DIAGNOSES)).set_index("lesion_id")
    onehot = truth[list(DIAGNOSES)].to_numpy(dtype=np.float64)
    if not ((onehot.sum(axis=1) == 1) & (onehot.max(axis=1) == 1)).all():
        raise UserError(str(root / truth_file), "a lesion has not exactly one diagnosis", "give one 1.0 a line")
    with at(str(root / metadata_file)):
        lesions = complete(metadata, "lesion_id").to_numpy(dtype=np.str_)
    diagnosis = dict(zip(truth.index.astype(str), onehot.argmax(axis=1).tolist(), strict=True))
    if unknown := sorted(set(lesions.tolist()) - diagnosis.keys()):
        raise UserError(str(root / metadata_file), f"lesion {unknown[0]} is not in {truth_file}", "use files of one release")
    held, y = np.unique([diagnosis[lesion] for lesion in lesions.tolist()], return_inverse=True)  # a part of the data may lack rare ones
    names = tuple(DIAGNOSES[c] for c in held)
    paths = [root / images / lesion / f"{isic}.jpg" for lesion, isic in zip(lesions.tolist(), metadata["isic_id"], strict=True)]
    with at(str(root)):
        check_files(paths, "unpack the whole training input")
        split = quarter_of_groups(lesions, y, names, "lesion")
    columns = {str(column): _column(metadata, str(column)) for column in metadata if column != "isic_id"}
    return ImageSet(name, ImageFiles(paths, root), np.arange(len(paths)), y, split, names, columns, str(root))


def load_chest_xray(root: Path, name: str) -> ImageSet:
    """Paediatric chest X-rays (Kermany et al. 2018): 5,856 images, normal, bacterial or viral pneumonia; columns ``patient``, ``folder``.

    Names of files say who the patient is: ``person12_bacteria_34.jpeg`` is of person 12, ``IM-0115-0001.jpeg`` of study 115. Nobody
    published whether person 12 of ``train`` and of ``test`` are two children. They count as one: no child is on both sides of the split
    or in two units, at worst several share one.
    """
    root = root / "chest_xray" if (root / "chest_xray").is_dir() else root
    parts = [(part, kind) for part in ("train", "test", "val") for kind in ("NORMAL", "PNEUMONIA")]  # copies of the set have a third folder
    there = [(part, kind, path) for part, kind in parts for path in sorted((root / part / kind).glob("*"))]
    facts: list[tuple[Path, str, str, str]] = []
    for part, kind, path in there:
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith("."):
            read = (_NORMAL if kind == "NORMAL" else _PNEUMONIA).fullmatch(path.stem)
            if read is None:
                what = f"{path.relative_to(root)} names no patient"
                raise UserError(str(root), what, "give files named as person12_bacteria_34.jpeg, IM-0115-0001.jpeg")
            facts.append((path, part, read[1], "normal" if kind == "NORMAL" else read[2]))
    if not facts:
        raise UserError(str(root), "holds no images in train/NORMAL, train/PNEUMONIA and test", "unpack ChestXRay2017.zip there")
    paths, *rest = zip(*facts, strict=True)
    folder, patient, kinds = map(np.array, rest)
    held = tuple(kind for kind in PNEUMONIA_CLASSES if kind in kinds)
    y = np.array([held.index(kind) for kind in kinds.tolist()], dtype=np.int64)
    with at(str(root)):
        split = quarter_of_groups(patient, y, held, "patient")
    columns = {"patient": patient, "folder": folder}
    return ImageSet(name, ImageFiles(paths, root), np.arange(len(paths)), y, split, held, columns, str(root))


def _column(table: pd.DataFrame, name: str) -> NDArray[Any]:
    """A column as numbers or texts; a missing text is ``unknown``."""
    from pandas.api.types import is_numeric_dtype  # of truth values, too

    return table[name].to_numpy() if is_numeric_dtype(table[name]) else texts(table[name], "unknown")


READERS: dict[str, Callable[[Path, str], ImageSet]] = {
    "ham10000": load_ham10000,
    "milk10k": load_milk10k,
    "chest-xray": load_chest_xray,
}
"""Sets in a folder by the names that a grid gives them, which are those of their folders in the cache, too."""
NEEDED = {
    "ham10000": (("HAM10000_metadata", "HAM10000_metadata.csv"), ("HAM10000_images_part_1",), ("HAM10000_images_part_2",)),
    "milk10k": (("MILK10k_Training_Input",), ("MILK10k_Training_Metadata.csv",), ("MILK10k_Training_GroundTruth.csv",)),
    "chest-xray": (("train", "chest_xray/train", "test", "chest_xray/test"),),
}
"""What must be there, of several names any one."""


def load_folder(kind: str, root: Path | None, name: str) -> ImageSet:
    """A known set's images."""
    root = root or cache_folder() / kind
    if missing := next((names[0] for names in NEEDED[kind] if not any((root / file).exists() for file in names)), None):
        hint = f"download the files of {kind} from {IN_FOLDERS[kind][1]} and unpack them into {root}, or name another folder with root:"
        raise UserError(str(root), f"there is no {missing}", hint)
    return READERS[kind](root, name)
