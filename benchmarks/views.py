"""What the mean over several views of an image changes: ceilings and private scores at ``encoder: {views: K}``, on part of OrganAMNIST.

    python benchmarks/views.py --encoder FOLDER [--root FOLDER] [--dtype bfloat16] [--views 1 4] [--out runs/views]

The same images are embedded with every K; everything else of the grid is equal.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml

import fedsim
from fedsim.data.encoding.embed import EmbedJob, embed
from fedsim.data.encoding.encoder import locate
from fedsim.data.encoding.spec import EncoderSpec
from fedsim.data.images import ImageSet
from fedsim.data.sources.load import image_set
from fedsim.data.sources.spec import DatasetSpec
from fedsim.data.split import TEST, TRAIN, stratified_rows
from fedsim.words import plain_console


def part_of(images: ImageSet, train: int, test: int) -> ImageSet:
    """Fixed stratified choices of training and test images."""
    members = {part: np.flatnonzero(images.split == part) for part in (TRAIN, TEST)}
    rows = [members[part][stratified_rows(images.y[members[part]], size)] for part, size in ((TRAIN, train), (TEST, test))]
    return images.take(np.sort(np.concatenate(rows)))


def main() -> None:
    """Embed, run the grid, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", required=True, help="as in a grid")
    parser.add_argument("--root", type=Path, help="the folder of organamnist.npz; default: the medmnist package's")
    parser.add_argument("--dtype", default="float32", help="bfloat16 is faster where the processor has it")
    parser.add_argument("--train", type=int, default=1500)
    parser.add_argument("--test", type=int, default=750)
    parser.add_argument("--views", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("runs/views"))
    options = parser.parse_args()
    spec = DatasetSpec.model_validate({"name": "medmnist:organamnist"} | ({"root": options.root} if options.root else {}))
    images, sets = part_of(image_set(spec), options.train, options.test), []
    for views in options.views:
        encoder = EncoderSpec.model_validate({"name": options.encoder, "dtype": options.dtype, "views": views})
        path = options.out.with_name(f"{options.out.name}_{views}.npz").absolute()
        embed(EmbedJob(images, locate(encoder)), plain_console()).save(path)
        sets.append({"npz": str(path), "name": f"{views} views", "overlap": "keep"})
    grid = {
        "dataset": sets,
        "algorithms": ["fedhypevae-warm", "dp-gaussian"],
        "epsilon": [1, 8, float("inf")],
        "seeds": list(range(options.seeds)),
        "evaluation": {"per_class": 500, "probe_c": 0.01},
    }
    file = options.out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(grid))
    command = [str(Path(sys.executable).with_name("fedsim")), "bench", "--in-process", "--grid", str(file), "--out", str(options.out)]
    subprocess.run(command, check=True)
    rows = fedsim.load(options.out).rows
    print(rows.groupby("dataset")["ceiling_balanced_accuracy"].mean().round(4).to_string())
    scores = rows.pivot_table("balanced_accuracy", ["label", "epsilon_target", "seed"], "dataset")
    first, *others = sets
    for name in (other["name"] for other in others):  # by seed, as partitions and noise are the same
        scores[f"{name} - {first['name']}"] = scores[name] - scores[first["name"]]
    print(scores.groupby(["label", "epsilon_target"]).agg(["mean", "sem"]).round(4).to_string())


if __name__ == "__main__":
    main()
