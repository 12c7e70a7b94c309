"""Commands on data: embeddings of images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsim.cli.app import app, interruptible
from fedsim.words import plain_console, print_line

DATA_PANEL = "Data"


@app.command(rich_help_panel=DATA_PANEL)
def embed(
    dataset: Annotated[str, typer.Option(help="As in a grid: medmnist:organsmnist, imagefolder:PATH, csv:PATH, or a YAML mapping.")],
    encoder: Annotated[str, typer.Option(help="A vision transformer of the hub or a local folder, an .onnx file, or a YAML mapping.")],
    out: Annotated[Path, typer.Option(help="The .npz file of embeddings.")],
    size: Annotated[int | None, typer.Option(help="Pixels of a MedMNIST set: 28, 64, 128 or 224.")] = None,
    root: Annotated[Path | None, typer.Option(help="The folder of a known set's files.")] = None,
    limit: Annotated[int | None, typer.Option(help="Keep at most this many training images, and as many test images.")] = None,
    revision: Annotated[str | None, typer.Option(help="A commit of the encoder's repository.")] = None,
    pool: Annotated[str | None, typer.Option(help="cls (default), mean or cls+mean.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 (default), float16 or bfloat16.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 64,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out images that cannot be decoded.")] = False,
) -> None:
    """Turn a data set's images into embeddings. Interrupt it at any time; the same command goes on where it stopped."""
    from fedsim.api.data import embed as embedded

    console = plain_console()
    with interruptible(console):
        made = embedded(
            dataset,
            encoder,
            out,
            size=size,
            root=root,
            limit=limit,
            revision=revision,
            pool=pool,
            dtype=dtype,
            batch=batch,
            skip_bad=skip_bad,
        )
    rows, dim = made.x.shape
    skipped = f", {len(made.manifest['skipped'])} bad images left out" if made.manifest["skipped"] else ""
    print_line(console, f"{out}: {rows} embeddings of {dim} dimensions{skipped}; manifest: {out.with_suffix('.json')}")
