"""Data sets, as a grid names them, read by their sources, checked and scaled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from fedsim.data.embeddings import Embeddings, PublicRows, row_digests, unit_norm
from fedsim.data.images import ImageSet, overlapping
from fedsim.data.sources.files import load_image_folder, load_image_table
from fedsim.data.sources.hub import load_hub
from fedsim.data.sources.known import digits_embeddings, load_folder
from fedsim.data.sources.medmnist import load_medmnist
from fedsim.data.sources.npz import load_embedding_file
from fedsim.data.spec import DatasetSpec
from fedsim.data.split import NO_LABELS, TEST, TRAIN, quarter_of_groups, stratified_rows
from fedsim.errors import UserError, at, nearest


def _images(spec: DatasetSpec, public: bool) -> ImageSet:
    """The images of a data set as its source has them: one more source is one more case, and a name or a path of the spec."""
    name, path = spec.title, spec.path or Path()
    match spec.kind:
        case "medmnist":
            return load_medmnist(spec.argument, spec.size, spec.root, name)
        case "hf":
            return load_hub(spec.argument, name)
        case "imagefolder":
            return load_image_folder(path, name, domains=spec.domains, public=public)
        case "csv":
            return load_image_table(path, name, public=public)
    return load_folder(spec.kind, spec.root, name)


def load(spec: DatasetSpec, *, public: bool = False) -> Embeddings:
    """Read a data set, check it, embed its images, or take what the cache has of them, and scale its rows to unit norm.

    ``public`` rows need no labels.
    """
    if not spec.has_images:
        data = _rows(spec, public)
    elif spec.encoder is None:
        raise UserError("", f"'{spec.display}' holds images", "name what embeds them, such as encoder: facebook/dinov2-base")
    else:
        from fedsim.data.encode import cached_embeddings

        data = cached_embeddings(image_set(spec, public=public), spec.encoder, spec.display, skip_bad=spec.skip_bad)
    return replace(data, x_train=unit_norm(data.x_train), x_test=unit_norm(data.x_test))


def load_public(spec: DatasetSpec) -> PublicRows:
    """All rows of a data set that is public, with their labels if it has any."""
    data = load(spec if spec.overlap else spec.model_copy(update={"overlap": "keep"}), public=True)
    y = None if data.class_names == NO_LABELS else np.concatenate([data.y_train, data.y_test])
    return PublicRows(np.concatenate([data.x_train, data.x_test]), y, spec.display, spec.terms[0] or None)


def image_set(spec: DatasetSpec, *, public: bool = False) -> ImageSet:
    """The images of a data set, with ``split``, ``overlap`` and ``limit`` applied; ``public`` ones need no labels."""
    if not spec.has_images:
        raise UserError("", f"'{spec.display}' holds embeddings, not images", "use it as it is, without an encoder")
    whole = _images(spec, public)
    with at(whole.where):
        if spec.split is not None:
            column = spec.split.by
            if column not in whole.columns:
                raise UserError("split.by", f"the data set has no column '{column}'", nearest(column, whole.columns))
            with at("split.by"):
                whole = replace(whole, split=quarter_of_groups(whole.columns[column], whole.y, whole.class_names, column))
        if spec.overlap_policy != "keep":
            # a MedMNIST file's digests, which take less time, are other ones for equal images
            contents = list(whole.images.contents(whole.rows.tolist())) if spec.kind == "medmnist" else whole.digests
            both = overlapping(contents, whole.split, whole.image_name, drop=spec.overlap_policy == "drop")
            whole = whole.take(np.setdiff1d(np.arange(len(whole)), both)) if len(both) else whole
    return whole if spec.limit is None else whole.limited(spec.limit)


def _rows(spec: DatasetSpec, public: bool) -> Embeddings:
    """Data sets that are embeddings already."""
    path, name = spec.path, spec.title
    data = digits_embeddings(name) if path is None else load_embedding_file(path, name, remap=spec.remap, public=public)
    with at(str(path or "")):
        if spec.overlap_policy != "keep":
            data = _without_overlap(data, drop=spec.overlap_policy == "drop")
        if spec.limit is None or spec.limit >= len(data.y_train):
            return data
        if spec.limit < data.classes:
            raise UserError("", f"limit {spec.limit} leaves some of the {data.classes} classes without a row", "give a larger limit")
        return data.take(stratified_rows(data.y_train, spec.limit))


def _without_overlap(data: Embeddings, *, drop: bool) -> Embeddings:
    trained = len(data.x_train)
    split = np.repeat([TRAIN, TEST], [trained, len(data.x_test)])

    def name(row: int) -> str:
        return f"training row {row}" if row < trained else f"test row {row - trained}"

    both = overlapping(row_digests(data.x_train) + row_digests(data.x_test), split, name, drop=drop)
    left = np.setdiff1d(np.arange(trained), both)
    if len(missing := np.setdiff1d(np.arange(data.classes), data.y_train[left])):
        what = f"class '{data.names[missing[0]]}' has no training row that is no test row too"
        raise UserError("", what, "give others, or overlap: keep")
    return data.take(left) if len(both) else data
