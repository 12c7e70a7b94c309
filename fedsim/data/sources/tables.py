"""Reads image tables: CSV files with one path and one label per image.

A mistake is reported with the file of the table, and a missing value also with its line.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from fedsim.data.images import ImageFiles, ImageSet, without_labels
from fedsim.data.spec import DatasetSpec
from fedsim.data.split import WORDS, Integers, quarter_for_testing
from fedsim.errors import UserError, at, nearest
from fedsim.files import unread
from fedsim.words import counted

if TYPE_CHECKING:
    import pandas as pd


def read_image_table(spec: DatasetSpec, public: bool = False) -> ImageSet:
    """Read a CSV file with the columns ``path`` and ``label``, and optionally further ones.

    A path is relative to the table's folder; a label is any text or number. A column ``split``
    (train, validation, test) says what is for testing; without it, a fixed stratified quarter is.
    All other columns become columns of the data set, as whole numbers or texts; a missing value is
    an empty text.

    Args:
        spec: the data set.
        public: whether the images are public, so that they need no labels.

    Raises:
        UserError: the table or an image is missing, or the table has a gap or an unknown value.
    """
    path = spec.path or Path()
    needed = ["path"] if public else ["path", "label"]
    table = read_table(path, needed, numbers=False)
    where = str(path)
    folder = path.absolute().parent
    with at(where):
        files = [Path(os.path.normpath(folder / str(file))) for file in complete(table, "path")]
        check_files(files, "correct the paths, which are relative to the table's folder")
        images = ImageFiles(files, folder)
        if "label" not in table:
            return without_labels(spec.title, images)
        y, class_names = class_labels(_numbers_or_texts(complete(table, "label")))
        if "split" in table:
            split = _split_values(complete(table, "split"))
        else:
            split = quarter_for_testing(y, class_names)
    columns = {
        str(column): np.array(_numbers_or_texts(table[column]).tolist())
        for column in table
        if column not in ("path", "label", "split")
    }
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


def read_table(path: Path, needed: Sequence[str], *, numbers: bool = True) -> pd.DataFrame:
    """Return a CSV file as a table with one row per image.

    Args:
        path: the file.
        needed: the columns that it must have.
        numbers: whether values that look like numbers are read as numbers. Otherwise all values are
            texts without spaces around them, and a missing one is an empty text. The columns
            ``path`` and ``label`` are then taken as they are written: ``NA`` is a label.

    Raises:
        UserError: the file is missing or no CSV file, or a column or all rows are missing.
    """
    import pandas as pd

    where = str(path)
    try:
        content = io.BytesIO(path.read_bytes())
        if numbers:
            table = pd.read_csv(content, skipinitialspace=True)
        else:
            table = _read_texts(content)
    except FileNotFoundError as error:
        raise UserError(
            where,
            "there is no such file",
            "give the path of a CSV file",
        ) from error
    except (OSError, ValueError, OverflowError) as error:  # pandas' parser errors are ValueErrors
        raise UserError(
            where,
            f"cannot be read ({unread(error)})",
            "give a CSV file with a head line",
        ) from error
    for name in needed:
        if name not in table:
            raise UserError(
                where,
                f"there is no column '{name}'",
                nearest(name, map(str, table.columns)),
            )
    if table.empty:
        raise UserError(where, "has a head line, but no rows", "write one row per image")
    return table


def _read_texts(content: io.BytesIO) -> pd.DataFrame:
    """Return a CSV file as texts without spaces around them; a missing value is an empty text.

    pandas takes texts such as ``NA`` for missing values. In the columns ``path`` and ``label`` they
    are names, so these two columns come from a second reading that keeps such texts.
    """
    import pandas as pd

    table = pd.read_csv(content, skipinitialspace=True, dtype=str).fillna("")
    content.seek(0)
    as_written = pd.read_csv(
        content,
        skipinitialspace=True,
        dtype=str,
        keep_default_na=False,
    )
    for name in ("path", "label"):
        if name in table:
            table[name] = as_written[name]
    stripped: pd.DataFrame = table.apply(lambda column: column.str.strip())
    return stripped


def complete(table: pd.DataFrame, name: str) -> pd.Series[Any]:
    """Return a column that has a value in every row.

    Raises:
        UserError: values are missing; the message has their number and the first one's row.
    """
    gaps = (table[name].isna() | (table[name] == "")).to_numpy()
    if gaps.any():
        problem = (
            f"column '{name}' lacks {counted(int(gaps.sum()), 'value')}, the first in row "
            f"{gaps.argmax() + 1} below the head line"
        )
        raise UserError("", problem, "fill them in or remove the lines")
    return table[name]


def _numbers_or_texts(values: pd.Series[str]) -> pd.Series[Any]:
    """Return whole numbers if all texts are such numbers, so that 10 is sorted after 9."""
    # Numbers of up to 18 digits fit into int64. A text such as 01 stays a text.
    if values.str.fullmatch(r"0|-?[1-9]\d{0,17}").all():
        return values.astype(np.int64)
    return values


def class_labels(values: ArrayLike) -> tuple[Integers, tuple[str, ...]]:
    """Return labels ``[n]`` in ``0 .. C-1``, and the C class names: the distinct values, sorted."""
    names, labels = np.unique(np.asarray(values), return_inverse=True)
    return labels, tuple(map(str, names))


def check_files(paths: Sequence[Path], remedy: str) -> None:
    """Check that all paths are files.

    Raises:
        UserError: a path is no file; the hint is ``remedy``.
    """
    # Unlike Path.is_file, os.path.isfile never raises.
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise UserError(
            "",
            f"{len(missing)} of {len(paths)} images cannot be found (the first: {missing[0]})",
            remedy,
        )


def _split_values(values: pd.Series[str]) -> Integers:
    """Return the split ``[n]`` of a column of words such as train, or numbers such as 2 and 2.0."""
    known = WORDS | {str(number): number for number in WORDS.values()}
    words = values.str.lower().str.removesuffix(".0")
    split = words.map(known)
    if split.isna().any():
        raise UserError(
            "",
            f"column 'split' has the value '{words[split.isna()].iloc[0]}'",
            "give train, validation or test",
        )
    return np.asarray(split, dtype=np.int64)
