"""Loads the data sets that a grid names: reads, checks, embeds and scales them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.data.arrays import UNIT_NORM, BadArrays, read_arrays, read_manifest
from fedsim.data.embeddings import Embeddings, PublicRows, row_digests, unit_norm
from fedsim.data.images import ImageSet, content_hash, overlapping
from fedsim.data.sources.files import READERS
from fedsim.data.sources.known import digits_embeddings, load_folder, load_medmnist
from fedsim.data.spec import DatasetSpec
from fedsim.data.split import (
    NO_LABELS,
    TEST,
    TRAIN,
    made_up_labels,
    quarter_of_groups,
    stratified_rows,
)
from fedsim.errors import UserError, at, nearest

ROUNDING = 3e-7
"""The largest distance from 1 that rounding leaves in the norm of a scaled row."""


def _read_images(spec: DatasetSpec, public: bool) -> ImageSet:
    """Return all images of a data set with the split of their source."""
    if spec.kind in READERS:
        return READERS[spec.kind](spec, public)
    if spec.kind == "medmnist":
        return load_medmnist(
            spec.argument,
            spec.size,
            spec.root,
            spec.title,
        )
    return load_folder(spec.kind, spec.root, spec.title)


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
        data = cached_embeddings(
            images,
            spec.encoder,
            spec.display,
            skip_bad=spec.skip_bad,
        )
    return replace(data, x_train=unit_norm(data.x_train), x_test=unit_norm(data.x_test))


def _is_scaled(spec: DatasetSpec, data: Embeddings) -> bool:
    """Return whether the manifest of a file says that its rows have unit norm, and it is true.

    Scaling them once more would change their last bits, and a file that ``fedsim embed`` wrote
    would be another data set than the images that it was made of. Rows of a file without a manifest
    are always scaled.
    """
    if spec.path is None:
        return False
    manifest = read_manifest(spec.path)
    if manifest is None or manifest.get("scale") != UNIT_NORM:
        return False
    return _has_unit_norm(data.x_train) and _has_unit_norm(data.x_test)


def _has_unit_norm(x: NDArray[np.float32]) -> bool:
    """Return whether every nonzero row of ``[n, d]`` has norm 1, up to :data:`ROUNDING`."""
    norms = np.sqrt(np.square(x, dtype=np.float64).sum(axis=1))
    return bool((np.abs(norms - 1) <= ROUNDING)[norms > 0].all())


def load_public(spec: DatasetSpec) -> PublicRows:
    """Return all rows of a public data set, training rows first, with labels if it has any.

    Raises:
        UserError: see :func:`load`.
    """
    if not spec.overlap:
        spec = spec.model_copy(update={"overlap": "keep"})
    data = load(spec, public=True)
    y = None
    if data.class_names != NO_LABELS:
        y = np.concatenate([data.y_train, data.y_test])
    x = np.concatenate([data.x_train, data.x_test])
    return PublicRows(
        x,
        y,
        spec.display,
        spec.terms[0] or None,
    )


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
    images = _read_images(spec, public)
    with at(images.where):
        if spec.split is not None:
            images = _split_by(images, spec.split.by)
        if spec.overlap_policy != "keep":
            images = _without_overlap(images, spec)
    if spec.limit is None:
        return images
    return images.limited(spec.limit)


def _split_by(images: ImageSet, column: str) -> ImageSet:
    """Return the images with a new split that keeps rows of equal ``column`` on one side."""
    with at("split.by"):
        if column not in images.columns:
            raise UserError(
                "",
                f"the data set has no column '{column}'",
                nearest(column, images.columns),
            )
        groups = images.columns[column]
        split = quarter_of_groups(
            groups,
            images.y,
            images.class_names,
            column,
        )
    return replace(images, split=split)


def _without_overlap(images: ImageSet, spec: DatasetSpec) -> ImageSet:
    """Return the images without training images that are test images; or refuse these."""
    digests = images.digests
    if spec.kind == "medmnist":
        # The digests of a MedMNIST file differ for equal images, because they hash row numbers.
        digests = [content_hash(images.source(row)) for row in range(len(images))]
    drop = spec.overlap_policy == "drop"
    both = overlapping(
        digests,
        images.split,
        images.image_name,
        drop=drop,
    )
    return images.take(np.setdiff1d(np.arange(len(images)), both))


def _read_embeddings(spec: DatasetSpec, public: bool) -> Embeddings:
    """Return a data set of embeddings after its ``overlap`` and ``limit``, not scaled."""
    if spec.path is None:
        data = digits_embeddings(spec.title)
    else:
        data = load_embedding_file(
            spec.path,
            spec.title,
            remap=spec.remap,
            public=public,
        )
    with at(str(spec.path or "")):
        if spec.overlap_policy != "keep":
            data = _without_overlapping_rows(data, drop=spec.overlap_policy == "drop")
        if spec.limit is None or spec.limit >= len(data.y_train):
            return data
        if spec.limit < data.classes:
            raise UserError(
                "",
                f"limit {spec.limit} leaves some of the {data.classes} classes without a row",
                "give a larger limit",
            )
        return data.trained_on(stratified_rows(data.y_train, spec.limit))


def _without_overlapping_rows(data: Embeddings, *, drop: bool) -> Embeddings:
    """Return the data set without training rows that are test rows; or refuse these."""
    split = np.repeat([TRAIN, TEST], [len(data.y_train), len(data.y_test)])
    digests = row_digests(data.x_train) + row_digests(data.x_test)
    both = overlapping(
        digests,
        split,
        "training row {}".format,
        drop=drop,
    )
    if not both:
        return data
    rows = np.setdiff1d(np.arange(len(data.y_train)), both)
    return data.trained_on(rows, "without rows that are test rows too")


def load_embedding_file(
    path: Path,
    name: str,
    *,
    remap: bool = False,
    public: bool = False,
) -> Embeddings:
    """Read and check an ``.npz`` file of embeddings, without scaling them.

    It holds arrays ``x`` [n, d], ``y`` [n] and ``split`` [n], and optionally ``class_names`` [C]
    and columns [n]. A single value, such as a manifest, is ignored.

    Args:
        path: the file.
        name: the name of the data set.
        remap: whether the labels are numbered ``0 .. C-1`` in sorted order.
        public: whether the rows are public. Without ``y`` they are then given made-up labels with
            the names :data:`fedsim.data.split.NO_LABELS`.

    Raises:
        UserError: the file cannot be read, or an array is missing or wrong.
    """
    try:
        arrays = read_arrays(path)
    except BadArrays as error:
        raise UserError(
            str(path),
            f"cannot be read ({error})",
            "give an .npz file of plain arrays x, y and split, as numpy.savez writes it",
        ) from error
    if public and "x" in arrays and "y" not in arrays:
        y, split = made_up_labels(len(arrays["x"]))
        arrays = {"x": arrays["x"], "y": y, "split": split, "class_names": np.array(NO_LABELS)}
    for key in ("x", "y", "split"):
        if key not in arrays:
            raise UserError(
                str(path),
                f"there is no array '{key}'",
                f"give x [n, d], y [n] and split [n] (it holds {', '.join(sorted(arrays))})",
            )
    x, y, split = (arrays.pop(key) for key in ("x", "y", "split"))
    class_names = arrays.pop("class_names", None)
    with at(str(path)):
        if remap and y.ndim == 1 and split.shape == y.shape:  # other shapes are refused below
            # The file's names belong to its own labels, so they are replaced with the labels.
            y, class_names = _remap(y, split)
        columns = {key: values for key, values in arrays.items() if values.ndim}
        return Embeddings.from_arrays(
            name,
            x,
            y,
            split,
            columns,
            class_names,
        )


def _remap(
    y: NDArray[Any], split: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.str_] | None]:
    """Return labels ``0 .. C-1`` in sorted order, and the class names if the labels were texts.

    Validation rows get label 0, because they are ignored.
    """
    if y.dtype.kind not in "iuUS":
        raise UserError(
            "",
            f"y has dtype {y.dtype}",
            "give whole numbers or names",
        )
    used = (split == TRAIN) | (split == TEST)
    labels = np.zeros(len(y), dtype=np.int64)
    values, labels[used] = np.unique(y[used], return_inverse=True)
    untrained = np.setdiff1d(y[split == TEST], y[split == TRAIN])
    if len(untrained) and (split == TRAIN).any():
        raise UserError(
            "",
            f"no training row has label {untrained[0]}, test rows have",
            "drop these test rows, or train on some",
        )
    if y.dtype.kind in "US":
        return labels, values.astype(np.str_)
    return labels, None
