"""Medical image sets that a user downloads into one folder: what the folder must hold, where that is to be had, and how it is read.

A fixed stratified quarter of the patients or lesions is for testing, so that all images of one stay on one side.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedsim.data.images import EXTENSIONS, ImageFiles, ImageSet
from fedsim.data.sources.table import check_files, class_labels, complete, plain_columns, read_table
from fedsim.data.spec import IN_FOLDERS
from fedsim.data.split import quarter_of_groups
from fedsim.errors import UserError, at
from fedsim.files import cache_folder

HAM10000_COLUMNS = {"dataset": "site", **{name: name for name in ("lesion_id", "age", "sex", "localization", "dx_type")}}
"""Columns of the metadata that are kept, and what they are called; copies without ``dataset`` have no column ``site``."""
DIAGNOSES = ("AKIEC", "BCC", "BEN_OTH", "BKL", "DF", "INF", "MAL_OTH", "MEL", "NV", "SCCKA", "VASC")
PNEUMONIA_CLASSES = ("normal", "bacteria", "virus")
_PNEUMONIA, _NORMAL = re.compile(r"(person\d+)_(bacteria|virus)_\d+"), re.compile(r"((?:NORMAL2-)?IM-\d+)(?:-\d+)+")


def load_ham10000(root: Path, name: str) -> ImageSet:
    """HAM10000 (Tschandl et al. 2018): 10,015 images of 7,470 pigmented skin lesions from four sites, 7 diagnoses."""
    table = next(root / file for file in FOLDERS["ham10000"].needed[0] if (root / file).exists())
    folders = ("HAM10000_images_part_1", "HAM10000_images_part_2")
    metadata = read_table(table, ("lesion_id", "image_id", "dx"))
    there = {path.stem: path for part in folders for path in (root / part).glob("*.jpg")}
    with at(str(table)):
        y, names = class_labels(complete(metadata, "dx"))
        ids = complete(metadata, "image_id").astype(str)
        lesions = complete(metadata, "lesion_id").to_numpy(dtype=np.str_)
    files = [there.get(image, root / folders[0] / f"{image}.jpg") for image in ids]
    with at(str(root)):
        check_files(files, f"unpack the images into {' and '.join(folders)}")
        split = quarter_of_groups(lesions, y, names, "lesion")
    kept = plain_columns(metadata, [column for column in HAM10000_COLUMNS if column in metadata])
    columns = {HAM10000_COLUMNS[column]: values for column, values in kept.items()}
    return ImageSet(name, ImageFiles(files, root), np.arange(len(files)), y, split, names, columns, str(root))


def load_milk10k(root: Path, name: str) -> ImageSet:
    """MILK10k (ISIC 2025): 5,240 skin lesions, a close-up and a dermoscopic image each, 11 diagnoses."""
    images, metadata_file, truth_file = (names[0] for names in FOLDERS["milk10k"].needed)
    where, place = str(root), f"{root}: {metadata_file}"
    with at(where):
        metadata = read_table(root / metadata_file, ("lesion_id", "isic_id", "image_type"))
        truth = read_table(root / truth_file, ("lesion_id", *DIAGNOSES)).set_index("lesion_id")
    onehot = truth[list(DIAGNOSES)].to_numpy(dtype=np.float64)
    if not ((onehot.sum(axis=1) == 1) & (onehot.max(axis=1) == 1)).all():
        raise UserError(f"{where}: {truth_file}", "a lesion has not exactly one diagnosis", "give one 1.0 a line")
    with at(place):
        lesions = complete(metadata, "lesion_id").to_numpy(dtype=np.str_)
    if unknown := sorted(set(lesions.tolist()) - set(truth.index.astype(str))):
        raise UserError(place, f"lesion {unknown[0]} is not in {truth_file}", "use files of one release")
    diagnosis = dict(zip(truth.index.astype(str), onehot.argmax(axis=1).tolist(), strict=True))
    held, y = np.unique([diagnosis[lesion] for lesion in lesions.tolist()], return_inverse=True)  # a part of the data may lack rare ones
    names = tuple(DIAGNOSES[c] for c in held)
    files = [root / images / lesion / f"{isic}.jpg" for lesion, isic in zip(lesions.tolist(), metadata["isic_id"], strict=True)]
    with at(where):
        split = quarter_of_groups(lesions, y, names, "lesion")
        check_files(files, "unpack the whole training input")
    columns = plain_columns(metadata, [str(column) for column in metadata if column != "isic_id"])
    return ImageSet(name, ImageFiles(files, root), np.arange(len(files)), y, split, names, columns, where)


def load_chest_xray(root: Path, name: str) -> ImageSet:
    """Paediatric chest X-rays (Kermany et al. 2018): 5,856 images, normal, bacterial or viral pneumonia; columns ``patient``, ``folder``.

    Names of files say who the patient is: ``person12_bacteria_34.jpeg`` is of person 12, ``IM-0115-0001.jpeg`` of study 115. Nobody
    published whether person 12 of ``train`` and of ``test`` are two children. They count as one: no child is on both sides of the split
    or in two units, at worst several share one.
    """
    root = root / "chest_xray" if (root / "chest_xray").is_dir() else root
    files: list[Path] = []
    facts: list[tuple[str, str, str]] = []
    for part in ("train", "test", "val"):  # copies of the set have a third folder
        for kind in ("NORMAL", "PNEUMONIA"):
            for path in sorted((root / part / kind).glob("*")):
                if path.suffix.lower() not in EXTENSIONS or path.name.startswith("."):
                    continue
                read = (_NORMAL if kind == "NORMAL" else _PNEUMONIA).fullmatch(path.stem)
                if read is None:
                    what = f"{path.relative_to(root)} names no patient"
                    raise UserError(str(root), what, "give files named as person12_bacteria_34.jpeg, IM-0115-0001.jpeg")
                files.append(path)
                facts.append((part, read[1], "normal" if kind == "NORMAL" else read[2]))
    if not files:
        raise UserError(str(root), "holds no images in train/NORMAL, train/PNEUMONIA and test", "unpack ChestXRay2017.zip there")
    folder, patient, kinds = map(np.array, zip(*facts, strict=True))
    held = [kind for kind in PNEUMONIA_CLASSES if kind in kinds]
    y = np.array([held.index(kind) for kind in kinds.tolist()], dtype=np.int64)
    with at(str(root)):
        split = quarter_of_groups(patient, y, tuple(held), "patient")
    columns = {"patient": patient, "folder": folder}
    return ImageSet(name, ImageFiles(files, root), np.arange(len(files)), y, split, tuple(held), columns, str(root))


class Folder(NamedTuple):
    """A set in a folder: how it is read, and what must be there (of several names any one)."""

    read: Callable[[Path, str], ImageSet]
    needed: tuple[tuple[str, ...], ...]


FOLDERS = {
    "ham10000": Folder(
        load_ham10000, (("HAM10000_metadata", "HAM10000_metadata.csv"), ("HAM10000_images_part_1",), ("HAM10000_images_part_2",))
    ),
    "milk10k": Folder(
        load_milk10k, (("MILK10k_Training_Input",), ("MILK10k_Training_Metadata.csv",), ("MILK10k_Training_GroundTruth.csv",))
    ),
    "chest-xray": Folder(load_chest_xray, (("train", "chest_xray/train", "test", "chest_xray/test"),)),
}
"""By the names that a grid gives them, which are those of their folders in the cache, too."""


def load_folder(kind: str, root: Path | None, name: str) -> ImageSet:
    """A known set's images."""
    known, root = FOLDERS[kind], root or cache_folder() / kind
    for names in known.needed:
        if not any((root / file).exists() for file in names):
            url = IN_FOLDERS[kind][1]
            hint = f"download the files of {kind} from {url} and unpack them into {root}, or name another folder with root:"
            raise UserError(str(root), f"there is no {names[0]}", hint)
    return known.read(root, name)
