"""HAM10000 (Tschandl et al. 2018): 10,015 images of 7,470 pigmented skin lesions from four sites, 7 diagnoses; from a local folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedsim.data.images import ImageFiles, ImageSet
from fedsim.data.sources.source import Source, known_folder
from fedsim.data.sources.table import check_files, class_labels, complete, plain_columns, read_table
from fedsim.data.split import quarter_of_groups
from fedsim.errors import at

METADATA_NAMES = ("HAM10000_metadata", "HAM10000_metadata.csv")
IMAGE_FOLDERS = ("HAM10000_images_part_1", "HAM10000_images_part_2")
COLUMNS_KEPT = {
    "dataset": "site",
    "lesion_id": "lesion_id",
    "age": "age",
    "sex": "sex",
    "localization": "localization",
    "dx_type": "dx_type",
}
"""Columns of the metadata that are kept, and what they are called; copies without ``dataset`` have no column ``site``."""


def load_ham10000(root: Path, name: str) -> ImageSet:
    """Read metadata and images as they are distributed; a fixed stratified quarter of the *lesions* is for testing.

    Raises:
        UserError: something is missing.
    """
    table = next((root / file for file in METADATA_NAMES if (root / file).is_file()), root / METADATA_NAMES[0])
    metadata = read_table(table, ("lesion_id", "image_id", "dx"))
    there = {path.stem: path for part in IMAGE_FOLDERS for path in (root / part).glob("*.jpg")}
    with at(str(table)):
        y, names = class_labels(complete(metadata, "dx"))
        ids = complete(metadata, "image_id").astype(str)
        lesions = complete(metadata, "lesion_id").to_numpy(dtype=np.str_)
    files = [there.get(image, root / IMAGE_FOLDERS[0] / f"{image}.jpg") for image in ids]
    with at(str(root)):
        check_files(files, f"unpack the images into {' and '.join(IMAGE_FOLDERS)}")
        split = quarter_of_groups(lesions, y, names, "lesion")
    kept = plain_columns(metadata, [column for column in COLUMNS_KEPT if column in metadata])
    columns = {COLUMNS_KEPT[column]: values for column, values in kept.items()}
    return ImageSet(name, ImageFiles(files, root), np.arange(len(files)), y, split, names, columns, str(root))


HAM10000: Source = known_folder(
    "ham10000",
    load_ham10000,
    needed=(METADATA_NAMES, *IMAGE_FOLDERS),
    facts=("7", "5602 / 1868 lesions", "600 × 450", "CC BY-NC 4.0"),
    url="https://doi.org/10.7910/DVN/DBW86T",
)
