"""Reads scikit-learn's digits, and medical image sets that a user downloads into a folder.

In a set of a folder, a fixed stratified quarter of the patients or lesions is for testing. All
images of a patient or lesion are then on one side of the split. Each reader also takes whether the
rows are public, which makes no difference here.
"""

from __future__ import annotations

import re
from importlib.metadata import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim.data.embeddings import Embeddings
from fedsim.data.images import EXTENSIONS, ImageFiles, ImageSet
from fedsim.data.sources.tables import check_files, class_labels, complete, read_table
from fedsim.data.spec import DatasetSpec
from fedsim.data.split import Columns, Integers, quarter_for_testing, quarter_of_groups
from fedsim.errors import UserError, at
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


def read_digits(spec: DatasetSpec, public: bool = False) -> Embeddings:
    """Return scikit-learn's digits, the data set that needs no download.

    It has 1,797 images of 10 classes. Each row holds the 8 x 8 pixels of an image, divided by 16. A
    fixed stratified quarter of the rows is for testing.
    """
    # This is the file that scikit-learn's load_digits reads. Importing scikit-learn would take
    # longer than everything else that a small bench prepares.
    (file,) = (file for file in files("scikit-learn") or () if file.name == "digits.csv.gz")
    table = np.loadtxt(str(file.locate()), delimiter=",")
    x = (table[:, :-1] / 16).astype(np.float32)
    y = table[:, -1].astype(np.int64)
    split = quarter_for_testing(y, DIGITS)
    return Embeddings.from_arrays(spec.title, x, y, split)


def _folder(spec: DatasetSpec) -> Path:
    """Return the folder of a data set: its ``root``, or else a folder in the cache.

    Raises:
        UserError: the folder lacks files or folders that the data set needs.
    """
    root = spec.root or cache_folder() / spec.kind
    for names in spec.source.needed:
        if not any((root / file).exists() for file in names):
            hint = (
                f"download the files of {spec.kind} from {spec.source.page} and unpack them into "
                f"{root}, or give root: FOLDER with the folder where they are"
            )
            raise UserError(
                str(root),
                f"holds none of these files and folders: {', '.join(names)}",
                hint,
            )
    return root


def read_ham10000(spec: DatasetSpec, public: bool = False) -> ImageSet:
    """Read HAM10000 (Tschandl et al. 2018): 10,015 images of 7,470 pigmented skin lesions.

    They come from four sites and have 7 diagnoses.
    """
    root = _folder(spec)
    # The first group holds the possible names of the table. Each other group is one image folder.
    table_names, *folders = spec.source.needed
    table = next(root / file for file in table_names if (root / file).exists())
    metadata = read_table(table, ("lesion_id", "image_id", "dx"))
    path_of = {path.stem: path for (folder,) in folders for path in (root / folder).glob("*.jpg")}
    with at(str(table)):
        y, class_names = class_labels(complete(metadata, "dx"))
        ids = complete(metadata, "image_id").astype(str)
        lesions = complete(metadata, "lesion_id").to_numpy(dtype=np.str_)
    first_folder = root / folders[0][0]
    paths = [path_of.get(image, first_folder / f"{image}.jpg") for image in ids]
    with at(str(root)):
        check_files(paths, f"unpack the images into {' and '.join(name for (name,) in folders)}")
    columns = {
        kept_name: _column(metadata, column)
        for column, kept_name in HAM10000_COLUMNS.items()
        if column in metadata
    }
    return _split_by_group(
        spec,
        ImageFiles(paths, root),
        y,
        class_names,
        columns,
        "lesion",
        lesions,
    )


def read_milk10k(spec: DatasetSpec, public: bool = False) -> ImageSet:
    """Read MILK10k (ISIC 2025): 5,240 skin lesions with 11 diagnoses.

    Every lesion has a close-up and a dermoscopic image.
    """
    root = _folder(spec)
    images, metadata_file, truth_file = (root / names[0] for names in spec.source.needed)
    metadata = read_table(metadata_file, ("lesion_id", "isic_id", "image_type"))
    truth = read_table(truth_file, ("lesion_id", *DIAGNOSES)).set_index("lesion_id")
    onehot = truth[list(DIAGNOSES)].astype(np.float64).rename(index=str)
    if not ((onehot.sum(axis=1, skipna=False) == 1) & (onehot.max(axis=1) == 1)).all():
        raise UserError(
            str(truth_file),
            "a lesion has not exactly one diagnosis",
            "give one 1.0 per line",
        )
    with at(str(metadata_file)):
        lesions = complete(metadata, "lesion_id").astype(str)
    diagnosis = lesions.map(onehot.idxmax(axis=1).to_dict())
    unknown = sorted(lesions[diagnosis.isna()])
    if unknown:
        raise UserError(
            str(metadata_file),
            f"lesion {unknown[0]} is not in {truth_file.name}",
            "use files of one release",
        )
    # A part of the data may lack rare diagnoses, so only those that occur become classes.
    y, class_names = class_labels(diagnosis)
    paths = [
        images / lesion / f"{image}.jpg"
        for lesion, image in zip(lesions, metadata["isic_id"], strict=True)
    ]
    with at(str(root)):
        check_files(paths, "unpack the whole training input")
    columns = {
        str(column): _column(metadata, str(column)) for column in metadata if column != "isic_id"
    }
    return _split_by_group(
        spec,
        ImageFiles(paths, root),
        y,
        class_names,
        columns,
        "lesion",
        lesions.to_numpy(dtype=np.str_),
    )


def read_chest_xray(spec: DatasetSpec, public: bool = False) -> ImageSet:
    """Read paediatric chest X-rays (Kermany et al. 2018): 5,856 images of 3 classes.

    The classes are normal, bacterial and viral pneumonia; the columns are ``patient`` and
    ``folder``. File names say who the patient is: ``person12_bacteria_34.jpeg`` is of person 12,
    ``IM-0115-0001.jpeg`` of study 115. Nobody published whether person 12 of ``train`` and person
    12 of ``test`` are two children. They count as one: no child is then on both sides of the split
    or in two units of privacy, and at worst several children share one unit.
    """
    root = _folder(spec)
    if (root / "chest_xray").is_dir():
        root = root / "chest_xray"
    images = []
    for folder in ("train", "test", "val"):  # only copies of the set have the third folder
        for class_folder, pattern in _FILE_NAMES.items():
            for path in sorted((root / folder / class_folder).glob("*")):
                if path.suffix.lower() not in EXTENSIONS or path.name.startswith("."):
                    continue
                match = pattern.fullmatch(path.stem)
                if match is None:
                    raise UserError(
                        str(root),
                        f"the file name of {path.relative_to(root)} does not say which patient "
                        "it is of",
                        "rename it as person12_bacteria_34.jpeg in PNEUMONIA or as "
                        "IM-0115-0001.jpeg in NORMAL, or remove it",
                    )
                # Only the names of images in PNEUMONIA have a second group.
                patient, *pneumonia = match.groups()
                (kind,) = pneumonia or ["normal"]
                images.append((path, folder, patient, kind))
    if not images:
        raise UserError(
            str(root),
            "holds no images in train/NORMAL, train/PNEUMONIA and test",
            "unpack ChestXRay2017.zip there",
        )
    paths, folders, patients, kinds = zip(*images, strict=True)
    class_names = tuple(kind for kind in PNEUMONIA_CLASSES if kind in kinds)
    y = np.array([class_names.index(kind) for kind in kinds], dtype=np.int64)
    columns = {"patient": np.array(patients), "folder": np.array(folders)}
    return _split_by_group(
        spec,
        ImageFiles(paths, root),
        y,
        class_names,
        columns,
        "patient",
        columns["patient"],
    )


def _split_by_group(
    spec: DatasetSpec,
    images: ImageFiles,
    y: Integers,
    class_names: tuple[str, ...],
    columns: Columns,
    thing: str,
    group_of: NDArray[np.str_],
) -> ImageSet:
    """Return image files as a set with a quarter of the groups for testing.

    Args:
        spec: the data set.
        images: the n image files.
        y: the labels ``[n]``.
        class_names: the names of the classes.
        columns: further values per image, ``[n]`` each.
        thing: the word for a group in messages, such as ``lesion``.
        group_of: the group of every image ``[n]``.
    """
    where = str(images.root)
    with at(where):
        split = quarter_of_groups(group_of, y, class_names, thing)
    return ImageSet(
        spec.title,
        images,
        np.arange(len(y)),
        y,
        split,
        class_names,
        columns,
        where,
    )


def _column(table: pd.DataFrame, name: str) -> NDArray[Any]:
    """Return a column as numbers, truth values or texts; a missing text becomes ``unknown``."""
    from pandas.api.types import is_numeric_dtype  # it accepts truth values, too

    if is_numeric_dtype(table[name]):
        return table[name].to_numpy()
    return table[name].fillna("unknown").astype(str).to_numpy(dtype=np.str_)
