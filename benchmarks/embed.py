"""Throughput of ``fedsim embed`` against a bare ``model(pixels)`` loop at the same batch size, and its peak memory at two sizes.

    python benchmarks/embed.py [--images 192] [--batch 16] [--json FILE]

The encoder is DINOv2 of the given architecture with random weights (speed does not depend on them); the images are made-up JPEG files.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from fedsim.data.encoding.embed import EmbedJob, embed
from fedsim.data.encoding.encoder import EncoderFiles, best_device, locate
from fedsim.data.encoding.spec import EncoderSpec
from fedsim.data.images import ImageSet
from fedsim.data.sources.folder import load_image_folder

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    "small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
}


@dataclass(frozen=True)
class Record:
    """One measurement.

    Attributes:
        encoder: architecture.
        device: where it ran.
        batch: images at once.
        images: how many.
        bare_images_per_s: of the model alone, pixels at hand (median over repetitions).
        embed_images_per_s: of everything from file to cached embeddings (median over repetitions).
        ratio: the second over the first.
        peak_mib: peak resident memory of a process that embeds ``--memory-images`` images with a tiny encoder; and four times as many.
    """

    encoder: str
    device: str
    batch: int
    images: int
    bare_images_per_s: float
    embed_images_per_s: float
    ratio: float
    peak_mib: tuple[float, float]


def save_encoder(folder: Path, shape: str) -> None:
    """The architecture with random weights and DINOv2's own preprocessing: 256 pixels, the central 224."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    Dinov2Model(Dinov2Config(image_size=518, patch_size=14, **SHAPES[shape])).save_pretrained(folder)
    processor = BitImageProcessor(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224})
    processor.save_pretrained(folder)


def save_images(root: Path, images: int, pixels: int) -> ImageSet:
    """JPEG files of two classes."""
    rng = np.random.default_rng(0)
    for n in range(images):
        folder = root / f"class{n % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        coarse.resize((pixels, pixels), Image.Resampling.BICUBIC).save(folder / f"{n}.jpg", quality=90)
    return load_image_folder(root, root.name)


def bare_rate(files: EncoderFiles, images: ImageSet, batch: int) -> float:
    """Images a second of a bare loop over pixels that are ready."""
    encoder = files.load(best_device())
    pixels = encoder.pixels([images.decoder(i)() for i in range(batch)])
    encoder.embed(pixels)
    batches = len(images) // batch
    start = time.perf_counter()
    for _ in range(batches):
        encoder.embed(pixels)
    return batches * batch / (time.perf_counter() - start)


def embed_rate(files: EncoderFiles, images: ImageSet, batch: int, cache: Path) -> float:
    """Images a second from files to cached embeddings, without loading the model (which is once, however many images there are)."""
    os.environ["FEDSIM_CACHE"] = str(cache)
    job = EmbedJob(images, files, batch)
    encoder = files.load(best_device())

    def work(job: EmbedJob, numbers: Any) -> Any:
        from fedsim.data.encoding.shards import embedded_shards

        threads = 1 if encoder.device == "cpu" else max(1, joblib.cpu_count() - 1)
        return embedded_shards(encoder, job.images, numbers, job.batch, threads)

    start = time.perf_counter()
    embed(job, Console(file=io.StringIO()), work=work)
    return len(images) / (time.perf_counter() - start)


def peak_mib(folder: Path, encoder: Path, batch: int, cache: Path) -> float:
    """Peak resident memory of a ``fedsim embed`` of its own."""
    arguments = ["fedsim", "embed", "--dataset", f"imagefolder:{folder}", "--encoder", str(encoder), "--batch", str(batch)]
    script = f"import sys; sys.argv = {[*arguments, '--out', str(cache / 'out.npz')]!r}\n"
    # VmHWM starts anew with the program, unlike getrusage's maximum, which a child inherits
    script += "from fedsim.cli import app\napp(standalone_mode=False)\nprint(open('/proc/self/status').read())"
    environment = {**os.environ, "FEDSIM_CACHE": str(cache)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    (peak,) = (line.split()[1] for line in done.stdout.splitlines() if line.startswith("VmHWM"))
    return round(int(peak) / 1024, 1)


def measure(shape: str, images: int, batch: int, pixels: int, repetitions: int, memory_images: int) -> Record:
    """Bare loop and embed in turn, so that what the machine does meanwhile hits both alike."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        save_encoder(root / "encoder", shape)
        files = locate(EncoderSpec(name=str(root / "encoder")))
        held = save_images(root / "images", images, pixels)
        bare, whole = [], []
        for n in range(repetitions):
            bare.append(bare_rate(files, held, batch))
            whole.append(embed_rate(files, held, batch, root / f"cache{n}"))
        save_encoder(root / "tiny", "tiny")
        few, many = (save_images(root / f"few{n}", n, pixels) for n in (memory_images, 4 * memory_images))
        peaks = [peak_mib(root / each.name, root / "tiny", batch, root / f"peak{len(each)}") for each in (few, many)]
    medians = statistics.median(bare), statistics.median(whole)
    ratio = statistics.median(b / a for a, b in zip(bare, whole, strict=True))
    return Record(shape, best_device(), batch, images, round(medians[0], 2), round(medians[1], 2), round(ratio, 3), (peaks[0], peaks[1]))


def main() -> None:
    """Measure, print, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", choices=sorted(SHAPES), default="small", help="architecture")
    parser.add_argument("--images", type=int, default=96, help="a multiple of the batch")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pixels", type=int, default=320, help="of the image files")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--memory-images", type=int, default=1000, help="images of the smaller memory run")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the model")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    record = measure(options.encoder, options.images, options.batch, options.pixels, options.repetitions, options.memory_images)
    table = Table(title="fedsim embed")
    for name in asdict(record):
        table.add_column(name)
    table.add_row(*(str(value) for value in asdict(record).values()))
    Console(width=140).print(table)
    if options.json:
        options.json.write_text(json.dumps(asdict(record), indent=1) + "\n")


if __name__ == "__main__":
    main()
