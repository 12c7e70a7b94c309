"""Where data sets come from: those known by name, image folders and tables, hubs, and ``.npz`` files of embeddings."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedsim.data.cache import cache_folder
from fedsim.data.embeddings import Embeddings
from fedsim.data.encoding.encoder import EncoderSpec
from fedsim.data.images import medmnist
from fedsim.data.images.digits import digits_embeddings, digits_images
from fedsim.data.images.folder import load_image_folder
from fedsim.data.images.hub import load_hub
from fedsim.data.images.images import ImageSet
from fedsim.data.images.milk10k import load_milk10k
from fedsim.data.images.table import load_image_table
from fedsim.data.normalise import unit_norm
from fedsim.data.npz import load_embedding_file
from fedsim.data.overlap import overlapping
from fedsim.data.split import TEST, TRAIN, stratified_rows
from fedsim.errors import UserError, nearest

NAMES = ("digits", "milk10k", "medmnist:<flag>", "hf:<dataset>")
"""The data sets that are known by name."""
_PATHS = ("npz", "imagefolder", "csv")


class DatasetSpec(BaseModel):
    """Which data set: a known name (``digits``, ``medmnist:organsmnist``, ``hf:user/set``), or a mapping ``{imagefolder: PATH}``.

    Attributes:
        name: a known data set's name; with a path, what tables call it (default: the path's stem).
        npz: a file with arrays ``x`` [n, d], ``y`` [n], ``split`` [n] (0 = train, 2 = test); further arrays [n] are columns.
        imagefolder: a folder of images: ``<class>/*``, or ``train/<class>/*`` and ``test/<class>/*``.
        csv: a table of images with the columns ``path`` and ``label``; ``split`` and further columns if it has them.
        root: the folder that holds a ``medmnist`` or ``milk10k`` data set's files; default: the package's, or fedsim's cache.
        size: pixels of a ``medmnist`` data set: 28, 64, 128 or 224.
        limit: keep at most so many training rows, a fixed stratified choice (of images also at most so many test rows); None keeps all.
        overlap: what to do with training rows that are test rows too: ``error``, ``drop`` them from training, or ``keep`` them; default:
            ``keep`` for data sets with a published split, ``error`` otherwise.
        remap: number the labels of an ``npz`` file 0 .. C-1 in sorted order.
        skip_bad: leave out images that cannot be decoded.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = Field(default=None, min_length=1)
    npz: Path | None = None
    imagefolder: Path | None = None
    csv: Path | None = None
    root: Path | None = None
    size: Literal[28, 64, 128, 224] = 28
    limit: int | None = Field(default=None, gt=0)
    overlap: Literal["error", "drop", "keep"] | None = None
    remap: bool = False
    skip_bad: bool = False

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        kind, colon, path = given.partition(":")
        return {kind: path} if colon and kind in _PATHS else {"name": given}

    @model_validator(mode="after")
    def _known(self) -> DatasetSpec:
        given = [kind for kind in _PATHS if getattr(self, kind) is not None]
        if len(given) > 1:
            raise ValueError(f"names {' and '.join(given)}; give one of them")
        if not given:
            self._check_name()
        for key, kinds in (("root", ("medmnist", "milk10k")), ("size", ("medmnist",)), ("remap", ("npz",))):
            if getattr(self, key) != type(self).model_fields[key].default and self.kind not in kinds:
                raise ValueError(f"'{self.display}' takes no {key}; it is for {', '.join(kinds)}")
        return self

    def _check_name(self) -> None:
        if self.name is None:
            raise ValueError(f"names no data; give {', '.join(NAMES)}, {{npz: PATH}}, {{imagefolder: PATH}} or {{csv: PATH}}")
        kind, _, rest = self.name.partition(":")
        if kind == "medmnist":
            if rest not in medmnist.flags():
                raise ValueError(f"unknown MedMNIST set '{rest}'; {nearest(rest, medmnist.flags())}")
        elif not (self.name in ("digits", "milk10k") or (kind == "hf" and rest)):
            hint = f"write {{npz: {self.name}}}" if self.name.endswith(".npz") else nearest(self.name, NAMES)
            raise ValueError(f"unknown data set '{self.name}'; {hint}")

    @property
    def kind(self) -> str:
        """The kind of source: ``npz``, ``imagefolder``, ``csv``, ``digits``, ``milk10k``, ``medmnist`` or ``hf``."""
        return next((kind for kind in _PATHS if getattr(self, kind) is not None), str(self.name).partition(":")[0])

    @property
    def path(self) -> Path | None:
        """The file or folder, where the data set is one."""
        return getattr(self, self.kind, None) if self.kind in _PATHS else None

    @property
    def display(self) -> str:
        """What tables and curves call the data set."""
        name = self.name or (self.path.stem if self.path else "")
        if self.kind == "medmnist":
            name = name.partition(":")[2] + (f"-{self.size}" if self.size != 28 else "")
        return name if self.limit is None else f"{name}[:{self.limit}]"

    @property
    def key(self) -> str:
        """A text that two specs share exactly when they mean the same source and the same rows."""
        fields = self.model_dump(mode="json", exclude_defaults=True, exclude={"name"} if self.path else set())
        return json.dumps(fields, sort_keys=True)

    @property
    def overlap_policy(self) -> str:
        """``overlap``, or its default."""
        return self.overlap or ("keep" if self.kind in ("digits", "milk10k", "medmnist") else "error")

    def within(self, folder: Path) -> DatasetSpec:
        """The same data set with its relative paths taken from ``folder``."""
        paths = {key: path for key in (*_PATHS, "root") if (path := getattr(self, key)) is not None}
        return self.model_copy(update={key: Path(os.path.abspath(folder / os.path.expanduser(path))) for key, path in paths.items()})


def load(spec: DatasetSpec, where: str, encoder: EncoderSpec | None = None) -> Embeddings:
    """Read a data set, check it, and scale its rows to unit norm.

    Args:
        spec: which data set.
        where: the place to name in an error.
        encoder: what turns images into embeddings; those that it has made before come from the cache.

    Raises:
        UserError: the data set cannot be had, does not do, or holds images and there is no encoder.
    """
    if holds_images(spec, encoder):
        from fedsim.data.encoding.embed import cached_embeddings

        data = cached_embeddings(image_set(spec, where), _needed(encoder, spec, where), spec.display, where, skip_bad=spec.skip_bad)
    else:
        data = _embedded(spec, where)
    return replace(data, x_train=unit_norm(data.x_train), x_test=unit_norm(data.x_test))


def holds_images(spec: DatasetSpec, encoder: EncoderSpec | None) -> bool:
    """Whether the data set goes through an encoder; ``digits`` does so only if there is one."""
    return spec.kind != "npz" and (spec.kind != "digits" or encoder is not None)


def _needed(encoder: EncoderSpec | None, spec: DatasetSpec, where: str) -> EncoderSpec:
    if encoder is None:
        raise UserError(where, f"'{spec.display}' holds images", "name what embeds them, such as encoder: facebook/dinov2-base")
    return encoder


def _embedded(spec: DatasetSpec, where: str) -> Embeddings:
    """Data sets that are embeddings already."""
    if spec.npz is None:
        whole = digits_embeddings(spec.display, where)
    else:
        whole = load_embedding_file(spec.npz, spec.display, where, remap=spec.remap)
        where = f"{where}: {spec.npz}"
    whole = whole if spec.overlap_policy == "keep" else _without_overlap(whole, where, drop=spec.overlap_policy == "drop")
    return whole if spec.limit is None else _limited(whole, spec.limit, where)


def _without_overlap(data: Embeddings, where: str, *, drop: bool) -> Embeddings:
    trained = len(data.x_train)
    digests = [hashlib.sha256(row).digest() for part in (data.x_train, data.x_test) for row in np.ascontiguousarray(part)]
    split = np.repeat([TRAIN, TEST], [trained, len(data.x_test)])

    def name(row: int) -> str:
        return f"training row {row}" if row < trained else f"test row {row - trained}"

    both = overlapping(digests, split, name, where, drop=drop)
    return _taken(data, np.setdiff1d(np.arange(trained), both)) if len(both) else data


def image_set(spec: DatasetSpec, where: str) -> ImageSet:
    """The images of a data set, with ``overlap`` and ``limit`` applied.

    Raises:
        UserError: the data set cannot be had, or does not do.
    """
    whole = _whole_image_set(spec, where)
    if spec.overlap_policy != "keep":
        both = overlapping(whole.digests, whole.split, whole.image_name, whole.where, drop=spec.overlap_policy == "drop")
        whole = whole.take(np.setdiff1d(np.arange(len(whole)), both)) if len(both) else whole
    return whole if spec.limit is None else whole.limited(spec.limit)


def _whole_image_set(spec: DatasetSpec, where: str) -> ImageSet:
    kind, _, rest = str(spec.name).partition(":")
    if spec.imagefolder is not None:
        return load_image_folder(spec.imagefolder, spec.display, where)
    if spec.csv is not None:
        return load_image_table(spec.csv, spec.display, where)
    if spec.npz is not None:
        raise UserError(where, f"'{spec.display}' holds embeddings, not images", "use it as it is, without an encoder")
    if kind == "medmnist":
        return medmnist.load_medmnist(rest, spec.size, spec.root or medmnist.default_root(), spec.display, where)
    if kind == "hf":
        return load_hub(rest, spec.display, where)
    if kind == "milk10k":
        return load_milk10k(spec.root or cache_folder() / "milk10k", spec.display, where)
    return digits_images(spec.display, where)


class TrainingRows(NamedTuple):
    """What a partition is made of: labels int64 ``[n]``, columns ``[n]`` each, and what the classes are called."""

    y: NDArray[np.int64]
    columns: Mapping[str, NDArray[Any]]
    class_names: tuple[str, ...]


def training_rows(spec: DatasetSpec, where: str, encoder: EncoderSpec | None = None) -> TrainingRows:
    """Labels and columns of the training rows; images are decoded only where bad ones among them are to be skipped.

    Raises:
        UserError: as ``load``.
    """
    if holds_images(spec, encoder) and not spec.skip_bad:
        images = image_set(spec, where)
        trained = images.split == TRAIN
        columns = {name: values[trained] for name, values in images.columns.items()}
        return TrainingRows(images.y[trained], columns, images.class_names)
    data = load(spec, where, encoder)
    return TrainingRows(data.y_train, data.columns, data.class_names or tuple(map(str, range(data.classes))))


def _limited(data: Embeddings, limit: int, where: str) -> Embeddings:
    if limit >= len(data.y_train):
        return data
    if limit < data.classes:
        raise UserError(where, f"limit {limit} leaves some of the {data.classes} classes without a row", "give a larger limit")
    return _taken(data, stratified_rows(data.y_train, limit))


def _taken(data: Embeddings, rows: NDArray[np.int64]) -> Embeddings:
    """The data set with some of its training rows."""
    columns = {key: values[rows] for key, values in data.columns.items()}
    return replace(data, x_train=data.x_train[rows], y_train=data.y_train[rows], columns=columns)
