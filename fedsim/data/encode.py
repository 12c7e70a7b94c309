"""Image sets to embeddings: computed once, shard by shard, and kept in the cache under the hash of
images and encoder.

What decides them stands in a manifest inside the file: images (a hash of their content, in order),
encoder (a hash of its weights), pooling, views, preprocessing and dtype; labels, split and columns
do not. A file whose manifest differs is computed again.
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
"""Goes up when the same inputs would give other embeddings."""
BATCH = 64
SHARD = 512
"""Views of images that the model takes at once; images of a shard."""
_RESERVED = ("x", "y", "split", "class_names", "manifest")
_SHOWN = 10


@dataclass(frozen=True)
class EmbedJob:
    """Which images go through which encoder; ``batch`` changes no result that matters."""

    images: ImageSet
    encoder: EncoderFiles
    batch: int = BATCH

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decides the embeddings but for rounding: a GPU computes in bfloat16, and a file of
        either device serves both.
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
        """The cache's file: ``x`` of the images that could be decoded, and the manifest."""
        key = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:16]
        return cache_folder() / "embeddings" / f"{key}.npz"

    @property
    def shards(self) -> dict[Path, range]:
        """The files of shards while the file is made, and the images that each has."""
        folder = self.path.with_suffix(".parts")
        count = len(self.images)
        return {
            folder / f"{start // SHARD:06}.npz": range(start, min(start + SHARD, count))
            for start in range(0, count, SHARD)
        }

    def manifest(self) -> dict[str, Any] | None:
        """The cached file's; None where there is none that is of this job."""
        held = read_manifest(self.path)
        if held is not None and {key: held.get(key) for key in self.identity} == self.identity:
            return held
        return None


@dataclass(frozen=True, eq=False)
class Embedded:
    """The embeddings ``[n, d]`` of the images that could be decoded, and how they came to be.

    They have the encoder's own scale, as the cache has them.
    """

    images: ImageSet
    x: NDArray[np.floating]
    manifest: Mapping[str, Any]

    def save(self, out: Path) -> None:
        """Write an ``.npz`` file that a grid can read, with its manifest readable beside it.

        Its rows have unit norm, in float32: exactly the rows on which a grid trains and evaluates.
        """
        images = self.images
        manifest = {**self.manifest, "scale": UNIT_NORM}
        own: dict[str, NDArray[Any]] = {
            "x": unit_norm(self.x.astype(np.float32)),
            "y": images.y,
            "split": images.split,
            "class_names": np.array(images.class_names),
        }
        write_npz(out, {**own, **images.columns}, manifest)
        write_sidecar(out, manifest)


def cached_embeddings(
    images: ImageSet, spec: EncoderSpec, name: str, *, skip_bad: bool
) -> Embeddings:
    """The embeddings of an image set, from the cache or computed now; tables call them ``name``."""
    made = embed(EmbedJob(images, locate(spec)), plain_console(stderr=True), skip_bad=skip_bad)
    kept = made.images
    return Embeddings.from_arrays(name, made.x, kept.y, kept.split, kept.columns, kept.class_names)


def embed(job: EmbedJob, console: Console, *, skip_bad: bool = False) -> Embedded:
    """Embed what the cache lacks, on a GPU if there is one; a run that was killed continues with
    the next shard.

    ``skip_bad`` leaves out images that cannot be decoded; else the first of them are listed, and
    what was computed is kept.
    """
    images = job.images
    spec = job.encoder.spec
    if clash := next((name for name in images.columns if name in _RESERVED), None):
        raise UserError(
            images.where,
            f"has a column '{clash}', a name that embeddings use themselves",
            "rename the column",
        )
    manifest = job.manifest()
    if manifest is None:
        x, bad = _shards(job, console)
        _refuse_bad({} if skip_bad else bad, images)
        manifest = {
            **job.identity,
            "shape": list(x.shape),
            "bad": sorted(bad.items()),
            "device": "cuda" if torch.cuda.is_available() else "cpu",
            "versions": {"fedsim": __version__}
            | {name: version(name) for name in ("torch", "transformers", "numpy", "pillow")},
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_npz(job.path, {"x": x}, manifest)
        shutil.rmtree(
            job.path.with_suffix(".parts"), ignore_errors=True
        )  # of two runs at once the other one may have done so
    bad = {int(position): why for position, why in manifest["bad"]}
    _refuse_bad({} if skip_bad else bad, images)
    try:
        x = read_arrays(job.path)["x"]
    except (BadArrays, KeyError) as error:
        raise UserError(
            str(job.path), f"cannot be read ({error})", "remove it, it is made again"
        ) from error
    kept = images.take(np.setdiff1d(np.arange(len(images)), list(bad)))
    described = {
        **{key: value for key, value in manifest.items() if key != "bad"},
        "data": images.fingerprint,
        "dataset": kept.name,
        "encoder_name": str(spec.name or spec.onnx),
        "revision": job.encoder.revision,
        "rows": {
            "train": int((kept.split == TRAIN).sum()),
            "test": int((kept.split == TEST).sum()),
        },
        "skipped": [
            {"image": images.image_name(position), "why": why}
            for position, why in sorted(bad.items())
        ],
    }
    return Embedded(kept, x, described)


def _refuse_bad(bad: Mapping[int, str], images: ImageSet) -> None:
    """List the first of the images that cannot be decoded, if there are some."""
    if bad:
        listed = "".join(
            f"\n  {images.image_name(position)} ({why})"
            for position, why in sorted(bad.items())[:_SHOWN]
        )
        if len(bad) > _SHOWN:
            more = f"\n  and {len(bad) - _SHOWN} more"
        else:
            more = ""
        hint = "repair them, or leave them out with `skip_bad` (skip_bad: true in a grid)"
        raise UserError(
            images.where,
            f"{len(bad)} of {len(images)} images cannot be decoded",
            f"{hint}:{listed}{more}",
        )


def _shards(job: EmbedJob, console: Console) -> tuple[NDArray[np.floating], dict[int, str]]:
    """Embeddings ``[n, d]`` of all good images, and why the others are bad; shards that are not
    there yet are computed and saved.
    """
    if torch.cuda.is_available():
        device = "cuda"
    else:
        device = "cpu"
    encoder = None
    if device == "cpu":
        threads = 1
    else:
        threads = max(1, joblib.cpu_count() - 1)
    rows: list[NDArray[np.floating]] = []
    bad: dict[int, str] = {}
    with (
        Progress(console=console) as progress,
        ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool,
    ):
        for path, positions in progress.track(
            job.shards.items(), description=f"embedding {job.images.name}"
        ):
            try:
                held = read_arrays(path)
                part = held["x"]
                why = {int(position): reason for position, reason in json.loads(str(held["bad"]))}
            except (BadArrays, ValueError, TypeError, KeyError):
                encoder = encoder or ImageEncoder(job.encoder, device)
                part, why = _shard(job, encoder, positions, pool)
                write_npz(path, {"x": part, "bad": np.array(json.dumps(sorted(why.items())))}, {})
            if len(part):
                rows += [part]
            bad |= why
    if not rows:
        _refuse_bad(bad, job.images)
    x = np.concatenate(rows)
    if not np.isfinite(x).all():
        raise UserError(
            job.images.where,
            "there are embeddings with NaN or infinite values",
            "store them as float32, or check the encoder",
        )
    return x, bad


def _shard(
    job: EmbedJob, encoder: ImageEncoder, positions: range, pool: ThreadPoolExecutor
) -> tuple[NDArray[np.floating], dict[int, str]]:
    """One shard; its batches are decoded while the model computes."""
    spec = job.encoder.spec
    size = max(1, job.batch // spec.views)
    parts = [positions[start : start + size] for start in range(0, len(positions), size)]
    # in ascending order and in this thread, as files that are read as a stream want it
    sources = [[job.images.source(position) for position in part] for part in parts]
    rows: list[NDArray[np.floating]] = []
    bad: dict[int, str] = {}
    for pixels, why in pool.map(partial(_prepared, encoder), parts, sources):
        if pixels is None:
            rows += []
        else:
            rows += [encoder.embed(pixels).numpy().astype(spec.dtype)]
        bad |= why
    return np.concatenate(rows) if rows else np.zeros((0, 0), spec.dtype), bad


def _prepared(
    encoder: ImageEncoder, positions: Sequence[int], sources: Sequence[Source]
) -> tuple[Tensor | None, dict[int, str]]:
    """The pixels of a batch's good images, and why the others are bad."""
    good = []
    bad = {}
    for position, source in zip(positions, sources, strict=True):
        try:
            good.append(decoded(source))
        except BadImage as error:
            bad[position] = str(error)
    return encoder.pixels(good) if good else None, bad
