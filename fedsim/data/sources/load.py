"""Data sets, as a grid names them, read by their sources, checked and scaled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fedsim.data.embeddings import Embeddings, PublicRows, row_digests, unit_norm
from fedsim.data.images import ImageSet, overlapping
from fedsim.data.sources.files import load_image_folder, load_image_table
from fedsim.data.sources.hub import load_hub
from fedsim.data.sources.known import digits_embeddings, digits_images, load_folder
from fedsim.data.sources.medmnist import load_medmnist
from fedsim.data.sources.npz import load_embedding_file
from fedsim.data.spec import DatasetSpec
from fedsim.data.split import NO_LABELS, TEST, TRAIN, quarter_of_groups, stratified_rows
from fedsim.errors import UserError, at, nearest


def _images(spec: DatasetSpec, public: bool) -> ImageSet:
    """The images of a data set as its source has them: one more source is one more case, and a name or a path of the spec."""
    name, path = spec.title, spec.path or Path()
    match spec.kind:
        case "digits":
            return digits_images(name)
        case "medmnist":
            return load_medmnist(spec.argument, spec.size, spec.root, name)
        case "hf":
            return load_hub(spec.argument, name)
        case "imagefolder":
            return load_image_folder(path, name, domains=spec.domains, public=public)
        case "csv":
            return load_image_table(path, name, public=public)
    return load_folder(spec.kind, spec.root, name)


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


def opened(spec: DatasetSpec, *, public: bool = False) -> OpenedSet:
    """Read a data set's labels, split and columns; no image is decoded. ``public`` rows need no labels."""
    if spec.holds_images and spec.encoder is None:
        raise UserError("", f"'{spec.display}' holds images", "name what embeds them, such as encoder: facebook/dinov2-base")
    return OpenedSet(spec, image_set(spec, public=public) if spec.holds_images else _rows(spec, public))


def load(spec: DatasetSpec) -> Embeddings:
    """Read a data set, check it, embed its images, and scale its rows to unit norm."""
    return opened(spec).embedded()


def load_public(spec: DatasetSpec) -> PublicRows:
    """All rows of a data set that is public, with their labels if it has any."""
    held = opened(spec if spec.overlap else spec.model_copy(update={"overlap": "keep"}), public=True)
    data = held.embedded()
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
