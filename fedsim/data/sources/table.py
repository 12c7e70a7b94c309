"""Image tables: a CSV file with a path and a label an image; and what other sources read of their tables.

Every mistake names its file and row.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim.data.images import ImageFiles, ImageSet
from fedsim.data.split import WORDS, made_up_labels, quarter_for_testing
from fedsim.errors import UserError, at, nearest
from fedsim.files import open_regular, unread

if TYPE_CHECKING:
    import pandas as pd


def load_image_table(path: Path, name: str) -> ImageSet:
    """Read a table with the columns ``path`` (relative to the file's folder) and ``label`` (any text or number).

    A column ``split`` (train, validation, test) says what is for testing; without one it is a fixed stratified quarter. All other
    columns are kept, for partitions by column, as whole numbers or texts; a missing value is an empty text.
    """
    table = read_table(path, ("path", "label"), exact=("label",), numbers=False)
    where = str(path)
    with at(where):
        y, names = class_labels(numbers_or_texts(complete(table, "label")))
        images = _listed(table, path)
        split = split_values(complete(table, "split").to_numpy(), WORDS) if "split" in table else quarter_for_testing(y, names)
    columns = exact_columns(table, [str(column) for column in table if column not in ("path", "label", "split")])
    return ImageSet(name, images, np.arange(len(y)), y, split, names, columns, where)


def table_without_labels(path: Path, name: str) -> ImageSet | None:
    """The images of a table that has no column ``label``, with made-up labels; None for one that has."""
    table = read_table(path, ("path",), numbers=False)
    if "label" in table:
        return None
    with at(str(path)):
        images, (y, split) = _listed(table, path), made_up_labels(len(table))
    return ImageSet(name, images, np.arange(len(y)), y, split, ("0", "1"), where=str(path))


def _listed(table: pd.DataFrame, path: Path) -> ImageFiles:
    """The images of the column ``path``, relative to the table's folder."""
    folder = path.absolute().parent
    files = [Path(os.path.normpath(folder / str(name))) for name in complete(table, "path")]
    check_files(files, "correct the paths, which are relative to the table's folder")
    return ImageFiles(files, folder)


def read_table(path: Path, needed: Sequence[str] = (), exact: Sequence[str] = (), *, numbers: bool = True) -> pd.DataFrame:
    """Read a CSV file that has the columns ``needed``; those in ``exact`` are what stands there, and neither numbers nor missing.

    The others are numbers where they look so if ``numbers``, else texts.
    """
    import pandas as pd

    where = str(path)
    try:
        with open_regular(path) as file:
            content = io.BytesIO(file.read())
            table = pd.read_csv(content, skipinitialspace=True, dtype=None if numbers else str)
            if given := [name for name in exact if name in table]:
                content.seek(0)
                there = pd.read_csv(content, skipinitialspace=True, usecols=given, dtype=str, keep_default_na=False)
                table = table.assign(**{name: there[name].str.strip() for name in given})
    except FileNotFoundError as error:
        raise UserError(where, "there is no such file", "give the path of a CSV file") from error
    except (OSError, ValueError, OverflowError) as error:  # pandas' parser errors are ValueErrors
        raise UserError(where, f"cannot be read ({unread(error)})", "give a CSV file with a head line") from error
    if lacking := next((name for name in needed if name not in table), None):
        raise UserError(where, f"there is no column '{lacking}'", nearest(lacking, map(str, table.columns)))
    if table.empty:
        raise UserError(where, "has no rows", "give one row an image")
    return table


def complete(table: pd.DataFrame, name: str) -> pd.Series[Any]:
    """A column without gaps; the message about one says how many there are, and the first one's line in the file."""
    gaps = (table[name].isna() | (table[name] == "")).to_numpy()
    if gaps.any():
        what = f"column '{name}' lacks {int(gaps.sum())} values, the first in line {int(gaps.argmax()) + 2}"
        raise UserError("", what, "fill them in or remove the lines")
    return table[name]


def numbers_or_texts(values: pd.Series[str]) -> pd.Series[Any]:
    """Texts, or where all are whole numbers written as such, these: 10 then comes after 9."""
    return values.astype(np.int64) if values.str.fullmatch(r"0|-?[1-9]\d{0,17}").all() else values


def class_labels(values: pd.Series[Any]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels 0 .. C-1 and the names of the classes, which are the sorted values."""
    names, labels = np.unique(values.to_numpy(), return_inverse=True)
    return labels.astype(np.int64), tuple(map(str, names))


def texts(values: pd.Series[Any]) -> NDArray[np.str_]:
    """A column of texts; one that is missing is empty, which no partition and no unit takes for a value."""
    return values.fillna("").astype(str).to_numpy(dtype=np.str_)


def exact_columns(table: pd.DataFrame, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Columns of texts as arrays of whole numbers or texts; a missing value is an empty text."""
    stripped = {name: table[name].fillna("").astype(str).str.strip() for name in names}
    return {name: np.array(numbers_or_texts(values).tolist()) for name, values in stripped.items()}


def plain_columns(table: pd.DataFrame, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Columns as arrays of numbers or texts; a missing text is ``unknown``."""
    from pandas.api.types import is_numeric_dtype  # of truth values, too

    texts = {name: table[name].fillna("unknown").astype(str) for name in names if not is_numeric_dtype(table[name])}
    return {name: texts[name].to_numpy(dtype=np.str_) if name in texts else table[name].to_numpy() for name in names}


def check_files(paths: Sequence[Path], remedy: str) -> None:
    """Refuse paths that are no files."""
    missing = [path for path in paths if not os.path.isfile(path)]  # unlike Path.is_file, never raises
    if missing:
        raise UserError("", f"{len(missing)} of {len(paths)} images are not there, the first is {missing[0]}", remedy)


def split_values(values: NDArray[Any], words: Mapping[str, int]) -> NDArray[np.int64]:
    """A split column: words (train, validation, test) or their numbers 0, 1, 2."""
    known = {**words, **{str(number): number for number in words.values()}}
    texts = [str(value).strip().lower().removesuffix(".0") for value in values]
    if unknown := next((text for text in texts if text not in known), None):
        raise UserError("", f"column 'split' has the value '{unknown}'", "give train, validation or test")
    return np.array([known[text] for text in texts], dtype=np.int64)
