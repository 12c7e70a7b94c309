"""MILK10k (ISIC 2025): 5,240 skin lesions, a close-up and a dermoscopic image each, 11 diagnoses; read from a local folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedsim.data.images import ImageFiles, ImageSet
from fedsim.data.sources.source import Source, known_folder
from fedsim.data.sources.table import check_files, complete, plain_columns, read_table
from fedsim.data.split import quarter_of_groups
from fedsim.errors import UserError, at

DIAGNOSES = ("AKIEC", "BCC", "BEN_OTH", "BKL", "DF", "INF", "MAL_OTH", "MEL", "NV", "SCCKA", "VASC")
IMAGES = "MILK10k_Training_Input"
METADATA = "MILK10k_Training_Metadata.csv"
GROUND_TRUTH = "MILK10k_Training_GroundTruth.csv"


def load_milk10k(root: Path, name: str) -> ImageSet:
    """Read the challenge's training data: every image is a row, all columns of the metadata but ``isic_id`` are kept.

    A fixed stratified quarter of the *lesions* is for testing, so that a lesion's two images stay together.

    Raises:
        UserError: something is missing, or the ground truth is not one-hot.
    """
    where = str(root)
    with at(where):
        metadata = read_table(root / METADATA, ("lesion_id", "isic_id", "image_type"))
        truth = read_table(root / GROUND_TRUTH, ("lesion_id", *DIAGNOSES)).set_index("lesion_id")
    onehot = truth[list(DIAGNOSES)].to_numpy(dtype=np.float64)
    if not ((onehot.sum(axis=1) == 1) & (onehot.max(axis=1) == 1)).all():
        raise UserError(f"{where}: {GROUND_TRUTH}", "a lesion has not exactly one diagnosis", "give one 1.0 a line")
    with at(f"{where}: {METADATA}"):
        lesions = complete(metadata, "lesion_id").to_numpy(dtype=np.str_)
    if unknown := sorted(set(lesions.tolist()) - set(truth.index.astype(str))):
        raise UserError(f"{where}: {METADATA}", f"lesion {unknown[0]} is not in {GROUND_TRUTH}", "use files of one release")
    diagnosis = dict(zip(truth.index.astype(str), onehot.argmax(axis=1).tolist(), strict=True))
    held, y = np.unique([diagnosis[lesion] for lesion in lesions.tolist()], return_inverse=True)  # a part of the data may lack rare ones
    names = tuple(DIAGNOSES[c] for c in held)
    files = [root / IMAGES / lesion / f"{isic}.jpg" for lesion, isic in zip(lesions.tolist(), metadata["isic_id"], strict=True)]
    with at(where):
        split = quarter_of_groups(lesions, y, names, "lesion")
        check_files(files, "unpack the whole training input")
    columns = plain_columns(metadata, [str(column) for column in metadata if column != "isic_id"])
    return ImageSet(name, ImageFiles(files, root), np.arange(len(files)), y, split, names, columns, where)


MILK10K: Source = known_folder(
    "milk10k",
    load_milk10k,
    needed=(IMAGES, METADATA, GROUND_TRUTH),
    facts=("11", "3930 / 1310 lesions × 2", "their own", "per image: copyright_license"),
    url="https://challenge.isic-archive.com/data/#milk10k",
)
