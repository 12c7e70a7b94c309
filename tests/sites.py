"""Digits in three hospitals' hands, as a file: the sites hold different numbers of rows."""

from pathlib import Path
from typing import Any

import numpy as np

from fedsim.data.sources.load import load
from fedsim.data.spec import DatasetSpec

SITES = ("north", "south", "west")


def digits_of_sites(folder: Path) -> Path:
    """An embedding file with a column ``site``; a third of the rows is north's, half south's."""
    digits = load(DatasetSpec(name="digits", limit=300))
    x, y = np.concatenate([digits.x_train, digits.x_test[:150]]), np.concatenate([digits.y_train, digits.y_test[:150]])
    site = np.array(SITES)[np.array([0, 1, 1, 0, 1, 2])[np.random.default_rng(0).integers(6, size=len(y))]]
    split = np.repeat([0, 2], [300, 150])
    path = folder / "sites.npz"
    np.savez(path, x=x, y=y, split=split, site=site)
    return path


def digits_of_writers(folder: Path, **columns: Any) -> Path:
    """The digits of sites with a column ``writer``: one row to eleven of one site each, training and test rows apart."""
    path = digits_of_sites(folder)
    with np.load(path, allow_pickle=False) as file:
        held = dict(file)
    order = np.lexsort((held["site"], held["split"]))
    held = {name: values[order] for name, values in held.items()}
    rng = np.random.default_rng(0)
    begins = (rng.random(len(order)) < 0.5) | np.concatenate([[True], held["site"][1:] != held["site"][:-1]])
    begins |= np.concatenate([[True], held["split"][1:] != held["split"][:-1]])
    held["writer"] = np.char.add("w", np.cumsum(begins).astype(np.str_))
    np.savez(path, **(held | columns))
    return path
