"""Data sets, as a grid names them, read, checked and scaled."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsim.data.embeddings import Embeddings, others
from fedsim.data.encoding.spec import EncoderSpec
from fedsim.data.images import ImageSet
from fedsim.data.normalise import unit_norm
from fedsim.data.overlap import overlapping
from fedsim.data.sources.spec import DatasetSpec
from fedsim.data.split import TEST, TRAIN, stratified_rows
from fedsim.errors import UserError, at
from fedsim.files import unread


@contextmanager
def _readable() -> Iterator[None]:
    """What the file system refuses in the block is the user's to mend."""
    try:
        yield
    except OSError as error:
        raise UserError(
            str(error.filename or ""), f"cannot be read ({unread(error)})", "give files and folders that can be read"
        ) from error


def load(spec: DatasetSpec, encoder: EncoderSpec | None = None) -> Embeddings:
    """Read a data set, check it, and scale its rows to unit norm.

    Args:
        spec: which data set.
        encoder: what turns images into embeddings; those that it has made before come from the cache.

    Raises:
        UserError: the data set cannot be had, does not do, or holds images and there is no encoder.
    """
    if holds_images(spec, encoder):
        from fedsim.data.encoding.embed import cached_embeddings

        data = cached_embeddings(image_set(spec), _needed(encoder, spec), spec.display, skip_bad=spec.skip_bad)
    else:
        data = _embedded(spec)
    return replace(data, x_train=unit_norm(data.x_train), x_test=unit_norm(data.x_test))


def holds_images(spec: DatasetSpec, encoder: EncoderSpec | None) -> bool:
    """Whether the data set goes through an encoder; one that is both does so only if there is one."""
    return spec.source.images is not None and (spec.source.embeddings is None or encoder is not None)


def _needed(encoder: EncoderSpec | None, spec: DatasetSpec) -> EncoderSpec:
    if encoder is None:
        raise UserError("", f"'{spec.display}' holds images", "name what embeds them, such as encoder: facebook/dinov2-base")
    return encoder


def _embedded(spec: DatasetSpec) -> Embeddings:
    """Data sets that are embeddings already."""
    assert spec.source.embeddings is not None
    with _readable():
        data = spec.source.embeddings(spec.asked)
    with at(str(spec.path or "")):
        if spec.overlap_policy != "keep":
            data = _without_overlap(data, drop=spec.overlap_policy == "drop")
        return data if spec.limit is None else _limited(data, spec.limit)


def _without_overlap(data: Embeddings, *, drop: bool) -> Embeddings:
    trained = len(data.x_train)
    digests = [hashlib.sha256(row).digest() for part in (data.x_train, data.x_test) for row in np.ascontiguousarray(part)]
    split = np.repeat([TRAIN, TEST], [trained, len(data.x_test)])

    def name(row: int) -> str:
        return f"training row {row}" if row < trained else f"test row {row - trained}"

    both = overlapping(digests, split, name, drop=drop)
    if not len(both):
        return data
    left = np.setdiff1d(np.arange(trained), both)
    if len(missing := np.setdiff1d(np.arange(data.classes), data.y_train[left])):
        called = data.class_names[missing[0]] if data.class_names else str(missing[0])
        what = f"class '{called}' has no training row that is no test row too" if len(left) else "all training rows are test rows too"
        raise UserError("", what, "give others, or overlap: keep")
    return _taken(data, left)


def image_set(spec: DatasetSpec) -> ImageSet:
    """The images of a data set, with ``overlap`` and ``limit`` applied.

    Raises:
        UserError: the data set cannot be had, or does not do.
    """
    if spec.source.images is None:
        raise UserError("", f"'{spec.display}' holds embeddings, not images", "use it as it is, without an encoder")
    with _readable():
        whole = spec.source.images(spec.asked)
    if spec.overlap_policy != "keep":
        with at(whole.where):
            both = overlapping(whole.contents, whole.split, whole.image_name, drop=spec.overlap_policy == "drop")
        whole = whole.take(np.setdiff1d(np.arange(len(whole)), both)) if len(both) else whole
    return whole if spec.limit is None else whole.limited(spec.limit)


class TrainingRows(NamedTuple):
    """What a partition is made of: labels int64 ``[n]``, columns ``[n]`` each, and what the classes are called."""

    y: NDArray[np.int64]
    columns: Mapping[str, NDArray[Any]]
    class_names: tuple[str, ...]

    def without(self, column: str, value: str) -> TrainingRows:
        """The rows without those of a column's ``value``."""
        kept = others(self.columns, column, value)
        return TrainingRows(self.y[kept], {name: values[kept] for name, values in self.columns.items()}, self.class_names)


def training_rows(spec: DatasetSpec, encoder: EncoderSpec | None = None) -> TrainingRows:
    """Labels and columns of the training rows; images are decoded only where bad ones among them are to be skipped.

    Raises:
        UserError: as ``load``.
    """
    if holds_images(spec, encoder) and not spec.skip_bad:
        images = image_set(spec)
        trained = images.split == TRAIN
        columns = {name: values[trained] for name, values in images.columns.items()}
        return TrainingRows(images.y[trained], columns, images.class_names)
    data = load(spec, encoder)
    return TrainingRows(data.y_train, data.columns, data.class_names or tuple(map(str, range(data.classes))))


def _limited(data: Embeddings, limit: int) -> Embeddings:
    if limit >= len(data.y_train):
        return data
    if limit < data.classes:
        raise UserError("", f"limit {limit} leaves some of the {data.classes} classes without a row", "give a larger limit")
    return _taken(data, stratified_rows(data.y_train, limit))


def _taken(data: Embeddings, rows: NDArray[np.int64]) -> Embeddings:
    """The data set with some of its training rows."""
    columns = {key: values[rows] for key, values in data.columns.items()}
    return replace(data, x_train=data.x_train[rows], y_train=data.y_train[rows], columns=columns)
