"""Data sets, as a grid names them, read by their sources, checked and scaled."""

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
"""How far from 1 rounding leaves the norms of rows that were scaled to it, at most."""


def _images(spec: DatasetSpec, public: bool) -> ImageSet:
    """The images of a data set as its source has them."""
    if spec.kind in READERS:
        return READERS[spec.kind](spec, public)
    if spec.kind == "medmnist":
        return load_medmnist(spec.argument, spec.size, spec.root, spec.title)
    return load_folder(spec.kind, spec.root, spec.title)


def load(spec: DatasetSpec, *, public: bool = False) -> Embeddings:
    """Read a data set, check it, embed its images, or take what the cache has of them, and scale
    its rows to unit norm.

    ``public`` rows need no labels.
    """
    if not spec.has_images:
        data = _rows(spec, public)
    elif spec.encoder is None:
        raise UserError(
            "",
            f"'{spec.display}' holds images",
            "name what embeds them, such as encoder: facebook/dinov2-base",
        )
    else:
        from fedsim.data.encode import cached_embeddings

        data = cached_embeddings(
            image_set(spec, public=public), spec.encoder, spec.display, skip_bad=spec.skip_bad
        )
    if not spec.has_images and _is_scaled(spec, data):
        return data
    return replace(data, x_train=unit_norm(data.x_train), x_test=unit_norm(data.x_test))


def _is_scaled(spec: DatasetSpec, data: Embeddings) -> bool:
    """Whether a file's rows have unit norm: its manifest says so, and it is true.

    To scale them once more would change their last bits: a file that ``fedsim embed`` wrote would
    be another data set than the images that it was made of. Rows of a file without a manifest are
    always scaled, as they have been.
    """
    if spec.path is None:
        manifest = None
    else:
        manifest = read_manifest(spec.path)
    if manifest is None or manifest.get("scale") != UNIT_NORM:
        return False
    return _has_unit_norm(data.x_train) and _has_unit_norm(data.x_test)


def _has_unit_norm(x: NDArray[np.float32]) -> bool:
    """Whether every row ``[n, d]`` that is not zero has norm 1 but for :data:`ROUNDING`."""
    norms = np.sqrt(np.square(x, dtype=np.float64).sum(axis=1))
    return bool((np.abs(norms - 1) <= ROUNDING)[norms > 0].all())


def load_public(spec: DatasetSpec) -> PublicRows:
    """All rows of a data set that is public, with their labels if it has any."""
    data = load(spec if spec.overlap else spec.model_copy(update={"overlap": "keep"}), public=True)
    if data.class_names == NO_LABELS:
        y = None
    else:
        y = np.concatenate([data.y_train, data.y_test])
    return PublicRows(
        np.concatenate([data.x_train, data.x_test]), y, spec.display, spec.terms[0] or None
    )


def image_set(spec: DatasetSpec, *, public: bool = False) -> ImageSet:
    """The images of a data set, with ``split``, ``overlap`` and ``limit`` applied; ``public`` ones
    need no labels.
    """
    if not spec.has_images:
        raise UserError(
            "",
            f"'{spec.display}' holds embeddings, not images",
            "use it as it is, without an encoder",
        )
    whole = _images(spec, public)
    with at(whole.where):
        if spec.split is not None:
            column = spec.split.by
            if column not in whole.columns:
                raise UserError(
                    "split.by",
                    f"the data set has no column '{column}'",
                    nearest(column, whole.columns),
                )
            with at("split.by"):
                whole = replace(
                    whole,
                    split=quarter_of_groups(
                        whole.columns[column], whole.y, whole.class_names, column
                    ),
                )
        if spec.overlap_policy != "keep":
            # a MedMNIST file's digests are other ones for equal images
            if spec.kind == "medmnist":
                contents = [content_hash(whole.source(row)) for row in range(len(whole))]
            else:
                contents = whole.digests
            both = overlapping(
                contents, whole.split, whole.image_name, drop=spec.overlap_policy == "drop"
            )
            whole = whole.take(np.setdiff1d(np.arange(len(whole)), both))
    if spec.limit is None:
        return whole
    return whole.limited(spec.limit)


def _rows(spec: DatasetSpec, public: bool) -> Embeddings:
    """Data sets that are embeddings already."""
    path = spec.path
    name = spec.title
    if path is None:
        data = digits_embeddings(name)
    else:
        data = load_embedding_file(path, name, remap=spec.remap, public=public)
    with at(str(path or "")):
        if spec.overlap_policy != "keep":
            split = np.repeat([TRAIN, TEST], [len(data.y_train), len(data.y_test)])
            digests = row_digests(data.x_train) + row_digests(data.x_test)
            both = overlapping(
                digests, split, "training row {}".format, drop=spec.overlap_policy == "drop"
            )
            if both:
                data = data.trained_on(
                    np.setdiff1d(np.arange(len(data.y_train)), both),
                    "without rows that are test rows too",
                )
        if spec.limit is None or spec.limit >= len(data.y_train):
            return data
        if spec.limit < data.classes:
            raise UserError(
                "",
                f"limit {spec.limit} leaves some of the {data.classes} classes without a row",
                "give a larger limit",
            )
        return data.trained_on(stratified_rows(data.y_train, spec.limit))


def load_embedding_file(
    path: Path, name: str, *, remap: bool = False, public: bool = False
) -> Embeddings:
    """Read and check arrays ``x`` [n, d], ``y`` [n], ``split`` [n], and if they are there
    ``class_names`` [C] and columns [n].

    ``remap`` numbers the labels 0 .. C-1 in sorted order; ``public`` rows without ``y`` are given
    made-up labels, called
    :data:`fedsim.data.split.NO_LABELS`.
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
    if missing := [key for key in ("x", "y", "split") if key not in arrays]:
        what = f"there is no array '{missing[0]}'"
        raise UserError(
            str(path),
            what,
            f"give x [n, d], y [n] and split [n] (it holds {', '.join(sorted(arrays))})",
        )
    x, y, split = (arrays.pop(key) for key in ("x", "y", "split"))
    names = arrays.pop("class_names", None)
    with at(str(path)):
        if remap and y.ndim == 1 and split.shape == y.shape:  # else they are refused below
            y, names = _remapped(y, split)  # the file's names belong to the labels as they were
        columns = {
            key: values for key, values in arrays.items() if values.ndim
        }  # a single value is a note, such as a manifest
        return Embeddings.from_arrays(name, x, y, split, columns, names)


def _remapped(
    y: NDArray[Any], split: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.str_] | None]:
    """Labels of training and test rows as 0 .. C-1 in sorted order, and what they were where that
    is text.
    """
    if y.dtype.kind not in "iuUS":
        raise UserError("", f"y has dtype {y.dtype}", "give whole numbers or names")
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
    return labels, values.astype(np.str_) if y.dtype.kind in "US" else None
