"""Where data sets come from: those known by name, and ``.npz`` files of embeddings."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedsim.data.embeddings import TEST, TRAIN, VALIDATION, Embeddings
from fedsim.data.normalise import unit_norm
from fedsim.errors import UserError, nearest

_SPLIT_SEED = 20240601
"""Public and fixed: which rows are test rows, or survive a ``limit``, is part of the data set, not of an experiment."""

Arrays = dict[str, NDArray[Any]]


class DatasetSpec(BaseModel):
    """Which data set: a known name (``digits``), or a mapping ``{npz: PATH}``.

    Attributes:
        name: a known data set's name; with ``npz``, what tables call it (default: the file's stem).
        npz: a file with arrays ``x`` [n, d], ``y`` [n], ``split`` [n] (0 = train, 2 = test); further arrays [n] are columns.
        limit: keep at most so many training rows, a fixed stratified choice; None keeps all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = Field(default=None, min_length=1)
    npz: Path | None = None
    limit: int | None = Field(default=None, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _known(self) -> DatasetSpec:
        if self.npz is None:
            if self.name is None:
                raise ValueError(f"names no data; give {', '.join(NAMED)} or {{npz: PATH}}")
            if self.name not in NAMED:
                hint = f"write {{npz: {self.name}}}" if self.name.endswith(".npz") else nearest(self.name, NAMED)
                raise ValueError(f"unknown data set '{self.name}'; {hint}")
        return self

    @property
    def display(self) -> str:
        """What tables and curves call the data set."""
        name = self.name or (self.npz.stem if self.npz else "")
        return name if self.limit is None else f"{name}[:{self.limit}]"

    @property
    def key(self) -> str:
        """A text that two specs share exactly when they mean the same source and the same rows."""
        source = self.name if self.npz is None else f"npz:{self.npz}"
        return f"{source}[:{'' if self.limit is None else self.limit}]"

    def within(self, folder: Path) -> DatasetSpec:
        """The same data set with a relative ``npz`` path taken from ``folder``."""
        if self.npz is None:
            return self
        return self.model_copy(update={"npz": Path(os.path.abspath(folder / os.path.expanduser(self.npz)))})


def load(spec: DatasetSpec, where: str) -> Embeddings:
    """Read a data set, check it, and scale its rows to unit norm.

    Args:
        spec: which data set.
        where: the place to name in an error.

    Raises:
        UserError: the file is missing or is not a data set of embeddings, or ``limit`` is less than the number of classes.
    """
    if spec.npz is None:
        arrays = NAMED[str(spec.name)]()
    else:
        where = f"{where}: {spec.npz}"
        arrays = _npz(spec.npz, where)
    x, y, split = (arrays.pop(key) for key in ("x", "y", "split"))
    columns = {key: values for key, values in arrays.items() if values.shape == (len(y),)}
    whole = Embeddings.from_arrays(spec.display, x, y, split, columns, where=where)
    kept = whole if spec.limit is None else _limited(whole, spec.limit, where)
    return replace(kept, x_train=unit_norm(kept.x_train), x_test=unit_norm(kept.x_test))


class TrainingRows(NamedTuple):
    """What a partition is made of: labels int64 ``[n]``, columns ``[n]`` each, and what the classes are called."""

    y: NDArray[np.int64]
    columns: Mapping[str, NDArray[Any]]
    class_names: tuple[str, ...]


def training_rows(spec: DatasetSpec, where: str) -> TrainingRows:
    """Labels and columns of the training rows, without a look at images or embeddings where that can be avoided.

    Raises:
        UserError: as ``load``.
    """
    data = load(spec, where)
    return TrainingRows(data.y_train, data.columns, tuple(map(str, range(data.classes))))


def stratified_rows(y: NDArray[np.int64], size: int, seed: int) -> NDArray[np.int64]:
    """Choose ``size`` rows whose label counts follow those of ``y``, at least one row of every class.

    Args:
        y: labels ``[n]`` in 0 .. C-1, every class present.
        size: how many rows, between C and n.
        seed: of the choice inside each class.

    Returns:
        Sorted row numbers int64 ``[size]``.
    """
    counts = np.bincount(y)
    spare = counts - 1
    exact = spare * ((size - len(counts)) / max(int(spare.sum()), 1))
    quota = 1 + np.floor(exact).astype(np.int64)
    # the largest remainders, the lower class first, take what rounding down left over
    order = np.argsort(np.floor(exact) - exact, kind="stable")
    quota[order[: size - int(quota.sum())]] += 1
    rng = np.random.default_rng(seed)
    return np.sort(np.concatenate([rng.permutation(np.flatnonzero(y == c))[: quota[c]] for c in range(len(counts))]))


def _limited(data: Embeddings, limit: int, where: str) -> Embeddings:
    if limit >= len(data.y_train):
        return data
    if limit < data.classes:
        raise UserError(where, f"limit {limit} leaves some of the {data.classes} classes without a row", "give a larger limit")
    rows = stratified_rows(data.y_train, limit, _SPLIT_SEED)
    columns = {key: values[rows] for key, values in data.columns.items()}
    return replace(data, x_train=data.x_train[rows], y_train=data.y_train[rows], columns=columns)


def _digits() -> Arrays:
    """Scikit-learn's 8 x 8 digits, pixels / 16, a stratified quarter of the 1,797 rows for testing."""
    from sklearn.datasets import load_digits

    pixels, y = load_digits(return_X_y=True)
    split = np.full(len(y), TRAIN)
    split[stratified_rows(y, round(len(y) / 4), _SPLIT_SEED)] = TEST
    return {"x": (pixels / 16).astype(np.float32), "y": y, "split": split}


def _npz(path: Path, where: str) -> Arrays:
    if not os.path.isfile(path):  # unlike Path.is_file, never raises
        raise UserError(where, "there is no such file", "give the path of an .npz file, relative to the grid file")
    try:
        # pickled arrays can run code when they are read
        opened = np.load(path, allow_pickle=False)
        arrays: Arrays = {key: opened[key] for key in opened.files} if isinstance(opened, np.lib.npyio.NpzFile) else {}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, UnpicklingError) as error:
        raise UserError(where, f"cannot be read ({error})", "give an .npz file of plain arrays x, y and split") from error
    if missing := [key for key in ("x", "y", "split") if key not in arrays]:
        held = f"it holds {', '.join(sorted(arrays))}" if arrays else "it holds no named arrays"
        raise UserError(where, f"there is no array '{missing[0]}'", f"give x [n, d], y [n] and split [n] ({held})")
    return arrays


NAMED: dict[str, Callable[[], Arrays]] = {"digits": _digits}
"""The data sets known by name: functions that yield the arrays x, y and split."""

__all__ = ["NAMED", "TEST", "TRAIN", "VALIDATION", "DatasetSpec", "load", "stratified_rows"]
