"""MILK10k (ISIC 2025): 5,240 skin lesions, a close-up and a dermoscopic image each, 11 diagnoses; read from a local folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedsim.data.images import ImageFiles, ImageSet
from fedsim.data.sources.source import Listing, Source
from fedsim.data.sources.tables import check_files, complete, plain_columns, read_table
from fedsim.data.split import quarter_for_testing
from fedsim.errors import UserError, at
from fedsim.files import cache_folder
from fedsim.tagged import KindParams

SOURCE = "https://challenge.isic-archive.com/data/#milk10k"
DIAGNOSES = ("AKIEC", "BCC", "BEN_OTH", "BKL", "DF", "INF", "MAL_OTH", "MEL", "NV", "SCCKA", "VASC")
IMAGES = "MILK10k_Training_Input"
METADATA = "MILK10k_Training_Metadata.csv"
GROUND_TRUTH = "MILK10k_Training_GroundTruth.csv"


class Milk10kParams(KindParams):
    """Parameters of MILK10k.

    Attributes:
        root: the folder that holds its files; default: in fedsim's cache.
    """

    root: Path | None = None


def load_milk10k(root: Path, name: str) -> ImageSet:
    """Read the challenge's training data: every image is a row, all columns of the metadata but ``isic_id`` are kept.

    A fixed stratified quarter of the *lesions* is for testing, so that a lesion's two images stay together.

    Raises:
        UserError: something is missing (with what to download and where to put it), or the ground truth is not one-hot.
    """
    where = str(root)
    if missing := [each for each in (IMAGES, METADATA, GROUND_TRUTH) if not (root / each).exists()]:
        right = f"download the training input, metadata and ground truth of MILK10k from {SOURCE} and unpack them into {root}"
        raise UserError(where, f"there is no {missing[0]}", right)
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
    held = sorted({diagnosis[lesion] for lesion in lesions.tolist()})  # a part of the data may lack rare diagnoses
    ids, of_lesion = np.unique(lesions, return_inverse=True)
    by_lesion = np.array([held.index(diagnosis[lesion]) for lesion in ids.tolist()], dtype=np.int64)
    names = tuple(DIAGNOSES[c] for c in held)
    files = [root / IMAGES / lesion / f"{isic}.jpg" for lesion, isic in zip(lesions.tolist(), metadata["isic_id"], strict=True)]
    with at(where):
        split = quarter_for_testing(by_lesion, names, "lesion")
        check_files(files, f"unpack the whole training input from {SOURCE}")
    columns = plain_columns(metadata, [str(column) for column in metadata if column != "isic_id"])
    return ImageSet(name, ImageFiles(files, root), np.arange(len(files)), by_lesion[of_lesion], split[of_lesion], names, columns, where)


def _default_root() -> Path:
    return cache_folder() / "milk10k"


def _listing() -> list[Listing]:
    root = _default_root()
    held = "yes" if (root / METADATA).is_file() else f"no; root: FOLDER or {root}"
    return [Listing("milk10k", "11", "3930 / 1310 lesions × 2", "their own", "per image: copyright_license", SOURCE, held)]


MILK10K = Source(
    _listing,
    images=lambda asked: load_milk10k(asked.given.root or _default_root(), asked.name),
    params=Milk10kParams,
    published=True,
)
