"""Image sets to embeddings: computed once, kept in the cache under the hash of images and encoder.

What decides them stands in a manifest inside the file: images (a hash of their content, in order), encoder (a hash of its weights),
pooling, views, preprocessing and dtype; labels, split and columns do not. A file whose manifest differs is computed again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from fedsim import __version__
from fedsim.data.arrays import BadArrays, read_arrays, read_manifest, write_npz, write_sidecar
from fedsim.data.embeddings import Embeddings
from fedsim.data.encoding.encoder import EncoderFiles, best_device, locate
from fedsim.data.encoding.shards import SHARD, Shard, embedded_shards, positions
from fedsim.data.encoding.spec import EncoderSpec
from fedsim.data.images import ImageSet
from fedsim.data.split import TEST, TRAIN
from fedsim.errors import UserError
from fedsim.files import cache_folder
from fedsim.words import plain_console

FORMAT = 2
"""Goes up when the same inputs would give other embeddings."""
BATCH = 64
_RESERVED = ("x", "y", "split", "class_names", "manifest")
_SHOWN = 10
_TIMED = 8
"""Images by whose embedding an encoder's speed is measured."""


@dataclass(frozen=True)
class EmbedJob:
    """Which images go through which encoder.

    Attributes:
        images: the image set.
        encoder: its files, and what is asked of it.
        batch: views of images that the model takes at once; changes no result that matters.
    """

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
    def key(self) -> str:
        """16 hex digits of the identity's SHA-256."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return -(-len(self.images) // SHARD)

    @property
    def path(self) -> Path:
        """The cache's file: ``x`` of the images that could be decoded, and the manifest."""
        return cache_folder() / "embeddings" / f"{self.key}.npz"

    @property
    def parts(self) -> Path:
        """The folder of shards while the file is made."""
        return self.path.with_suffix(".shards")

    def manifest(self) -> dict[str, Any] | None:
        """The cached file's; None where there is none that is of this job."""
        held = read_manifest(self.path)
        return held if held is not None and {key: held.get(key) for key in self.identity} == self.identity else None

    def missing(self) -> list[int]:
        """The shards that neither the cache nor an interrupted run has."""
        return [] if self.manifest() else [number for number in range(self.shards) if Shard.load(self.parts, number) is None]

    def count(self, numbers: Sequence[int]) -> int:
        """How many images these shards have."""
        return sum(len(positions(number, len(self.images))) for number in numbers)


Work = Callable[[EmbedJob, Sequence[int]], Iterator[Shard]]
"""Computes the shards with these numbers, in any order."""


def in_process(job: EmbedJob, numbers: Sequence[int]) -> Iterator[Shard]:
    """All shards in this process, on a GPU if there is one."""
    device = best_device()
    threads = 1 if device == "cpu" else max(1, joblib.cpu_count() - 1)
    return embedded_shards(job.encoder.load(device), job.images, numbers, job.batch, threads)


@dataclass(frozen=True, eq=False)
class Embedded:
    """The embeddings of an image set.

    Attributes:
        images: those that could be decoded.
        x: ``[n, d]``.
        manifest: how they came to be.
    """

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
        arrays = {"y": images.y, "split": images.split, "class_names": np.array(images.class_names), **images.columns}
        shape = self.x.shape[0], self.x.shape[1]
        write_npz(out, shape, self.x.dtype.str, [self.x], arrays, self.manifest)
        write_sidecar(out, self.manifest)


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
    return embed(EmbedJob(images, locate(spec)), plain_console(stderr=True), skip_bad=skip_bad).data(name)


class Outlook(NamedTuple):
    """What embedding would take.

    Attributes:
        images: how many are to be embedded; 0: the cache has them.
        seconds: for these, by the speed of a few made-up images.
        dim: of an embedding.
    """

    images: int
    seconds: float
    dim: int


def outlook(job: EmbedJob) -> Outlook:
    """What embedding would take, without a look at the images' pixels.

    Raises:
        UserError: the encoder cannot be loaded.
    """
    if held := job.manifest():
        return Outlook(0, 0.0, held["shape"][1])
    encoder = job.encoder.load(best_device())
    drawn = [Image.fromarray(pixels) for pixels in np.random.default_rng(0).integers(0, 256, (_TIMED, 224, 224, 3), np.uint8)]
    encoder.embed(encoder.pixels(drawn[:1]))  # the first call takes longer
    start = time.perf_counter()
    dim = encoder.embed(encoder.pixels(drawn)).shape[1]
    images = job.count(job.missing())
    return Outlook(images, images * (time.perf_counter() - start) / _TIMED, dim)


def embed(job: EmbedJob, console: Console, *, skip_bad: bool = False, work: Work = in_process) -> Embedded:
    """Embed what the cache lacks; a run that was killed continues with the next shard.

    Args:
        job: what to embed.
        console: where progress is shown.
        skip_bad: leave out images that cannot be decoded.
        work: computes shards.

    Raises:
        UserError: images cannot be decoded and are not to be skipped (the first of them are listed; what was computed is kept), or
            embeddings are not finite.
    """
    if clash := next((name for name in job.images.columns if name in _RESERVED), None):
        raise UserError(job.images.where, f"has a column '{clash}', a name that embeddings use themselves", "rename the column")
    job.path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(job.path.with_suffix(".lock"), console):
        manifest = job.manifest()
        if manifest is None:
            job.parts.mkdir(exist_ok=True)
            _compute(job, console, work)
            manifest = _assemble(job, skip_bad)
            shutil.rmtree(job.parts)
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


def _compute(job: EmbedJob, console: Console, work: Work) -> None:
    """Compute and save the shards that are not there yet."""
    if not (missing := job.missing()):
        return
    done = len(job.images) - job.count(missing)
    with _progress(console) as progress:
        bar = progress.add_task(f"embedding {job.images.name}", total=len(job.images), completed=done, before=done)
        for shard in work(job, missing):
            shard.save(job.parts)
            progress.advance(bar, job.count([shard.number]))


class _Rate(ProgressColumn):
    """Images a second, of this run alone."""

    def render(self, task: Task) -> Text:
        """See rich."""
        seconds = task.finished_time or task.elapsed
        return Text(f"{(task.completed - task.fields['before']) / seconds:.1f} images/s" if seconds else "")


def _progress(console: Console) -> Progress:
    parts = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    return Progress(*parts, console=console)


def _assemble(job: EmbedJob, skip_bad: bool) -> dict[str, Any]:
    """Put the shards into one file, shard by shard; returns its manifest."""
    bad: dict[int, str] = {}
    dim = 0
    for number in range(job.shards):
        shard = _shard(job, number)
        dim = max(dim, shard.x.shape[1])
        bad |= shard.bad
        finite = np.isfinite(shard.x).all(axis=1)
        if not finite.all():
            name = job.images.image_name(positions(number, len(job.images))[int(finite.argmin())])
            what = f"the embedding of {name} has NaN or infinite values"
            raise UserError(job.images.where, what, "store them as float32, or check the encoder")
    if bad and not skip_bad:
        raise _bad_images(bad, job)
    manifest = {
        **job.identity,
        "shape": [len(job.images) - len(bad), dim],
        "bad": sorted(bad.items()),
        "device": best_device(),
        "versions": {"fedsim": __version__} | {name: version(name) for name in ("torch", "torchvision", "transformers", "numpy", "pillow")},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_npz(job.path, (manifest["shape"][0], dim), job.encoder.spec.stored, _good_rows(job, bad), {}, manifest)
    return manifest


def _good_rows(job: EmbedJob, bad: Mapping[int, str]) -> Iterator[NDArray[np.floating]]:
    for number in range(job.shards):
        good = [position not in bad for position in positions(number, len(job.images))]
        if any(good):
            yield _shard(job, number).x[good]


def _shard(job: EmbedJob, number: int) -> Shard:
    shard = Shard.load(job.parts, number)
    if shard is None:
        raise UserError(str(job.parts), f"shard {number} was removed while fedsim ran", "run the same command again")
    return shard


def _bad_images(bad: Mapping[int, str], job: EmbedJob) -> UserError:
    listed = "".join(f"\n  {job.images.image_name(position)} ({why})" for position, why in sorted(bad.items())[:_SHOWN])
    more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    hint = "repair them, or leave them out with `skip_bad` (skip_bad: true in a grid)"
    return UserError(job.images.where, f"{len(bad)} of {len(job.images)} images cannot be decoded", f"{hint}:{listed}{more}")


def _described(job: EmbedJob, kept: ImageSet, bad: Mapping[int, str], cached: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of the embeddings of this image set, from the cached file's."""
    preprocessing, spec = job.encoder.preprocessing, job.encoder.spec
    return {
        **{key: value for key, value in cached.items() if key != "bad"},
        "data": job.images.fingerprint,
        "dataset": kept.name,
        "encoder_name": str(spec.name or spec.onnx),
        "revision": job.encoder.revision,
        "size": preprocessing.get("crop_size") if preprocessing.get("do_center_crop") else preprocessing.get("size"),
        "normalisation": {name: preprocessing.get(name) for name in ("image_mean", "image_std", "rescale_factor")},
        "rows": {"train": int((kept.split == TRAIN).sum()), "test": int((kept.split == TEST).sum())},
        "skipped": [{"image": job.images.image_name(position), "why": why} for position, why in sorted(bad.items())],
    }
