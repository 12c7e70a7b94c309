"""Image folders, where a class is a folder, and image tables: a CSV file with a path and a label an
image.

Every mistake in a table names its file and row.
"""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim.data.images import EXTENSIONS, ImageFiles, ImageSet
from fedsim.data.spec import DatasetSpec
from fedsim.data.split import NO_LABELS, TRAIN, WORDS, made_up_labels, quarter_for_testing
from fedsim.errors import UserError, at, nearest
from fedsim.files import unread

if TYPE_CHECKING:
    import pandas as pd


def load_image_folder(
    root: Path, name: str, *, domains: bool | None = None, public: bool = False
) -> ImageSet:
    """Read ``root/<class>/**/*.jpg``, or ``root/{train,validation,test}/<class>/**/*.jpg``; with
    ``domains`` the same in ``root/<domain>``.

    Where ``domains`` is None, folders at the top that hold the same folders are refused, since a
    user has to say which of the two levels is the classes. Without train and test folders a fixed
    stratified quarter is for testing, of every domain. Hidden files and other types are left out.
    Where a class has folders (of patients), the column ``folder`` has the name of an image's. A
    ``public`` folder may hold images alone.
    """
    where = str(root)
    if not os.path.isdir(root):  # unlike Path.is_dir, never raises
        raise UserError(
            where,
            "there is no such folder",
            f"give a folder that holds one folder a {'domain' if domains else 'class'}",
        )
    if (
        public
        and not _folders(root)
        and (alone := sorted(path for path in root.iterdir() if _may_be_image(path)))
    ):
        return _without_labels(name, ImageFiles(alone, root), where)
    if domains:
        tops = _folders(root)
    else:
        tops = [root]
    parts = {top: _parts(top) for top in tops}
    published = all(parts.values())
    if not published and any(parts.values()):
        raise UserError(
            where,
            "some domains have train and test folders, others have not",
            "give them to every domain or to none",
        )
    paths: list[Path] = []
    rows: list[tuple[str, int, int, str]] = []
    levels = Counter[tuple[str, ...]]()
    for place, top in enumerate(tops):
        for above, part in (parts[top] if published else {top: TRAIN}).items():
            for folder in _folders(above):
                images = sorted(path for path in folder.rglob("*") if _may_be_image(path))
                if not images:
                    what = f"class folder '{folder.relative_to(root)}' holds no image"
                    raise UserError(where, what, f"known: {', '.join(sorted(EXTENSIONS))}")
                paths += images
                for path in images:
                    inner = path.relative_to(folder).parts[:-1]
                    rows.append((folder.name, part, place, inner[0] if inner else ""))
                    levels[folder.name, *inner] += 1
    if not rows:
        if domains:
            in_each = "put the classes' folders into a folder a domain"
        else:
            in_each = "put every class into a folder of its own"
        raise UserError(where, "holds no folders of classes", in_each)
    if domains is None:
        _check_classes_are_at_the_top(levels, where, published=published)
    called, given, tops_of, inner_of = map(np.array, zip(*rows, strict=True))
    names, y = np.unique(called, return_inverse=True)
    split = given.astype(np.int64)
    for place in () if published else range(len(tops)):
        own = tops_of == place
        held, labels = np.unique(y[own], return_inverse=True)
        with at(str(tops[place])):
            split[own] = quarter_for_testing(labels, tuple(names[held].tolist()))
    if domains:
        columns = {"domain": np.array([top.name for top in tops])[tops_of]}
    else:
        columns = {}
    if inner_of.any():
        columns |= {"folder": inner_of}
    return ImageSet(
        name,
        ImageFiles(paths, root),
        np.arange(len(paths)),
        y.astype(np.int64),
        split,
        tuple(names.tolist()),
        columns,
        where,
    )


def _check_classes_are_at_the_top(
    levels: Counter[tuple[str, ...]], where: str, *, published: bool
) -> None:
    """Refuse folders of hospitals that each hold the same folders of classes.

    The folders at the top would be taken for the classes, and a classifier would learn hospitals.
    Classes that hold equal folders (of magnifications) look the same, so the user has to say it.

    Args:
        levels: the number of images by the folders that they are in, from a class folder down.
        where: the folder of images, for the message.
        published: whether the folders of a split stand above.
    """
    images = Counter[tuple[str, str]]()
    for (top, *inner), count in levels.items():
        second = next((name for name in inner if name.lower() not in WORDS), "")
        images[top, second] += count
    holders = Counter(second for _, second in images if second)
    shared = sorted(second for second, tops in holders.items() if tops > 1)
    tops = sorted({top for top, _ in images})
    divided = {top for top, second in images if second}
    alike = sum(count for (_, second), count in images.items() if second in shared)
    if len(shared) < 2 or len(divided) < len(tops) or 2 * alike <= images.total():
        return
    named = _some(tops)
    what = (
        f"the folders {named} hold the same folders {_some(shared)}, so the classes seem to be the "
        "folders within, and a classifier would learn the folders at the top"
    )
    if published:
        move = "move train and test into each of them and "
    else:
        move = ""
    hint = (
        f"if {named} are sites or scanners, {move}give `domains: true` beside `imagefolder`; "
        "if they are the classes, give `domains: false`"
    )
    raise UserError(where, what, hint)


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def _without_labels(name: str, images: ImageFiles, where: str) -> ImageSet:
    with at(where):
        y, split = made_up_labels(len(images.paths))
    return ImageSet(name, images, np.arange(len(y)), y, split, NO_LABELS, where=where)


def _parts(top: Path) -> dict[Path, int]:
    """The folders of a split, if there are some for training and for testing; half a split is
    refused.
    """
    folders = _folders(top)
    parts = {
        folder: WORDS[folder.name.lower()] for folder in folders if folder.name.lower() in WORDS
    }
    missing = [name for name in ("train", "test") if WORDS[name] not in parts.values()]
    if parts and missing and len(parts) == len(folders):
        what = (
            f"holds the folders {', '.join(folder.name for folder in folders)} of a split, "
            f"and no {' and no '.join(missing)}"
        )
        raise UserError(
            str(top),
            what,
            "give train and test, or the classes' folders alone for a quarter to be for testing",
        )
    if missing:
        return {}
    return parts


def _may_be_image(path: Path) -> bool:
    """By its name, and no folder; what else is no file is reported when it is read."""
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and not path.is_dir()


def _folders(root: Path) -> list[Path]:
    return sorted(
        path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def load_image_table(path: Path, name: str, *, public: bool = False) -> ImageSet:
    """Read a table with the columns ``path`` (relative to the file's folder) and ``label`` (any
    text or number).

    A column ``split`` (train, validation, test) says what is for testing; without one it is a fixed
    stratified quarter. All other columns are kept, for partitions by column, as whole numbers or
    texts; a missing value is an empty text. A ``public`` table needs no label.
    """
    table = read_table(path, ("path",) if public else ("path", "label"), numbers=False)
    where = str(path)
    folder = path.absolute().parent
    with at(where):
        files = [Path(os.path.normpath(folder / str(name))) for name in complete(table, "path")]
        check_files(files, "correct the paths, which are relative to the table's folder")
        images = ImageFiles(files, folder)
        if "label" not in table:
            return _without_labels(name, images, "")
        y, names = class_labels(_numbers_or_texts(complete(table, "label")))
        if "split" in table:
            split = _split_values(complete(table, "split"))
        else:
            split = quarter_for_testing(y, names)
    kept = [str(column) for column in table if column not in ("path", "label", "split")]
    columns = {column: np.array(_numbers_or_texts(table[column]).tolist()) for column in kept}
    return ImageSet(name, images, np.arange(len(y)), y, split, names, columns, where)


READERS: dict[str, Callable[[DatasetSpec, bool], ImageSet]] = {
    "imagefolder": lambda spec, public: load_image_folder(
        spec.path or Path(),
        spec.title,
        domains=spec.domains if spec.says_domains else None,
        public=public,
    ),
    "csv": lambda spec, public: load_image_table(spec.path or Path(), spec.title, public=public),
}
"""Of images at a path: by its key in the spec how they are read; the second argument says whether
they are public.
"""


def read_table(path: Path, needed: Sequence[str], *, numbers: bool = True) -> pd.DataFrame:
    """A CSV file that has the columns ``needed``: ``numbers`` where they look so, else stripped
    texts; a path or label is never missing.
    """
    import pandas as pd

    where = str(path)
    try:
        with open(path, "rb") as file:
            content = io.BytesIO(file.read())
        table = pd.read_csv(content, skipinitialspace=True, dtype=None if numbers else str)
        if not numbers:
            content.seek(0)
            there = pd.read_csv(content, skipinitialspace=True, dtype=str, keep_default_na=False)
            exact = [name for name in ("path", "label") if name in table]
            table = (
                table.fillna("")
                .assign(**{name: there[name] for name in exact})
                .apply(lambda column: column.str.strip())
            )
    except FileNotFoundError as error:
        raise UserError(where, "there is no such file", "give the path of a CSV file") from error
    except (OSError, ValueError, OverflowError) as error:  # pandas' parser errors are ValueErrors
        raise UserError(
            where, f"cannot be read ({unread(error)})", "give a CSV file with a head line"
        ) from error
    if lacking := next((name for name in needed if name not in table), None):
        raise UserError(
            where, f"there is no column '{lacking}'", nearest(lacking, map(str, table.columns))
        )
    if table.empty:
        raise UserError(where, "has no rows", "give one row an image")
    return table


def complete(table: pd.DataFrame, name: str) -> pd.Series[Any]:
    """A column without gaps; the message about one says how many there are, and the first one's
    line in the file.
    """
    gaps = (table[name].isna() | (table[name] == "")).to_numpy()
    if gaps.any():
        what = (
            f"column '{name}' lacks {int(gaps.sum())} values, the first in line "
            f"{int(gaps.argmax()) + 2}"
        )
        raise UserError("", what, "fill them in or remove the lines")
    return table[name]


def _numbers_or_texts(values: pd.Series[str]) -> pd.Series[Any]:
    """Texts, or where all are whole numbers written as such, these: 10 then comes after 9."""
    if values.str.fullmatch(r"0|-?[1-9]\d{0,17}").all():
        return values.astype(np.int64)
    return values


def class_labels(values: pd.Series[Any]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels 0 .. C-1 and the names of the classes, which are the sorted values."""
    names, labels = np.unique(values.to_numpy(), return_inverse=True)
    return labels.astype(np.int64), tuple(map(str, names))


def texts(values: pd.Series[Any], missing: str = "") -> NDArray[np.str_]:
    """A column of texts; an empty one no partition and no unit takes for a value."""
    return values.fillna(missing).astype(str).to_numpy(dtype=np.str_)


def check_files(paths: Sequence[Path], remedy: str) -> None:
    """Refuse paths that are no files."""
    missing = [
        path for path in paths if not os.path.isfile(path)
    ]  # unlike Path.is_file, never raises
    if missing:
        raise UserError(
            "",
            f"{len(missing)} of {len(paths)} images are not there, the first is {missing[0]}",
            remedy,
        )


def _split_values(values: pd.Series[str]) -> NDArray[np.int64]:
    """A split column: words (train, validation, test) or their numbers 0, 1, 2."""
    known = {**WORDS, **{str(number): number for number in WORDS.values()}}
    said = values.str.lower().str.removesuffix(".0")
    if unknown := next((text for text in said if text not in known), None):
        raise UserError(
            "", f"column 'split' has the value '{unknown}'", "give train, validation or test"
        )
    return np.array([known[text] for text in said], dtype=np.int64)
