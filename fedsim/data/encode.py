"""Image sets to embeddings: computed once, shard by shard, and kept in the cache under the hash of images and encoder.

What decides them stands in a manifest inside the file: images (a hash of their content, in order), encoder (a hash of its weights),
pooling, views, preprocessing and dtype; labels, split and columns do not. A file whose manifest differs is computed again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
from fedsim.data.arrays import BadArrays, read_arrays, read_manifest, write_npz, write_sidecar
from fedsim.data.embeddings import Embeddings
from fedsim.data.encoder import EncoderFiles, ImageEncoder, locate
from fedsim.data.images import BadImage, Decoder, ImageSet
from fedsim.data.spec import EncoderSpec
from fedsim.data.split import TEST, TRAIN
from fedsim.errors import UserError
from fedsim.files import cache_folder, replaced
from fedsim.words import plain_console

FORMAT = 2
"""Goes up when the same inputs would give other embeddings."""
BATCH, SHARD = 64, 512
"""Views of images that the model takes at once; images of a shard."""
_RESERVED = ("x", "y", "split", "class_names", "manifest")
_SHOWN = 10


@dataclass(frozen=True)
class Shard:
    """Embeddings ``[k, d]`` of the good images among ``SHARD`` ones, and why the others are bad, by their positions in the whole set."""

    x: NDArray[np.floating]
    bad: dict[int, str]

    def save(self, path: Path) -> None:
        """Write it at once or not at all."""
        with replaced(path) as part, part.open("wb") as file:
            np.savez(file, x=self.x, bad=np.array(json.dumps(sorted(self.bad.items()))))

    @classmethod
    def load(cls, path: Path) -> Shard | None:
        """A shard of an earlier run; None if it is not there or cannot be read."""
        try:
            held = read_arrays(path)
            return cls(held["x"], {int(position): reason for position, reason in json.loads(str(held["bad"]))})
        except (BadArrays, ValueError, TypeError, KeyError, RecursionError):
            return None


@dataclass(frozen=True)
class EmbedJob:
    """Which images go through which encoder; ``batch`` changes no result that matters."""

    images: ImageSet
    encoder: EncoderFiles
    batch: int = BATCH

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decides the embeddings but for rounding: a GPU computes in bfloat16, and a file of either device serves both."""
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
        folder, count = self.path.with_suffix(".parts"), len(self.images)
        return {folder / f"{start // SHARD:06}.npz": range(start, min(start + SHARD, count)) for start in range(0, count, SHARD)}

    def manifest(self) -> dict[str, Any] | None:
        """The cached file's; None where there is none that is of this job."""
        held = read_manifest(self.path)
        return held if held is not None and {key: held.get(key) for key in self.identity} == self.identity else None


@dataclass(frozen=True, eq=False)
class Embedded:
    """The embeddings ``[n, d]`` of the images that could be decoded, and how they came to be."""

    images: ImageSet
    x: NDArray[np.floating]
    manifest: Mapping[str, Any]

    def data(self, name: str) -> Embeddings:
        """The data set, which tables call ``name``."""
        images = self.images
        return Embeddings.from_arrays(name, self.x, images.y, images.split, images.columns, images.class_names)

    def save(self, out: Path) -> None:
        """Write an ``.npz`` file that a grid can read, with its manifest readable beside it."""
        images = self.images
        own = {"x": self.x, "y": images.y, "split": images.split, "class_names": np.array(images.class_names)}
        write_npz(out, {**own, **images.columns}, self.manifest)
        write_sidecar(out, self.manifest)


def cached_embeddings(images: ImageSet, spec: EncoderSpec, name: str, *, skip_bad: bool) -> Embeddings:
    """The embeddings of an image set, from the cache or computed now; tables call them ``name``."""
    return embed(EmbedJob(images, locate(spec)), plain_console(stderr=True), skip_bad=skip_bad).data(name)


def embed(job: EmbedJob, console: Console, *, skip_bad: bool = False) -> Embedded:
    """Embed what the cache lacks, on a GPU if there is one; a run that was killed continues with the next shard.

    ``skip_bad`` leaves out images that cannot be decoded; else the first of them are listed, and what was computed is kept.
    """
    if clash := next((name for name in job.images.columns if name in _RESERVED), None):
        raise UserError(job.images.where, f"has a column '{clash}', a name that embeddings use themselves", "rename the column")
    job.path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(job.path.with_suffix(".lock"), console):
        manifest = job.manifest()
        if manifest is None:
            manifest = _assemble(job, _shards(job, console), skip_bad)
            shutil.rmtree(job.path.with_suffix(".parts"))
        bad = {int(position): why for position, why in manifest["bad"]}
        if bad and not skip_bad:
            raise _bad_images(bad, job)
        try:
            x = read_arrays(job.path)["x"]
        except (BadArrays, KeyError) as error:
            raise UserError(str(job.path), f"cannot be read ({error})", "remove it, it is made again") from error
    kept = job.images.take(np.setdiff1d(np.arange(len(job.images)), list(bad)))
    return Embedded(kept, x, _described(job, kept, bad, manifest))


@contextmanager
def _locked(path: Path, console: Console) -> Iterator[None]:
    """Two runs never compute the same embeddings: the second waits, and reads them then."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print("another fedsim computes these embeddings; waiting for it", highlight=False)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _shards(job: EmbedJob, console: Console) -> list[Shard]:
    """All shards; those that are not there yet are computed and saved. A shard's batches are decoded while the model computes."""
    there = {path: Shard.load(path) for path in job.shards}
    missing = [positions for path, positions in job.shards.items() if there[path] is None]
    if not missing:
        return [shard for shard in there.values() if shard]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder, total = ImageEncoder(job.encoder, device), len(job.images)
    size, threads = max(1, job.batch // job.encoder.spec.views), 1 if device == "cpu" else max(1, joblib.cpu_count() - 1)
    shards = []
    with Progress(console=console) as progress, ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        bar = progress.add_task(f"embedding {job.images.name}", total=total, completed=total - sum(map(len, missing)))
        for path, positions in job.shards.items():
            shard = there[path]
            if shard is None:
                parts = [positions[start : start + size] for start in range(0, len(positions), size)]
                # in ascending order and in this thread, as files that are read as a stream want it
                decoders = [[job.images.decoder(position) for position in part] for part in parts]
                rows: list[NDArray[np.floating]] = [np.zeros((0, 0), job.encoder.spec.stored)]
                bad: dict[int, str] = {}
                for pixels, why in pool.map(partial(_prepared, encoder), parts, decoders):
                    rows += [] if pixels is None else [encoder.embed(pixels).numpy().astype(job.encoder.spec.stored)]
                    bad |= why
                shard = Shard(_joined(rows), bad)
                shard.save(path)
                progress.advance(bar, len(positions))
            shards.append(shard)
    return shards


def _joined(parts: Sequence[NDArray[np.floating]]) -> NDArray[np.floating]:
    """One after another, those without a row left out."""
    return np.concatenate([part for part in parts if len(part)] or list(parts[:1]))


def _prepared(encoder: ImageEncoder, positions: Sequence[int], decoders: Sequence[Decoder]) -> tuple[Tensor | None, dict[int, str]]:
    """The pixels of a batch's good images, and why the others are bad."""
    good, bad = [], {}
    for position, decoder in zip(positions, decoders, strict=True):
        try:
            good.append(decoder())
        except BadImage as error:
            bad[position] = str(error)
    return encoder.pixels(good) if good else None, bad


def _assemble(job: EmbedJob, shards: Sequence[Shard], skip_bad: bool) -> dict[str, Any]:
    """Put the shards into one file; returns its manifest."""
    x, bad = _joined([shard.x for shard in shards]), {position: why for shard in shards for position, why in shard.bad.items()}
    finite = np.isfinite(x).all(axis=1)
    if not finite.all():
        kept = np.setdiff1d(np.arange(len(job.images)), list(bad))
        what = f"the embedding of {job.images.image_name(int(kept[finite.argmin()]))} has NaN or infinite values"
        raise UserError(job.images.where, what, "store them as float32, or check the encoder")
    if bad and not skip_bad:
        raise _bad_images(bad, job)
    manifest = {
        **job.identity,
        "shape": list(x.shape),
        "bad": sorted(bad.items()),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "versions": {"fedsim": __version__} | {name: version(name) for name in ("torch", "torchvision", "transformers", "numpy", "pillow")},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_npz(job.path, {"x": x}, manifest)
    return manifest


def _bad_images(bad: Mapping[int, str], job: EmbedJob) -> UserError:
    listed = "".join(f"\n  {job.images.image_name(position)} ({why})" for position, why in sorted(bad.items())[:_SHOWN])
    more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    hint = "repair them, or leave them out with `skip_bad` (skip_bad: true in a grid)"
    return UserError(job.images.where, f"{len(bad)} of {len(job.images)} images cannot be decoded", f"{hint}:{listed}{more}")


def _described(job: EmbedJob, kept: ImageSet, bad: Mapping[int, str], cached: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of the embeddings of this image set, from the cached file's."""
    spec = job.encoder.spec
    return {
        **{key: value for key, value in cached.items() if key != "bad"},
        "data": job.images.fingerprint,
        "dataset": kept.name,
        "encoder_name": str(spec.name or spec.onnx),
        "revision": job.encoder.revision,
        "rows": {"train": int((kept.split == TRAIN).sum()), "test": int((kept.split == TEST).sum())},
        "skipped": [{"image": job.images.image_name(position), "why": why} for position, why in sorted(bad.items())],
    }
