"""Turns image sets into embeddings, which are computed once and kept in the cache.

The cache has one file for each image set and encoder, which is computed shard by shard. The name of
the file is a hash of everything that determines the embeddings, except for rounding: the contents
of the images in their order, the encoder's files, pooling, views, preprocessing and dtype. A
manifest inside the file records the same. Labels, split and columns have no influence. A file with
another manifest is computed again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from fedsim import __version__
from fedsim.data.arrays import (
    UNIT_NORM,
    BadArrays,
    read_arrays,
    read_manifest,
    write_npz,
    write_sidecar,
)
from fedsim.data.embeddings import Embeddings, unit_norm
from fedsim.data.encoder import EncoderFiles, ImageEncoder, locate
from fedsim.data.images import BadImage, ImageSet, Source, decoded
from fedsim.data.spec import EncoderSpec
from fedsim.data.split import TEST, TRAIN
from fedsim.errors import UserError
from fedsim.files import cache_folder
from fedsim.words import plain_console

FORMAT = 2
"""The version of the cache, raised when the same inputs would give other embeddings."""
BATCH = 64
"""The number of views of images that the model computes at once."""
SHARD = 512
"""The number of images per shard; a run that was killed loses at most one shard."""
_RESERVED = ("x", "y", "split", "class_names", "manifest")
"""The names of the arrays that every saved file has; no column may have one of them."""
BadImages = list[tuple[int, str]]
"""The positions of images that cannot be decoded, ascending, and why each cannot be decoded."""
_SHOWN = 10
"""The number of images listed in the message about images that cannot be decoded."""


@dataclass(frozen=True)
class EmbedJob:
    """The task of embedding one image set with one encoder.

    Attributes:
        images: the images to embed.
        encoder: the encoder's files.
        batch: the number of views computed at once, which changes results by rounding at most.
    """

    images: ImageSet
    encoder: EncoderFiles
    batch: int = BATCH

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that determines the embeddings, except for rounding.

        The device is not part of it. A GPU computes in bfloat16, but a file that was computed on
        one device is used on the other one, too.
        """
        spec = self.encoder.spec
        return {
            "format": FORMAT,
            "images": hashlib.sha256(b"".join(self.images.digests)).hexdigest(),
            "encoder": self.encoder.digest,
            "pool": spec.pool,
            "views": spec.views,
            "dtype": spec.dtype,
            "preprocessing": self.encoder.preprocessing,
        }

    @property
    def path(self) -> Path:
        """The file in the cache, with the embeddings ``x`` of the decodable images."""
        key = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:16]
        return cache_folder() / "embeddings" / f"{key}.npz"

    @property
    def parts_folder(self) -> Path:
        """The folder that holds the finished shards until the cached file is complete."""
        return self.path.with_suffix(".parts")

    @property
    def shards(self) -> dict[Path, range]:
        """The file of every shard, with the positions of the images in this shard."""
        folder = self.parts_folder
        count = len(self.images)
        return {
            folder / f"{start // SHARD:06}.npz": range(start, min(start + SHARD, count))
            for start in range(0, count, SHARD)
        }

    def manifest(self) -> dict[str, Any] | None:
        """Return the manifest of the cached file; None if there is no file of this job."""
        manifest = read_manifest(self.path)
        if manifest is None or not self.identity.items() <= manifest.items():
            return None
        return manifest


@dataclass(frozen=True, eq=False)
class Embedded:
    """The embeddings of the images that could be decoded, not scaled to unit norm.

    Attributes:
        images: the images that could be decoded.
        x: their embeddings ``[n, d]``, in the dtype of the encoder's spec.
        manifest: a description of the data set and of how the embeddings were computed.
    """

    images: ImageSet
    x: NDArray[np.floating]
    manifest: Mapping[str, Any]

    def save(self, out: Path) -> None:
        """Write an ``.npz`` file that a grid can read, and its manifest as JSON beside it.

        The embeddings in the file are float32 and have norm 1. They are exactly those on which a
        grid trains and evaluates.
        """
        images = self.images
        manifest = {**self.manifest, "scale": UNIT_NORM}
        arrays: dict[str, NDArray[Any]] = {
            "x": unit_norm(self.x.astype(np.float32)),
            "y": images.y,
            "split": images.split,
            "class_names": np.array(images.class_names),
            **images.columns,
        }
        write_npz(out, arrays, manifest)
        write_sidecar(out, manifest)


def cached_embeddings(
    images: ImageSet,
    spec: EncoderSpec,
    name: str,
    *,
    skip_bad: bool,
) -> Embeddings:
    """Return the embeddings of an image set, from the cache or computed now.

    Args:
        images: the images to embed.
        spec: the encoder.
        name: the name of the embeddings in tables.
        skip_bad: whether images that cannot be decoded are left out.

    Raises:
        UserError: see :func:`embed`.
    """
    job = EmbedJob(images, locate(spec))
    embedded = embed(job, plain_console(stderr=True), skip_bad=skip_bad)
    good = embedded.images
    return Embeddings.from_arrays(
        name,
        embedded.x,
        good.y,
        good.split,
        good.columns,
        good.class_names,
    )


def embed(job: EmbedJob, console: Console, *, skip_bad: bool = False) -> Embedded:
    """Return the embeddings of a job, from the cache or computed now.

    They are computed on a GPU if there is one. A run that was killed continues with the first shard
    that is not finished.

    Args:
        job: the images and the encoder.
        console: the console that shows the progress.
        skip_bad: whether images that cannot be decoded are left out.

    Raises:
        UserError: a column has a reserved name; an embedding is not finite; images cannot be
            decoded and ``skip_bad`` is false; or the images that can be decoded are no valid
            :class:`ImageSet`. The embeddings that were computed stay in the cache.
    """
    images = job.images
    clashes = [name for name in images.columns if name in _RESERVED]
    if clashes:
        raise UserError(
            images.where,
            f"has a column '{clashes[0]}', a name that embeddings use themselves",
            "rename the column",
        )
    manifest = job.manifest() or _fill_cache(job, console)
    bad: BadImages = manifest["bad"]
    if not skip_bad:
        _refuse_bad(bad, job)
    try:
        x = read_arrays(job.path)["x"]
    except (BadArrays, KeyError) as error:
        raise UserError(
            str(job.path),
            f"cannot be read ({error})",
            "remove it and run the command again, which makes it anew",
        ) from error
    bad_positions = [position for position, _ in bad]
    good = images.take(np.setdiff1d(np.arange(len(images)), bad_positions))
    return Embedded(good, x, _describe(job, good, manifest))


def _fill_cache(job: EmbedJob, console: Console) -> dict[str, Any]:
    """Compute the embeddings, write the cached file, and return its manifest."""
    x, bad = _compute_shards(job, console)
    packages = ("torch", "transformers", "numpy", "pillow")
    manifest = {
        **job.identity,
        "shape": list(x.shape),
        "bad": bad,
        "device": _device(),
        "versions": {"fedsim": __version__, **{name: version(name) for name in packages}},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_npz(job.path, {"x": x}, manifest)
    # Another run that embeds the same images may have removed the folder already.
    shutil.rmtree(job.parts_folder, ignore_errors=True)
    return manifest


def _describe(
    job: EmbedJob,
    good: ImageSet,
    manifest: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the manifest of a saved file: that of the cached file, and facts of the data set."""
    spec = job.encoder.spec
    skipped = [
        {"image": job.images.image_name(position), "why": why} for position, why in manifest["bad"]
    ]
    return {
        **{key: value for key, value in manifest.items() if key != "bad"},
        "data": job.images.fingerprint,
        "dataset": good.name,
        "encoder_name": str(spec.name or spec.onnx),
        "revision": job.encoder.revision,
        "rows": {
            "train": int((good.split == TRAIN).sum()),
            "test": int((good.split == TEST).sum()),
        },
        "skipped": skipped,
    }


def _refuse_bad(bad: BadImages, job: EmbedJob) -> None:
    """Raise an error that lists the first images that cannot be decoded, if there are any."""
    if not bad:
        return
    images = job.images
    listed = [f"\n  {images.image_name(position)} ({why})" for position, why in bad[:_SHOWN]]
    if len(bad) > _SHOWN:
        listed.append(f"\n  and {len(bad) - _SHOWN} more")
    problem = f"{len(bad)} of {len(images)} images cannot be decoded"
    hint = "repair them"
    if len(bad) < len(images):
        hint += ", or leave them out with `skip_bad` (skip_bad: true in a grid)"
    # The cached file or its parts remember which images are bad.
    hint += f"; if the images are not at fault, remove {job.path.with_suffix('.*')} and try again"
    raise UserError(images.where, problem, f"{hint}:{''.join(listed)}")


def _device() -> str:
    """Return the device that embeds: the GPU if there is one."""
    if torch.cuda.is_available():
        return "cuda"
    return "cpu"


def _compute_shards(job: EmbedJob, console: Console) -> tuple[NDArray[np.floating], BadImages]:
    """Return the embeddings ``[n, d]`` of all decodable images, and why the others are bad.

    Shards without a readable file are computed and written.
    """
    device = _device()
    threads = 1
    if device == "cuda":
        threads = max(1, joblib.cpu_count() - 1)
    encoder = None
    blocks: list[NDArray[np.floating]] = []
    bad: BadImages = []
    with (
        Progress(console=console) as progress,
        ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool,
    ):
        description = f"embedding {job.images.name}"
        for path, positions in progress.track(job.shards.items(), description=description):
            try:
                x, bad_of_shard = _read_shard(path)
            except (BadArrays, ValueError, KeyError):
                encoder = encoder or ImageEncoder(job.encoder, device)
                x, bad_of_shard = _compute_shard(
                    job,
                    encoder,
                    positions,
                    pool,
                )
                bad_as_json = json.dumps(bad_of_shard)
                write_npz(path, {"x": x, "bad": np.array(bad_as_json)}, {})
            if len(x):
                blocks.append(x)
            bad += bad_of_shard
    if not blocks:
        _refuse_bad(bad, job)
    embeddings = np.concatenate(blocks)
    if not np.isfinite(embeddings).all():
        raise UserError(
            job.images.where,
            "there are embeddings with NaN or infinite values",
            "store them as float32, or check the encoder",
        )
    return embeddings, bad


def _read_shard(path: Path) -> tuple[NDArray[np.floating], BadImages]:
    """Return the content of a shard's file: its embeddings, and why other images are bad."""
    arrays = read_arrays(path)
    return arrays["x"], json.loads(str(arrays["bad"]))


def _compute_shard(
    job: EmbedJob,
    encoder: ImageEncoder,
    positions: range,
    pool: ThreadPoolExecutor,
) -> tuple[NDArray[np.floating], BadImages]:
    """Return the embeddings of one shard, and why other images are bad.

    The pool decodes the next batches while the model computes.
    """
    spec = job.encoder.spec
    size = max(1, job.batch // spec.views)
    batches = [positions[start : start + size] for start in range(0, len(positions), size)]
    # This thread alone reads the sources, in ascending order: some images come from one stream.
    sources = [[job.images.source(position) for position in batch] for batch in batches]
    blocks: list[NDArray[np.floating]] = []
    bad: BadImages = []
    for pixels, bad_of_batch in pool.map(partial(_decode_batch, encoder), batches, sources):
        if pixels is not None:
            blocks.append(encoder.embed(pixels).numpy().astype(spec.dtype))
        bad += bad_of_batch
    if not blocks:
        return np.zeros((0, 0), spec.dtype), bad
    return np.concatenate(blocks), bad


def _decode_batch(
    encoder: ImageEncoder, positions: Sequence[int], sources: Sequence[Source]
) -> tuple[Tensor | None, BadImages]:
    """Return the pixels of a batch's decodable images, and why the other images are bad.

    The pixels are None if no image can be decoded.
    """
    images = []
    bad = []
    for position, source in zip(positions, sources, strict=True):
        try:
            images.append(decoded(source))
        except BadImage as error:
            bad.append((position, str(error)))
    if not images:
        return None, bad
    return encoder.pixels(images), bad
