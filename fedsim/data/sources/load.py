"""Loads the data sets that a grid names: reads, checks, embeds and scales them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pkgutil import resolve_name
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.data.arrays import UNIT_NORM, read_manifest
from fedsim.data.embeddings import (
    Embeddings,
    PublicRows,
    row_blocks,
    row_keys,
    shared_rows,
    unit_norm,
)
from fedsim.data.images import ImageSet, content_hash
from fedsim.data.spec import DatasetSpec
from fedsim.data.split import NO_LABELS, TEST, TRAIN, quarter_of_groups, stratified_rows
from fedsim.errors import UserError, at, nearest

ROUNDING = 3e-7
"""The largest distance from 1 that rounding leaves in the norm of a scaled row."""


def _read(spec: DatasetSpec, public: bool) -> Any:
    """Return all rows of a data set with the split of their source, as its reader gives them."""
    read = resolve_name(f"fedsim.data.sources.{spec.source.reader}")
    return read(spec, public)


def load(spec: DatasetSpec, *, public: bool = False) -> Embeddings:
    """Return a data set as checked embeddings of unit norm.

    Images are embedded, or their embeddings are taken from the cache.

    Args:
        spec: the data set.
        public: whether the rows are public, so that they need no labels.

    Raises:
        UserError: the data cannot be read, are wrong, or are images without an encoder.
    """
    if not spec.has_images:
        data = _read_embeddings(spec, public)
        if _is_scaled(spec, data):
            return data
    elif spec.encoder is None:
        raise UserError(
            "",
            f"'{spec.display}' holds images",
            "name what embeds them, such as encoder: facebook/dinov2-base",
        )
    else:
        from fedsim.data.encode import cached_embeddings

        images = image_set(spec, public=public)
        data = cached_embeddings(images, spec.encoder, spec.display, skip_bad=spec.skip_bad)
    return replace(data, x_train=unit_norm(data.x_train), x_test=unit_norm(data.x_test))


def _is_scaled(spec: DatasetSpec, data: Embeddings) -> bool:
    """Return whether a file's manifest says that its rows have unit norm, and whether they have it.

    Rows that are scaled twice change in their last bits. A file that ``fedsim embed`` wrote would
    then be another data set than the embeddings of its images. A file without a manifest is always
    scaled.
    """
    if spec.path is None:
        return False
    manifest = read_manifest(spec.path)
    if manifest is None or manifest.get("scale") != UNIT_NORM:
        return False
    return _has_unit_norm(data.x_train) and _has_unit_norm(data.x_test)


def _has_unit_norm(x: NDArray[np.float32]) -> bool:
    """Return whether every nonzero row of ``[n, d]`` has norm 1, up to :data:`ROUNDING`."""
    for block in row_blocks(x):
        norms = np.sqrt(np.square(x[block], dtype=np.float64).sum(axis=1))
        distances = np.abs(norms[norms > 0] - 1)
        if not (distances <= ROUNDING).all():
            return False
    return True


def load_public(spec: DatasetSpec) -> PublicRows:
    """Return the rows of a public data set, training rows first, with labels if it has any.

    Raises:
        UserError: see :func:`load`.
    """
    if not spec.overlap:  # All rows are public, so a training row may be a test row.
        spec = spec.model_copy(update={"overlap": "keep"})
    data = load(spec, public=True)
    y = None
    if data.class_names != NO_LABELS:
        y = np.concatenate([data.y_train, data.y_test])
    x = np.concatenate([data.x_train, data.x_test])
    licence, _ = spec.terms
    return PublicRows(x, y, spec.display, licence or None)


def image_set(spec: DatasetSpec, *, public: bool = False) -> ImageSet:
    """Return the images of a data set after its ``split``, ``overlap`` and ``limit``.

    Args:
        spec: the data set.
        public: whether the images are public, so that they need no labels.

    Raises:
        UserError: the data set holds no images, or they cannot be read or divided.
    """
    if not spec.has_images:
        raise UserError(
            "",
            f"'{spec.display}' holds embeddings, not images",
            "use it as it is, without an encoder",
        )
    images: ImageSet = _read(spec, public)
    with at(images.where):
        if spec.split is not None:
            images = _split_by(images, spec.split.by)
        if spec.overlap_policy != "keep":
            images = _without_overlap(images, spec)
    if spec.limit is None:
        return images
    return images.limited(spec.limit)


def _split_by(images: ImageSet, column: str) -> ImageSet:
    """Return the images with a new split that keeps rows with one value of ``column`` together."""
    with at("split.by"):
        if column not in images.columns:
            raise UserError(
                "",
                f"the data set has no column '{column}'",
                nearest(column, images.columns),
            )
        groups = images.columns[column]
        split = quarter_of_groups(groups, images.y, images.class_names, column)
    return replace(images, split=split)


def _without_overlap(images: ImageSet, spec: DatasetSpec) -> ImageSet:
    """Return the images without training images that equal a test image, or refuse such images."""
    digests = images.digests
    if spec.kind == "medmnist":
        # The digests of a MedMNIST file differ for equal images, because they hash row numbers.
        digests = [content_hash(images.source(row)) for row in range(len(images))]
    tested = {digests[row] for row in np.flatnonzero(images.split == TEST)}
    training_rows = np.flatnonzero(images.split == TRAIN).tolist()
    repeated = [row for row in training_rows if digests[row] in tested]
    _check_overlap(repeated, images.image_name, spec)
    rows = np.setdiff1d(np.arange(len(images)), repeated)
    return images.take(rows)


def _check_overlap(
    repeated: Sequence[int],
    name: Callable[[int], str],
    spec: DatasetSpec,
) -> None:
    """Refuse training rows that are equal to a test row, unless the data set drops them.

    Args:
        repeated: the training rows that are equal to a test row.
        name: returns the name of a row for the message.
        spec: the data set.
    """
    if repeated and spec.overlap_policy == "error":
        raise UserError(
            "",
            f"{len(repeated)} training rows are test rows too, the first is {name(repeated[0])}",
            "give overlap: drop to leave them out of training, or overlap: keep",
        )


def _read_embeddings(spec: DatasetSpec, public: bool) -> Embeddings:
    """Return embeddings after the ``overlap`` and ``limit`` of their spec, as they were read."""
    data: Embeddings = _read(spec, public)
    with at(str(spec.path or "")):
        if spec.overlap_policy != "keep":
            data = _without_overlapping_rows(data, spec)
        if spec.limit is None or spec.limit >= len(data.y_train):
            return data
        return data.trained_on(stratified_rows(data.y_train, spec.limit))


def _without_overlapping_rows(data: Embeddings, spec: DatasetSpec) -> Embeddings:
    """Return the data set without training rows that equal a test row, or refuse such rows."""
    repeated = shared_rows(data.x_train, data.x_test, row_keys(data.x_test))
    _check_overlap(repeated, "training row {}".format, spec)
    if not repeated:
        return data
    rows = np.setdiff1d(np.arange(len(data.y_train)), repeated)
    return data.trained_on(rows, "without rows that are test rows too")
