"""Commands on data: what there is, and embeddings of images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsim.cli.app import app, interruptible
from fedsim.errors import at
from fedsim.words import plain_console, print_line, wide_console

DATA_PANEL = "Data"

sets = typer.Typer(help="List the known data sets.", no_args_is_help=True)
app.add_typer(sets, name="data", rich_help_panel=DATA_PANEL)


@sets.command("list")
def data_list() -> None:
    """Show the data sets that fedsim knows: classes, size, licence, source."""
    from fedsim.data.sources.catalogue import catalogue_table

    wide_console(plain_console()).print(catalogue_table())


@app.command(rich_help_panel=DATA_PANEL)
def embed(
    dataset: Annotated[str, typer.Option(help="As in a grid: medmnist:organsmnist, imagefolder:PATH, csv:PATH, or a YAML mapping.")],
    encoder: Annotated[str, typer.Option(help="A vision transformer of the Hugging Face hub, or a local folder.")],
    out: Annotated[Path, typer.Option(help="The .npz file of embeddings.")],
    size: Annotated[int | None, typer.Option(help="Pixels of a MedMNIST set: 28, 64, 128 or 224.")] = None,
    root: Annotated[Path | None, typer.Option(help="The folder of a MedMNIST or MILK10k set's files.")] = None,
    limit: Annotated[int | None, typer.Option(help="Keep at most this many training images, and as many test images.")] = None,
    revision: Annotated[str | None, typer.Option(help="A commit of the encoder's repository.")] = None,
    pool: Annotated[str, typer.Option(help="cls, mean or cls+mean.")] = "cls",
    dtype: Annotated[str, typer.Option(help="float32 or float16.")] = "float32",
    batch: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 64,
    actors: Annotated[int, typer.Option(min=1, help="Encoders that run in parallel and share this machine's GPUs.")] = 1,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out images that cannot be decoded.")] = False,
) -> None:
    """Turn a data set's images into embeddings. Interrupt it at any time; the same command goes on where it stopped."""
    from fedsim.data.encoding.archive import check_target, export, read_manifest
    from fedsim.data.encoding.embed import EmbedJob, Work, in_process
    from fedsim.data.encoding.embed import embed as embedded
    from fedsim.data.encoding.encoder import locate
    from fedsim.data.encoding.spec import EncoderSpec
    from fedsim.data.sources.load import image_set
    from fedsim.data.sources.spec import DatasetSpec
    from fedsim.grid.read import parse_option

    check_target(out)
    given = {"size": size, "root": root, "limit": limit, "skip_bad": skip_bad or None}
    spec = parse_option(DatasetSpec, "--dataset", dataset, given).within(Path.cwd())
    asked = parse_option(EncoderSpec, "--encoder", encoder, {"revision": revision, "pool": pool, "dtype": dtype})
    console = plain_console()
    with at("--dataset"):
        images = image_set(spec)
    with at("--encoder"):
        files = locate(asked)
    job = EmbedJob(images.below("--dataset"), files, asked, batch)
    work: Work = in_process
    if actors > 1:
        from fedsim.runs.cluster import local_cluster, this_machine
        from fedsim.runs.embedding import on_actors

        node = this_machine()
        work = on_actors(actors, node, local_cluster(node))
    with interruptible(console):
        export(embedded(job, console, skip_bad=spec.skip_bad, work=work), out)
    manifest = read_manifest(out) or {}
    rows, dim = manifest["shape"]
    skipped = f", {len(manifest['skipped'])} bad images left out" if manifest["skipped"] else ""
    print_line(console, f"{out}: {rows} embeddings of {dim} dimensions{skipped}; manifest: {out.with_suffix('.json')}")
