"""Reads image folders and image tables.

In a folder, every class is a folder of its own. A table is a CSV file with one path and one label
per image; every mistake in a table is reported with its file and line.
"""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsim.data.images import EXTENSIONS, ImageFiles, ImageSet
from fedsim.data.spec import DatasetSpec
from fedsim.data.split import NO_LABELS, TRAIN, WORDS, made_up_labels, quarter_for_testing
from fedsim.errors import UserError, at, nearest
from fedsim.files import unread

if TYPE_CHECKING:
    import pandas as pd


class _ImageFile(NamedTuple):
    """One image of a folder: its path, and what the folders above it say.

    Attributes:
        path: the file.
        top: the position of its top folder: the domain, or 0 if there are no domains.
        part: the split's value; training if no folders are named after splits.
        class_name: the name of its class's folder.
        inner: the folders between the class's folder and the file.
    """

    path: Path
    top: int
    part: int
    class_name: str
    inner: tuple[str, ...]


def load_image_folder(
    root: Path,
    name: str,
    *,
    domains: bool | None = None,
    public: bool = False,
) -> ImageSet:
    """Read ``root/<class>/**/*.jpg``, or ``root/{train,validation,test}/<class>/**/*.jpg``.

    Without train and test folders, a fixed stratified quarter of every domain is for testing.
    Hidden files and files of other types are ignored. If a class has folders (such as one per
    patient), the column ``folder`` holds the name of each image's folder.

    Args:
        root: the folder.
        name: the name of the data set.
        domains: whether the folders at the top are domains, with the classes' folders inside; they
            become the column ``domain``. If it is None and several top folders hold the same
            folders, the user has to say which of the two levels holds the classes.
        public: whether the images are public, so that the folder may hold images without classes.

    Raises:
        UserError: the folder is missing, or its folders are no classes with images.
    """
    where = str(root)
    tops = _top_folders(root, domains)
    if public and not _folders(root):
        unlabelled = sorted(path for path in root.iterdir() if _may_be_image(path))
        if unlabelled:
            return _without_labels(name, ImageFiles(unlabelled, root), where)
    parts, published = _split_folders(where, tops)
    images = list(_images_of_classes(root, parts))
    if not images:
        hint = "put every class into a folder of its own"
        if domains:
            hint = "put the classes' folders into a folder a domain"
        raise UserError(where, "holds no folders of classes", hint)
    if domains is None:
        _check_classes_are_at_the_top(images, where, published=published)
    class_names, y = np.unique([image.class_name for image in images], return_inverse=True)
    top_of = np.array([image.top for image in images])
    if published:
        split = np.array([image.part for image in images], dtype=np.int64)
    else:
        split = _quarter_of_every_top(
            tops,
            top_of,
            y,
            class_names,
        )
    columns = {}
    if domains:
        columns["domain"] = np.array([top.name for top in tops])[top_of]
    inner = np.array([image.inner[0] if image.inner else "" for image in images])
    if inner.any():
        columns["folder"] = inner
    return ImageSet(
        name,
        ImageFiles([image.path for image in images], root),
        np.arange(len(images)),
        y.astype(np.int64),
        split,
        tuple(class_names.tolist()),
        columns,
        where,
    )


def _top_folders(root: Path, domains: bool | None) -> list[Path]:
    """Return the domains, or the folder itself if it has no domains.

    Raises:
        UserError: there is no such folder.
    """
    if not os.path.isdir(root):  # unlike Path.is_dir, never raises
        raise UserError(
            str(root),
            "there is no such folder",
            f"give a folder that holds one folder a {'domain' if domains else 'class'}",
        )
    if domains:
        return _folders(root)
    return [root]


def _split_folders(where: str, tops: Sequence[Path]) -> tuple[list[dict[Path, int]], bool]:
    """Return the folders that hold classes, and whether they are those of a published split.

    Returns:
        For every top folder, its folders of classes with the split's value of each. If there is no
        published split, this is the top folder itself, and all images count as training images.

    Raises:
        UserError: some top folders have train and test folders and others have not.
    """
    parts = [_parts(top) for top in tops]
    if all(parts):
        return parts, True
    if any(parts):
        raise UserError(
            where,
            "some domains have train and test folders, others have not",
            "give them to every domain or to none",
        )
    return [{top: TRAIN} for top in tops], False


def _quarter_of_every_top(
    tops: Sequence[Path],
    top_of: NDArray[np.int64],
    y: NDArray[np.int64],
    class_names: NDArray[np.str_],
) -> NDArray[np.int64]:
    """Return a split ``[n]`` with a stratified quarter of every top folder's images for testing.

    Args:
        tops: the top folders, for messages.
        top_of: the position of every image's top folder, ``[n]``.
        y: the labels ``[n]``.
        class_names: the names of the classes.
    """
    split = np.zeros(len(y), np.int64)
    for position, top in enumerate(tops):
        members = top_of == position
        present, labels = np.unique(y[members], return_inverse=True)
        with at(str(top)):
            split[members] = quarter_for_testing(labels, tuple(class_names[present].tolist()))
    return split


def _images_of_classes(root: Path, parts: Sequence[dict[Path, int]]) -> Iterator[_ImageFile]:
    """Yield every image below the classes' folders, in the order of the folders.

    Args:
        root: the folder of the data set.
        parts: for every top folder, the folders that hold classes and the split's value of each.
    """
    for top, values in enumerate(parts):
        for above, part in values.items():
            for folder in _folders(above):
                paths = sorted(path for path in folder.rglob("*") if _may_be_image(path))
                if not paths:
                    raise UserError(
                        str(root),
                        f"class folder '{folder.relative_to(root)}' holds no image",
                        f"known: {', '.join(sorted(EXTENSIONS))}",
                    )
                for path in paths:
                    inner = path.relative_to(folder).parts[:-1]
                    yield _ImageFile(
                        path,
                        top,
                        part,
                        folder.name,
                        inner,
                    )


def _check_classes_are_at_the_top(
    images: Sequence[_ImageFile], where: str, *, published: bool
) -> None:
    """Refuse folders of hospitals that each hold the same folders of classes.

    The folders at the top would be taken for the classes, and a classifier would learn hospitals.
    Classes that hold equal folders (of magnifications) look the same, so the user has to say it.

    Args:
        images: all images of the folder.
        where: the folder of images, for the message.
        published: whether the folders of a split stand above.
    """
    count = Counter[tuple[str, str]]()
    for image in images:
        second = next((name for name in image.inner if name.lower() not in WORDS), "")
        count[image.class_name, second] += 1
    tops_with = Counter(second for _, second in count if second)
    shared = sorted(second for second, tops in tops_with.items() if tops > 1)
    tops = sorted({top for top, _ in count})
    divided = {top for top, second in count if second}
    in_shared = sum(number for (_, second), number in count.items() if second in shared)
    if len(shared) < 2 or len(divided) < len(tops) or 2 * in_shared <= count.total():
        return
    listed = _list_some(tops)
    problem = (
        f"the folders {listed} hold the same folders {_list_some(shared)}, so the classes seem to "
        "be the folders within, and a classifier would learn the folders at the top"
    )
    move = ""
    if published:
        move = "move train and test into each of them and "
    hint = (
        f"if {listed} are sites or scanners, {move}give `domains: true` beside `imagefolder`; "
        "if they are the classes, give `domains: false`"
    )
    raise UserError(where, problem, hint)


def _list_some(names: Sequence[str], most: int = 5) -> str:
    """Return the first names as a list in words."""
    if len(names) > most:
        return f"{', '.join(names[:most])}, …"
    return ", ".join(names)


def _without_labels(name: str, images: ImageFiles, where: str) -> ImageSet:
    """Return a set of public images without labels; their labels and split are made up."""
    with at(where):
        y, split = made_up_labels(len(images.paths))
    return ImageSet(
        name,
        images,
        np.arange(len(y)),
        y,
        split,
        NO_LABELS,
        where=where,
    )


def _parts(top: Path) -> dict[Path, int]:
    """Return the folders of a split below ``top`` and the split's value of each.

    Returns:
        An empty dictionary if there are not both a folder for training and one for testing.

    Raises:
        UserError: all folders are those of a split, but training or testing is missing.
    """
    folders = _folders(top)
    parts = {
        folder: WORDS[folder.name.lower()] for folder in folders if folder.name.lower() in WORDS
    }
    missing = [name for name in ("train", "test") if WORDS[name] not in parts.values()]
    if not missing:
        return parts
    if parts and len(parts) == len(folders):
        problem = (
            f"holds the folders {', '.join(folder.name for folder in folders)} of a split, "
            f"and no {' and no '.join(missing)}"
        )
        raise UserError(
            str(top),
            problem,
            "give train and test, or the classes' folders alone for a quarter to be for testing",
        )
    return {}


def _may_be_image(path: Path) -> bool:
    """Return whether a path is named like an image; a file that is none is reported when read."""
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and not path.is_dir()


def _folders(root: Path) -> list[Path]:
    """Return the folders in ``root`` that are not hidden, sorted."""
    return sorted(
        path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def load_image_table(path: Path, name: str, *, public: bool = False) -> ImageSet:
    """Read a CSV file with the columns ``path`` and ``label``, and optionally further ones.

    A path is relative to the table's folder; a label is any text or number. A column ``split``
    (train, validation, test) says what is for testing; without it, a fixed stratified quarter is.
    All other columns become columns of the data set, as whole numbers or texts; a missing value is
    an empty text.

    Args:
        path: the file.
        name: the name of the data set.
        public: whether the images are public, so that they need no labels.

    Raises:
        UserError: the table or an image is missing, or the table has a gap or an unknown value.
    """
    needed = ["path"] if public else ["path", "label"]
    table = read_table(path, needed, numbers=False)
    where = str(path)
    folder = path.absolute().parent
    with at(where):
        files = [Path(os.path.normpath(folder / str(file))) for file in complete(table, "path")]
        check_files(files, "correct the paths, which are relative to the table's folder")
        images = ImageFiles(files, folder)
        if "label" not in table:
            return _without_labels(name, images, "")
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
        name,
        images,
        np.arange(len(y)),
        y,
        split,
        class_names,
        columns,
        where,
    )


def _read_folder_spec(spec: DatasetSpec, public: bool) -> ImageSet:
    """Read the image folder of a spec."""
    domains = None
    if spec.says_domains:
        domains = spec.domains
    return load_image_folder(
        spec.path or Path(),
        spec.title,
        domains=domains,
        public=public,
    )


def _read_table_spec(spec: DatasetSpec, public: bool) -> ImageSet:
    """Read the image table of a spec."""
    return load_image_table(spec.path or Path(), spec.title, public=public)


READERS: dict[str, Callable[[DatasetSpec, bool], ImageSet]] = {
    "imagefolder": _read_folder_spec,
    "csv": _read_table_spec,
}
"""The readers of images at a path, by the key of the path in a spec.

The second argument says whether the images are public.
"""


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
        raise UserError(where, "has no rows", "give one row an image")
    return table


def _read_texts(content: io.BytesIO) -> pd.DataFrame:
    """Return a CSV file as stripped texts; missing values are empty."""
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
        UserError: values are missing; the message has their number and the first one's line.
    """
    gaps = (table[name].isna() | (table[name] == "")).to_numpy()
    if gaps.any():
        problem = (
            f"column '{name}' lacks {int(gaps.sum())} values, the first in line "
            f"{int(gaps.argmax()) + 2}"
        )
        raise UserError("", problem, "fill them in or remove the lines")
    return table[name]


def _numbers_or_texts(values: pd.Series[str]) -> pd.Series[Any]:
    """Return whole numbers if all texts are such numbers, so that 10 is sorted after 9."""
    if values.str.fullmatch(r"0|-?[1-9]\d{0,17}").all():
        return values.astype(np.int64)
    return values


def class_labels(values: pd.Series[Any]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return labels ``0 .. C-1`` ``[n]`` and the class names, which are the sorted values."""
    names, labels = np.unique(values.to_numpy(), return_inverse=True)
    return labels.astype(np.int64), tuple(map(str, names))


def texts(values: pd.Series[Any], missing: str = "") -> NDArray[np.str_]:
    """Return a column as texts, with the text ``missing`` for missing values.

    Partitions and units of privacy do not take an empty text for a value.
    """
    return values.fillna(missing).astype(str).to_numpy(dtype=np.str_)


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
            f"{len(missing)} of {len(paths)} images are not there, the first is {missing[0]}",
            remedy,
        )


def _split_values(values: pd.Series[str]) -> NDArray[np.int64]:
    """Return the values of a split column that holds words (train, test) or the numbers 0, 1, 2."""
    known = {**WORDS, **{str(number): number for number in WORDS.values()}}
    words = values.str.lower().str.removesuffix(".0")
    for word in words:
        if word not in known:
            raise UserError(
                "",
                f"column 'split' has the value '{word}'",
                "give train, validation or test",
            )
    return np.array([known[word] for word in words], dtype=np.int64)
