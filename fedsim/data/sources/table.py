"""Image tables: a CSV file with a path and a label an image; a split and further columns if it has them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from fedsim.data.images import ImageFiles, ImageSet
from fedsim.data.sources.source import Listing, Source
from fedsim.data.sources.tables import check_files, class_labels, complete, exact_columns, numbers_or_texts, read_table, split_values
from fedsim.data.split import WORDS, quarter_for_testing
from fedsim.errors import at


def load_image_table(path: Path, name: str) -> ImageSet:
    """Read a table with the columns ``path`` (relative to the file's folder) and ``label`` (any text or number).

    A column ``split`` (train, validation, test) says what is for testing; without one it is a fixed stratified quarter. All other
    columns are kept, for partitions by column, as whole numbers or texts; a missing value is an empty text.

    Raises:
        UserError: the table lacks a column or a value, or an image is not there.
    """
    table = read_table(path, ("path", "label"), exact=("label",), numbers=False)
    where = str(path)
    folder = path.absolute().parent
    with at(where):
        y, names = class_labels(numbers_or_texts(complete(table, "label")))
        files = [Path(os.path.normpath(folder / str(each))) for each in complete(table, "path")]
        check_files(files, "correct the paths, which are relative to the table's folder")
        split = split_values(complete(table, "split").to_numpy(), WORDS) if "split" in table else quarter_for_testing(y, names)
    columns = exact_columns(table, [str(column) for column in table if column not in ("path", "label", "split")])
    return ImageSet(name, ImageFiles(files, folder), np.arange(len(files)), y, split, names, columns, where)


TABLE = Source(
    lambda: [Listing("{csv: PATH}", "yours", "column split, or a quarter", "their own", "yours", "your files")],
    images=lambda asked: load_image_table(asked.path, asked.name),
)
