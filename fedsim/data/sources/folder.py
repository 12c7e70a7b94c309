"""Image folders: a class is a folder; ``train`` and ``test`` folders above them, if there are any, are the split."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from fedsim.data.images import EXTENSIONS, ImageFiles, ImageSet
from fedsim.data.sources.source import Listing, Source
from fedsim.data.split import TEST, TRAIN, WORDS, quarter_for_testing
from fedsim.errors import UserError, at


def load_image_folder(root: Path, name: str) -> ImageSet:
    """Read ``root/<class>/**/*.jpg``, or ``root/{train,validation,test}/<class>/**/*.jpg``.

    Without such folders a fixed stratified quarter is for testing. Hidden files and other types are left out.

    Raises:
        UserError: the folder is not there, holds no classes, or a class holds no image.
    """
    where = str(root)
    if not os.path.isdir(root):  # unlike Path.is_dir, never raises
        raise UserError(where, "there is no such folder", "give a folder that holds one folder a class")
    folders = _folders(root)
    parts = {folder: WORDS[folder.name.lower()] for folder in folders if folder.name.lower() in WORDS}
    if not {TRAIN, TEST} <= set(parts.values()):
        parts = {}
    held = [(folder, part) for top, part in (parts or {root: TRAIN}).items() for folder in _folders(top)]
    names = tuple(sorted({folder.name for folder, _ in held}))
    if not names:
        raise UserError(where, "holds no folders", "put every class into a folder of its own")
    paths: list[Path] = []
    labels: list[int] = []
    split: list[int] = []
    for folder, part in held:
        found = sorted(path for path in folder.rglob("*") if _may_be_image(path))
        if not found:
            raise UserError(where, f"class folder '{folder.relative_to(root)}' holds no image", f"known: {', '.join(sorted(EXTENSIONS))}")
        paths += found
        labels += [names.index(folder.name)] * len(found)
        split += [part] * len(found)
    y = np.array(labels, dtype=np.int64)
    with at(where):
        parted = np.array(split, dtype=np.int64) if parts else quarter_for_testing(y, names)
    return ImageSet(name, ImageFiles(paths, root), np.arange(len(paths)), y, parted, names, where=where)


def _may_be_image(path: Path) -> bool:
    """By its name; a folder is none, and what else is no file is told when it is read."""
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and not path.is_dir()


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


IMAGE_FOLDER = Source(
    lambda: [Listing("{imagefolder: PATH}", "yours", "train/ and test/, or a quarter", "their own", "yours", "your files")],
    images=lambda asked: load_image_folder(asked.path, asked.name),
)
