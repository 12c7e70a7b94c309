"""How every source of data sets is read: an :class:`ImageSet`, or :class:`Embeddings` where the rows need no encoder.

A new one is a file here, a line in :data:`READERS`, and a name or a path in :mod:`fedsim.data.spec`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fedsim.data.embeddings import Embeddings
from fedsim.data.images import ImageSet
from fedsim.data.sources.digits import digits_embeddings, digits_images
from fedsim.data.sources.folder import images_alone, load_image_folder
from fedsim.data.sources.hub import load_hub
from fedsim.data.sources.known import FOLDERS, load_folder
from fedsim.data.sources.medmnist import load_medmnist
from fedsim.data.sources.npz import load_embedding_file, without_labels
from fedsim.data.sources.table import load_image_table, table_without_labels
from fedsim.data.spec import DatasetSpec

Read = ImageSet | Embeddings
READERS: dict[str, Callable[[DatasetSpec], Read]] = {
    "digits": lambda spec: digits_images(spec.title),
    "medmnist": lambda spec: load_medmnist(spec.argument, spec.size, spec.root, spec.title),
    **dict.fromkeys(FOLDERS, lambda spec: load_folder(spec.kind, spec.root, spec.title)),
    "hf": lambda spec: load_hub(spec.argument, spec.title),
    "npz": lambda spec: load_embedding_file(_path(spec), spec.title, remap=spec.remap),
    "imagefolder": lambda spec: load_image_folder(_path(spec), spec.title, domains=spec.domains),
    "csv": lambda spec: load_image_table(_path(spec), spec.title),
}
UNLABELLED: dict[str, Callable[[DatasetSpec], Read | None]] = {
    "npz": lambda spec: without_labels(_path(spec), spec.title),
    "imagefolder": lambda spec: images_alone(_path(spec), spec.title),
    "csv": lambda spec: table_without_labels(_path(spec), spec.title),
}
"""Readers of files without labels, which may be public rows: made-up labels stand in; None for a file that has labels."""


def read(spec: DatasetSpec, *, images: bool) -> Read:
    """A data set as its source has it; digits as images or as embeddings."""
    return digits_embeddings(spec.title) if spec.kind == "digits" and not images else READERS[spec.kind](spec)


def read_unlabelled(spec: DatasetSpec) -> Read | None:
    """A data set without labels; None for one that has labels."""
    reader = UNLABELLED.get(spec.kind)
    return None if reader is None else reader(spec)


def _path(spec: DatasetSpec) -> Path:
    return spec.path or Path()
