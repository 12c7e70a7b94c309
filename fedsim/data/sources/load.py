"""Data sets, as a grid names them, read, checked and scaled."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsim.data.cache import cache_folder
from fedsim.data.embeddings import Embeddings
from fedsim.data.encoding.spec import EncoderSpec
from fedsim.data.images import ImageSet
from fedsim.data.normalise import unit_norm
from fedsim.data.npz import load_embedding_file
from fedsim.data.overlap import overlapping
from fedsim.data.sources import medmnist
from fedsim.data.sources.digits import digits_embeddings, digits_images
from fedsim.data.sources.folder import load_image_folder
from fedsim.data.sources.hub import load_hub
from fedsim.data.sources.milk10k import load_milk10k
from fedsim.data.sources.spec import DatasetSpec
from fedsim.data.sources.table import load_image_table
from fedsim.data.split import TEST, TRAIN, stratified_rows
from fedsim.errors import UserError


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
