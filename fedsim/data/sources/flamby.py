"""Two natural federations of FLamby (Ogier du Terrail et al. 2022, arXiv 2210.04620): clinical tables whose column ``site`` is the client.

Rows, columns and splits are FLamby's. It standardises by means and deviations of the data, which no budget has paid for: here every
column is divided by a public constant instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedsim.data.embeddings import Embeddings
from fedsim.data.sources.source import Asked, Listing, RootParams, Source, check_held
from fedsim.data.sources.table import complete, read_table
from fedsim.data.split import TEST, TRAIN
from fedsim.errors import UserError, nearest
from fedsim.files import cache_folder

REGIONS = ("Northeast", "South", "West", "Midwest", "Europe", "Canada")
"""The regions that FLamby's split of TCGA-BRCA numbers 0 to 5."""
HOSPITALS = {"cleveland": "Cleveland", "hungarian": "Budapest", "switzerland": "Switzerland", "va": "Long Beach"}
"""The hospitals of Heart Disease, by their files' names."""
AGE_SCALE = 100.0
HEART_SCALES = {"age": AGE_SCALE, "trestbps": 200.0, "chol": 600.0, "thalach": 200.0, "oldpeak": 6.0}
"""Public constants of the order of the columns' largest values."""
_HEART = ("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak", "slope", "ca", "thal", "num")
_LACKING = ("slope", "ca", "thal")
"""Columns that most hospitals lack."""
_KINDS = {"cp": (2, 3, 4), "restecg": (1, 2)}
"""Values of categorical columns that become a column each; the lowest one does not."""


@dataclass(frozen=True)
class Federation:
    """One of FLamby's tables: what its folder must hold (of several any one), where that is to be had, how it is read."""

    read: Callable[[Path, str], Embeddings]
    needed: tuple[str | tuple[str, ...], ...]
    facts: tuple[str, str, str, str]
    url: str


_SPLIT = ("train_test_split.csv", "dataset_creation_scripts/train_test_split.csv")


def load_tcga_brca(root: Path, name: str) -> Embeddings:
    """1,088 patients with breast cancer from 6 regions, 39 columns; the class is whether a death was observed.

    Columns ``site`` and ``patient``, and ``days`` until death or until the last visit.

    Raises:
        UserError: a file or a column is missing.
    """
    split = read_table(next((root / file for file in _SPLIT if (root / file).is_file()), root / _SPLIT[0]), ("pid", "fold", "fold2"))
    patients = read_table(root / "brca.csv", ("pid", "age_at_index", "E", "T")).drop_duplicates("pid").set_index("pid")
    held = patients.reindex(split["pid"])
    if held["E"].isna().any():
        raise UserError(str(root / "brca.csv"), "lacks patients of the split", "take both files from one revision of FLamby")
    region = split["fold2"].astype(str).str.rpartition("_")[2]
    if unknown := sorted(set(region) - set(map(str, range(len(REGIONS))))):
        raise UserError(str(root), f"the split has the region '{unknown[0]}'", f"give 0 to {len(REGIONS) - 1}")
    x = held.drop(columns=["E", "T"]).to_numpy(np.float32)
    x[:, held.columns.get_loc("age_at_index")] /= AGE_SCALE
    columns = {
        "site": np.array(REGIONS)[region.astype(int)],
        "patient": split["pid"].to_numpy(np.str_),
        "days": complete(held.reset_index(), "T").to_numpy(float),
    }
    parts = np.where(split["fold"] == "train", TRAIN, TEST)
    return Embeddings.from_arrays(name, x, held["E"].to_numpy().astype(np.int64), parts, columns, ("no death seen", "death"))


def load_heart_disease(root: Path, name: str) -> Embeddings:
    """740 patients of 4 hospitals, 13 columns; the class is whether an artery is narrowed by half (Janosi et al. 1988).

    As in FLamby three columns that most hospitals lack are left out, then rows with a gap; two categorical columns are a column a value.

    Raises:
        UserError: a file is missing or no such table.
    """
    parts = [_hospital(root / f"processed.{file}.data") for file in HOSPITALS]
    x, y, split = (np.concatenate([part[i] for part in parts]) for i in range(3))
    site = np.repeat(list(HOSPITALS.values()), [len(part[1]) for part in parts])
    return Embeddings.from_arrays(name, x, y, split, {"site": site}, ("healthy", "disease"))


def _hospital(path: Path) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Rows, labels and split of one hospital; the split is the one that FLamby draws."""
    from sklearn.model_selection import train_test_split

    table = read_table(path, names=_HEART, missing="?").drop(columns=list(_LACKING)).dropna()
    try:
        table = table.astype(float)
    except ValueError as error:
        raise UserError(str(path), f"holds what is no number ({error})", "give the processed files of the UCI archive") from error
    kinds = {f"{column}={value}": table[column] == value for column, values in _KINDS.items() for value in values}
    y = np.asarray(table["num"] > 0, np.int64)
    scaled = table.assign(**{column: table[column] / scale for column, scale in HEART_SCALES.items()})
    x = scaled.drop(columns=["num", *_KINDS]).assign(**kinds).to_numpy(np.float32)
    counts = np.bincount(y, minlength=2)
    stratify = y if counts.min() > 2 else None
    train, _ = train_test_split(np.arange(len(y)), test_size=0.34, train_size=0.66, random_state=43, stratify=stratify)
    split = np.full(len(y), TEST, np.int64)
    split[train] = TRAIN
    return x, y, split


FEDERATIONS = {
    "tcga-brca": Federation(
        load_tcga_brca,
        ("brca.csv", _SPLIT),
        ("2", "866 / 222, by region", "39 columns", "GDC open access"),
        "https://github.com/owkin/FLamby/tree/main/flamby/datasets/fed_tcga_brca",
    ),
    "heart-disease": Federation(
        load_heart_disease,
        tuple(f"processed.{file}.data" for file in HOSPITALS),
        ("2", "486 / 254, by hospital", "13 columns", "CC BY 4.0"),
        "https://archive.ics.uci.edu/dataset/45/heart+disease",
    ),
}
"""By what follows ``flamby:``."""


def _check(argument: str) -> None:
    if argument not in FEDERATIONS:
        raise ValueError(f"unknown federation 'flamby:{argument}'; {nearest(argument, FEDERATIONS)}")


def _root(argument: str) -> Path:
    return cache_folder() / "flamby" / argument


def _load(asked: Asked) -> Embeddings:
    federation, root = FEDERATIONS[asked.argument], asked.given.root or _root(asked.argument)
    check_held(root, f"flamby:{asked.argument}", federation.needed, federation.url)
    return federation.read(root, asked.name)


def _listing() -> list[Listing]:
    held = {name: "yes" if _root(name).is_dir() else f"no; root: FOLDER or {_root(name)}" for name in FEDERATIONS}
    return [Listing(f"flamby:{name}", *one.facts, one.url, held[name]) for name, one in FEDERATIONS.items()]


FLAMBY = Source(
    _listing,
    embeddings=_load,
    argument="<federation>",
    params=RootParams,
    published=True,
    check=_check,
    display=lambda argument, _: argument,
)
