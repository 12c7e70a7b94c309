"""Data sets of many shapes out of two or three: do defaults hold for 64 to 1,536 dimensions, 2 to 20 classes, 1,000 to 100,000 rows?

    python benchmarks/shapes.py EMBEDDINGS FOLDER [--json FILE]
    fedsim bench --grid FOLDER/shapes.yaml --out runs/shapes
    fedsim bench --grid FOLDER/shapes.yaml --set 'dataset={npz: FOLDER/rows_12000.npz}' --set clients=[2,100] --out runs/shapes_clients
    fedsim report runs/shapes runs/shapes_clients --format md --measure share_of_ceiling
    fedsim bench --grid FOLDER/few_classes.yaml --out runs/few_classes
    fedsim report runs/few_classes --format md --measure share_of_ceiling
    fedsim bench --grid FOLDER/corners.yaml --out runs/corners
    fedsim report runs/corners --format md --measure share_of_ceiling

EMBEDDINGS holds organamnist_effnetlite0.npz, bloodmnist_effnetlite0.npz and ham10000_sites_effnetlite0.npz (README.md here): real ones,
cut, turned or put together; what is made up about a shape is said at its function. Corners are where rows are few for their dimensions,
or share nearly all of their norm. Sets of many rows repeat real ones, so their ε says nothing about a person.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

GRID = {
    "name": "shapes",
    "algorithms": ["fedhypevae-warm", "fedhypevae-sites", "fedhypevae", "dp-gaussian"],
    "alpha": [0.3],
    "clients": [10],
    "epsilon": [1, 8],
    "seeds": [0],
    "delta": 1e-6,  # below 1 / n for the largest
    "evaluation": {"per_class": 500, "probe_c": 0.01, "readouts": []},
}
FEW = {
    **GRID,
    "name": "few_classes",
    "algorithms": ["fedhypevae-warm", "dp-gaussian", "dp-gmm"],
    "epsilon": [1, 8, float("inf")],
    "seeds": [0, 1, 2],
    "delta": 1e-4,
    "evaluation": {"per_class": 1000, "probe_c": 0.01, "readouts": []},
}
CORNERS = {
    **GRID,
    "name": "corners",
    "algorithms": ["fedhypevae-warm", "fedhypevae-sites", "dp-gaussian", "dp-linear"],
    "seeds": [0, 1, 2, 3, 4],
    "delta": 1e-4,
    "evaluation": {"per_class": 500, "probe_c": 1.0, "readouts": []},  # rows that are nearly alike take a weak penalty
}

Rows = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int8]]
"""Embeddings ``[n, d]``, labels, and 0 for training or 2 for test."""


Read = Callable[[str], Rows]
"""Embeddings of a data set by its name."""


def read(folder: Path, name: str) -> Rows:
    """Those of a file of the folder."""
    with np.load(folder / f"{name}_effnetlite0.npz", allow_pickle=False) as file:
        return file["x"].astype(np.float32), file["y"].astype(np.int64), file["split"]


def fewer(rows: Rows, training: int) -> Rows:
    """So many training rows, and all test rows."""
    x, y, split = rows
    kept = np.concatenate([np.flatnonzero(split == 0)[:training], np.flatnonzero(split != 0)])
    return x[kept], y[kept], split[kept]


def more(rows: Rows, training: int) -> Rows:
    """Training rows again and again, each with noise of a tenth of its norm, so that none is repeated."""
    x, y, split = rows
    stream = np.random.default_rng(0)
    drawn = stream.choice(np.flatnonzero(split == 0), training)
    noise = stream.standard_normal((training, x.shape[1]), dtype=np.float32)
    noise *= 0.1 * np.linalg.norm(x[drawn], axis=1, keepdims=True) / np.sqrt(x.shape[1])
    test = split != 0
    labels = np.concatenate([y[drawn], y[test]])
    return np.concatenate([x[drawn] + noise, x[test]]), labels, np.concatenate([np.zeros(training, np.int8), split[test]])


def turned(rows: Rows, dimensions: int) -> Rows:
    """Fewer dimensions by a random projection; more by random features, rectified, beside those that are there."""
    x, y, split = rows
    stream = np.random.default_rng(0)
    added = dimensions - x.shape[1]
    if added < 0:
        return x @ stream.standard_normal((x.shape[1], dimensions), dtype=np.float32) / np.float32(np.sqrt(dimensions)), y, split
    centred = x - x[split == 0].mean(0)
    found = np.maximum(centred @ stream.standard_normal((x.shape[1], added), dtype=np.float32) / np.float32(np.sqrt(x.shape[1])), 0)
    return np.concatenate([x, found * (x.std() / found.std())], 1), y, split


def alike(rows: Rows, times: float) -> Rows:
    """The same vector added to all rows, so many times as long as they are apart from their mean."""
    x, y, split = rows
    mean = x[split == 0].mean(0)
    apart = np.sqrt(np.square(x[split == 0] - mean).sum(1).mean())
    direction = np.random.default_rng(0).standard_normal(x.shape[1], dtype=np.float32)
    return x - mean + times * apart * direction / np.linalg.norm(direction), y, split


def loud(rows: Rows, times: float) -> Rows:
    """A first feature that is so many times as large as the rows are apart, and varies by a tenth of that without regard to the class."""
    x, y, split = rows
    apart = np.sqrt(np.square(x[split == 0] - x[split == 0].mean(0)).sum(1).mean())
    values = times * apart * (1 + 0.1 * np.random.default_rng(0).standard_normal((len(x), 1), dtype=np.float32))
    return np.concatenate([values, x], 1), y, split


def only(rows: Rows, *classes: int) -> Rows:
    """These classes, numbered in this order."""
    x, y, split = rows
    kept = np.isin(y, classes)
    return x[kept], np.searchsorted(classes, y[kept]).astype(np.int64), split[kept]


def merged(rows: Rows, classes: int) -> Rows:
    """So many classes, each of several that are nothing to each other."""
    x, y, split = rows
    return x, y % classes, split


def twenty_classes(of: Read) -> Rows:
    """Eleven organs, eight kinds of blood cells, and melanocytic naevi."""
    found, labels = [of(name) for name in ("organamnist", "bloodmnist")], 0
    x, y, split = of("ham10000_sites")
    most = y == np.bincount(y).argmax()
    found.append((x[most], np.zeros(int(most.sum()), np.int64), split[most]))
    parts = []
    for x, y, split in found:
        parts.append((x, y + labels, split))
        labels += int(y.max()) + 1
    return tuple(np.concatenate(each) for each in zip(*parts, strict=True))  # type: ignore[return-value]


SHAPES: dict[str, Callable[[Read], Rows]] = {
    "rows_12000": lambda of: of("organamnist"),
    "rows_2000": lambda of: fewer(of("organamnist"), 2_000),
    "rows_100000": lambda of: more(turned(of("organamnist"), 256), 100_000),
    "dimensions_256": lambda of: turned(of("organamnist"), 256),
    "dimensions_1536": lambda of: turned(of("organamnist"), 1_536),
    "classes_2": lambda of: only(of("organamnist"), 0, 1),
    "classes_20": twenty_classes,
}
FEW_CLASSES: dict[str, Callable[[Read], Rows]] = {
    "organs_3": lambda of: only(of("organamnist"), 1, 2, 3),
    "organs_4": lambda of: only(of("organamnist"), 0, 4, 5, 9),
    "cells_2": lambda of: only(of("bloodmnist"), 3, 5),
    "cells_4": lambda of: only(of("bloodmnist"), 1, 3, 5, 7),
    "cells_merged_4": lambda of: merged(of("bloodmnist"), 4),
    "lesions_2": lambda of: only(of("ham10000_sites"), 4, 5),
    "lesions_4": lambda of: only(of("ham10000_sites"), 1, 2, 4, 5),
}
CORNER_CASES: dict[str, Callable[[Read], Rows]] = {
    "cells_4_rows_500": lambda of: fewer(only(of("bloodmnist"), 1, 3, 5, 7), 500),
    "organs_alike": lambda of: alike(turned(of("organamnist"), 256), 15),
    "organs_loud": lambda of: loud(turned(of("organamnist"), 256), 15),
}


def main() -> None:
    """Write the data sets and the grids."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("embeddings", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    of = partial(read, options.embeddings)
    folder: Path = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    table, written = Table("data set", "training rows", "dimensions", "classes"), []
    for grid, shapes in ((GRID, SHAPES), (FEW, FEW_CLASSES), (CORNERS, CORNER_CASES)):
        datasets: list[object] = ["digits"] if shapes is SHAPES else []
        for name, make in shapes.items():
            x, y, split = make(of)
            np.savez(folder / f"{name}.npz", x=x.astype(np.float32 if grid is CORNERS else np.float16), y=y, split=split)
            facts = (int((split == 0).sum()), x.shape[1], int(y.max()) + 1)
            table.add_row(name, *(f"{each:,}" for each in facts))
            written.append({"name": name, **dict(zip(("rows", "dimensions", "classes"), facts, strict=True))})
            datasets.append({"npz": str(folder / f"{name}.npz"), "name": name, "overlap": "keep"})
        (folder / f"{grid['name']}.yaml").write_text(yaml.safe_dump({**grid, "dataset": datasets}, sort_keys=False), encoding="utf-8")
    Console().print(table)
    if options.json is not None:
        options.json.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
