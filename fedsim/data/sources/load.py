"""Data sets, as a grid names them, read, checked and scaled."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from fedsim.data.embeddings import Embeddings
from fedsim.data.images import ImageSet, overlapping
from fedsim.data.normalise import unit_norm
from fedsim.data.public import PublicRows
from fedsim.data.sources.registry import read, read_unlabelled
from fedsim.data.spec import DatasetSpec
from fedsim.data.split import TEST, TRAIN, quarter_of_groups, stratified_rows
from fedsim.errors import UserError, at, nearest
from fedsim.files import unread


@contextmanager
def _readable() -> Iterator[None]:
    """Errors of the file system in the block become messages to the user."""
    try:
        yield
    except OSError as error:
        what = f"cannot be read ({unread(error)})"
        raise UserError(str(error.filename or ""), what, "give files and folders that can be read") from error


@dataclass(frozen=True)
class OpenedSet:
    """A data set whose labels, split and columns are read: its images, not decoded, or its rows, where it is embeddings already."""

    spec: DatasetSpec
    held: ImageSet | Embeddings

    def labelled(self) -> Embeddings:
        """Its labels, split and columns, with made-up rows of one dimension in place of images."""
        if isinstance(self.held, Embeddings):
            return self.held
        images = self.held
        x = np.ones((len(images), 1), np.float32)
        return Embeddings.from_arrays(self.spec.display, x, images.y, images.split, images.columns, images.class_names)

    def embedded(self) -> Embeddings:
        """The data set, its rows scaled to unit norm; embeddings that were computed before come from the cache."""
        data = self.held
        if isinstance(data, ImageSet):
            from fedsim.data.encode import cached_embeddings

            assert self.spec.encoder is not None
            data = cached_embeddings(data, self.spec.encoder, self.spec.display, skip_bad=self.spec.skip_bad)
        return replace(data, x_train=unit_norm(data.x_train), x_test=unit_norm(data.x_test))


def opened(spec: DatasetSpec) -> OpenedSet:
    """Read a data set's labels, split and columns; no image is decoded."""
    if spec.holds_images and spec.encoder is None:
        raise UserError("", f"'{spec.display}' holds images", "name what embeds them, such as encoder: facebook/dinov2-base")
    return OpenedSet(spec, image_set(spec) if spec.holds_images else _rows(spec))


def load(spec: DatasetSpec) -> Embeddings:
    """Read a data set, check it, embed its images, and scale its rows to unit norm."""
    return opened(spec).embedded()


def load_public(spec: DatasetSpec) -> PublicRows:
    """All rows of a data set that is public, with their labels if it has any."""
    with _readable():
        bare = read_unlabelled(spec)
    if bare is None or (spec.holds_images and spec.encoder is None):
        held = opened(spec if spec.overlap else spec.model_copy(update={"overlap": "keep"}))
    else:
        held = OpenedSet(spec, bare.limited(spec.limit) if isinstance(bare, ImageSet) and spec.limit else bare)
    data = held.embedded()
    y = None if bare is not None else np.concatenate([data.y_train, data.y_test])
    return PublicRows(np.concatenate([data.x_train, data.x_test]), y, spec.display, spec.terms[0] or None)


def image_set(spec: DatasetSpec) -> ImageSet:
    """The images of a data set, with ``split``, ``overlap`` and ``limit`` applied."""
    if not spec.has_images:
        raise UserError("", f"'{spec.display}' holds embeddings, not images", "use it as it is, without an encoder")
    with _readable():
        whole = read(spec, images=True)
    assert isinstance(whole, ImageSet)
    with at(whole.where):
        if spec.split is not None:
            whole = _split_by(whole, spec.split.by)
        if spec.overlap_policy != "keep":
            both = overlapping(whole.contents, whole.split, whole.image_name, drop=spec.overlap_policy == "drop")
            whole = whole.take(np.setdiff1d(np.arange(len(whole)), both)) if len(both) else whole
    return whole if spec.limit is None else whole.limited(spec.limit)


def _split_by(images: ImageSet, column: str) -> ImageSet:
    if column not in images.columns:
        raise UserError("split.by", f"the data set has no column '{column}'", nearest(column, images.columns))
    with at("split.by"):
        return replace(images, split=quarter_of_groups(images.columns[column], images.y, images.class_names, column))


def _rows(spec: DatasetSpec) -> Embeddings:
    """Data sets that are embeddings already."""
    with _readable():
        data = read(spec, images=False)
    assert isinstance(data, Embeddings)
    with at(str(spec.path or "")):
        if spec.overlap_policy != "keep":
            data = _without_overlap(data, drop=spec.overlap_policy == "drop")
        if spec.limit is None or spec.limit >= len(data.y_train):
            return data
        if spec.limit < data.classes:
            raise UserError("", f"limit {spec.limit} leaves some of the {data.classes} classes without a row", "give a larger limit")
        return data.take(stratified_rows(data.y_train, spec.limit))


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
        what = f"class '{data.names[missing[0]]}' has no training row that is no test row too"
        raise UserError("", what if len(left) else "all training rows are test rows too", "give others, or overlap: keep")
    return data.take(left)
