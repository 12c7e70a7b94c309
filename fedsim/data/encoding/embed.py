"""Image sets to embeddings: computed once, kept in the cache under the hash of what decides them.

What decides them stands in a manifest inside the file: images, labels and split (a hash of their content), encoder (a hash of its weights),
pooling, preprocessing and dtype. A file whose manifest says anything else is computed again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn

from fedsim.data.embeddings import Embeddings
from fedsim.data.encoding.archive import read_manifest, write_npz
from fedsim.data.encoding.encoder import Encoder, EncoderFiles, best_device, locate
from fedsim.data.encoding.shards import SIZE, Shard, embedded_shards, positions
from fedsim.data.encoding.spec import EncoderSpec
from fedsim.data.images import ImageSet
from fedsim.data.npz import load_embedding_file
from fedsim.data.split import TEST, TRAIN
from fedsim.errors import UserError
from fedsim.files import cache_folder
from fedsim.words import plain_console

FORMAT = 1
"""Goes up when the same inputs would give other embeddings."""
BATCH = 64
_RESERVED = ("x", "y", "split", "class_names", "manifest")
_SHOWN = 10


@dataclass(frozen=True)
class EmbedJob:
    """Which images go through which encoder, and how.

    Attributes:
        images: the image set.
        encoder: its files.
        spec: pooling and dtype.
        batch: images that the model takes at once; changes no result that matters.
    """

    images: ImageSet
    encoder: EncoderFiles
    spec: EncoderSpec
    batch: int = BATCH

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decides the embeddings but for rounding: a GPU computes in bfloat16, and a file of either device serves both."""
        return {
            "format": FORMAT,
            "data": self.images.fingerprint,
            "encoder": self.encoder.digest,
            "pool": self.spec.pool,
            "dtype": self.spec.dtype,
            "preprocessing": self.encoder.preprocessing,
        }

    @property
    def key(self) -> str:
        """16 hex digits of the identity's SHA-256."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return -(-len(self.images) // SIZE)


Work = Callable[[EmbedJob, Sequence[int]], Iterator[Shard]]
"""Computes the shards with these numbers, in any order."""


def in_process(job: EmbedJob, numbers: Sequence[int]) -> Iterator[Shard]:
    """All shards in this process, on a GPU if there is one."""
    device = best_device()
    threads = 1 if device == "cpu" else max(1, joblib.cpu_count() - 1)
    return embedded_shards(Encoder(job.encoder, job.spec.pool, device), job.images, numbers, job.spec.dtype, job.batch, threads)


def cached_embeddings(images: ImageSet, spec: EncoderSpec, name: str, *, skip_bad: bool) -> Embeddings:
    """The embeddings of an image set, from the cache or computed now.

    Args:
        images: the image set.
        spec: the encoder.
        name: what tables call the data set.
        skip_bad: leave out images that cannot be decoded.

    Raises:
        UserError: the encoder cannot be had, or images cannot be decoded.
    """
    path = embed(EmbedJob(images, locate(spec), spec), plain_console(stderr=True), skip_bad=skip_bad)
    return load_embedding_file(path, name)


def embed(job: EmbedJob, console: Console, *, skip_bad: bool = False, work: Work = in_process) -> Path:
    """Embed what the cache lacks; a run that was killed goes on with the next shard.

    Args:
        job: what to embed.
        console: where progress goes.
        skip_bad: leave out images that cannot be decoded.
        work: who computes.

    Returns:
        The cache's ``.npz`` file: ``x``, ``y``, ``split``, ``class_names``, the columns and the manifest.

    Raises:
        UserError: images cannot be decoded and are not to be skipped (the first of them are listed; what was computed is kept), or
            embeddings are not finite.
    """
    if clash := next((name for name in job.images.columns if name in _RESERVED), None):
        raise UserError(job.images.where, f"has a column '{clash}', a name that embeddings use themselves", "rename the column")
    folder = cache_folder() / "embeddings"
    folder.mkdir(parents=True, exist_ok=True)
    path, parts = folder / f"{job.key}.npz", folder / f"{job.key}.shards"
    with _locked(folder / f"{job.key}.lock", console):
        manifest = read_manifest(path)
        if manifest is None or {key: manifest.get(key) for key in job.identity} != job.identity:
            parts.mkdir(exist_ok=True)
            _compute(job, parts, console, work)
            manifest = _assemble(job, parts, path, skip_bad)
            shutil.rmtree(parts)
        if manifest["skipped"] and not skip_bad:
            raise _bad_images(manifest["skipped"], job)
    return path


@contextmanager
def _locked(path: Path, console: Console) -> Iterator[None]:
    """Two runs never compute the same embeddings: the second waits, and finds them."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print("another fedsim computes these embeddings; waiting for it", highlight=False)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compute(job: EmbedJob, parts: Path, console: Console, work: Work) -> None:
    """Compute and save the shards that are not there yet."""
    missing = [number for number in range(job.shards) if Shard.load(parts, number) is None]
    if not missing:
        return
    done = len(job.images) - sum(len(positions(number, len(job.images))) for number in missing)
    with _progress(console) as progress:
        bar = progress.add_task(f"embedding {job.images.name}", total=len(job.images), completed=done, before=done)
        for shard in work(job, missing):
            shard.save(parts)
            progress.advance(bar, len(positions(shard.number, len(job.images))))


class _Rate(TextColumn):
    """Images a second, of this run alone."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Task) -> Any:
        """See rich."""
        seconds = task.finished_time or task.elapsed
        self.text_format = f"{(task.completed - task.fields['before']) / seconds:.1f} images/s" if seconds else ""
        return super().render(task)


def _progress(console: Console) -> Progress:
    parts = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    return Progress(*parts, console=console)


def _assemble(job: EmbedJob, parts: Path, path: Path, skip_bad: bool) -> dict[str, Any]:
    """Put the shards into one file, shard by shard; returns its manifest."""
    bad: dict[int, str] = {}
    dim = 0
    for number in range(job.shards):
        shard = _shard(parts, number)
        dim = max(dim, shard.x.shape[1])
        bad |= shard.bad
        finite = np.isfinite(shard.x).all(axis=1)
        if not finite.all():
            name = job.images.image_name(positions(number, len(job.images))[int(finite.argmin())])
            raise UserError(
                job.images.where, f"the embedding of {name} has NaN or infinite values", "store them as float32, or check the encoder"
            )
    skipped = [{"image": job.images.image_name(position), "why": why} for position, why in sorted(bad.items())]
    if skipped and not skip_bad:
        raise _bad_images(skipped, job)
    good = np.setdiff1d(np.arange(len(job.images)), list(bad))
    kept = job.images.take(good)
    manifest = _manifest(job, kept, dim, skipped)
    arrays = {"y": kept.y, "split": kept.split, "class_names": np.array(kept.class_names), **kept.columns}
    write_npz(path, (len(kept), dim), job.spec.dtype, _good_rows(job, parts, bad), arrays, manifest)
    return manifest


def _good_rows(job: EmbedJob, parts: Path, bad: Mapping[int, str]) -> Iterator[NDArray[np.floating]]:
    for number in range(job.shards):
        good = [position not in bad for position in positions(number, len(job.images))]
        if any(good):
            yield _shard(parts, number).x[good]


def _shard(parts: Path, number: int) -> Shard:
    shard = Shard.load(parts, number)
    if shard is None:
        raise UserError(str(parts), f"shard {number} was removed while fedsim ran", "run the same command again")
    return shard


def _bad_images(skipped: Sequence[Mapping[str, str]], job: EmbedJob) -> UserError:
    listed = "".join(f"\n  {each['image']} ({each['why']})" for each in skipped[:_SHOWN])
    more = f"\n  and {len(skipped) - _SHOWN} more" if len(skipped) > _SHOWN else ""
    right = "repair them, or leave them out with --skip-bad (skip_bad: true in a grid)"
    return UserError(job.images.where, f"{len(skipped)} of {len(job.images)} images cannot be decoded", f"{right}:{listed}{more}")


def _manifest(job: EmbedJob, kept: ImageSet, dim: int, skipped: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    preprocessing = job.encoder.preprocessing
    return {
        **job.identity,
        "dataset": kept.name,
        "encoder_name": job.encoder.name,
        "revision": job.encoder.revision,
        "size": preprocessing.get("crop_size") if preprocessing.get("do_center_crop") else preprocessing.get("size"),
        "normalisation": {name: preprocessing.get(name) for name in ("image_mean", "image_std", "rescale_factor")},
        "shape": [len(kept), dim],
        "rows": {"train": int((kept.split == TRAIN).sum()), "test": int((kept.split == TEST).sum())},
        "skipped": list(skipped),
        "device": best_device(),
        "versions": {name: version(name) for name in ("fedsim", "torch", "torchvision", "transformers", "numpy", "pillow")},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
