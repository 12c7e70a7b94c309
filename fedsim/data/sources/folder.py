"""Image folders: a class is a folder; ``train`` and ``test`` folders above, if there are any, are the split, and the top may be domains."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedsim.data.images import EXTENSIONS, ImageFiles, ImageSet
from fedsim.data.split import TRAIN, WORDS, made_up_labels, quarter_for_testing
from fedsim.errors import UserError, at


def load_image_folder(root: Path, name: str, *, domains: bool = False) -> ImageSet:
    """Read ``root/<class>/**/*.jpg``, or ``root/{train,validation,test}/<class>/**/*.jpg``; with ``domains`` the same in ``root/<domain>``.

    Without train and test folders a fixed stratified quarter is for testing, of every domain. Hidden files and other types are left out.
    Where a class has folders (of patients), the column ``folder`` has the name of an image's.
    """
    where = str(root)
    if not os.path.isdir(root):  # unlike Path.is_dir, never raises
        raise UserError(where, "there is no such folder", f"give a folder that holds one folder a {'domain' if domains else 'class'}")
    tops = _folders(root) if domains else [root]
    parts = {top: _parts(top) for top in tops}
    published = all(map(bool, parts.values()))
    if not published and (halves := [top.name for top in tops if parts[top]]):
        without = next(top.name for top in tops if not parts[top])
        what = f"domain '{halves[0]}' has train and test folders, and domain '{without}' has not"
        raise UserError(where, what, "give them to every domain or to none")
    held = [
        (folder, part, place)
        for place, top in enumerate(tops)
        for above, part in (parts[top] if published else {top: TRAIN}).items()
        for folder in _folders(above)
    ]
    names = tuple(sorted({folder.name for folder, _, _ in held}))
    if not names:
        in_each = "put the classes' folders into a folder a domain" if domains else "put every class into a folder of its own"
        raise UserError(where, "holds no folders of classes" if domains and tops else "holds no folders", in_each)
    paths: list[Path] = []
    inner: list[str] = []
    counts: list[int] = []
    for folder, _, _ in held:
        images = sorted(path for path in folder.rglob("*") if _may_be_image(path))
        if not images:
            raise UserError(where, f"class folder '{folder.relative_to(root)}' holds no image", f"known: {', '.join(sorted(EXTENSIONS))}")
        paths += images
        inner += [path.relative_to(folder).parts[0] if path.parent != folder else "" for path in images]
        counts.append(len(images))
    y, split, domain = np.repeat([(names.index(folder.name), part, place) for folder, part, place in held], counts, axis=0).T.astype(
        np.int64
    )
    if not published:
        with at(where):
            split = _quarters(y, domain, names, [top.name for top in tops] if domains else [""])
    columns = {"domain": np.array([top.name for top in tops])[domain]} if domains else {}
    columns |= {"folder": np.array(inner)} if any(inner) else {}
    return ImageSet(name, ImageFiles(paths, root), np.arange(len(paths)), y, split, names, columns, where=where)


def images_alone(root: Path, name: str) -> ImageSet | None:
    """The images of a folder that holds no folders, with made-up labels; None for one that does, or holds no image."""
    if not os.path.isdir(root) or _folders(root) or not (images := sorted(path for path in root.iterdir() if _may_be_image(path))):
        return None
    with at(str(root)):
        y, split = made_up_labels(len(images))
    return ImageSet(name, ImageFiles(images, root), np.arange(len(images)), y, split, ("0", "1"), where=str(root))


def _parts(top: Path) -> dict[Path, int]:
    """The folders of a split, if there are some for training and for testing; half a split is refused."""
    folders = _folders(top)
    parts = {folder: WORDS[folder.name.lower()] for folder in folders if folder.name.lower() in WORDS}
    missing = [name for name in ("train", "test") if WORDS[name] not in parts.values()]
    if parts and missing and len(parts) == len(folders):
        what = f"holds the folders {', '.join(folder.name for folder in folders)} of a split, and no {' and no '.join(missing)}"
        raise UserError(str(top), what, "give train and test, or the classes' folders alone for a quarter to be for testing")
    return {} if missing else parts


def _quarters(y: NDArray[np.int64], domain: NDArray[np.int64], names: tuple[str, ...], domains: list[str]) -> NDArray[np.int64]:
    """A stratified quarter of every domain for testing."""
    split = np.empty_like(y)
    for place, called in enumerate(domains):
        own = domain == place
        held, labels = np.unique(y[own], return_inverse=True)
        split[own] = quarter_for_testing(labels, tuple(f"{called}/{names[label]}" if called else names[label] for label in held))
    return split


def _may_be_image(path: Path) -> bool:
    """By its name, and no folder; what else is no file is reported when it is read."""
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and not path.is_dir()


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
