"""Reads image folders, in which every class is a folder of its own."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedsim.data.images import EXTENSIONS, ImageFiles, ImageSet, without_labels
from fedsim.data.sources.tables import class_labels
from fedsim.data.spec import DatasetSpec
from fedsim.data.split import TRAIN, WORDS, Integers, quarter_for_testing
from fedsim.errors import UserError, at


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


def read_image_folder(spec: DatasetSpec, public: bool = False) -> ImageSet:
    """Read ``root/<class>/**/*.jpg``, or ``root/{train,validation,test}/<class>/**/*.jpg``.

    Without train and test folders, a fixed stratified quarter of every domain is for testing.
    Hidden files and folders and files of other types are ignored. If a class holds folders (such
    as one per patient), the column ``folder`` holds the first folder below the class of each image.

    Args:
        spec: the data set. With ``domains``, the folders at the top are domains with the classes'
            folders inside; they become the column ``domain``. If ``domains`` is not given and
            several top folders hold the same folders, the user has to say which of the two levels
            holds the classes.
        public: whether the images are public, so that the folder may hold images without classes.

    Raises:
        UserError: the folder is missing, or its folders are no classes with images.
    """
    root = spec.path or Path()
    where = str(root)
    tops = _top_folders(root, domains=bool(spec.domains))
    if public and not _folders(root):
        unlabelled = sorted(path for path in root.iterdir() if _may_be_image(path, root))
        if unlabelled:
            with at(where):
                return without_labels(spec.title, ImageFiles(unlabelled, root))
    parts, published = _split_folders(where, tops)
    images = list(_images_of_classes(root, parts))
    if not images:
        hint = "put every class into a folder of its own"
        if spec.domains:
            hint = "put the classes' folders into one folder per domain"
        raise UserError(where, "holds no folders of classes", hint)
    if spec.domains is None:
        _check_classes_are_at_the_top(images, where, published=published)
    y, class_names = class_labels([image.class_name for image in images])
    top_of = np.array([image.top for image in images])
    _check_tops_hold_classes(tops, top_of)
    if published:
        split = np.array([image.part for image in images], dtype=np.int64)
    else:
        split = _quarter_of_every_top(tops, top_of, y, class_names)
    columns = {}
    if spec.domains:
        columns["domain"] = np.array([top.name for top in tops])[top_of]
    inner = np.array([image.inner[0] if image.inner else "" for image in images])
    if inner.any():
        columns["folder"] = inner
    return ImageSet(
        spec.title,
        ImageFiles([image.path for image in images], root),
        np.arange(len(images)),
        y,
        split,
        class_names,
        columns,
        where,
    )


def _top_folders(root: Path, *, domains: bool) -> list[Path]:
    """Return the domains, or the folder itself if it has no domains.

    Raises:
        UserError: there is no such folder.
    """
    if not os.path.isdir(root):  # unlike Path.is_dir, never raises
        raise UserError(
            str(root),
            "there is no such folder",
            "give the path of an image folder",
        )
    if domains:
        return _folders(root)
    return [root]


def _split_folders(
    where: str,
    tops: Sequence[Path],
) -> tuple[list[dict[Path, int]], bool]:
    """Return the folders that hold classes, and whether they are those of a published split.

    Returns:
        For every top folder, the folders that hold the folders of its classes, each with its
        split's value. Without a published split the top folder alone holds them, and all its
        images count as training images.

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
    top_of: Integers,
    y: Integers,
    class_names: tuple[str, ...],
) -> Integers:
    """Return a split ``[n]`` with a stratified quarter of every top folder's images for testing.

    Args:
        tops: the top folders, for messages.
        top_of: the position of every image's top folder, ``[n]``.
        y: the labels ``[n]``.
        class_names: the names of the classes.

    Raises:
        UserError: a class has a single image in a top folder.
    """
    split = np.zeros(len(y), np.int64)
    for position, top in enumerate(tops):
        members = top_of == position
        with at(str(top)):
            split[members] = quarter_for_testing(y[members], class_names)
    return split


def _check_tops_hold_classes(tops: Sequence[Path], top_of: Integers) -> None:
    """Refuse a top folder without an image.

    Args:
        tops: the top folders.
        top_of: the position of every image's top folder, ``[n]``.
    """
    for position, top in enumerate(tops):
        if position not in top_of:
            raise UserError(
                str(top),
                "there is no class folder in this domain",
                "put its images into one folder per class, or remove the domain",
            )


def _images_of_classes(
    root: Path,
    parts: Sequence[dict[Path, int]],
) -> Iterator[_ImageFile]:
    """Yield every image below the classes' folders, in the order of the folders.

    Args:
        root: the folder of the data set.
        parts: for every top folder, the folders that hold classes and the split's value of each.

    Raises:
        UserError: the folder of a class holds no image.
    """
    for top, values in enumerate(parts):
        for above, part in values.items():
            for folder in _folders(above):
                paths = sorted(path for path in folder.rglob("*") if _may_be_image(path, folder))
                if not paths:
                    raise UserError(
                        str(root),
                        f"class folder '{folder.relative_to(root)}' holds no image",
                        f"give images that end in {', '.join(sorted(EXTENSIONS))}",
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
    """Refuse top folders that hold the same folders, since either level may be the classes.

    If the top folders are hospitals, a classifier would learn hospitals. Classes that hold the
    same folders (such as magnifications) look alike, so the user has to say which level it is.

    Args:
        images: all images of the folder.
        where: the folder of images, for the message.
        published: whether folders of a split (train, test) stand above the classes.
    """
    # The top folder of every image, and the first folder within it, or "" if there is none.
    folders_of_images = []
    for image in images:
        within = next((name for name in image.inner if name.lower() not in WORDS), "")
        folders_of_images.append((image.class_name, within))
    holders = Counter(within for _, within in set(folders_of_images) if within)
    shared = sorted(within for within, number in holders.items() if number > 1)
    outer = sorted({top for top, _ in folders_of_images})
    divided = {top for top, within in folders_of_images if within}
    in_shared = sum(within in shared for _, within in folders_of_images)
    if len(shared) < 2 or len(divided) < len(outer) or 2 * in_shared <= len(images):
        return
    listed = _list_some(outer)
    problem = (
        f"the folders {listed} hold the same folders {_list_some(shared)}, so the classes seem to "
        "be the folders within, and a classifier would learn the folders at the top"
    )
    move = ""
    if published:
        move = f"put them above train and test ({outer[0]}/train, {outer[0]}/test, …) and "
    hint = (
        f"if {listed} are sites or scanners, {move}give `domains: true` beside `imagefolder`; "
        "if they are the classes, give `domains: false`"
    )
    raise UserError(where, problem, hint)


def _list_some(names: Sequence[str]) -> str:
    """Return the first five names, with commas between them."""
    listed = ", ".join(names[:5])
    if len(names) > 5:
        listed += ", …"
    return listed


def _parts(top: Path) -> dict[Path, int]:
    """Return the folders of a split below ``top`` and the split's value of each.

    Other folders beside those of a split are ignored.

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
            f"but no {' or '.join(missing)}"
        )
        raise UserError(
            str(top),
            problem,
            "give train and test, or only the classes' folders, so that a quarter is for testing",
        )
    return {}


def _may_be_image(path: Path, folder: Path) -> bool:
    """Return whether a path is named like an image, and no part of it below ``folder`` is hidden.

    A file that is not an image is reported when it is read.
    """
    if any(part.startswith(".") for part in path.relative_to(folder).parts):
        return False
    return path.suffix.lower() in EXTENSIONS and not path.is_dir()


def _folders(root: Path) -> list[Path]:
    """Return the folders in ``root`` that are not hidden, sorted."""
    return sorted(
        path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
